"""Figure 4 of arXiv 2405.14734: DPO against SimPO.

    python -m analysis.figures.fig4_dpo --results results --out results

(a) DPO's average log-likelihood against length on held-out pairs, with Spearman's ρ. (b) Training pairs under DPO and SimPO, by whether the
reward and the average log-likelihood rank the chosen response above the rejected one. SimPO's reward is β times the average log-likelihood,
so the two always agree. (c) Reward accuracy on held-out pairs in all settings, with Wilson's intervals. (d) Time and peak memory of a
training step.

In: eval/loglik.parquet and manifest.json of DPO and SimPO in the scale's settings ((a) and (b) show the first), and
efficiency/train_step.json, which perf/train_step.py writes. Out: figures/fig4_dpo.png, .pdf, .txt, and .csv with one row a response, a
cell, an accuracy, and a protocol's method.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch

from analysis import draw
from analysis.stats import share
from analysis.study import METHODS, PAGE, SETTINGS, Drawn, Study, figure, name_of, require
from stages.lib import files

SHOWN = ("dpo", "simpo")
COLUMNS = ["panel", "setting", "method", "quantity", "group", "id", "x", "value", "low", "high", "n"]
RANKS = {True: "right", False: "wrong"}
COSTS = {"seconds": ("Seconds a step", "time_saved"), "peak_mib": ("Peak memory (MiB)", "memory_saved")}


def contingency(pairs: pd.DataFrame) -> pd.DataFrame:
    """The number of pairs by whether the reward (rows) and whether the average log-likelihood (columns) rank them right."""
    order = list(RANKS)
    return pd.crosstab(pairs["reward_right"], pairs["likelihood_right"]).reindex(index=order, columns=order, fill_value=0)


def cells(axes: Axes, counts: pd.DataFrame) -> None:
    """Draw the four numbers of ``contingency`` with their shares."""
    numbers = counts.to_numpy()
    shares = numbers / numbers.sum()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for (row, column), value in np.ndenumerate(shares):
        color = "white" if value > 0.6 else draw.INK
        axes.text(column, row, f"{numbers[row, column]:,}\n{value:.0%}", ha="center", va="center", color=color)
    names = list(RANKS.values())
    axes.set_xticks(range(2), names)
    axes.set_yticks(range(2), names, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("By average log-likelihood")


def filled(look: draw.Look) -> dict[str, Any]:
    """A bar's colours and its hatch, which tells bars apart in grey."""
    return {"facecolor": "white" if look.hatch else look.color, "edgecolor": look.color, "hatch": look.hatch, "linewidth": 0.8}


def costs(axes: Axes, claim: list[dict[str, Any]], cost: str) -> None:
    """Draw a bar of DPO and one of SimPO for each protocol, and beside them what SimPO saves, with the interval of the time.

    claim: the rows of efficiency/train_step.json, one a protocol
    cost:  ``seconds`` or ``peak_mib``
    """
    label, saved = COSTS[cost]
    for place, row in enumerate(claim):
        for offset, method in ((-0.2, "dpo"), (0.2, "simpo")):
            axes.barh(place + offset, row[method][cost] or 0, 0.36, **filled(draw.LOOKS[method]))
        bounds = [row[key] for key in (f"{saved}_low", f"{saved}_high") if row.get(key) is not None]
        text = "not measured" if row[saved] is None else change(row[saved])
        text += f"\n[{', '.join(change(bound, '') for bound in reversed(bounds))}]" if bounds else ""
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7)
    draw.stack(axes, [row["protocol"] for row in claim])
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=4)


def change(saved: float, unit: str = " %") -> str:
    """0.2 saved is written −20 %."""
    percent = round(-100 * saved)
    return f"{percent:+d}{unit}".replace("-", "−") if percent else f"0{unit}"


