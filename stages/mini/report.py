"""Measure whether the mini world can tell methods apart: its data, its start models and its judge.

    python -m stages.mini.report --config results/world_report.yaml

In: the world, df_gamed.csv, the answers and judgments of the scale's methods and ablations, the settings' pairs, and the generations of
the settings that sample their own. Out: world_report.json, rows of

    {"criterion", "setting", "method", "value", "standard_error", "wanted": [low, high], "met"}

``low`` or ``high`` is null where that side is open. ``wanted`` and ``met`` are null where the value is only reported. A missed criterion is
recorded and is no error. No criterion says which method wins. ``method`` is a run's name, which includes its seed. Words are those of the
world's tokenizer.

    share of the best writer's score   the oracle's mean score of the SFT model's answers to AlpacaEval's instructions, divided by that of
                                       the baseline's answers: enough is learnt, and enough is left to gain
    share that ends by itself          the share of these answers that stop before the limit of tokens
    spread of lengths                  the 95th percentile of these answers' words, divided by the 5th: a length bias needs a spread
    lift of the best of n              the start model's best sample minus its mean sample, averaged over prompts, divided by the best
                                       writer's score on these prompts: a preference needs a difference
    chosen longer than rejected        mean words of chosen answers divided by those of rejected ones, minus 1, in the world's preferences;
                                       for each setting's training pairs it is only reported
    gap of raw and length-controlled   the absolute difference of the verbose writer's two win rates, in points; both are reported too
    standard error against SFT         of a run's win rate minus SFT's in points, paired over the instructions
    largest effect                     the largest difference of a run to SFT in standard errors, in win rate or by the oracle: whether
                                       anything shows at all. The largest of many is no test

Standard errors are over the instructions. Another training seed adds variation that they do not contain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np

from stages.benchmarks.paired import difference, values
from stages.benchmarks.rows import read_rows
from stages.lib import files
from stages.lib.errors import UserError
from stages.mini.language import words
from stages.mini.oracle import Oracle, load_oracle
from stages.mini.writers import Writer, write
from stages.plan.values import plain

START = "sft"
Row = dict[str, Any]


def criterion(
    name: str, value: float, low: float | None = None, high: float | None = None, standard_error: float | None = None, **where: str
) -> Row:
    """A row of the report. Without ``low`` and ``high`` the value is only reported. A value that is not finite is null, and missed."""
    value = float(value)  # JSON cannot encode numpy's truth values
    wanted = None if low is None and high is None else [low, high]
    met = (low is None or value >= low) and (high is None or value <= high)
    return {
        "criterion": name,
        "setting": where.get("setting"),
        "method": where.get("method"),
        "value": _finite(value),
        "standard_error": None if standard_error is None else _finite(standard_error),
        "wanted": wanted,
        "met": met and math.isfinite(value) if wanted else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def extra_length(pairs: list[Row]) -> float:
    """Mean words of the chosen answers divided by those of the rejected ones, minus 1."""
    chosen, rejected = (fmean(len(words(pair[side][-1]["content"])) for pair in pairs) for side in ("chosen", "rejected"))
    return chosen / rejected - 1


def spread(texts: Iterable[str]) -> float:
    """The 95th percentile of the texts' words divided by the 5th; infinite where the 5th is 0."""
    low, high = np.percentile([len(words(text)) for text in texts], [5, 95])
    return float(high / low) if low else math.inf


def lift_of_best(generations: list[Row], writer: Writer, oracle: Oracle, seed: int) -> float:
    """Mean over prompts of the best sample's score minus the samples' mean, divided by ``writer``'s mean score on the same prompts.

    generations: rows of stages/generate.py, the samples of a prompt one after the other.
    seed: of the writer's answers.
    """
    rng = Random(f"report-{seed}")
    lifts, reached = [], []
    for turns, samples in groupby(generations, key=lambda row: tuple(message["content"] for message in row["prompt"])):
        scores = [oracle.score(turns, sample["response"]) for sample in samples]
        lifts.append(max(scores) - fmean(scores))
        reached.append(oracle.score(turns, write(oracle.read_task(*turns), writer, oracle.language, rng)))
    return fmean(lifts) / fmean(reached)


def padded_win_rates(gamed: Path, baseline: list[Row], verbose: list[Row]) -> tuple[float, float]:
    """(raw, length-controlled) win rate in percent of the verbose writer's answers, from its rows of the gamed file."""
    import pandas as pd

    from stages.benchmarks import alpacaeval2

    files.verify(gamed)
    rows = alpacaeval2.read_gamed(gamed)
    judged = rows[rows["model"] == verbose[0]["generator"]].sort_values("index")["preference"].to_numpy()
    if len(judged) != len(verbose):
        raise UserError(f"{gamed} has {len(judged)} rows for {len(verbose)} answers by {verbose[0]['generator']}; {files.again(gamed)}")
    texts = {"output_1": [row["output"] for row in baseline], "output_2": [row["output"] for row in verbose]}
    fitted = alpacaeval2.length_controlled(pd.DataFrame({"preference": judged + 1, **texts}), rows)
    return 100 * float(judged.mean()), 100 * float(fitted.mean())


