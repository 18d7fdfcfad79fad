"""Table 4 as a picture for a slide.

    python -m analysis.figures.table4_picture --results results --out results

In: table4.csv, and tables.yaml, which names the scale, its benchmarks and the judge. Out: figures/table4.png, 12.8 inches
wide and at most 7.2 high at 200 dpi, as high as its rows need. The same table gives the same bytes.

The best of a column within a setting is bold, as printed, so that equal figures are bold together; length has no best. Where there are
several chains, what stands beside a figure is an interval over questions that contains the spread between chains (``widened``).
"""

from __future__ import annotations

import math
from itertools import accumulate
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from analysis.draw import GREY, INK, LIGHT
from analysis.stats import Measured, over_questions, quantile, widened
from analysis.study import METHODS, PNG, SETTINGS, STYLE, Study, command_line, name_of, require
from analysis.tables.table4 import COUNTS
from stages.benchmarks.benchmark import Benchmark, Column
from stages.lib import files

WIDTH, HEIGHT, MARGIN = 12.8, 7.2, 0.35  # inches: a slide's
HEADS = ("Setting", "Method")
HEAVY, MEDIUM, THIN = 1.6, 1.0, 0.7  # rules, in points
LARGEST, SMALL = 17.0, 0.76  # type, in points; errors and caption by it
# In ems: the headings' two baselines, the rule between, and their height; a row's, and where there are many; the gap between two settings;
# from the last row to the caption; a line of it in its own ems; the gaps between columns, and between a value and its error.
HEAD_1, HEAD_RULE, HEAD_2, HEAD = 1.35, 1.85, 3.05, 3.9
ROW, ROW_OF_MANY, MANY = 1.62, 1.36, 12
BLOCK, END, LINE = 0.5, 0.6, 1.5
LEAST_GAP, MOST_GAP, NEAR = 1.2, 3.0, 0.3


def headed(benchmark: Benchmark) -> list[Column]:
    """The columns that the picture shows."""
    return [column for column in benchmark.columns if column.head]


def printed(value: float, digits: int) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def error(row: pd.Series, column: Column, study: Study) -> str:
    """``±0.9``, or ``[18.2, 21.9]``; nothing where there is none."""
    found = [row[name] for name in column.error]
    if not found or any(map(pd.isna, found)):
        return ""
    if study.n_chains > 1:
        level = study.config["analysis"]["level"]
        low, high = found if len(found) == 2 else over_questions(row[column.name], found[0], quantile(level))
        # An expected interval reaches t s √2 (Table 4), the noise in a figure t s.
        reach = (row[f"{column.name}_high"] - row[f"{column.name}_low"]) / 2 / 2**0.5
        value, low, high, _ = widened(Measured(row[column.name], low, high, 1), 0.0 if math.isnan(reach) else reach)
        found = [high - value] if len(found) == 1 else [low, high]
    numbers = [printed(value, column.digits) for value in found]
    return f"±{numbers[0]}" if len(numbers) == 1 else f"[{', '.join(numbers)}]"


def best(table: pd.DataFrame, column: Column) -> pd.Series:
    """Whether each row's value is its setting's best, as printed."""
    rounded = table[column.name].map(lambda value: float(f"{value:.{column.digits}f}"))
    return (rounded == rounded.groupby(table["setting"]).transform("max")) & column.has_best


