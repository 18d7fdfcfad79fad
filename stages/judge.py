"""Judge one run's answers: every benchmark by its own protocol, in one job.

    python -m stages.judge --config results/mini_base/runs/dpo/eval/judge.yaml --runtime concurrency=16 timeout=60 max_retries=5
    python -m stages.judge --config results/llama3_base/runs/dpo/eval/judge.yaml --estimate     # prints the cost, and calls nothing

In: for each of ``benchmarks``, the run's answers and what they are compared with; and the judge: an endpoint (``base_url``,
``api_key_env``), or a local ``server`` that lives as long as this stage. Out: each benchmark's ``judgments`` in its own format
(AlpacaEval's annotations.json, model_judgment.jsonl), written as soon as the benchmark is done. Each row has a judgment or says why it
failed. ``--runtime`` takes what stages/judging/client.py takes, among it ``budget`` in dollars. stages/judging/session.py describes
server, cache and budget.
"""

from __future__ import annotations

from functools import partial

from stages.benchmarks import BENCHMARKS
from stages.judging.session import estimate, judgments, read_stage_config
from stages.lib import files


def main() -> None:
    config, folder = files.stage_config(__doc__, dry="estimate")
    wanted, cache = read_stage_config(config)
    judge, benchmarks = wanted["judge"], wanted["benchmarks"]
    known = {name: BENCHMARKS[benchmark["protocol"]] for name, benchmark in benchmarks.items()}
    works = {name: (benchmark.tokens, partial(benchmark.judge, benchmarks[name], judge)) for name, benchmark in known.items()}
    if config.dry:
        print(f"estimate: {wanted['run']}, by {judge['model']}\n{estimate(works, judge, cache)}")
        return
    for name, rows in judgments(works, wanted, cache, folder / "judge.yaml", wanted["run"]):
        files.write_rows(benchmarks[name]["judgments"], rows)
        made = [judgment for row in rows for judgment in row.get("games", [row])]  # a row of Arena-Hard holds two
        failed = sum(bool(judgment.get("failure")) for judgment in made)
        print(f"judge: {wanted['run']} {name}: {len(made)} judgments, {failed} failed")


if __name__ == "__main__":
    files.run(main)