def make(study: Study) -> Drawn:
    claim: list[dict[str, Any]] = files.read_json(require(study.results / "efficiency/train_step.json"))["claim"]
    z, settings = draw.z_of(study), study.config["settings"]
    runs = {(setting, method): draw.first(study, setting, method) for setting in settings for method in SHOWN}
    drawn = Figure(figsize=(PAGE, 3.55 + max(0, 0.2 * (len(settings) - 3))), layout="constrained")
    (likelihood, *tables), (accuracy, time, memory) = drawn.subplots(2, 3)
    rows: list[Any] = []

    heldout = study.pairs(runs[settings[0], "dpo"], "heldout")
    rho, points = draw.cloud(likelihood, heldout, z)
    rows.append(points.assign(panel="(a)", setting=settings[0], method="dpo"))
    likelihood.set_title(f"(a) DPO (ρ = {rho:.2f})".replace("-", "−"))
    likelihood.set_ylabel("Average log-likelihood")

    trained = 0
    tables[0].set_ylabel("By reward")
    for axes, method in zip(tables, SHOWN, strict=True):
        counts = contingency(study.pairs(runs[settings[0], method], "train"))
        trained = int(counts.to_numpy().sum())
        cells(axes, counts)
        axes.set_title(f"(b) Training pairs, {METHODS[method]}")
        named = {"panel": "(b)", "setting": settings[0], "method": method, "quantity": "pairs", "n": trained}
        for reward, likely in product(RANKS, RANKS):
            group = f"reward {RANKS[reward]}, likelihood {RANKS[likely]}"
            rows.append(named | {"group": group, "value": counts.loc[reward, likely]})

    pairs = 0
    for offset, method in zip((-0.15, 0.15), SHOWN, strict=True):
        for place, setting in enumerate(settings):
            found = study.pairs(runs[setting, method], "heldout")
            right = share(float(found["reward_right"].mean()), len(found), z)
            pairs = max(pairs, len(found))
            draw.dot(accuracy, place + offset, (100 * bound for bound in right[:3]), method)
            rows.append({"panel": "(c)", "setting": setting, "method": method, "quantity": "reward_accuracy", **right._asdict()})
    draw.stack(accuracy, [name_of(setting, SETTINGS) for setting in settings])
    accuracy.set_title("(c) Held-out pairs")
    accuracy.set_xlabel("Reward accuracy (%)")
    accuracy.grid(axis="x")

    for axes, cost, title in ((time, "seconds", "Time"), (memory, "peak_mib", "Memory")):
        costs(axes, claim, cost)
        axes.set_title(f"(d) {title} by protocol")
        for row in claim:
            named, saved = {"panel": "(d)", "group": row["protocol"]}, COSTS[cost][1]
            rows += [named | {"method": method, "quantity": cost, "value": row[method][cost]} for method in SHOWN]
            bounds = {key: row.get(f"{saved}_{key}") for key in ("low", "high")}
            rows.append(named | {"quantity": saved, "value": row[saved], **bounds, "n": row["steps"]})
    both = {method: look for method, look in draw.LOOKS.items() if method in SHOWN}
    marks = [accuracy.plot([], [], color=look.color, marker=look.marker, markersize=4.5)[0] for look in both.values()]
    drawn.legend(
        handles=[*draw.sides(likelihood), *zip(marks, (Patch(**filled(look)) for look in both.values()), strict=True)],
        labels=["chosen", "rejected", "mean in bins", *(METHODS[method] for method in both)],
        handler_map={tuple: HandlerTuple(ndivide=None)},
        loc="outside lower center",
        ncols=5,
    )

    protocols = "; ".join(f"{row['protocol']}, {row['what']}" for row in claim)
    where = ", ".join(dict.fromkeys(f"{row['device']}, {row['shape']}" for row in claim))
    shown = name_of(settings[0], SETTINGS)
    caption = study.caption(
        f"DPO against SimPO. (a) Average log-likelihood of held-out responses against length under DPO, with Spearman's ρ ({shown},"
        f" n = {len(heldout):,} pairs). (b) Training pairs by whether reward and average log-likelihood rank the chosen response above the"
        f" rejected one ({shown}, n = {trained:,}); for SimPO the two agree by construction. (c) Reward accuracy on held-out pairs with"
        f" {study.config['analysis']['level']:.0%} Wilson intervals (n = {pairs:,} pairs a setting). (d) Time and peak memory of a training"
        f" step and what SimPO saves, with the interval of the time over {claim[0]['steps']} steps: {protocols} ({where}).",
        runs.values(),
    )
    return drawn, draw.tidy(rows, COLUMNS), caption


if __name__ == "__main__":
    figure(__doc__, "fig4_dpo", make)
