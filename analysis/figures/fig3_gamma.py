"""Figure 3 of arXiv 2405.14734: the target reward margin γ.

    python -m analysis.figures.fig3_gamma --results results --out results

(a) Reward accuracy on held-out pairs, the share with r(y_w) > r(y_l), and length-controlled win rate, against γ. (b) The distribution of
the reward margin r(y_w) - r(y_l) on held-out pairs for each γ. (c) The distribution of the chosen responses' average log-likelihood.

In: of the runs of the sweep ``gamma`` eval/loglik.parquet, eval/alpacaeval2/scores.json and manifest.json, which has β, the objective and
the seed; the same of the chains' runs. Where there are several chains, the intervals of (a) contain the spread between them. Each setting
has one row of panels. Out: figures/fig3_gamma.png, .pdf, .txt, and .csv with one row a value of (a), a point of a density, and a mean or
standard deviation of (b) and (c).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import draw
from analysis.stats import density, share, together, widened
from analysis.study import PAGE, Drawn, Study, figure

COLUMNS = ["panel", "setting", "gamma", "quantity", "x", "value", "low", "high", "n"]
CURVES = {draw.ACCURACY: "Reward\naccuracy (%)", "lc_win_rate": "LC win\nrate (%)"}
RIDGES = {"margin": "Reward margin $r(y_w) - r(y_l)$", "chosen_average": "Average log-likelihood of $y_w$"}
TITLES = ("Accuracy and win rate", "Reward margin", "Chosen likelihood")
POINTS, HEIGHT = 160, 1.7  # points of a density; height of the highest density, in distances between two


def ridges(axes: Axes, values: dict[float, pd.Series]) -> pd.DataFrame:
    """Draw a density for each γ, one above another on the same scale, with a tick at its mean. Returns the columns gamma, x, value."""
    every = pd.concat(list(values.values()))
    low, high = every.quantile(0.002), every.quantile(0.998)
    at = np.linspace(low - 0.05 * (high - low), high + 0.05 * (high - low), POINTS)
    densities = {gamma: density(part.to_numpy(float), at) for gamma, part in values.items()}
    scale = HEIGHT / max(heights.max() for heights in densities.values())
    for place, (gamma, heights) in enumerate(densities.items()):
        back = 2 * (len(densities) - place)
        axes.fill_between(at, place, place + scale * heights, color="#f6c9ad", linewidth=0, zorder=back)
        axes.plot(at, place + scale * heights, color=draw.VERMILION, linewidth=0.8, zorder=back + 1)
        middle = values[gamma].mean()
        axes.vlines(middle, place, place + scale * np.interp(middle, at, heights), color="black", linewidth=0.9, zorder=back + 1)
    axes.set_yticks(range(len(values)), [f"{gamma:g}" for gamma in values])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.1, len(values) - 1 + 1.05 * HEIGHT)
    axes.set_xlim(at[0], at[-1])
    axes.set_ylabel("γ", rotation=0, va="center")
    axes.spines["left"].set_visible(False)
    return pd.concat([pd.DataFrame({"gamma": gamma, "x": at, "value": heights}) for gamma, heights in densities.items()])


def make(study: Study) -> Drawn:
    sweep = draw.swept(study, "gamma", "gamma")
    z = draw.z_of(study)
    drawn = Figure(figsize=(PAGE, 0.1 + 2.2 * len(sweep)), layout="constrained")
    letters = draw.letters()
    rows: list[Any] = []
    grid = draw.cells(drawn, sweep, 3, lines=2)
    for number, (setting, by_gamma) in enumerate(sweep.items()):
        panels = [next(letters) for _ in TITLES]
        values: dict[str, dict[float, pd.Series]] = {name: {} for name in RIDGES}
        measured: list[dict[str, Any]] = []
        reach = {name: draw.chains_reach(study, setting, name) for name in CURVES}
        for gamma, runs in by_gamma.items():
            pairs = [study.pairs(run, "heldout") for run in runs]
            curves = {
                draw.ACCURACY: together(share(float(each["reward_right"].mean()), len(each), z) for each in pairs),
                "lc_win_rate": together(draw.measure(study, run, "lc_win_rate") for run in runs),
            }
            named = {"panel": panels[0], "setting": setting, "gamma": gamma}
            bars = {name: widened(value, reach[name]) for name, value in curves.items()}
            measured += [named | {"quantity": name, "x": gamma, **bar._asdict()} for name, bar in bars.items()]
            every = pd.concat(pairs, ignore_index=True)
            for name in RIDGES:
                values[name][gamma] = every[name]
        rows += measured
        frame = pd.DataFrame(measured)
        column = [drawn.add_subplot(grid[2 * number + i, -3]) for i in range(2)]
        for axes, (name, label) in zip(column, CURVES.items(), strict=True):
            found = frame[frame["quantity"] == name]
            scale = 100 if name == draw.ACCURACY else 1  # a share in the csv, percent on the axis
            draw.curve(axes, found.assign(**{key: scale * found[key] for key in ("value", "low", "high")}), "simpo")
            axes.set_ylabel(label)
        column[0].tick_params(labelbottom=False)
        column[1].set_xlabel("Target margin γ")
        column[1].sharex(column[0])
        column[0].set_title(f"{panels[0]} {TITLES[0]}")
        for place, (name, label) in enumerate(RIDGES.items(), start=1):
            axes = drawn.add_subplot(grid[2 * number : 2 * number + 2, place - 3])
            densities = ridges(axes, values[name])
            axes.set_xlabel(label)
            axes.set_title(f"{panels[place]} {TITLES[place]}")
            if name == "margin":
                axes.axvline(0, color=draw.GREY, linewidth=0.5, linestyle=":", zorder=100)
            rows.append(densities.assign(panel=panels[place], setting=setting, quantity=f"{name}, density"))
            for gamma, drawn_from in values[name].items():
                named = {"panel": panels[place], "setting": setting, "gamma": gamma, "n": len(drawn_from)}
                rows.append(named | {"quantity": f"{name}, mean", "value": drawn_from.mean()})
                rows.append(named | {"quantity": f"{name}, standard deviation", "value": drawn_from.std(ddof=1)})

    out = draw.tidy(rows, COLUMNS)
    shown = [run for by_gamma in sweep.values() for runs in by_gamma.values() for run in runs]
    n = {name: int(out.loc[out["quantity"] == name, "n"].max()) for name in CURVES}
    betas = sorted({draw.beta(study, run) for run in shown})
    caption = study.caption(
        "SimPO with different target reward margins γ. Left: reward accuracy on held-out pairs and length-controlled win rate on AlpacaEval"
        f" 2, with {study.config['analysis']['level']:.0%} intervals (Wilson; from the standard error). Middle: distribution of the reward"
        " margin r(y_w) - r(y_l) on held-out pairs. Right: distribution of the chosen responses' average log-likelihood. Black: means.",
        draw.seeded(study, shown),
        f"β = {', '.join(f'{beta:g}' for beta in betas)}; n = {n['reward_accuracy']:,} pairs, {n['lc_win_rate']:,} instructions;"
        " densities by a Gaussian kernel (Scott's rule).",
        draw.told(study),
        *draw.fixed(study, "gamma"),
        *(["Means over training seeds where a γ has several."] if any(len(r) > 1 for g in sweep.values() for r in g.values()) else []),
    )
    return drawn, out, caption


if __name__ == "__main__":
    figure(__doc__, "fig3_gamma", make)
