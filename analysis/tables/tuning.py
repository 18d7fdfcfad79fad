"""The trials of the scale's sweeps on held-out pairs, and the trial chosen for each setting and method.

    python -m analysis.tables.tuning --results results --out results

In: tuning.yaml, which names the trials of conf/sweep/; each trial's manifest.json, which has means over the same held-out pairs; the start
model's log-probabilities of them (stages/reference.py). Out: tuning.csv, one row a trial. The lines to put under ``tuned`` in conf/setting/
and the table are printed.

**The choice.** Accuracy is the share of held-out pairs whose chosen answer has the higher implicit reward, by each method's own reward. By
itself it favours ever larger steps: a margin may grow while both answers become less likely, and the model then writes neither (likelihood
displacement, arXiv 2410.08847). So a trial qualifies if the chosen answers' mean log-probability a token has not fallen below the start
model's. If none qualifies, the trial that comes nearest to it is chosen. Among those that qualify the rule of one standard error decides
(Breiman et al. 1984, section 3.4.3), because the best of a few trials on some hundred pairs is best by chance too. It looks at the trials
that lie at most one standard error of the best one, √(p(1-p)/n), below the best one. It takes the one with the smallest learning rate,
which moves the model least. Between equal learning rates the higher accuracy decides, then the order of the grid.

The choice depends on these files only, and no answer is judged for it. Every method has as many trials as conf/sweep/ gives it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from analysis.study import Study, command_line, require, write_csv
from stages.lib import files
from stages.lib.errors import UserError

# The columns of the table, and their names in a manifest.
FIGURES = {"accuracy": "rewards/accuracies", "margin": "rewards/margins", "loss": "loss", "chosen_logp": "avg_logps/chosen"}


def figures(results: Path, setting: str, name: str) -> dict[str, float]:
    """The means over held-out pairs of the trial results/<setting>/runs/<name>.

    They are accuracy in [0, 1], its binomial standard error, the margin of the implicit rewards, the loss, and the chosen answers'
    log-probability a token. UserError names a manifest that is missing or lacks one of them.
    """
    path = require(results / setting / "runs" / name / files.MANIFEST)
    manifest = files.read_json(path)
    heldout, pairs = manifest.get("heldout", {}), manifest.get("heldout_pairs")
    if missing := [key for key in FIGURES.values() if key not in heldout] or ([] if pairs else ["heldout_pairs"]):
        raise UserError(f"{path} has no {missing[0]!r}; {files.again(path)}")
    values = {column: heldout[key] for column, key in FIGURES.items()}
    error = math.sqrt(values["accuracy"] * (1 - values["accuracy"]) / pairs)
    return {"accuracy": values.pop("accuracy"), "standard_error": error, **values, "heldout_pairs": pairs}


def start(reference: Path) -> float:
    """The chosen answers' log-probability a token under the start model, mean over the held-out pairs."""
    sums = pd.read_parquet(require(reference / "logps.parquet", reference / files.MANIFEST))
    heldout = sums[sums["split"] == "heldout"]
    return float((heldout["chosen_logps"] / heldout["chosen_length"]).mean())


def choose(trials: list[dict[str, Any]]) -> int:
    """The number of the chosen trial (see above). ``trials`` are a method's in a setting, in the order of the grid."""
    able = [number for number, trial in enumerate(trials) if trial["chosen_logp"] >= trial["start_logp"]]
    if not able:
        return max(range(len(trials)), key=lambda number: trials[number]["chosen_logp"])
    best = max((trials[number] for number in able), key=lambda trial: trial["accuracy"])
    near = [number for number in able if trials[number]["accuracy"] >= best["accuracy"] - best["standard_error"]]
    return min(near, key=lambda number: (trials[number]["varied"].get("learning_rate", 0), -trials[number]["accuracy"]))


def tuning(results: Path) -> pd.DataFrame:
    """One row a trial of ``results/tuning.yaml``: setting, method, run, varied values as texts, ``figures``, and whether it is chosen."""
    wanted: Any = OmegaConf.to_container(OmegaConf.load(results / "tuning.yaml"))
    # tuning.yaml names paths below results/, whichever folder that is.
    starts = {setting: start(results / Path(path).relative_to("results")) for setting, path in wanted["references"].items()}
    trials = [
        {**trial, **figures(results, trial["setting"], trial["run"]), "start_logp": starts[trial["setting"]]} for trial in wanted["trials"]
    ]
    for setting, method in dict.fromkeys((trial["setting"], trial["method"]) for trial in trials):
        group = [trial for trial in trials if (trial["setting"], trial["method"]) == (setting, method)]
        for number, trial in enumerate(group):
            trial["chosen"] = number == choose(group)
    varied = list(dict.fromkeys(key for trial in trials for key in trial["varied"]))
    rows = [{**trial, **{key: str(value) for key, value in trial["varied"].items()}} for trial in trials]
    measured = ["accuracy", "standard_error", *list(FIGURES)[1:], "start_logp", "heldout_pairs"]
    return pd.DataFrame(rows, columns=["setting", "method", "run", *varied, *measured, "chosen"])


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
                f"  {method}: {{ {values} }} # held-out accuracy {chosen.accuracy:.3f}, chosen log-probability a token"
                f" {chosen.chosen_logp:.3f}; the highest accuracy of {len(group)} trials: {best.accuracy:.3f} ± {best.standard_error:.3f}"
            )
    return "\n".join(lines)


def write(study: Study, out: Path) -> None:
    table = tuning(study.results)
    print(for_conf(table), end="\n\n")
    write_csv(out / "tuning.csv", table)
    print(table.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    command_line(__doc__, write)
