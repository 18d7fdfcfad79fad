"""Judge one run's answers: every benchmark by its own protocol, in one job.

    python -m stages.judge --config results/mini_base/runs/dpo/eval/judge.yaml --runtime concurrency=16 timeout=60 max_retries=5
    python -m stages.judge --config results/llama3_base/runs/dpo/eval/judge.yaml --estimate     # what it would cost; nothing is called

In: the run's answers and what each benchmark compares them with (the slice's ``benchmarks``), and the judge: an endpoint
(``base_url``, ``api_key_env``), or a local ``server`` that lives as long as this stage. Out: each benchmark's ``judgments`` in its
own format (AlpacaEval's annotations.json, model_judgment.jsonl), each with a judgment or a recorded failure, written as soon as the
benchmark is done. ``--runtime``: what stages/judging/client.py takes, ``budget`` (dollars) among it. Server, cache and budget:
stages/judging/session.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from stages.benchmarks import alpacaeval2, arena_hard, mt_bench
from stages.benchmarks.rows import ANSWER, MODEL_ANSWER, Row, check_same, read_rows
from stages.judging.client import Ask
from stages.judging.session import estimate, open_judge, read_slice, rehearse
from stages.lib import files


def judge_alpacaeval2(benchmark: dict[str, Any], judge: dict[str, Any], ask: Ask) -> list[Row]:
    answers = read_rows(benchmark["answers"], ANSWER)
    rows = alpacaeval2.annotate(
        answers,
        read_rows(benchmark["baseline"], ANSWER),
        template=files.read_text(benchmark["template"]),
        swap_seed=benchmark["swap_seed"],
        decoding=benchmark["decoding"],
        ask=ask,
        annotator=judge["name"],
        judge=judge["model"],
    )
    return checked(answers, rows)


def judge_oracle(benchmark: dict[str, Any], judge: dict[str, Any], ask: Ask) -> list[Row]:
    from stages.mini import oracle

    answers = read_rows(benchmark["answers"], ANSWER)
    return checked(answers, oracle.annotate(answers, benchmark["world"]))


def checked(answers: list[Row], judgments: list[Row]) -> list[Row]:
    """``judgments``, one for each of ``answers`` in the same order; UserError where one is left out."""
    check_same("the answers", [row["instruction"] for row in answers], "their judgments", [row["instruction"] for row in judgments])
    return judgments


def judge_arena_hard(benchmark: dict[str, Any], judge: dict[str, Any], ask: Ask) -> list[Row]:
    return arena_hard.annotate(
        read_rows(benchmark["answers"], MODEL_ANSWER),
        read_rows(benchmark["questions"], ("question_id", "turns")),
        read_rows(benchmark["baseline"], MODEL_ANSWER),
        config=arena_hard.read_config(benchmark["template"]),
        decoding=benchmark["decoding"],
        ask=ask,
        judge=judge["model"],
    )


def judge_mt_bench(benchmark: dict[str, Any], judge: dict[str, Any], ask: Ask) -> list[Row]:
    return mt_bench.annotate(
        read_rows(benchmark["answers"], MODEL_ANSWER),
        read_rows(benchmark["questions"], mt_bench.QUESTION),
        read_rows(benchmark["references"], MODEL_ANSWER),
        prompts=read_rows(benchmark["template"], mt_bench.PROMPT),
        decoding=benchmark["decoding"],
        ask=ask,
        judge=judge["model"],
    )


PROTOCOLS = {"alpacaeval2": judge_alpacaeval2, "arena_hard": judge_arena_hard, "mt_bench": judge_mt_bench, "oracle": judge_oracle}


def failures(rows: list[Row]) -> tuple[int, int]:
    """How many judgments there are in ``rows``, and how many of them failed; Arena-Hard's rows hold two."""
    judgments = [judgment for row in rows for judgment in row.get("games", [row])]
    return len(judgments), sum(bool(judgment.get("failure")) for judgment in judgments)


def main() -> None:
    config, folder = files.stage_config(__doc__, dry="estimate")
    wanted, cache = read_slice(config, PROTOCOLS)
    judge, benchmarks = wanted["judge"], wanted["benchmarks"]
    protocols = {name: benchmark["protocol"] for name, benchmark in benchmarks.items()}
    works = {name: (protocol, partial(PROTOCOLS[protocol], benchmarks[name], judge)) for name, protocol in protocols.items()}
    if config.dry:
        print(f"estimate: {wanted['run']}, by {judge['model']}\n{estimate(works, judge, cache)}")
        return
    rehearse(work for _, work in works.values())
    with open_judge(wanted, cache, folder / "judge.yaml") as (asker, check):
        for name, (_, work) in works.items():
            rows = work(ask=partial(asker.ask, label=f"{wanted['run']} {name}"))
            check()  # a server's death would else pass for failed judgments
            path = benchmarks[name]["judgments"]
            (files.write_jsonl if path.endswith(".jsonl") else files.write_json)(path, rows)
            print("judge: {} {}: {} judgments, {} failed".format(wanted["run"], name, *failures(rows)))


if __name__ == "__main__":
    files.run(main)
