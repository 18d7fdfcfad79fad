"""How each training of the tables went: loss, rewards and likelihoods over the steps, and how the models' answers end.

    python -m analysis.figures.curves --results results --out results

Each method has a row of panels, each setting and seed a line. Losses and reward margins are on each method's own scale. Reward accuracies
and log-probabilities a token share one scale down the page. The last column is the share of answers to AlpacaEval 2 that end by themselves.
A run that collapsed (``analysis.collapse`` in conf/config.yaml) is crossed out there.

In: each run's train.jsonl and eval/alpacaeval2/scores.json. Out: figures/curves.png, .pdf, .txt, and .csv with one row a run, step and
quantity. Rows without a step have the share of answers that end, the share of repeated 3-grams, and whether the run collapsed (1 or 0).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.study import METHODS, PAGE, SETTINGS, Drawn, Study, figure, name_of

QUANTITIES = {
    "loss": "Loss",
    "rewards/margins": "Reward margin",
    "rewards/accuracies": "Reward\naccuracy (%)",
    "avg_logps/chosen": "Chosen log-\nprob. a token",
    "avg_logps/rejected": "Rejected log-\nprob. a token",
    "ended": "Answers\nended (%)",
}
SHARED = (("rewards/accuracies",), ("avg_logps/chosen", "avg_logps/rejected"), ("ended",))  # on one scale
LINES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#000000", ":"),
    ("#009E73", "-."),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
    ("#56B4E9", (0, (1, 3))),
)
# Inches: margins, headings, a line of the legend, a row and its panels; GAPS leave room for tick labels. WIDTHS are relative.
LEFT, RIGHT, HEADS, LEGEND, BOTTOM, ROW, PANEL = 1.18, 0.08, 0.4, 0.15, 0.36, 0.62, 0.48
COLUMNS = 3  # in the legend
GAPS, WIDTHS = (0, 0.46, 0.4, 0.48, 0.22, 0.42), (1, 1, 1, 1, 1, 0.7)


def make(study: Study) -> Drawn:
    runs, limit = [run for run in study.rows() if study.is_trained(run)], study.config["analysis"]["collapse"]
    parts, collapsed = [], {}
    for run in runs:
        steps = study.training(run)[["step", *list(QUANTITIES)[:-1]]].melt("step", var_name="quantity")
        found = {key: study.score(run, "alpacaeval2", key) for key in ("ended", "repeated_3grams")}
        found["collapsed"] = float(found["ended"] < limit["ended"] or found["repeated_3grams"] > limit["repeated_3grams"])
        if found["collapsed"]:
            name = f"{name_of(run.method, METHODS)} in {name_of(run.setting, SETTINGS)} (seed {run.seed})"
            collapsed[run.setting, run.run] = name
        named = {"setting": run.setting, "run": run.run, "method": run.method, "seed": run.seed}
        parts += [steps.assign(**named), pd.DataFrame(found.items(), columns=["quantity", "value"]).assign(**named)]
    frame = pd.concat(parts, ignore_index=True)[["setting", "run", "method", "seed", "step", "quantity", "value"]]
    frame["step"] = frame["step"].astype("Int64")

    methods = list(dict.fromkeys(run.method for run in runs))
    settings = list(dict.fromkeys(run.setting for run in runs))
    top = HEADS + LEGEND * -(-len(settings) // COLUMNS)
    height = top + ROW * (len(methods) - 1) + PANEL + BOTTOM
    drawn = Figure(figsize=(PAGE, height))
    unit = (PAGE - LEFT - RIGHT - sum(GAPS)) / sum(WIDTHS)
    starts = LEFT + np.cumsum(GAPS) + unit * np.cumsum((0, *WIDTHS[:-1]))
    grid = [
        [
            drawn.add_axes((start / PAGE, 1 - (top + ROW * number + PANEL) / height, width * unit / PAGE, PANEL / height))
            for start, width in zip(starts, WIDTHS, strict=True)
        ]
        for number in range(len(methods))
    ]
    for row, method in zip(grid, methods, strict=True):
        for axes, quantity in zip(row, QUANTITIES, strict=True):
            of = frame[(frame["method"] == method) & (frame["quantity"] == quantity)]
            scale = 100 if quantity in ("rewards/accuracies", "ended") else 1
            for place, setting in enumerate(settings):
                color, line = LINES[place % len(LINES)]
                for run_name, part in of[of["setting"] == setting].groupby("run", sort=False):
                    if quantity == "ended":
                        marker, size = ("x", 5) if (setting, run_name) in collapsed else ("o", 3.5)
                        axes.plot(place, scale * part["value"], marker, color=color, markersize=size, markeredgewidth=1.4, clip_on=False)
                    else:
                        axes.plot(part["step"].astype(int), scale * part["value"], color=color, linestyle=line, linewidth=0.9)
            axes.tick_params(labelbottom=method == methods[-1], labelleft=quantity != "avg_logps/rejected")
            axes.locator_params(nbins=3)
            if quantity == "ended":
                axes.set(xlim=(-0.6, len(settings) - 0.4), xticks=[], ylim=(0, 104))
            elif method == methods[-1]:
                axes.set_xlabel("Step")
            if method == methods[0]:
                axes.set_title(QUANTITIES[quantity], loc="center", fontsize=7.5)
        box = row[0].get_position()
        drawn.text(0.01, (box.y0 + box.y1) / 2, name_of(method, METHODS), va="center", fontsize=7.5)
    for shared in SHARED:
        panels = [row[list(QUANTITIES).index(quantity)] for row in grid for quantity in shared]
        bounds = np.array([axes.get_ylim() for axes in panels])
        for axes in panels:
            axes.set_ylim(bounds[:, 0].min(), bounds[:, 1].max())
    handles: list[Any] = [
        grid[0][0].plot([], [], color=color, linestyle=line, linewidth=1, label=name_of(setting, SETTINGS))[0]
        for setting, (color, line) in zip(settings, LINES * len(settings), strict=False)
    ]
    drawn.legend(handles=handles, loc="upper center", ncols=COLUMNS, bbox_to_anchor=(0.5, 1))

    answers = [int(sum(study.score(run, "alpacaeval2", key) for key in ("n_total", "n_failed"))) for run in runs]
    caption = study.caption(
        "Training curves on the training batches: loss; reward margin r(y_w) - r(y_l) and the share of pairs with a positive one (reward"
        " accuracy); log-probability a token of chosen and rejected responses; and the share of answers to AlpacaEval 2 that end by"
        " themselves. Loss and margin are on each method's own scale.",
        runs,
        f"n = {max(answers):,} answers a run. Crossed out where a run collapsed (fewer than {limit['ended']:.0%} of its answers end, or"
        f" more than {limit['repeated_3grams']:.0%} of their 3-grams repeat): {', '.join(collapsed.values()) or 'none did'}.",
    )
    return drawn, frame, caption


if __name__ == "__main__":
    figure(__doc__, "curves", make)
