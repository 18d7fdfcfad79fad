"""Judge one run's answers: every benchmark by its own protocol, in one job.

    python -m stages.judge --config results/mini_base/runs/dpo/eval/judge.yaml --runtime concurrency=16 timeout=60 max_retries=5
    python -m stages.judge --config results/llama3_base/runs/dpo/eval/judge.yaml --estimate     # what it would cost; nothing is called

In: the run's answers and what each benchmark compares them with (``benchmarks``), and the judge: an endpoint
(``base_url``, ``api_key_env``), or a local ``server`` that lives as long as this stage. Out: each benchmark's ``judgments`` in its
own format (AlpacaEval's annotations.json, model_judgment.jsonl), each with a judgment or a recorded failure, written as soon as the
benchmark is done. ``--runtime``: what stages/judging/client.py takes, ``budget`` (dollars) among it. Server, cache and budget:
stages/judging/session.py.
"""

from __future__ import annotations

from functools import partial

from stages.benchmarks import BENCHMARKS
from stages.benchmarks.rows import Row
from stages.judging.session import estimate, open_judge, read_stage_config, rehearse
from stages.lib import files


def failures(rows: list[Row]) -> tuple[int, int]:
    """How many judgments there are in ``rows``, and how many of them failed; Arena-Hard's rows hold two."""
    judgments = [judgment for row in rows for judgment in row.get("games", [row])]
    return len(judgments), sum(bool(judgment.get("failure")) for judgment in judgments)


def main() -> None:
    config, folder = files.stage_config(__doc__, dry="estimate")
    wanted, cache = read_stage_config(config)
    judge, benchmarks = wanted["judge"], wanted["benchmarks"]
    known = {name: BENCHMARKS[benchmark["protocol"]] for name, benchmark in benchmarks.items()}
    works = {name: (benchmark.tokens, partial(benchmark.judge, benchmarks[name], judge)) for name, benchmark in known.items()}
    if config.dry:
        print(f"estimate: {wanted['run']}, by {judge['model']}\n{estimate(works, judge, cache)}")
        return
    rehearse(work for tokens, work in works.values() if tokens)
    with open_judge(wanted, cache, folder / "judge.yaml") as (asker, check):
        for name, (_, work) in works.items():
            rows = work(ask=partial(asker.ask, label=f"{wanted['run']} {name}"))
            check()  # a server's death would else pass for failed judgments
            path = benchmarks[name]["judgments"]
            files.write_rows(path, rows)
            print("judge: {} {}: {} judgments, {} failed".format(wanted["run"], name, *failures(rows)))


if __name__ == "__main__":
    files.run(main)
