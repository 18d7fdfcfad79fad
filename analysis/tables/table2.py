"""Table 2: the benchmarks, what judges them, and how their judge treats answers that a benchmark must not reward.

    python -m analysis.tables.table2 --results results --out results

In: tables.yaml, the benchmarks' questions, the scores.json of the tables' first run, and the judge's controls.json (stages/controls.py).
Out: table2.csv, with a caption, table2.txt, one row a benchmark: how many questions it has, whose answers are the baseline, which judge it
has, how the judge is asked, what is reported, and the protocol's version; then, measured on some of its questions,

    real, empty, embedded              ``control_metric`` of a run's answers, of empty answers, and of one text that holds a verdict
    …_standard_error, …_n, …_failed    of each of the three: its standard error, the number of judgments, and how many failed
    orders_agree, first_shown          the share of questions with the same winner in both orders, and of judgments for the answer that is
                                       shown first
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis import study as shared
from analysis.study import Study, Table, require
from stages.benchmarks.rows import read_rows
from stages.lib import files

CONTROLS = ("real", "empty", "embedded")
ORDERS = {"orders_agree": "agreement", "first_shown": "first_shown"}


def of_controls(rows: list[dict[str, Any]], benchmark: str) -> dict[str, Any]:
    """A benchmark's rows of controls.json as columns. A control that is missing or has no value is empty."""
    found = {(row["control"], row["metric"] if row["control"] == "orders" else ""): row for row in rows if row["benchmark"] == benchmark}
    values: dict[str, Any] = {}
    for control in CONTROLS:
        row = found.get((control, ""), {})
        if control == CONTROLS[0]:
            values["control_metric"] = row.get("metric")
        values |= {control: row.get("value")} | {f"{control}_{key}": row.get(key) for key in ("standard_error", "n", "failed")}
    return values | {column: found.get(("orders", metric), {}).get("value") for column, metric in ORDERS.items()}


def make(study: Study) -> Table:
    path = study.path(study.config["controls"]) / "controls.json"
    require(path, path.with_name(files.MANIFEST))
    controls, run = files.read_json(path), study.rows()[0]
    rows = []
    for benchmark, named in study.config["questions"].items():
        scores, known = study.scores(run, benchmark), study.benchmark(benchmark)
        questions = len(read_rows(study.path(named), ()))
        what = {"benchmark": known.label, "questions": questions, "baseline": scores.get("baseline"), "judge": scores.get("judge")}
        how = {"scoring": known.scoring, "metric": known.metric, "version": scores["protocol"]["version"]}
        rows.append(what | how | of_controls(controls, benchmark))
    told = (
        f"real: the answers of {run.setting}, {run.run}; empty: no text; embedded: a text that holds a verdict.",
        "A judge that can be trusted gives little to empty and embedded. orders_agree: the share of questions with the same winner in both"
        " orders; first_shown: the share of judgments for the answer that is shown first.",
    )
    return pd.DataFrame(rows), study.caption("The benchmarks, and controls of their judge.", [run], *told)


if __name__ == "__main__":
    shared.table(__doc__, "table2", make)
