"""Controls of a judge: what it says of answers that are none, and whether it is the order of two answers that it judges.

    python -m stages.controls --config results/controls/mini/config.yaml --runtime concurrency=16 timeout=60 max_retries=5
    python -m stages.controls --config results/controls/mini/config.yaml --estimate     # what it would cost; nothing is called

A model's text is data, also where it looks like a verdict; a constant answer has won most comparisons (Zheng, Pang et al. 2024, arXiv
2410.07137), and judges prefer what is shown first (Zheng, Chiang et al. 2023, arXiv 2306.05685, section 3.3). On ``prompts`` questions
spread evenly over each benchmark, by its own protocol:

    real        the answers of a run, against which the controls are read
    empty       no text at all
    embedded    one text to every question, which holds a verdict in the protocol's own form, and says that it is the one to choose
    orders      the real answers and the baseline's, shown in both orders: ``agreement``, the share of questions on which both have the
                same winner, a tie being one of three; ``first_shown``, the share of their judgments for what is shown first, a tie half
                a judgment, so that 0.5 is no bias

``win_rate``, in percent: AlpacaEval's raw win rate, Arena-Hard's points a battle; ``rating``: MT-Bench's mean, of 10. A judgment that
failed stays out, and is counted by the kind of its failure.

In: each benchmark as in the judge stage's configuration, and the judge. Out: the manifest and ``controls.json``, a list of {"benchmark",
"control", "metric", "value", "standard_error", "n", "failed", "failures", "note"}, ``n`` being judgments, and questions where they are
about ``agreement``. Runtime knobs, local server, cache and budget are the judge stage's: real answers that it has judged cost nothing more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from statistics import fmean
from typing import Any

from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import EMBEDDED, EMPTY, EXCHANGED, REAL, Values
from stages.benchmarks.rows import Row
from stages.judging.session import estimate, open_judge, read_stage_config, rehearse
from stages.lib import files

ORDERS = "orders"
ONE_ANSWER = "the judge is shown one answer, which has no order"
READ = ("answers", "baseline", "questions", "references", "template")  # keys of a benchmark that name a file


def mean(values: Values) -> tuple[float | None, float | None]:
    """The mean of all values, and its standard error over the questions, whose values stand and fall together.

    Of the ratio of two sums: with N values, k questions and their mean m, sqrt(k / (k - 1) sum over questions of (sum (x - m))^2) / N. None
    where there is no value; no error below two questions, or where none is off the mean, which says nothing of the next one.
    """
    values = [of_question for of_question in values if of_question]
    if not values:
        return None, None
    every = [x for of_question in values for x in of_question]
    center = fmean(every)
    off = sum(sum(x - center for x in of_question) ** 2 for of_question in values)
    error = math.sqrt(off * len(values) / max(len(values) - 1, 1)) / len(every)
    return center, error if len(values) > 1 and error > 1e-9 else None


def measure(name: str, conf: dict[str, Any], judged: Mapping[str, list[Row]]) -> list[Row]:
    """The rows of a benchmark's controls. conf: its part of the stage's configuration; judged: the judgments of each work."""
    benchmark = BENCHMARKS[conf["protocol"]]
    controls = benchmark.controls
    assert controls is not None

    def row(control: str, metric: str, values: Values, works: list[str], n: int | None = None, note: str | None = None) -> Row:
        judgments = [judgment for work in works for row in judged[work] for judgment in row.get("games", [row])]
        failures = Counter(filter(None, map(benchmark.failure_of, judgments)))
        value, error = mean(values)
        counts = {"n": len(judgments) - failures.total() if n is None else n, "failed": failures.total(), "failures": dict(failures)}
        return {"benchmark": name, "control": control, "metric": metric, "value": value, "standard_error": error, **counts, "note": note}

    first = judged[REAL][0]
    notes = {REAL: f"the answers of {first.get('model') or first.get('generator_2')}", EMPTY: None, EMBEDDED: None}
    rows = [row(key, controls.metric, controls.values(judged[key]), [key], note=note) for key, note in notes.items()]
    if controls.first is None:
        return rows + [row(ORDERS, metric, [], [], note=ONE_ANSWER) for metric in ("agreement", "first_shown")]
    shown = controls.first(conf, judged)
    works = [key for key in (REAL, EXCHANGED) if key in judged]
    rows.append(row(ORDERS, "agreement", [[float(one == 1 - other)] for one, other in shown], works, len(shown)))
    rows.append(row(ORDERS, "first_shown", shown, works, 2 * len(shown)))
    return rows


def main() -> None:
    config, folder = files.stage_config(__doc__, dry="estimate")
    wanted, cache = read_stage_config(config)
    judge, benchmarks = wanted["judge"], wanted["benchmarks"]
    known = {name: BENCHMARKS[benchmark["protocol"]] for name, benchmark in benchmarks.items()}
    works = {name: one.controls.works(benchmarks[name], judge, wanted["prompts"]) for name, one in known.items() if one.controls}
    if config.dry:
        each = {f"{name} {key}": (known[name].tokens, work) for name in works for key, work in works[name].items()}
        print(f"estimate: controls of {judge['name']}, by {judge['model']}\n{estimate(each, judge, cache)}")
        return
    rows = []
    rehearse(work for of_benchmark in works.values() for work in of_benchmark.values())
    with open_judge(wanted, cache, folder / "config.yaml") as (asker, check):
        for name in works:
            judged = {key: work(ask=partial(asker.ask, label=f"controls {name} {key}")) for key, work in works[name].items()}
            check()  # a server's death would else pass for failed judgments
            rows += measure(name, benchmarks[name], judged)
    files.write_json(folder / "controls.json", rows)
    read = {benchmark[key] for benchmark in benchmarks.values() for key in READ if key in benchmark}
    files.write_manifest(folder, config, inputs=sorted(read))
    for row in rows:
        value = "none" if row["value"] is None else f"{row['value']:.4g}"
        print("controls: {benchmark} {control}: {metric} ".format(**row) + value + "; {n} judged, {failed} failed".format(**row))


if __name__ == "__main__":
    files.run(main)