def report_world(world: Path, gamed: Path, names: dict[str, str]) -> list[Row]:
    """The criteria that do not depend on a training. ``names``: conf/world's ``alpacaeval2``, with the writers' names."""
    baseline = read_rows(world / "alpacaeval2/baseline.json", ("instruction", "output"))
    verbose = read_rows(world / f"alpacaeval2/writers/{names['verbose']}.json", ("instruction", "output", "generator"))
    raw, controlled = padded_win_rates(gamed, baseline, verbose)
    return [
        criterion("chosen longer than rejected", extra_length(files.read_rows(world / "preferences.jsonl")), 0.05, 0.25),
        criterion("raw win rate of padded answers", raw),
        criterion("length-controlled win rate of padded answers", controlled),
        criterion("gap of raw and length-controlled", abs(raw - controlled), 1.0),
    ]


def report_start(run: Path, best: float, setting: str) -> list[Row]:
    """The criteria of the SFT model in the folder ``run``. ``best``: the best writer's mean score on the same instructions."""
    answers = read_rows(run / "eval/alpacaeval2/model_outputs.json", ("output", "finish_reason"))
    reached = values(run / "eval/oracle/annotations.json", "oracle")[1].mean()
    ended = fmean(row["finish_reason"] == "stop" for row in answers)
    return [
        criterion("share of the best writer's score", reached / best, 0.35, 0.65, setting=setting, method=START),
        criterion("share that ends by itself", ended, 0.95, setting=setting, method=START),
        criterion("spread of lengths", spread(row["output"] for row in answers), 5.0, setting=setting, method=START),
    ]


def report_effects(folder: Path, runs: list[str], setting: str) -> list[Row]:
    """Each run's differences to SFT and their standard errors, paired over the instructions."""
    rows, ratios = [], []
    for run in runs:
        for name, benchmark, most in (("win rate minus SFT's", "alpacaeval2", 1.2), ("oracle minus SFT's", "oracle", None)):
            judged = f"eval/{benchmark}/annotations.json"
            gap = difference(folder / run / judged, folder / START / judged, benchmark)
            rows.append(criterion(name, gap.mean, setting=setting, method=run, standard_error=gap.standard_error))
            if most is not None:
                rows.append(criterion("standard error against SFT", gap.standard_error, None, most, setting=setting, method=run))
            if gap.standard_error > 0:
                ratios.append(gap.mean / gap.standard_error)
    return [*rows, criterion("largest effect", max(ratios, default=math.nan), 3.0, setting=setting)]


def report(config: dict[str, Any], results: Path) -> list[Row]:
    """All rows of world_report.json; UserError names the file that is missing and how to make it."""
    world = Path(config["world"])
    for setting, runs in config["runs"].items():
        if START not in runs:
            raise UserError(f"{setting} has {', '.join(runs)}: without {START} there is nothing to compare with; add it to scale.methods")
    made = files.read_manifest(world)["config"]
    names, oracle = made["alpacaeval2"], load_oracle(world)
    best = fmean(oracle.score(row["instruction"], row["output"]) for row in files.read_json(world / "alpacaeval2/baseline.json"))
    rows = report_world(world, Path(config["gamed"]), names)
    for setting, runs in config["runs"].items():
        others = [run for run in runs if run != START]
        folder = results / setting
        rows += report_start(folder / "runs" / START, best, setting)
        if setting in config["generated"]:
            writer = Writer(**made["writers"][names["baseline"]])
            lift = lift_of_best(files.read_rows(folder / "generate/generations.jsonl"), writer, oracle, made["seed"])
            rows.append(criterion("lift of the best of n", lift, 0.15, setting=setting))
        if others:
            longer = extra_length(files.read_rows(folder / "data/train.jsonl"))
            rows.append(criterion("chosen longer than rejected, training pairs", longer, setting=setting))
            rows += report_effects(folder / "runs", others, setting)
    return rows


def as_text(rows: list[Row]) -> str:
    """The rows as a table. A value that is only reported has no verdict."""

    def wanted(row: Row) -> str:
        low, high = row["wanted"] or (None, None)
        if low is not None and high is not None:
            return f"{low:g} to {high:g}"
        return f">= {low:g}" if low is not None else f"<= {high:g}" if high is not None else ""

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.3f}"

    lines = [("criterion", "setting", "method", "value", "wanted", "")]
    for row in rows:
        error = f" ± {row['standard_error']:.3f}" if row["standard_error"] is not None else ""
        verdict = {True: "met", False: "MISSED", None: ""}[row["met"]]
        where = (row["setting"] or "", row["method"] or "")
        lines.append((row["criterion"], *where, number(row["value"]) + error, wanted(row), verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def main() -> None:
    config, folder = files.stage_config(__doc__)
    rows = report(plain(config), folder)
    files.write_json(folder / "world_report.json", rows)
    judged = [row["met"] for row in rows if row["wanted"]]
    print(f"{as_text(rows)}\nreport: {sum(judged)} of {len(judged)} criteria met")


if __name__ == "__main__":
    files.run(main)
