"""What the figures of analysis/ share: how a method looks, which numbers of scores.json are drawn, the runs of a sweep, common panels.

Each method has its own colour, marker, line and hatch in every figure, so that a figure can be read without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from analysis.stats import Measured, binned, over_questions, quantile, spearman
from analysis.study import SETTINGS, Run, Study, name_of
from stages.benchmarks import BENCHMARKS
from stages.lib.errors import UserError

INK, GREY, LIGHT = "#1a1a1a", "#666666", "#bbbbbb"
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"


class Look(NamedTuple):
    color: str
    marker: str
    line: str
    hatch: str


LOOKS = {
    "sft": Look(GREY, "s", ":", "...."),
    "dpo": Look(BLUE, "o", "--", "////"),
    "simpo": Look(VERMILION, "D", "-", ""),
    "simpo_no_ln": Look(GREEN, "^", "-.", "xxxx"),
}
ACCURACY = "reward_accuracy"
REWARDED = ("dpo", "simpo", "simpo_no_ln")  # the methods with rewards whose log-likelihoods every scale has (analysis/inventory.py)
PLAIN = Look("black", "o", "-", "")
SIDES = {"chosen": ("#56B4E9", "o"), "rejected": ("#CC79A7", "^")}  # no method's colours


# The metrics that figures and sweeps draw, by name: (the benchmark whose scores.json has it, the metric).
METRICS = {metric.name: (name, metric) for name, known in BENCHMARKS.items() if not known.form_of for metric in known.metrics}


def z_of(study: Study) -> float:
    """How many standard errors an interval of the analysis' level reaches to either side."""
    return quantile(study.config["analysis"]["level"])


def measure(study: Study, run: Run, metric: str) -> Measured:
    """A metric of a run with its interval. UserError names the file that lacks it."""
    benchmark, known = METRICS[metric]
    value, n = (study.score(run, benchmark, key) for key in (known.key, known.n))
    error = [study.score(run, benchmark, key) for key in known.error]
    low, high = error if len(error) == 2 else over_questions(value, error[0], z_of(study))
    return Measured(value, low, high, n)


def chains_reach(study: Study, setting: str, metric: str) -> float:
    """How far a chain's metric lies from the mean of all chains at most (``stats.Noise.reach``); 0 where a setting has one chain.

    metric: one of METRICS, pooled over the methods of the chains; or ACCURACY, the share of held-out pairs that a run's reward ranks right,
            over those of them that have rewards
    """
    if metric == ACCURACY:
        noise = study.between_chains(setting, lambda run: float(study.pairs(run, "heldout")["reward_right"].mean()), REWARDED)
    else:
        noise = study.between_chains(setting, lambda run: measure(study, run, metric).value)
    return noise.reach(study.config["analysis"]["level"]) if noise else 0.0


def told(study: Study, of: str = "") -> str:
    """The caption's sentence on the noise between chains. ``of``: what the bars are of, where not all bars contain it."""
    if study.n_chains == 1:
        return "One chain: the bars do not contain what other seeds of pretraining and fine-tuning, or another machine, would change."
    return (
        f"The bars{of} also contain the spread between {study.n_chains} chains (pretraining, fine-tuning, pairs and trainings with other"
        " seeds): they are about the method, not about this one chain."
    )


def first(study: Study, setting: str, method: str) -> Run:
    """The tables' run of a method in a setting, with its first seed."""
    if runs := [run for run in study.rows(method) if run.setting == setting]:
        return runs[0]
    conf = f"conf/scale/{study.config['name']}.yaml"
    raise UserError(f"{study.results / 'tables.yaml'} names no run of {method} in {setting}; add it to the methods or ablations of {conf}")


