"""The benchmarks' protocols, each a module, and the client that asks a judge.

``VERSIONS``: whose protocol in which state each is. conf/benchmark states it, planning holds the two together, and every score carries it.
"""

VERSIONS = {
    "alpacaeval2": "AlpacaEval 2.0 (weighted_alpaca_eval_gpt4_turbo, length_controlled_v1)",
    "arena_hard": "Arena-Hard v0.1 (arena-hard-auto d99b139)",
    "mt_bench": "MT-Bench, single-answer grading (FastChat 0e6d3e4)",
    "oracle": "the mini world's oracle",
}
