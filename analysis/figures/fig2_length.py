"""Figure 2 of arXiv 2405.14734: the effect of length normalisation on held-out pairs.

    python -m analysis.figures.fig2_length --results results --out results

(a) The reward difference r(y_w) - r(y_l) against the length difference |y_w| - |y_l|, as means in bins of equally many pairs. Above: SimPO,
and SFT with SimPO's reward, β/|y| log π. Below, on its own scale: SimPO without length normalisation, β log π. (b, c) The average
log-likelihood log π / |y| against |y|, with and without length normalisation, and Spearman's ρ.

In: eval/loglik.parquet of these runs, and the manifest.json of the trained ones, in the scale's first two settings, which have one row of
panels each. Out: figures/fig2_length.png, .pdf, .txt, and .csv with one row a bin, a response and a ρ; ``x`` is in tokens.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import draw
from analysis.stats import binned
from analysis.study import METHODS, PAGE, Drawn, Run, Study, figure

ROWS = 2  # settings that fit a page at a readable size
SHOWN = ("sft", "simpo", "simpo_no_ln")
COLUMNS = ["panel", "setting", "method", "quantity", "group", "id", "x", "value", "low", "high", "n"]


def make(study: Study) -> Drawn:
    settings = study.config["settings"][:ROWS]
    z = draw.z_of(study)
    drawn = Figure(figsize=(PAGE, 0.15 + 1.95 * len(settings)), layout="constrained")
    letters = draw.letters()
    rows: list[pd.DataFrame] = []
    runs: list[Run] = []
    betas, count = [], []
    handles: list[Any] = []
    grid = draw.cells(drawn, settings, 3, lines=2)
    for number, setting in enumerate(settings):
        above = drawn.add_subplot(grid[2 * number, -3])
        below = drawn.add_subplot(grid[2 * number + 1, -3], sharex=above)
        clouds = [drawn.add_subplot(grid[2 * number : 2 * number + 2, column]) for column in (-2, -1)]
        named = {"panel": next(letters), "setting": setting}
        shown = {method: draw.first(study, setting, method) for method in SHOWN}
        pairs = {method: study.pairs(run, "heldout", shown["simpo"] if method == "sft" else run) for method, run in shown.items()}
        for method, found in pairs.items():
            means = binned(found["longer"], found["margin"], z)
            draw.curve(below if method == "simpo_no_ln" else above, means, method, METHODS[method])
            rows.append(means.assign(**named, method=method, quantity="reward_difference, mean in bins"))
        for axes, label in ((above, "SFT, SimPO"), (below, "w/o LN")):
            draw.zero(axes)
            axes.set_ylabel(label)
        above.tick_params(labelbottom=False)
        below.set_xlabel("Length difference $|y_w| - |y_l|$ (tokens)")
        above.set_title(f"{named['panel']} Reward difference $r(y_w) - r(y_l)$")
        for axes, method in zip(clouds, SHOWN[1:], strict=True):
            named["panel"] = next(letters)
            rho, points = draw.cloud(axes, pairs[method], z)
            axes.set_title(f"{named['panel']} {METHODS[method]} (ρ = {rho:.2f})".replace("-", "−"))
            rows.append(points.assign(**named, method=method))
        bounds = [axes.get_ylim() for axes in clouds]
        for axes in clouds:
            axes.set_ylim(min(low for low, _ in bounds), max(high for _, high in bounds))
        clouds[0].set_ylabel("Average log-likelihood")
        handles = [*above.get_legend_handles_labels()[0], *below.get_legend_handles_labels()[0], *draw.sides(clouds[0])]
        runs += shown.values()
        betas.append(tuple(draw.beta(study, shown[method]) for method in SHOWN[1:]))
        count.append(len(pairs["simpo"]))
    drawn.legend(handles=handles, loc="outside upper center", ncols=len(handles))

    sizes = ", ".join(f"{n:,}" for n in dict.fromkeys(count))
    caption = study.caption(
        "Length normalisation (LN), on held-out pairs. Left: reward difference r(y_w) - r(y_l) against length difference, without LN"
        " below and on its own scale: means of bins with equally many pairs and their"
        f" {study.config['analysis']['level']:.0%} intervals. Middle and right: average log-likelihood of"
        " chosen and rejected responses against their length, with Spearman's ρ over both.",
        runs,
        "Rewards: SimPO β log π / |y|; without LN β log π; SFT as SimPO, with SimPO's β."
        f" β with and without LN: {'; '.join(f'{a:g} and {b:g}' for a, b in dict.fromkeys(betas))}. n = {sizes} pairs a setting.",
    )
    return drawn, draw.tidy(rows, COLUMNS), caption


if __name__ == "__main__":
    figure(__doc__, "fig2_length", make)
