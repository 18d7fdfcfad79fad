"""The benchmarks by protocol, each a module of this folder: ``protocol`` in conf/benchmark names one. A new one gets a line here."""

from stages.benchmarks import alpacaeval2, arena_hard, mt_bench, oracle
from stages.benchmarks.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "alpacaeval2": alpacaeval2.BENCHMARK,
    "alpacaeval2_fn": alpacaeval2.FUNCTION_CALL,
    "alpacaeval2_ranking": alpacaeval2.RANKING,
    "arena_hard": arena_hard.BENCHMARK,
    "mt_bench": mt_bench.BENCHMARK,
    "oracle": oracle.BENCHMARK,
}
