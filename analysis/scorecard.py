"""The scorecard: which of the papers' claims these results reproduce, contradict or leave undecided.

    python -m analysis.scorecard --results results --out results

In: tables.yaml; the scores, answers, judgments, log-likelihoods and manifests of the tables' runs and the sweeps' runs;
efficiency/train_step.json. Where a file is missing, the claims that need it are "not measured", and ``reason`` names the file.
Out: scorecard.csv with its caption, scorecard.txt, and figures/scorecard.png, .pdf, .csv, .txt. One row a claim and setting; a claim of
several parts has one row a part:

    id, claim, setting
    measure                what the effect is, with its unit
    effect, low, high      the effect and its interval over ``n`` questions or pairs (analysis/evidence.py)
    chain_low, chain_high  its interval over chains: pretraining, fine-tuning, pairs and trainings with other seeds
    n_chains               the chains (or training seeds) whose mean the effect is; for one, the interval over chains is of the noise that
                           other methods have between theirs
    n                      the number of questions or pairs, the smaller one where two benchmarks are compared; or of steps or instances
    claimed                the values that the claim asserts
    paper                  the paper's own effect: in this setting where it has it, else in all settings that it has
    verdict, reason

**The rule** was fixed before the first figure was drawn (conf/config.yaml, ``analysis``). The interval goes from the lower of both lows to
the higher of both highs, so neither chance in the questions nor chance in the chains makes a verdict alone. Where the scale has several
chains, a claim whose noise between them is not known is undecided: "one chain".

    reproduced      the interval lies wholly in what is claimed: above 0; or at most a limit; or, for "about p %", within p ± 100 about
    contradicted    the interval lies wholly above or wholly below what is claimed
    undecided       neither of these
    not measured    there is no effect; ``reason`` says why

"Not notably longer" means at most 100 about percent longer. An identity may fail by at most 1e-9. Where the scale has one chain, no
interval says what another would show. Of sixty intervals at 95 %, three can be expected to miss the truth by chance.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.claims import CLAIMS, IN_FAMILIES, IN_SETTINGS, Claim, in_paper
from analysis.draw import BLUE, GREY, INK, LIGHT, VERMILION
from analysis.evidence import Evidence
from analysis.study import PAGE, SETTINGS, STYLE, Study, command_line, name_of, save, save_table
from stages.lib.errors import UserError

REPRODUCED, CONTRADICTED, UNDECIDED, NOT_MEASURED = "reproduced", "contradicted", "undecided", "not measured"
ONE_CHAIN = "one chain: the noise between chains is not known for this effect"
# Inches: a row, the gap between two claims, the heading's line, the legend; from the left, the claim and the settings. SIZE is in points.
ROW, GAP, LINE, LEGEND = 0.152, 0.045, 0.12, 0.3
CLAIM, CELLS, SIZE = 0.36, 2.84, 6.4
# Filled, crossed, open, a dash: they can be told apart without colour.
MARKS: dict[str, dict[str, Any]] = {
    REPRODUCED: {"marker": "o", "markerfacecolor": BLUE, "markeredgecolor": BLUE, "markersize": 5.2},
    CONTRADICTED: {"marker": "x", "markeredgecolor": VERMILION, "markersize": 5.0, "markeredgewidth": 1.7},
    UNDECIDED: {"marker": "o", "markerfacecolor": "white", "markeredgecolor": INK, "markersize": 5.0, "markeredgewidth": 0.9},
    NOT_MEASURED: {"marker": "_", "markeredgecolor": GREY, "markersize": 5.0, "markeredgewidth": 0.9},
}
COLUMNS = ("id", "claim", "setting", "measure", "effect", "low", "high", "chain_low", "chain_high", "n", "n_chains")


def verdict(low: float, high: float, claimed: tuple[float, float]) -> tuple[str, str]:
    """(verdict, reason) of an interval.

    low, high: the interval's ends
    claimed:   the claim asserts values above the first number and up to the second
    """
    if claimed[0] < low and high <= claimed[1]:
        return REPRODUCED, "the interval lies in what is claimed"
    if high < claimed[0] or low > claimed[1]:
        return CONTRADICTED, f"the interval lies {'below' if high < claimed[0] else 'above'} what is claimed"
    return UNDECIDED, "the interval lies both in and outside what is claimed"


def said(claimed: tuple[float, float]) -> str:
    """The claimed values as text: ``> 0``, ``40 to 60``, ``<= 10``."""
    low, high = claimed
    return f"> {low:g}" if math.isinf(high) else f"<= {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def places(claim: Claim, settings: list[str]) -> list[str]:
    """The places where a claim is measured (``Claim.where``)."""
    if claim.where == IN_FAMILIES:
        pairs = [(base, base.removesuffix("_base") + "_instruct") for base in settings if base.endswith("_base")]
        return [f"{base} {instruct}" for base, instruct in pairs if instruct in settings]
    return settings if claim.where == IN_SETTINGS else [claim.where]


def rows(study: Study) -> pd.DataFrame:
    """One row a claim and setting, with the columns above."""
    evidence, settings, about = Evidence(study), study.config["settings"], study.config["analysis"]["about"]
    found = []
    for claim in CLAIMS:
        claimed = claim.claimed.within(about)
        for place in places(claim, settings):
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row |= {"id": claim.id, "claim": claim.claim, "setting": place, "measure": claim.measure}
            try:
                measured = claim.measured(evidence, place)
            except UserError as error:
                decided, reason = NOT_MEASURED, str(error)
            else:
                row |= {key: value for key, value in measured._asdict().items() if key in row}
                decided, reason = verdict(*measured.wider(), claimed)
                if claim.varies and math.isnan(measured.chain_low) and study.n_chains > 1:
                    decided, reason = UNDECIDED, ONE_CHAIN
                reason += f"; {measured.note}" if measured.note else ""
            found.append(row | {"claimed": said(claimed), "paper": in_paper(claim, place), "verdict": decided, "reason": reason})
    return pd.DataFrame(found)


def printed(row: pd.Series, digits: int, is_whole: bool) -> str:
    """A row's effect and interval as the picture prints them: ``1.2 [−0.3, 2.7]``.

    row:      of ``rows``. The printed interval is the one that decides the verdict
    digits:   how many decimals to print
    is_whole: whether to print the interval
    """
    if row["verdict"] == NOT_MEASURED:
        return ""
    low, high = row[["low", "chain_low"]].min(), row[["high", "chain_high"]].max()
    if high < 0.5 * 10**-digits and low == high != 0:
        return f"{row['effect']:.0e}"
    numbers = [f"{x:z.{digits}f}".replace("-", "−") for x in (row["effect"], low, high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if is_whole else numbers[0]


def picture(frame: pd.DataFrame, settings: list[str], is_whole: bool = True) -> Figure:
    """The scorecard as a picture: one row a claim, one column a setting, one mark a verdict.

    frame:    of ``rows``
    settings: the columns. A claim about Base and Instruct stands under Instruct, a claim about no setting at the left
    is_whole: whether to print intervals; where one would not fit its column, none is printed
    """
    claims = {claim.id: claim for claim in CLAIMS}
    parts = frame.drop_duplicates("id")
    numbers = parts["id"].str.rstrip("abcdef")  # S10 of S10a
    new = [number != before for number, before in zip(numbers, [numbers.iloc[0], *numbers], strict=False)]
    wide = (PAGE - CELLS) / len(settings)
    heads = [textwrap.fill(name_of(setting, SETTINGS), max(4, int(wide / 0.062))) for setting in settings]
    head = 0.09 + LINE * max(text.count("\n") + 1 for text in heads)
    height = head + len(parts) * ROW + sum(new) * GAP + LEGEND
    drawn = Figure(figsize=(PAGE, height))
    axes = drawn.add_axes((0, 0, 1, 1), xlim=(0, PAGE), ylim=(height, 0))
    axes.axis("off")
    for place, text in enumerate(heads):
        axes.text(CELLS + place * wide, head - 0.07, text, fontsize=SIZE + 0.4, weight="bold", va="bottom", linespacing=1.1)
    axes.hlines(head - 0.03, 0, PAGE, color=GREY, linewidth=0.7)
    y, cells = head + ROW / 2, []
    for (_, part), is_new in zip(parts.iterrows(), new, strict=True):
        if is_new:
            y += GAP
            axes.hlines(y - (ROW + GAP) / 2, 0, PAGE, color=LIGHT, linewidth=0.4)
        axes.text(0.02, y, part["id"], fontsize=SIZE, color=GREY, va="center_baseline")
        axes.text(CLAIM, y, part["claim"], fontsize=SIZE, va="center_baseline")
        for _, row in frame[frame["id"] == part["id"]].iterrows():
            setting = row["setting"].split()[-1] if claims[row["id"]].where == IN_FAMILIES else row["setting"]
            column = settings.index(setting) if setting in settings else 0
            x = CELLS + column * wide + 0.06
            axes.plot(x, y, linestyle="", **MARKS[row["verdict"]])
            own = "" if setting in settings else f"({setting})"
            effect = printed(row, claims[row["id"]].digits, is_whole or bool(own))
            written = axes.text(x + 0.09, y, f"{effect}  {own}".strip(), fontsize=SIZE, va="center_baseline")
            cells += [] if own else [written]
        y += ROW
    axes.hlines(y - ROW / 2 + 0.03, 0, PAGE, color=GREY, linewidth=0.7)
    marks = [Line2D([], [], linestyle="", label=name, **look) for name, look in MARKS.items()]
    drawn.legend(handles=marks, loc="lower left", ncols=len(marks), fontsize=SIZE + 0.4, bbox_to_anchor=(0.0, 0.0), handletextpad=0.2)
    room = (wide - 0.17) * drawn.dpi
    if is_whole and any(cell.get_window_extent().width > room for cell in cells):
        return picture(frame, settings, is_whole=False)
    return drawn


def make(study: Study) -> tuple[Figure, pd.DataFrame, str]:
    frame, rule = rows(study), study.config["analysis"]
    counted = frame["verdict"].value_counts()
    several = ", ".join(frame.loc[frame["n_chains"] > 1, "id"].unique()) or "no claim"
    chains = f"Where all runs of a claim have several training seeds, the interval contains Student's t interval over them ({several})."
    if study.n_chains == 1:
        chains += " Only one chain exists: another pretraining, fine-tuning or machine is in no interval."
    else:
        chains = (
            f"Intervals contain the noise between {study.n_chains} chains (pretraining, fine-tuning, pairs and trainings with other seeds):"
            f" Student's t over the chains' effects where all runs of a claim are in all of them ({several}), else the noise that the"
            ' methods in all chains have in the same figure. "one chain": not known, so undecided.'
        )
    caption = study.caption(
        "The papers' claims, each with a verdict by a rule that was fixed beforehand. Beside the mark stand the effect and its"
        f" {rule['level']:.0%} interval, or the effect alone where there is no room. scorecard.csv has the units and the paper's figures.",
        study.rows(),
        "Reproduced: the interval lies wholly in what is claimed; contradicted: wholly outside it; undecided: neither.",
        f"Intervals: paired bootstrap over questions or pairs ({rule['resamples']:,} resamples), simultaneous over the methods where a"
        " claim is about the best or the worst of them.",
        chains,
        "; ".join(f"{counted.get(name, 0)} {name}" for name in MARKS) + ".",
    )
    return picture(frame, study.config["settings"]), frame, caption


def write(study: Study, out: Path) -> None:
    with mpl.style.context(STYLE):
        drawn, frame, caption = make(study)
        save(out / "figures" / "scorecard", drawn, frame, caption)
    save_table(out / "scorecard", frame, caption)


if __name__ == "__main__":
    command_line(__doc__, write)