def caption(table: pd.DataFrame, study: Study) -> list[str]:
    """Paragraphs: scale, judge and each benchmark's n; what the marks and the figures are; how many judgments failed, where any did;
    the models that table4.csv warns of. The n is that of one training seed; failures are counted over all.
    """
    shown, seeds = [study.benchmark(name) for name in study.config["benchmarks"]], table.get("seeds", 1)
    sizes, failed = [f"Scale {study.config['name']}", f"judge {study.config['judge']}"], []
    for benchmark in shown:
        names = {column.key: column.name for column in benchmark.columns}
        if counts := [names[key] for key in COUNTS if key in names]:
            sizes.append(f"{(table[counts].sum(axis=1) / seeds).max():,.0f} {benchmark.judgment} on {benchmark.label}")
            if lost := table[counts[-1]].sum():
                failed.append(f"{lost:,.0f} on {benchmark.label}")
    kinds = {len(column.error) for benchmark in shown for column in headed(benchmark)}
    marks = {1: "± standard error over questions.", 2: "[ ] 95% bootstrap interval."}
    noise = [*(mark for kind, mark in marks.items() if kind in kinds), "One chain: another machine’s figures will differ by more."]
    if study.n_chains > 1:
        level = study.config["analysis"]["level"]
        noise = [f"±, [ ]: {level:.0%} interval over questions and {study.n_chains} chains (other seeds from pretraining on)."]
    several = f" Means over {table['seeds'].max()} training seeds." if "seeds" in table else ""
    warned = table[table["warning"].notna() & (table["warning"] != "")] if "warning" in table else table[:0]
    of_warned = [f"{name_of(setting, SETTINGS)} {name_of(method, METHODS)}" for setting, method in warned[["setting", "method"]].to_numpy()]
    paragraphs = [
        f"{', '.join(sizes)}.{several}",
        " ".join(["Bold: best of its setting.", *noise]),
        " ".join(benchmark.note for benchmark in shown if benchmark.note),
        f"Judgments that failed and are left out, all models together: {', '.join(failed)}." if failed else "",
        f"These may have collapsed (table4.csv, warning): {', '.join(of_warned)}." if of_warned else "",
    ]
    return [text for text in paragraphs if text]