def swept(study: Study, name: str, key: str) -> dict[str, dict[float, list[Run]]]:
    """The runs of the sweep ``name`` by setting and by their value of ``key``, ascending. A value has several runs where seeds vary."""
    scale, runs = study.config["name"], study.sweep(name)
    conf = f"conf/sweep/{scale}/{name}.yaml"
    if not runs:
        told = f"write {conf} and name it among the sweeps of conf/scale/{scale}.yaml"
        raise UserError(f"{study.results / 'tables.yaml'} has no sweep {name}; {told}")
    values = {name: {run.varied.get(name) for run in runs} for run in runs for name in run.varied}
    varied = [name for name, found in values.items() if len(found) > 1]
    if None in values.get(key, {None}) or {*varied} - {key, "seed"}:
        raise UserError(f"{conf} varies {', '.join(varied)}; this figure draws {key}, and averages over seed")
    found: dict[str, dict[float, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: float(run.varied[key])):
        found.setdefault(run.setting, {}).setdefault(float(run.varied[key]), []).append(run)
    order = study.config["settings"]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def fixed(study: Study, *names: str) -> list[str]:
    """A caption's sentence on the values that the sweeps ``names`` give to all of their runs; none if there are none."""
    runs = [run for name in names for run in study.sweep(name)]
    values = {key: {run.varied.get(key) for run in runs} for run in runs for key in run.varied}
    told = [f"{key} = {found.pop()}" for key, found in values.items() if len(found) == 1 < len(runs)]
    return [f"All runs have {', '.join(told)}."] if told else []


def seeded(study: Study, runs: Iterable[Run]) -> list[Run]:
    """A sweep's runs with the seeds of their manifests, for a caption."""
    return [run._replace(seed=study.manifest(run)["config"]["seed"]) for run in runs]


def beta(study: Study, run: Run) -> float:
    """The β of a training."""
    return float(study.manifest(run)["config"]["method"]["hyperparameters"]["beta"])


def zero(axes: Axes) -> None:
    """A thin dotted line at y = 0."""
    axes.axhline(0, color=GREY, linewidth=0.5, linestyle=":", zorder=0)


def dot(axes: Axes, at: float, bounds: Iterable[float], method: str) -> None:
    """Draw (value, low, high) as a mark and a bar at the height ``at``, in the method's look."""
    look, (value, low, high) = LOOKS[method], bounds
    axes.hlines(at, low, high, color=look.color, linewidth=1.1)
    axes.plot(value, at, color=look.color, marker=look.marker, linestyle="", markersize=4.5)


def letters() -> Iterator[str]:
    """(a), (b), (c) ..."""
    return (f"({chr(code)})" for code in range(ord("a"), ord("z") + 1))


def curve(axes: Axes, rows: pd.DataFrame, method: str, label: str | None = None, x: str = "x", width: float = 1.1) -> None:
    """Draw values with their intervals, joined by a line, in the method's look.

    rows:  a table with the columns ``x``, value, low, high
    label: the name in the legend
    x:     the column on the x axis
    width: of the line, in points
    """
    color, marker, line, _ = LOOKS.get(method, PLAIN)
    axes.plot(rows[x], rows["value"], color=color, marker=marker, linestyle=line, linewidth=width, markersize=3.5, label=label)
    axes.vlines(rows[x], rows["low"], rows["high"], color=color, linewidth=0.9)


def cloud(axes: Axes, pairs: pd.DataFrame, z: float) -> tuple[float, pd.DataFrame]:
    """Draw average log-likelihood against length: one point a response, and a line through the means of bins.

    axes:  where
    pairs: of ``Study.pairs``
    z:     how many standard errors the bins' intervals reach

    Returns (Spearman's ρ, the drawn numbers with the columns id, group, x, value, low, high, n and quantity).
    """
    parts = []
    for side, (color, marker) in SIDES.items():
        columns = {f"{side}_length": "x", f"{side}_average": "value"}
        part = pairs[list(columns)].rename(columns=columns).assign(group=side).rename_axis("id").reset_index()
        axes.scatter(part["x"], part["value"], s=4, color=color, marker=marker, alpha=0.55, linewidths=0)
        parts.append(part)
    points = pd.concat(parts, ignore_index=True)
    line = binned(points["x"], points["value"], z)
    axes.plot(line["x"], line["value"], color="black", linewidth=1.2)
    axes.set_xlabel("Response length (tokens)")
    rho = spearman(points["x"].to_numpy(float), points["value"].to_numpy(float))
    drawn = [points.assign(quantity="average_log_likelihood"), line.assign(quantity="average_log_likelihood, mean in bins")]
    return rho, pd.concat([*drawn, pd.DataFrame([{"quantity": "spearman", "value": rho, "n": len(points)}])], ignore_index=True)


def sides(axes: Axes) -> list[Any]:
    """The legend's handles for ``cloud``: chosen, rejected, the line. Their points are larger than those drawn."""
    points = [
        axes.plot([], [], color=color, marker=marker, linestyle="", markersize=4, label=side)[0] for side, (color, marker) in SIDES.items()
    ]
    return [*points, axes.plot([], [], color="black", linewidth=1.2, label="mean in bins")[0]]


def stack(axes: Axes, names: list[str]) -> None:
    """Write ``names`` from the top down on the y axis."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def cells(picture: Figure, settings: Iterable[str], columns: int, lines: int = 1) -> GridSpec:
    """The grid of a figure with one row of panels a setting. Count its columns from the right: -1 is the last.

    settings: their names stand at the left where there are several
    columns:  panels beside one another
    lines:    panels above one another in a setting's row
    """
    settings = list(settings)
    is_named = len(settings) > 1
    grid = picture.add_gridspec(lines * len(settings), columns + is_named, width_ratios=[0.02] * is_named + [1] * columns)
    for number, setting in enumerate(settings if is_named else []):
        axes = picture.add_subplot(grid[lines * number : lines * (number + 1), 0])
        axes.set_axis_off()
        axes.text(0.5, 0.5, name_of(setting, SETTINGS), rotation=90, ha="center", va="center", fontsize=8)
    return grid


def tidy(rows: list[pd.DataFrame] | list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """One table of the numbers that all panels draw."""
    parts = [row if isinstance(row, pd.DataFrame) else pd.DataFrame([row]) for row in rows]
    return pd.DataFrame([record for part in parts for record in part.to_dict("records")], columns=columns)
