"""Plot any sweep, including your own.

    python -m stages.run -m setting=mini_base method=simpo method.beta=2,2.5 method.gamma=0.3,1
    python -m analysis.figures.sweep --results results --out report --setting mini_base --method simpo --metric lc_win_rate

Without --setting and --method it draws one figure for every setting and method whose runs vary. In: the runs in results/<setting>/runs/.
A run's name gives the values that vary. The configuration in its manifest.json gives those that the name leaves out. Runs that differ only
in the seed are averaged. Out: figures/sweep_<setting>_<method>.png, .pdf, .txt and .csv. The .csv has one row per point, with all metrics
and their bounds. They are empty for a point without a score.

One varying key gives a line. Two keys give a heat map if some run has neither key's most frequent value. Otherwise each key gives a line
through the runs that have the most frequent value of every other key.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from analysis import draw
from analysis.stats import Measured, share, together
from analysis.study import COLUMN, GREEK, METHODS, PAGE, SETTINGS, STYLE, Drawn, Run, Study, name_of, parser_of, save
from stages.lib import files
from stages.lib.errors import UserError
from stages.plan.run_names import decode

ACCURACY = "heldout_accuracy"
LABELS = {name: metric.label for name, (_, metric) in draw.METRICS.items()} | {ACCURACY: "Held-out reward accuracy"}


def groups(study: Study) -> dict[tuple[str, str], list[Run]]:
    """The trained runs of each setting and method. Their names give ``varied``."""
    found: dict[tuple[str, str], list[Run]] = {}
    for path in sorted(study.results.glob(f"*/runs/*/{files.MANIFEST}")):
        setting, run = path.parts[-4], path.parts[-2]
        method, varied = decode(run)
        found.setdefault((setting, method), []).append(Run(setting, run, method, None, varied))
    return found


def value_of(study: Study, run: Run, config: dict[str, Any], key: str) -> Any:
    """The value of ``key`` in a run.

    config: the run's configuration, from its manifest
    key:    a key in the name of some run of this method
    """
    for part in (run.varied, config["method"]["hyperparameters"], config["method"], config):
        if key in part:
            return part[key]
    raise UserError(f"{study.folder(run) / files.MANIFEST} has no {key!r}, a key in the names of other {run.method} runs in {run.setting}")


def merits(study: Study, run: Run, manifest: dict[str, Any]) -> dict[str, Measured]:
    """Every metric of a run; NaN if the run was not evaluated."""
    found = {}
    for name, (benchmark, _) in draw.METRICS.items():
        is_scored = study.evaluated(run, f"{benchmark}/scores.json").is_file()
        found[name] = draw.measure(study, run, name) if is_scored else Measured(*[float("nan")] * 4)
    right, n = manifest["heldout"]["rewards/accuracies"], manifest["heldout_pairs"]
    return found | {ACCURACY: share(right, n, draw.z_of(study))}


def points(study: Study, runs: list[Run]) -> tuple[pd.DataFrame, list[str]]:
    """(table, keys that vary). The table has one row per point: the keys, ``runs``, ``seeds``, and every metric with _low, _high and _n."""
    manifests = [study.manifest(run) for run in runs]
    named = sorted({key for run in runs for key in run.varied} - {"seed"})
    settled = [{key: value_of(study, run, each["config"], key) for key in named} for run, each in zip(runs, manifests, strict=True)]
    keys = [key for key in named if len({str(values[key]) for values in settled}) > 1]
    rows: dict[tuple[Any, ...], list[int]] = {}
    for number, values in enumerate(settled):
        rows.setdefault(tuple(values[key] for key in keys), []).append(number)
    found = []
    for at, members in sorted(rows.items(), key=lambda item: [(isinstance(value, str), value) for value in item[0]]):
        row: dict[str, Any] = dict(zip(keys, at, strict=True))
        row["runs"] = " ".join(runs[number].run for number in members)
        row["seeds"] = " ".join(str(manifests[number]["config"]["seed"]) for number in members)
        each = [merits(study, runs[number], manifests[number]) for number in members]
        for name in LABELS:
            scored = [merit[name] for merit in each if not np.isnan(merit[name].value)] or [each[0][name]]
            row |= dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_n"), together(scored), strict=True))
        found.append(row)
    return pd.DataFrame(found), keys


def line(axes: Axes, table: pd.DataFrame, key: str, method: str, metric: str) -> None:
    """Draw a metric against a key, with intervals. The x axis is logarithmic if its values are positive and span a factor of ten.

    table:  the rows of ``points`` to draw
    key:    the column on the x axis
    method: the method whose style the line has
    metric: the column on the y axis
    """
    rows = table.rename(columns={metric: "value", f"{metric}_low": "low", f"{metric}_high": "high"}).sort_values(key)
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in rows[key])
    rows["x"] = rows[key] if is_number else range(len(rows))
    if not is_number:
        axes.set_xticks(rows["x"], [text(value) for value in rows[key]])
        axes.margins(x=0.2)
    elif rows[key].min() > 0 and rows[key].max() >= 10 * rows[key].min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if rows[key].max() < 300 * rows[key].min() else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    draw.curve(axes, rows, method)
    axes.set_xlabel(title(key))


def heat(axes: Axes, table: pd.DataFrame, keys: list[str], metric: str) -> None:
    """Draw a heat map of a metric over two keys, with the number in each cell. A cell without a run stays empty."""
    cells = table.pivot(index=keys[0], columns=keys[1], values=metric).sort_index(ascending=False)
    image = axes.imshow(np.ma.masked_invalid(cells.to_numpy(float)), cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(cells.to_numpy(float)):
        if not np.isnan(value):
            red, green, blue, _ = image.to_rgba(value)
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            digits = 1 if metric.endswith(("rate", "hard")) else 2
            axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color="white" if is_dark else draw.INK)
    for place, axis in ((keys[0], axes.yaxis), (keys[1], axes.xaxis)):
        values = cells.index if place == keys[0] else cells.columns
        axis.set_ticks(range(len(values)), [text(value) for value in values])
    axes.set_xlabel(title(keys[1]))
    axes.set_ylabel(title(keys[0]))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(LABELS[metric])


def title(key: str) -> str:
    return GREEK.get(key, key.replace("_", " ").capitalize())


def text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def picture(study: Study, runs: list[Run], metric: str) -> Drawn | None:
    """A sweep's figure, table and caption. None if fewer than two points have the metric."""
    table, keys = points(study, runs)
    scored = table[table[metric].notna()]
    varied = [key for key in keys if scored[key].astype(str).nunique() > 1]
    if not varied:
        return None
    usual = {key: scored[key].mode().iloc[0] for key in varied}
    is_off = pd.DataFrame({key: scored[key] != usual[key] for key in varied})
    if len(varied) == 2 and (is_off.sum(axis=1) == 2).any():
        drawn = Figure(figsize=(COLUMN, 2.4), layout="constrained")
        heat(drawn.subplots(), scored, varied, metric)
        shown, drawn_as = scored, "Empty: no run."
    else:
        drawn = Figure(figsize=(COLUMN if len(varied) == 1 else PAGE, 2.0), layout="constrained")
        panels = drawn.subplots(1, len(varied), sharey=True, squeeze=False)[0]
        parts = [scored[~is_off.drop(columns=key).any(axis=1)] for key in varied]
        for axes, key, part, letter in zip(panels, varied, parts, draw.letters(), strict=False):
            line(axes, part, key, runs[0].method, metric)
            if len(varied) > 1:
                axes.set_title(letter)
        panels[0].set_ylabel(LABELS[metric])
        shown = scored.loc[sorted({number for part in parts for number in part.index})]
        drawn_as = f"Intervals: {study.config['analysis']['level']:.0%}."
    fixed = ", ".join(f"{title(key)} = {text(usual[key])}" for key in varied)
    others = f" Where a panel varies one, the others stay: {fixed}." if len(varied) > 1 and len(shown) < len(scored) else ""
    of, judge = "pairs", None
    if metric in draw.METRICS:
        judged = next(run for run in runs if run.run == shown["runs"].iloc[0].split()[0])
        benchmark, known = draw.METRICS[metric]
        of, judge = known.of, study.scores(judged, benchmark).get("judge")
    seeds = sorted({int(seed) for each in shown["seeds"] for seed in each.split()})
    facts = [
        f"n = {shown[f'{metric}_n'].max():,.0f} {of}",
        *([f"judge: {judge}"] if judge else []),
        f"training seed{'s' if len(seeds) > 1 else ''}: {', '.join(map(str, seeds))}",
        *(["averaged where a point has several"] if len(seeds) > 1 else []),
    ]
    caption = (
        f"{LABELS[metric]} of {name_of(runs[0].method, METHODS)} in {name_of(runs[0].setting, SETTINGS)} against"
        f" {', '.join(title(key) for key in varied)}.{others} {drawn_as} {'; '.join(facts)}."
    )
    return drawn, table, caption


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--setting", help="draw this setting only")
    parser.add_argument("--method", help="draw this method only")
    parser.add_argument("--metric", choices=LABELS, default="lc_win_rate", help="the metric to draw")
    args = parser.parse_args()
    study = Study(args.results)
    count = 0
    for (setting, method), runs in groups(study).items():
        if args.setting in (None, setting) and args.method in (None, method):
            with mpl.style.context(STYLE):
                if found := picture(study, runs, args.metric):
                    save(args.out / "figures" / f"sweep_{setting}_{method}", *found)
                    count += 1
    if not count:
        setting, method = args.setting or "mini_base", args.method or "simpo"
        where = f"{args.method or 'a method'} in {args.results}/{args.setting or '<setting>'}/runs"
        make = f"python -m stages.run -m setting={setting} method={method} method.beta=1,2,4"
        raise UserError(f"no two runs of {where} differ in more than the seed and have {args.metric}; make some with: {make}")


if __name__ == "__main__":
    files.run(main)
