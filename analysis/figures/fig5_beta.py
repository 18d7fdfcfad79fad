"""Figure 5 of arXiv 2405.14734: β, the divergence from the reference model, and quality.

    python -m analysis.figures.fig5_beta --results results --out results

KL(π‖π_ref) is estimated per sequence as the mean of log π(y|x) - log π_ref(y|x). (a) The mean over the chosen responses of held-out pairs,
as in the paper: these do not come from π, so it is no divergence and can be negative. (b) The mean over the policy's own answers to
AlpacaEval 2. It estimates the divergence up to the sampling temperature, because both log-probabilities are taken at temperature 1. (c) The
length-controlled win rate against β, and (d) against (b).

In: eval/loglik.parquet, eval/alpacaeval2/scores.json and manifest.json, which has the seed, of the runs of the sweeps ``beta_dpo`` and
``beta_simpo``. Each setting has one row of panels. Out: figures/fig5_beta.png, .pdf, .txt, and .csv with one row a setting, method and β,
whose columns name the estimators.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from analysis import draw
from analysis.stats import mean, together
from analysis.study import METHODS, PAGE, Drawn, Run, Study, figure

SWEEPS = {"beta_dpo": "dpo", "beta_simpo": "simpo"}
CHOSEN, OWN, RATE = "kl_mean_log_ratio_heldout_chosen", "kl_mean_log_ratio_own_answers", "lc_win_rate"
SPLITS = {CHOSEN: "heldout", OWN: "answers"}  # of Study.log_ratio
LABELS = {CHOSEN: "Estimated KL (nats)", OWN: "Estimated KL (nats)", RATE: "LC win rate (%)"}
TITLES = {CHOSEN: "Held-out chosen", OWN: "Own answers", RATE: "Win rate"}


def make(study: Study) -> Drawn:
    there = [name for name in SWEEPS if study.sweep(name)] or list(SWEEPS)
    sweeps = {SWEEPS[name]: draw.swept(study, name, "beta") for name in there}
    z = draw.z_of(study)
    rows: list[dict[str, Any]] = []
    runs: list[Run] = []
    for method, sweep in sweeps.items():
        for setting, by_beta in sweep.items():
            for beta, of_beta in by_beta.items():
                runs += of_beta
                each = [
                    {name: mean(study.log_ratio(run, split), z) for name, split in SPLITS.items()} | {RATE: draw.measure(study, run, RATE)}
                    for run in of_beta
                ]
                row: dict[str, Any] = {"setting": setting, "method": method, "beta": beta, "seeds": len(of_beta)}
                for name in LABELS:
                    value, low, high, n = together(found[name] for found in each)
                    row |= {name: value, f"{name}_standard_error": (high - low) / (2 * z), f"{name}_n": n}
                rows.append(row)
    frame = pd.DataFrame(rows)

    settings = list(dict.fromkeys(frame["setting"]))
    drawn = Figure(figsize=(PAGE, 0.2 + 1.7 * len(settings)), layout="constrained")
    letters = draw.letters()
    handles: list[Any] = []
    grid = draw.cells(drawn, settings, 4)
    for number, setting in enumerate(settings):
        panels = [drawn.add_subplot(grid[number, column]) for column in range(-4, 0)]
        for method in sweeps:
            part = frame[(frame["setting"] == setting) & (frame["method"] == method)]
            for axes, (x, y) in zip(panels, (("beta", CHOSEN), ("beta", OWN), ("beta", RATE), (OWN, RATE)), strict=True):
                half = z * part[f"{y}_standard_error"]
                bounds = part.assign(value=part[y], low=part[y] - half, high=part[y] + half)
                draw.curve(axes, bounds, method, METHODS[method], x, 1.1 if x == "beta" else 0.5)
        for axes, name in zip(panels, LABELS, strict=False):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("β")
            axes.set_ylabel(LABELS[name])
            axes.set_title(f"{next(letters)} {TITLES[name]}")
        for axes in panels[:2]:
            draw.zero(axes)
        handles = panels[0].get_legend_handles_labels()[0]
        panels[-1].set(xlabel=LABELS[OWN], ylabel=LABELS[RATE])
        panels[-1].set_title(f"{next(letters)} Win rate and KL")
    drawn.legend(handles=handles, loc="outside upper center", ncols=len(sweeps))

    sizes = {name: f"{frame[f'{name}_n'].max():,.0f}" for name in LABELS}
    caption = study.caption(
        "KL(π‖π_ref), estimated per sequence as the mean of log π(y|x) - log π_ref(y|x), and length-controlled (LC) win rate on AlpacaEval"
        " 2, against β. From the left: the estimate over the chosen responses of held-out pairs (the paper's choice; these are not drawn"
        " from π, so that it can be negative); over the policy's own answers to AlpacaEval 2, drawn at the setting's sampling temperature"
        " and scored at temperature 1 (the definition's KL where that is 1 too); LC win rate against β, and against the estimate on own"
        " answers.",
        draw.seeded(study, runs),
        f"Bars: {study.config['analysis']['level']:.0%} intervals from standard errors; n = {sizes[CHOSEN]} chosen responses,"
        f" {sizes[OWN]} answers, {sizes[RATE]} judged instructions a model.",
        *(["Means over training seeds where a β has several."] if (frame["seeds"] > 1).any() else []),
    )
    return drawn, frame, caption


if __name__ == "__main__":
    figure(__doc__, "fig5_beta", make)