class Page:
    """A figure to write on in inches from its top left corner; texts are measured before its height is known."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH, HEIGHT), dpi=mpl.rcParams["savefig.dpi"])
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()

    def width(self, text: str, size: float, weight: str = "normal") -> float:
        font = FontProperties(size=size, weight=weight)
        return self.renderer.get_text_width_height_descent(text, font, ismath=False)[0] / self.figure.dpi

    def write(self, x: float, y: float, text: str, size: float, align: str = "left", weight: str = "normal", color: str = INK) -> None:
        """``text`` on the baseline ``y``."""
        if text:
            at = x / WIDTH, 1 - y / self.figure.get_figheight()
            self.figure.text(*at, text, size=size, ha=align, va="baseline", weight=weight, color=color)

    def rule(self, left: float, right: float, y: float, points: float, color: str = INK) -> None:
        at = 1 - y / self.figure.get_figheight()
        self.figure.add_artist(Line2D([left / WIDTH, right / WIDTH], [at, at], linewidth=points, color=color, solid_capstyle="butt"))

    def wrapped(self, text: str, size: float, width: float) -> list[str]:
        """``text`` in as few lines as fit in ``width``."""
        first, *words = text.split(" ")
        lines = [first]
        for word in words:
            longer = f"{lines[-1]} {word}"
            lines = [*lines[:-1], longer] if self.width(longer, size) <= width else [*lines, word]
        return lines


def draw(table: pd.DataFrame, study: Study) -> Figure:
    """The picture of ``table``, table4.csv, in the largest type for which rows and columns leave room."""
    with mpl.style.context(STYLE):
        page = Page()
        benchmarks = [(one.label, headed(one)) for one in map(study.benchmark, study.config["benchmarks"])]
        columns = [column for _, of_one in benchmarks for column in of_one]
        names = [[name_of(key, known) for key in table[part]] for part, known in (("setting", SETTINGS), ("method", METHODS))]
        values = [[printed(value, column.digits) for value in table[column.name]] for column in columns]
        errors = [[error(row, column, study) for _, row in table.iterrows()] for column in columns]
        weights = [["bold" if is_best else "normal" for is_best in best(table, column)] for column in columns]
        is_start = (table["setting"] != table["setting"].shift()).tolist()  # of a setting's rows
        block = [sum(is_start[: i + 1]) - 1 for i in range(len(table))]
        paragraphs = caption(table, study)
        pitch = ROW if len(table) <= MANY else ROW_OF_MANY

        size = LARGEST
        while True:
            em, small = size / 72, SMALL * size
            mains = [max(page.width(cell, size, "bold") for cell in column) for column in values]
            sides = [max(page.width(cell, small) for cell in column) for column in errors]
            bodies = [main + (NEAR * em + side if side else 0) for main, side in zip(mains, sides, strict=True)]
            boxes = [max(page.width(cell, size) for cell in [head, *column]) for head, column in zip(HEADS, names, strict=True)]
            for label, of_one in benchmarks:
                alone = [label] if len(of_one) == 1 else []  # a heading over one column may be wider than it
                for column in of_one:
                    body = bodies[columns.index(column)]
                    boxes.append(max([body, *(page.width(head, size) for head in (column.head, *alone))]))
            gap = min((WIDTH - 2 * MARGIN - sum(boxes)) / (len(boxes) - 1), MOST_GAP * em)
            full = sum(boxes) + gap * (len(boxes) - 1)
            lines = [line for text in paragraphs for line in page.wrapped(text, small, full)]
            rows_end = MARGIN + em * (HEAD + pitch * len(table) + BLOCK * block[-1])
            height = rows_end + em * (END + LINE * SMALL * len(lines)) + 0.8 * MARGIN
            if gap >= LEAST_GAP * em and height <= HEIGHT:
                break
            size *= 0.97
        page.figure.set_figheight(round(height * page.figure.dpi) / page.figure.dpi)  # whole pixels, so that the file is exactly as high
        left = (WIDTH - full) / 2
        right = left + full
        lefts = list(accumulate(boxes[:-1], lambda x, box: x + box + gap, initial=left))

        page.rule(left, right, MARGIN, HEAVY)
        for x, head in zip(lefts, HEADS, strict=False):
            page.write(x, MARGIN + em * HEAD_2, head, size)
        first = len(names)
        for label, of_one in benchmarks:
            last = first + len(of_one) - 1
            ends = lefts[first], lefts[last] + boxes[last]
            page.write(sum(ends) / 2, MARGIN + em * HEAD_1, label, size, "center")
            page.rule(*ends, MARGIN + em * HEAD_RULE, THIN)
            for at, column in enumerate(of_one, start=first):
                page.write(lefts[at] + boxes[at] / 2, MARGIN + em * HEAD_2, column.head, size, "center")
            first = last + 1
        page.rule(left, right, MARGIN + em * (HEAD - 0.2), MEDIUM)

        for i in range(len(table)):
            top = MARGIN + em * (HEAD + pitch * i + BLOCK * block[i])
            baseline = top + em * (pitch / 2 + 0.36)
            if is_start[i]:
                page.write(lefts[0], baseline, names[0][i], size)
                if i:
                    page.rule(left, right, top - em * BLOCK / 2, THIN, LIGHT)
            page.write(lefts[1], baseline, names[1][i], size)
            for at, (main, body) in enumerate(zip(mains, bodies, strict=True)):
                point = lefts[2 + at] + (boxes[2 + at] - body) / 2 + main  # where the values end
                page.write(point, baseline, values[at][i], size, "right", weights[at][i])
                page.write(point + NEAR * em, baseline, errors[at][i], small, color=GREY)
        page.rule(left, right, rows_end + em * 0.2, HEAVY)
        for number, line in enumerate(lines, start=1):
            page.write(left, rows_end + em * (END + LINE * SMALL * number), line, small, color=GREY)
        return page.figure


def write(study: Study, out: Path) -> None:
    table = pd.read_csv(require(study.results / "table4.csv"))
    with mpl.style.context(STYLE), files.atomic(out / "figures/table4.png") as partial:
        draw(table, study).savefig(partial, format="png", metadata=PNG)


if __name__ == "__main__":
    command_line(__doc__, write)
