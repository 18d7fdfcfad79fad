"""The trials of the scale's sweeps on held-out pairs, and which of them is chosen for each setting and method.

    python -m analysis.tuning --results results --out results

In: tuning.yaml, which names the trials of conf/sweep/, and each trial's manifest.json: means over the same held-out pairs. Out: tuning.csv,
a row a trial; printed as it is written, after the lines to put under ``tuned`` in conf/setting/.

The choice. The figure is the held-out accuracy: the share of pairs whose chosen answer has the higher implicit reward, each method's own.
Among some hundred pairs its standard error is some points, and the best of a few trials is best by chance too. So, by the rule of one
standard error (Breiman et al. 1984, section 3.4.3): of the trials not more than the best one's standard error, √(p(1-p)/n), below it,

    the one with the smallest learning rate, which moves the model least,
    of those the one with the highest accuracy,
    of those the first of the grid.

It is a function of the manifests alone. Every method of a scale has as many trials as the others where conf/sweep/ gives it as many; no
answer is judged for the choice.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from analysis.table4 import run
from stages import files

FIGURES = {"accuracy": "rewards/accuracies", "margin": "rewards/margins", "loss": "loss"}  # columns, and their names in a manifest


def figures(results: Path, setting: str, name: str) -> dict[str, float]:
    """A trial's means over its held-out pairs: accuracy in [0, 1] and its binomial standard error, margin of the implicit rewards, loss.

    ValueError names a manifest that is missing, or lacks a figure.
    """
    path = results / setting / "runs" / name / files.MANIFEST
    if not path.is_file():
        raise ValueError(f"{path} does not exist; make it with: snakemake --cores all {path}")
    manifest = files.read_json(path)
    heldout, pairs = manifest.get("heldout", {}), manifest.get("heldout_pairs")
    if missing := [key for key in FIGURES.values() if key not in heldout] or ([] if pairs else ["heldout_pairs"]):
        raise ValueError(f"{path} has no {missing[0]!r}; {files.again(path)}")
    values = {column: heldout[key] for column, key in FIGURES.items()}
    error = math.sqrt(values["accuracy"] * (1 - values["accuracy"]) / pairs)
    return {"accuracy": values.pop("accuracy"), "standard_error": error, **values, "heldout_pairs": pairs}


def choose(trials: list[dict[str, Any]]) -> int:
    """The number of the chosen one among a method's trials in a setting, in the order of their grid (see above)."""
    best = max(trials, key=lambda trial: trial["accuracy"])
    near = [number for number, trial in enumerate(trials) if trial["accuracy"] >= best["accuracy"] - best["standard_error"]]
    return min(near, key=lambda number: (trials[number]["varied"].get("learning_rate", 0), -trials[number]["accuracy"]))


def tuning(results: Path) -> pd.DataFrame:
    """A row a trial of ``results/tuning.yaml``: setting, method, run, varied values as texts, ``figures``, and whether it is chosen."""
    wanted: Any = OmegaConf.to_container(OmegaConf.load(results / "tuning.yaml"))
    trials = [{**trial, **figures(results, trial["setting"], trial["run"])} for trial in wanted["trials"]]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for trial in trials:
        groups.setdefault((trial["setting"], trial["method"]), []).append(trial)
    for group in groups.values():
        chosen = choose(group)
        for number, trial in enumerate(group):
            trial["chosen"] = number == chosen
    varied = list(dict.fromkeys(key for trial in trials for key in trial["varied"]))
    rows = [{**trial, **{key: str(value) for key, value in trial["varied"].items()}} for trial in trials]
    columns = ["setting", "method", "run", *varied, "accuracy", "standard_error", *list(FIGURES)[1:], "heldout_pairs", "chosen"]
    return pd.DataFrame(rows, columns=columns)


def for_conf(table: pd.DataFrame) -> str:
    """The chosen values as lines to put under ``tuned``, by setting."""
    lines = []
    varied = table.columns[3 : list(table.columns).index("accuracy")]
    for setting, trials in table.groupby("setting", sort=False):
        lines.append(f"# conf/setting/{setting}.yaml, tuned; by: snakemake --cores all results/tuning.csv")
        for method, group in trials.groupby("method", sort=False):
            chosen = group[group["chosen"]].iloc[0]
            values = ", ".join(f"{key}: {value}" for key, value in chosen[varied].dropna().items())
            best = group.sort_values("accuracy").iloc[-1]
            lines.append(
                f"  {method}: {{ {values} }} # held-out accuracy {chosen.accuracy:.3f}; the best of {len(group)} trials:"
                f" {best.accuracy:.3f} ± {best.standard_error:.3f}"
            )
    return "\n".join(lines)


def shown(results: Path) -> pd.DataFrame:
    table = tuning(results)
    print(for_conf(table), end="\n\n")
    return table


if __name__ == "__main__":
    run(__doc__, "tuning.csv", shown)
