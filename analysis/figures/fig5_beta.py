"""Figure 5 of arXiv 2405.14734: β, the divergence from the reference model, and quality.

    python -m analysis.figures.fig5_beta --results results --out results

KL(π‖π_ref) is estimated per sequence as the mean of log π(y|x) - log π_ref(y|x). (a) The mean over the chosen responses of held-out pairs,
as in the paper: these do not come from π, so it is no divergence and can be negative. (b) The mean over the policy's own answers to
AlpacaEval 2. It estimates the divergence up to the sampling temperature, because both log-probabilities are taken at temperature 1. (c)
Reward accuracy on held-out pairs and length-controlled win rate against β. (d) The latter against (b).

In: eval/loglik.parquet, eval/alpacaeval2/scores.json and manifest.json, which has the seed, of the runs of the sweeps ``beta_dpo`` and
``beta_simpo``; of the chains' runs the first two. Each setting has one row of panels. Out: figures/fig5_beta.png, .pdf, .txt, and .csv
with one row a setting, method and β, whose columns name the estimators: …_standard_error is over sequences, pairs or questions, …_low and
…_high are the bars. Where there are several chains, the bars of accuracy and win rate contain the spread between them. That of the
estimates of KL is another at each β, and is not known.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from analysis import draw
from analysis.stats import Measured, mean, share, together, widened
from analysis.study import METHODS, PAGE, Drawn, Run, Study, figure

SWEEPS = {"beta_dpo": "dpo", "beta_simpo": "simpo"}
CHOSEN, OWN, ACCURACY, RATE = "kl_mean_log_ratio_heldout_chosen", "kl_mean_log_ratio_own_answers", draw.ACCURACY, "lc_win_rate"
SPLITS = {CHOSEN: "heldout", OWN: "answers"}  # of Study.log_ratio
LABELS = {
    CHOSEN: r"Mean $\log\,\pi/\pi_{ref}$ (nats)",
    OWN: "Estimated KL (nats)",
    ACCURACY: "Reward\naccuracy (%)",
    RATE: "LC win\nrate (%)",
}
TITLES = ("Held-out chosen", "Own answers", "Accuracy and win rate", "Win rate and KL")


def measure(study: Study, run: Run) -> dict[str, Measured]:
    """A run's estimates, accuracy and win rate, each with its interval over sequences, pairs or questions."""
    z = draw.z_of(study)
    right = study.pairs(run, "heldout")["reward_right"]
    accuracy = share(float(right.mean()), len(right), z)
    estimates = {name: mean(study.log_ratio(run, split), z) for name, split in SPLITS.items()}
    return estimates | {ACCURACY: accuracy, RATE: draw.measure(study, run, RATE)}


def make(study: Study) -> Drawn:
    there = [name for name in SWEEPS if study.sweep(name)] or list(SWEEPS)
    sweeps = {SWEEPS[name]: draw.swept(study, name, "beta") for name in there}
    z, level = draw.z_of(study), study.config["analysis"]["level"]
    rows: list[dict[str, Any]] = []
    runs: list[Run] = []
    settings = list(dict.fromkeys(setting for sweep in sweeps.values() for setting in sweep))
    reach = {(setting, name): draw.chains_reach(study, setting, name) for setting in settings for name in (ACCURACY, RATE)}
    for method, sweep in sweeps.items():
        for setting, by_beta in sweep.items():
            for beta, of_beta in by_beta.items():
                runs += of_beta
                each = [measure(study, run) for run in of_beta]
                row: dict[str, Any] = {"setting": setting, "method": method, "beta": beta, "seeds": len(of_beta)}
                for name in LABELS:
                    found = together(of_run[name] for of_run in each)
                    bar = widened(found, reach.get((setting, name), 0.0))
                    row |= {name: found.value, f"{name}_standard_error": (found.high - found.low) / (2 * z), f"{name}_n": found.n}
                    row |= {f"{name}_low": bar.low, f"{name}_high": bar.high}
                rows.append(row)
    frame = pd.DataFrame(rows)

    drawn = Figure(figsize=(PAGE, 0.2 + 2.2 * len(settings)), layout="constrained")
    letters = draw.letters()
    handles: list[Any] = []
    grid = draw.cells(drawn, settings, 4, lines=2)
    for number, setting in enumerate(settings):
        top, bottom = 2 * number, 2 * number + 1
        whole = slice(top, bottom + 1)
        chosen, own, accuracy, rate, frontier = (
            drawn.add_subplot(grid[place]) for place in ((whole, -4), (whole, -3), (top, -2), (bottom, -2), (whole, -1))
        )
        panels = {CHOSEN: chosen, OWN: own, ACCURACY: accuracy, RATE: rate}
        for method in sweeps:
            part = frame[(frame["setting"] == setting) & (frame["method"] == method)]
            curves: list[tuple[str, str, Axes]] = [("beta", name, axes) for name, axes in panels.items()]
            for x, y, axes in [*curves, (OWN, RATE, frontier)]:
                scale = 100 if y == ACCURACY else 1  # a share in the csv, percent on the axis
                bars = part.assign(value=scale * part[y], low=scale * part[f"{y}_low"], high=scale * part[f"{y}_high"])
                draw.curve(axes, bars, method, METHODS[method], x, 1.1 if x == "beta" else 0.5)
        for key, axes in panels.items():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("β")
            axes.set_ylabel(LABELS[key])
        accuracy.set_xlabel("")
        accuracy.tick_params(labelbottom=False)
        rate.sharex(accuracy)
        for axes in (chosen, own):
            draw.zero(axes)
        handles = chosen.get_legend_handles_labels()[0]
        frontier.set(xlabel="KL, own answers (nats)", ylabel="LC win rate (%)")
        for axes, title in zip((chosen, own, accuracy, frontier), TITLES, strict=True):
            axes.set_title(f"{next(letters)} {title}")
    drawn.legend(handles=handles, loc="outside upper center", ncols=len(sweeps))

    sizes = {name: f"{frame[f'{name}_n'].max():,.0f}" for name in LABELS}
    caption = study.caption(
        "KL(π‖π_ref), estimated per sequence as the mean of log π(y|x) - log π_ref(y|x), reward accuracy on held-out pairs, and"
        " length-controlled (LC) win rate on AlpacaEval 2, against β. From the left: the estimate over the chosen responses of held-out"
        " pairs (the paper's choice; these are not drawn from π, so that it can be negative); over the policy's own answers to AlpacaEval"
        " 2, drawn at the setting's sampling temperature and scored at temperature 1 (the definition's KL where that is 1 too); accuracy"
        " and LC win rate against β; and the latter against the estimate on own answers.",
        draw.seeded(study, runs),
        f"Bars: {level:.0%} intervals, of accuracy Wilson's, else from standard errors; n = {sizes[CHOSEN]} chosen responses,"
        f" {sizes[OWN]} answers, {sizes[ACCURACY]} pairs, {sizes[RATE]} judged instructions a model.",
        draw.told(study, " of accuracy and win rate"),
        *draw.fixed(study, *there),
        *(["Means over training seeds where a β has several."] if (frame["seeds"] > 1).any() else []),
    )
    return drawn, frame, caption


if __name__ == "__main__":
    figure(__doc__, "fig5_beta", make)
