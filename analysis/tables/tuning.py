"""The trials of the scale's sweeps on development questions, and the trial chosen for each setting and method.

    python -m analysis.tables.tuning --results results --out results

In: tuning.yaml, which names the trials of conf/sweep/; development.json of each setting and method, with the trials' win rates by the judge
(stages/develop.py); each trial's manifest.json, with means over held-out pairs; the start model's log-probabilities of these pairs
(stages/reference.py). Out: tuning.csv, one row a trial. The lines to put under ``tuned`` in conf/setting/ and the table are printed.

**The choice.** The rule of one standard error decides (Breiman et al. 1984, section 3.4.3), because the best of a few trials on some
hundred questions is best by chance too. It looks at the trials whose win rate is at most one standard error, the best trial's, below the
best one. It takes the one with the smallest learning rate, which moves the model least. Between equal learning rates the higher win rate
decides, then the order of the grid. ``edge`` names the keys whose chosen value is the smallest or largest of its grid: a better one may lie
outside. A grid of two values has nothing but edges, and is left out.

Accuracy is the share of held-out pairs whose chosen answer has the higher implicit reward, by each method's own reward. ``chosen_logp`` is
the chosen answers' mean log-probability a token, and ``start_logp`` the start model's. They decide nothing: a margin may grow while both
answers become less likely (arXiv 2410.08847), and the model that ranks best need not write best.

The development questions are in no benchmark and no training. Every method of a setting has the same number of trials
(stages/plan/targets.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from analysis.study import Study, command_line, require, write_csv
from stages.lib import files
from stages.lib.errors import UserError

JUDGED = ("win_rate", "standard_error", "n_total", "n_failed")
# The columns on held-out pairs, and their names in a manifest.
HELDOUT = {"accuracy": "rewards/accuracies", "margin": "rewards/margins", "loss": "loss", "chosen_logp": "avg_logps/chosen"}
MEASURED = [*JUDGED, *HELDOUT, "start_logp", "heldout_pairs"]


def heldout(results: Path, setting: str, run: str) -> dict[str, float]:
    """A trial's means over held-out pairs. UserError names a manifest that is missing or lacks one of them."""
    path = require(results / setting / "runs" / run / files.MANIFEST)
    manifest = files.read_json(path)
    found, pairs = manifest.get("heldout", {}), manifest.get("heldout_pairs")
    if missing := [key for key in HELDOUT.values() if key not in found] or ([] if pairs else ["heldout_pairs"]):
        raise UserError(f"{path} has no {missing[0]!r}; {files.again(path)}")
    return {column: found[key] for column, key in HELDOUT.items()} | {"heldout_pairs": pairs}


def judged(results: Path, setting: str, method: str, run: str) -> dict[str, float]:
    """A trial's win rate on development questions, in percent. UserError names a development.json that is missing or lacks the trial."""
    folder = results / setting / "tuning" / method
    path = require(folder / "development.json", folder / files.MANIFEST)
    for row in files.read_json(path):
        if row["run"] == run:
            return {key: row[key] for key in JUDGED}
    raise UserError(f"{path} has no trial {run}; {files.again(path)}")


def start(reference: Path) -> float:
    """The chosen answers' log-probability a token under the start model, mean over the held-out pairs."""
    sums = pd.read_parquet(require(reference / "logps.parquet", reference / files.MANIFEST))
    heldout = sums[sums["split"] == "heldout"]
    return float((heldout["chosen_logps"] / heldout["chosen_length"]).mean())


def choose(trials: list[dict[str, Any]]) -> int:
    """The number of the chosen trial (see above). ``trials`` are a method's in a setting, in the order of the grid."""
    best = max(trials, key=lambda trial: trial["win_rate"])
    near = [n for n, trial in enumerate(trials) if trial["win_rate"] >= best["win_rate"] - best["standard_error"]]
    return min(near, key=lambda n: (trials[n]["varied"].get("learning_rate", 0), -trials[n]["win_rate"]))


def edges(trials: list[dict[str, Any]], chosen: int) -> list[str]:
    """The keys with more than two numbers in the grid of ``trials``, of which the chosen trial has the smallest or the largest."""
    found = []
    for key, value in trials[chosen]["varied"].items():
        grid = {trial["varied"][key] for trial in trials}
        if len(grid) > 2 and type(value) in (int, float) and value in (min(grid), max(grid)):
            found.append(key)
    return found


def tuning(results: Path) -> pd.DataFrame:
    """One row a trial of ``results/tuning.yaml``: setting, method, run, varied values as texts, ``MEASURED``, ``chosen``, ``edge``."""
    wanted: Any = OmegaConf.to_container(OmegaConf.load(results / "tuning.yaml"))
    # tuning.yaml names paths below results/, whichever folder that is.
    starts = {setting: start(results / Path(path).relative_to("results")) for setting, path in wanted["references"].items()}
    trials = []
    for trial in wanted["trials"]:
        setting, method, run = (trial[key] for key in ("setting", "method", "run"))
        measured = judged(results, setting, method, run) | heldout(results, setting, run)
        trials.append({**trial, **measured, "start_logp": starts[setting], "chosen": False, "edge": ""})
    for setting, method in dict.fromkeys((trial["setting"], trial["method"]) for trial in trials):
        group = [trial for trial in trials if (trial["setting"], trial["method"]) == (setting, method)]
        chosen = choose(group)
        group[chosen] |= {"chosen": True, "edge": " ".join(edges(group, chosen))}
    varied = list(dict.fromkeys(key for trial in trials for key in trial["varied"]))
    rows = [{**trial, **{key: number(value) for key, value in trial["varied"].items()}} for trial in trials]
    return pd.DataFrame(rows, columns=["setting", "method", "run", *varied, *MEASURED, "chosen", "edge"])


def number(value: Any) -> str:
    """A value of a grid as conf/ has it: 3e-5 and not 3e-05."""
    if not isinstance(value, float) or not 0 < abs(value) < 1e-3:
        return str(value)
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa)}e{int(exponent)}"


def for_conf(table: pd.DataFrame) -> str:
    """The chosen values as lines to put under ``tuned``, by setting."""
    lines = []
    varied = table.columns[3 : list(table.columns).index(MEASURED[0])]
    for setting, trials in table.groupby("setting", sort=False):
        lines += [f"# conf/setting/{setting}.yaml; by: snakemake --cores all results/tuning.csv", "tuned:"]
        for method, group in trials.groupby("method", sort=False):
            chosen = group[group["chosen"]].iloc[0]
            rate = f": development win rate {chosen['win_rate']:.1f} ± {chosen['standard_error']:.1f}"
            lines.append(f"  {method}:")
            for key, value in chosen[varied].dropna().items():
                *others, last = dict.fromkeys(group[key])
                grid = f"of {', '.join(others)} and {last}" if others else "not varied"
                lines.append(f"    {key}: {value} # {grid}{rate}{', at the edge' if key in chosen['edge'].split() else ''}")
                rate = ""
    return "\n".join(lines)


def write(study: Study, out: Path) -> None:
    table = tuning(study.results)
    print(for_conf(table), end="\n\n")
    write_csv(out / "tuning.csv", table)
    print(table.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    command_line(__doc__, write)
