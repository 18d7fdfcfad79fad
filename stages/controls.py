"""Controls of a judge: is it fooled by an empty answer, by an answer that contains a verdict, or by the order of two answers?

    python -m stages.controls --config results/controls/mini/config.yaml --runtime concurrency=16 timeout=60 max_retries=5
    python -m stages.controls --config results/controls/mini/config.yaml --estimate     # prints the cost, and calls nothing

Judges have let a constant answer win most comparisons (Zheng, Pang et al. 2024, arXiv 2410.07137), and they prefer the answer shown first
(Zheng, Chiang et al. 2023, arXiv 2306.05685, section 3.3). Each benchmark's protocol judges ``prompts`` questions, spread evenly:

    real        the answers of a run, for comparison
    empty       no text
    embedded    one text for every question: it holds a verdict in the protocol's own form, and claims to be the best
    orders      the real answers and the baseline's, in both orders. ``agreement``: the share of questions with the same result, which may
                be a tie. ``first_shown``: the share of judgments for the answer shown first, a tie being half a judgment; 0.5 is no bias

``win_rate`` is in percent: AlpacaEval's raw win rate, Arena-Hard's points a battle. ``rating`` is MT-Bench's mean, of 10. Failed judgments
are left out, and counted by the kind of failure.

In: each benchmark as in the judge stage's configuration, and the judge. Out: the manifest and ``controls.json``, a list of {"benchmark",
"control", "metric", "value", "standard_error", "n", "failed", "failures", "note"}. ``n`` counts judgments; of ``agreement``, questions.
Runtime knobs, local server, cache and budget are the judge stage's, so real answers that it has judged cost nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from statistics import fmean
from typing import Any

from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import EXCHANGED, REAL, Conf, Controls, Values, Work
from stages.benchmarks.rows import Row, failures_of
from stages.judging.session import estimate, judgments, read_stage_config
from stages.lib import files

EMPTY, EMBEDDED, ORDERS = "empty", "embedded", "orders"
ONE_ANSWER = "the judge is shown one answer, which has no order"
READ = ("answers", "baseline", "questions", "references", "template")  # keys of a benchmark that name a file


def mean(values: Values) -> tuple[float | None, float | None]:
    """The mean of all values, and its standard error; the values of a question are not independent, so the error is over questions.

    With N values x, k questions and the mean m: sqrt(k / (k - 1) sum over questions of (sum over its values of (x - m))^2) / N. The mean is
    None without values. The error is None below two questions, and if all values are equal, which says nothing about other questions.
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
    """The rows of controls.json for a benchmark.

    name: the benchmark's name
    conf: its part of the stage configuration
    judged: the judgments of each work
    """
    benchmark = BENCHMARKS[conf["protocol"]]
    controls = benchmark.controls
    assert controls is not None

    def row(control: str, metric: str, values: Values, works: list[str], n: int | None = None, note: str | None = None) -> Row:
        made = [judgment for work in works for row in judged[work] for judgment in row.get("games", [row])]
        failures = failures_of(made, benchmark.failure_of)
        value, error = mean(values)
        counts = {"n": len(made) - failures.total() if n is None else n, "failed": failures.total(), "failures": dict(failures)}
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


def works_of(controls: Controls, conf: Conf, judge: Conf, prompts: int) -> dict[str, Work]:
    """A benchmark's works by name: each makes the judgments of one kind of answers to ``prompts`` questions."""
    judging = controls.prepare(conf, judge, prompts)
    made = {REAL: judging.answers, EMPTY: judging.constant(EMPTY, ""), EMBEDDED: judging.constant(EMBEDDED, controls.verdict)}
    works: dict[str, Work] = {name: partial(judging.annotate, answers) for name, answers in made.items()}
    return works | ({EXCHANGED: judging.exchanged} if judging.exchanged else {})


def main() -> None:
    config, folder = files.stage_config(__doc__, dry="estimate")
    wanted, cache = read_stage_config(config)
    judge, benchmarks = wanted["judge"], wanted["benchmarks"]
    known = {name: BENCHMARKS[benchmark["protocol"]] for name, benchmark in benchmarks.items()}
    works = {name: works_of(one.controls, benchmarks[name], judge, wanted["prompts"]) for name, one in known.items() if one.controls}
    each = {f"{name} {key}": (known[name].tokens, work) for name in works for key, work in works[name].items()}
    if config.dry:
        print(f"estimate: controls of {judge['name']}, by {judge['model']}\n{estimate(each, judge, cache)}")
        return
    judged = dict(judgments(each, wanted, cache, folder / "config.yaml", "controls"))
    rows = []
    for name in works:
        rows += measure(name, benchmarks[name], {key: judged[f"{name} {key}"] for key in works[name]})
    files.write_json(folder / "controls.json", rows)
    read = {benchmark[key] for benchmark in benchmarks.values() for key in READ if key in benchmark}
    files.write_manifest(folder, config, inputs=sorted(read))
    for row in rows:
        value = "none" if row["value"] is None else f"{row['value']:.4g}"
        print("controls: {benchmark} {control}: {metric} ".format(**row) + value + "; {n} judged, {failed} failed".format(**row))


if __name__ == "__main__":
    files.run(main)
