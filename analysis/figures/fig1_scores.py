"""Figure 1 of arXiv 2405.14734: SimPO against DPO, by length-controlled win rate on AlpacaEval 2 and win rate on Arena-Hard.

    python -m analysis.figures.fig1_scores --results results --out results

In: eval/alpacaeval2/scores.json and eval/arena_hard/scores.json of SFT, DPO and SimPO in the scale's settings, and of the chains.
Out: figures/fig1_scores.png, .pdf, .txt, and .csv with one row a run and metric: value, low, high (percent) and n. The rows with the seed
``mean`` are means over several training seeds. Where there are several chains, the intervals contain the spread between them.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import draw
from analysis.stats import widened
from analysis.study import METHODS, PAGE, SETTINGS, Drawn, Study, figure, name_of

SHOWN = ("sft", "dpo", "simpo")
PANELS = {"lc_win_rate": "AlpacaEval 2", "arena_hard": "Arena-Hard"}
AXIS = {"lc_win_rate": "Length-controlled win rate (%)", "arena_hard": "Win rate (%)"}


def make(study: Study) -> Drawn:
    runs, level = study.rows(*SHOWN), study.config["analysis"]["level"]
    settings = list(dict.fromkeys(run.setting for run in runs))
    reach = {(metric, setting): draw.chains_reach(study, setting, metric) for metric in PANELS for setting in settings}
    values = pd.DataFrame(
        {"metric": metric, "setting": run.setting, "method": run.method, "seed": run.seed}
        | widened(draw.measure(study, run, metric), reach[metric, run.setting])._asdict()
        for metric in PANELS
        for run in runs
    )
    keys = ["metric", "setting", "method"]
    several = values[values.duplicated(keys, keep=False)]
    means = several.groupby(keys, sort=False)[["value", "low", "high", "n"]].mean().reset_index().assign(seed="mean")
    frame = values if means.empty else pd.concat([values, means], ignore_index=True)

    drawn = Figure(figsize=(PAGE, 0.75 + 0.46 * len(settings)), layout="constrained")
    panels = drawn.subplots(1, 2, sharey=True)
    for axes, letter, (metric, title) in zip(panels, draw.letters(), PANELS.items(), strict=False):
        for offset, method in zip((-0.26, 0, 0.26), SHOWN, strict=True):
            of_method = frame[(frame["metric"] == metric) & (frame["method"] == method)]
            for setting, part in of_method.groupby("setting", sort=False):
                at, (*seeds, mean) = settings.index(str(setting)) + offset, part[["value", "low", "high"]].to_numpy()
                draw.dot(axes, at, mean, method)
                color = draw.LOOKS[method].color
                axes.plot([seed[0] for seed in seeds], [at] * len(seeds), "|", color=color, markersize=5, markeredgewidth=0.7)
        draw.stack(axes, [name_of(setting, SETTINGS) for setting in settings])
        axes.set_title(f"{letter} {title}")
        axes.set_xlabel(AXIS[metric])
        axes.grid(axis="x")
    handles = [
        panels[0].plot([], [], color=look.color, marker=look.marker, linestyle="-", label=METHODS[method])[0]
        for method, look in draw.LOOKS.items()
        if method in SHOWN
    ]
    drawn.legend(handles=handles, loc="outside upper center", ncols=len(SHOWN))

    counts = frame.groupby("metric", sort=False)["n"].agg(["min", "max"]).astype(int)
    sizes = ["–".join(f"{n:,}" for n in dict.fromkeys(counts.loc[metric])) for metric in PANELS]
    caption = study.caption(
        "SimPO, DPO and the SFT models they start from: (a) length-controlled win rate on AlpacaEval 2, (b) win rate on Arena-Hard.",
        runs,
        f"Bars: {level:.0%} intervals over prompts, (a) from the standard error of the length-controlled win rate, (b) bootstrap;"
        f" n = {sizes[0]} instructions (a) and {sizes[1]} games (b) a model.",
        draw.told(study),
        *(["Marks with bars: means over seeds, of value and interval; ticks: the seeds."] if len(means) else []),
    )
    return drawn, frame, caption


if __name__ == "__main__":
    figure(__doc__, "fig1_scores", make)
