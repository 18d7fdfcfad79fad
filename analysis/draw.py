"""What the figures of analysis/ share: how a method looks, how a value is measured, and the statistics that are drawn.

A method has a colour, a marker, a line and a hatch of its own in every figure, so that a figure can be read without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from analysis.study import SETTINGS, Run, Study, name_of
from stages.lib.errors import UserError

INK, GREY, LIGHT = "#1a1a1a", "#666666", "#bbbbbb"
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
BINS, LEAST = 10, 8  # of bins with equally many members; fewer where one would have fewer members than LEAST
Array = npt.NDArray[np.float64]


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
PLAIN = Look("black", "o", "-", "")
SIDES = {"chosen": ("#56B4E9", "o"), "rejected": ("#CC79A7", "^")}  # no method's colours


class Measured(NamedTuple):
    """A value, the interval around it, and how many of whatever was judged it rests on."""

    value: float
    low: float
    high: float
    n: float


class Metric(NamedTuple):
    """Where a benchmark's scores.json has a figure. ``error``: its standard error, or both ends of its interval; ``n`` counts ``of``."""

    label: str
    benchmark: str
    key: str
    error: tuple[str, ...]
    n: str
    of: str


METRICS = {
    "lc_win_rate": Metric("LC win rate (%)", "alpacaeval2", "length_controlled_winrate", ("lc_standard_error",), "n_total", "instructions"),
    "win_rate": Metric("Win rate (%)", "alpacaeval2", "win_rate", ("standard_error",), "n_total", "instructions"),
    "arena_hard": Metric("Arena-Hard win rate (%)", "arena_hard", "win_rate", ("win_rate_low", "win_rate_high"), "n_total", "games"),
    "mt_bench": Metric("MT-Bench score (1 to 10)", "mt_bench", "mean", ("standard_error",), "n_total", "turns"),
    "oracle": Metric("Oracle score (0 to 10)", "oracle", "mean", ("standard_error",), "n", "instructions"),
}


def quantile(study: Study) -> float:
    """How many standard errors an interval of the analysis' level reaches to either side: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + study.config["analysis"]["level"]) / 2)


def measure(study: Study, run: Run, metric: str) -> Measured:
    """A figure of a run's scores with its interval; UserError names the file that lacks it."""
    _, benchmark, key, error, n, _ = METRICS[metric]
    value = study.score(run, benchmark, key)
    bounds = [study.score(run, benchmark, name) for name in error]
    if len(bounds) == 1:
        half = quantile(study) * bounds[0]
        bounds = [value - half, value + half]
    return Measured(value, bounds[0], bounds[1], study.score(run, benchmark, n))


def together(measured: Iterable[Measured]) -> Measured:
    """The mean over training seeds, of the bounds too: the prompts are the same, so that their interval does not narrow with the seeds."""
    return Measured(*np.mean(list(measured), axis=0).tolist())


def mean(values: pd.Series, z: float) -> Measured:
    """The mean and ``z`` standard errors to either side; NaN bounds for one value."""
    middle, half = float(values.mean()), z * float(values.std(ddof=1)) / len(values) ** 0.5
    return Measured(middle, middle - half, middle + half, len(values))


def share(right: pd.Series, z: float) -> Measured:
    """The share of those that are ``right``, with Wilson's score interval."""
    return binomial(float(right.mean()), len(right), z)


def binomial(p: float, n: int, z: float) -> Measured:
    """A share of ``n``, with Wilson's score interval (JASA 22, 1927), which stays within [0, 1]."""
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return Measured(p, max(middle - half, 0.0), min(middle + half, 1.0), n)


def spearman(x: pd.Series, y: pd.Series) -> float:
    """Spearman's ρ: the correlation of the ranks, equal values sharing the mean of theirs."""
    return float(np.corrcoef(x.rank(), y.rank())[0, 1])


