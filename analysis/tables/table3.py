"""Table 3: the objectives, each with its formula, its hyperparameters in every setting, and their search ranges.

    python -m analysis.tables.table3 --results results --out results

In: tables.yaml, the manifests of its trainings, conf/sweep/<scale>/<method>.yaml, and the docstrings of stages/preference/objectives.py
(read, not imported). Out: table3.csv, with a caption, table3.txt, one row a trained method: its objective, the objective's source and
formula, what the docstring says of options that the method switches off, each setting's hyperparameters, and the search range.
"""

from __future__ import annotations

import ast
import re
from typing import Any, NamedTuple

import pandas as pd

from analysis import study as shared
from analysis.study import METHODS, Study, Table, name_of
from stages.lib import files
from stages.lib.errors import UserError
from stages.plan.compose import CONF, ROOT, sweep

OBJECTIVES = ROOT / "stages/preference/objectives.py"
FIRST = ("learning_rate", "batch_size", "epochs")  # stand before the hyperparameters


class Objective(NamedTuple):
    source: str  # the docstring's first line: name, paper, equation
    formula: str  # its indented lines
    text: str  # the rest


def objectives() -> dict[str, Objective]:
    """Every objective of objectives.py by its name. The formula is the indented part of its docstring, and may be empty."""
    found = {}
    for node in ast.parse(OBJECTIVES.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) == "Losses":
            lines = (ast.get_docstring(node) or "").splitlines()
            formula = " ".join(" ".join(line for line in lines if line.startswith("    ")).split())
            text = " ".join(" ".join(line for line in lines[1:] if not line.startswith("    ")).split())
            found[node.name] = Objective(lines[0].rstrip(".") if lines else "", formula, text)
    return found


def without(objective: Objective, hyperparameters: dict[str, Any]) -> str:
    """The docstring's sentences that begin "Without ``option``", for the options that are switched off."""
    off = [key for key, value in hyperparameters.items() if value is False]
    told = [re.search(rf"Without ``{key}``.*?(?=\. [A-Z`]|\.?$)", objective.text) for key in off]
    return "; ".join(match[0].replace("``", "") for match in told if match)


def taken(method: dict[str, Any]) -> str:
    """A training's hyperparameters: ``learning_rate=5e-05, batch_size=32, …``."""
    return ", ".join(f"{key}={value}" for key, value in ({key: method[key] for key in FIRST} | method["hyperparameters"]).items())


def searched(scale: str, method: str) -> str:
    """The values that the method's sweep tries for each key; empty where the scale has no such sweep."""
    if not (CONF / f"sweep/{scale}/{method}.yaml").is_file():
        return ""
    grid = {key: values for key, values in sweep(f"{scale}/{method}").items() if key not in ("method", "setting")}
    return "; ".join(f"{key}: {', '.join(map(str, values))}" for key, values in grid.items())


def make(study: Study) -> Table:
    known = objectives()
    rows: dict[str, dict[str, Any]] = {}
    runs = [run for run in study.rows() if study.is_trained(run)]
    if not runs:
        raise UserError(f"{study.results}: no run of the tables has been trained; make them with: snakemake --cores all")
    for run in runs:
        method = study.manifest(run)["config"]["method"]
        objective = known.get(method["objective"])
        if objective is None:
            where = study.folder(run) / files.MANIFEST
            raise UserError(f"{where} names the objective {method['objective']}, which is not in {OBJECTIVES.name}; {files.again(where)}")
        row = rows.setdefault(
            run.method,
            {"method": name_of(run.method, METHODS), "objective": method["objective"], "source": objective.source}
            | {"formula": objective.formula, "without": without(objective, method["hyperparameters"])},
        )
        row.setdefault(run.setting, taken(method))
    settings = study.config["settings"]
    table = pd.DataFrame([row | {"searched": searched(study.config["name"], method)} for method, row in rows.items()])
    table = table[["method", "objective", "source", "formula", "without", *settings, "searched"]]
    told = ["A setting's column: the values of its training. searched: the values of conf/sweep, for every setting, on held-out pairs."]
    if rest := dict.fromkeys(name_of(run.method, METHODS) for run in study.rows() if run.method not in rows):
        told.append(f"No training of: {', '.join(rest)}.")
    if bare := table.loc[table["formula"] == "", "objective"].unique().tolist():
        told.append(f"No formula indented in its docstring in {OBJECTIVES.name}: {', '.join(bare)}.")
    return table, study.caption("The objectives, their hyperparameters and search ranges.", runs, *told)


if __name__ == "__main__":
    shared.table(__doc__, "table3", make)