def binned(x: pd.Series, y: pd.Series, z: float) -> pd.DataFrame:
    """Means of x, and of y with its interval, in at most BINS bins of equally many, equal x in one. Columns: x, value, low, high, n."""
    edges = np.quantile(x, np.linspace(0, 1, min(BINS, max(1, len(x) // LEAST)) + 1)[1:-1])
    groups = y.groupby(np.searchsorted(np.unique(edges), x, side="left"))
    return pd.DataFrame([{"x": float(x[part.index].mean()), **mean(part, z)._asdict()} for _, part in groups])


def density(values: Array, at: Array) -> Array:
    """A Gaussian kernel's density of ``values`` at ``at``; bandwidth by Scott's rule, n^(-1/5) standard deviations."""
    width = values.std(ddof=1) * len(values) ** -0.2
    steps = (at[:, None] - values[None, :]) / width
    smooth: Array = np.exp(-0.5 * steps**2).sum(axis=1) / (len(values) * width * (2 * np.pi) ** 0.5)
    return smooth


def first(study: Study, setting: str, method: str) -> Run:
    """The tables' run of a method in a setting; of its first seed, where there are several."""
    for run in study.rows(method):
        if run.setting == setting:
            return run
    raise UserError(
        f"{study.results / 'tables.yaml'} names no run of {method} in {setting};"
        f" add it to the methods or ablations of conf/scale/{study.config['name']}.yaml"
    )


def swept(study: Study, name: str, key: str) -> dict[str, dict[float, list[Run]]]:
    """The runs of a figure's sweep, by setting and by what ``key`` is in them, ascending; several where the seed varies too."""
    scale, runs = study.config["name"], study.sweep(name)
    if not runs:
        raise UserError(
            f"{study.results / 'tables.yaml'} has no sweep {name}; write conf/sweep/{scale}/{name}.yaml"
            f" and name it among the sweeps of conf/scale/{scale}.yaml"
        )
    found: dict[str, dict[float, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: float(run.varied.get(key, 0))):
        if key not in run.varied or run.varied.keys() - {key, "seed"}:
            raise UserError(
                f"conf/sweep/{scale}/{name}.yaml varies {', '.join(run.varied)}; this figure draws {key}, and averages over seed"
            )
        found.setdefault(run.setting, {}).setdefault(float(run.varied[key]), []).append(run)
    order = study.config["settings"]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def seeded(study: Study, runs: Iterable[Run]) -> list[Run]:
    """Runs of a sweep with the seed that their manifests give, for a caption."""
    return [run._replace(seed=study.manifest(run)["config"]["seed"]) for run in runs]


def letters() -> Iterator[str]:
    """(a), (b), (c) ..."""
    return (f"({chr(code)})" for code in range(ord("a"), ord("z") + 1))


def curve(axes: Axes, rows: pd.DataFrame, method: str, label: str | None = None, x: str = "x", width: float = 1.1) -> None:
    """Values with their intervals, joined by a line: columns ``x``, value, low, high."""
    color, marker, line, _ = LOOKS.get(method, PLAIN)
    axes.plot(rows[x], rows["value"], color=color, marker=marker, linestyle=line, linewidth=width, markersize=3.5, label=label)
    axes.vlines(rows[x], rows["low"], rows["high"], color=color, linewidth=0.9)


def cloud(axes: Axes, pairs: pd.DataFrame, z: float) -> tuple[float, pd.DataFrame]:
    """Average log-likelihood against length, a point a response and a line through bins; (Spearman's ρ, what is drawn)."""
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
    rho = spearman(points["x"], points["value"])
    drawn = [points.assign(quantity="average_log_likelihood"), line.assign(quantity="average_log_likelihood, mean in bins")]
    return rho, pd.concat([*drawn, pd.DataFrame([{"quantity": "spearman", "value": rho, "n": len(points)}])], ignore_index=True)


def sides(axes: Axes) -> list[Any]:
    """The legend's handles of what ``cloud`` draws: chosen, rejected, the line; the points as large as can be told apart."""
    points = [
        axes.plot([], [], color=color, marker=marker, linestyle="", markersize=4, label=side)[0] for side, (color, marker) in SIDES.items()
    ]
    return [*points, axes.plot([], [], color="black", linewidth=1.2, label="mean in bins")[0]]


def stack(axes: Axes, names: list[str]) -> None:
    """Settings, or protocols, from the top down on the y axis."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def cells(picture: Figure, settings: Iterable[str], columns: int, lines: int = 1) -> GridSpec:
    """The places of panels, ``lines`` of them one above another in a setting's row; its name stands before it where there are several.

    Columns are counted from the right, -1 the last.
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
    """One table of what a figure's panels draw."""
    parts = [row if isinstance(row, pd.DataFrame) else pd.DataFrame([row]) for row in rows]
    return pd.DataFrame([record for part in parts for record in part.to_dict("records")], columns=columns)
