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
    repeated claims an answer          in these answers: the start model keeps track of what it has said
    kinds that no model gets right     kinds of task of which each run answers less than a tenth with at least nine points: only noise
    chosen longer than rejected        mean words of chosen answers divided by those of rejected ones, minus 1, in the world's preferences;
                                       for each setting's training pairs it is only reported
    gap of raw and length-controlled   the absolute difference of the verbose writer's two win rates, in points; both are reported too
    agreement of the rater             the share of pairs of samples of one prompt that the rater and the oracle order alike
    lift by the rater                  by the oracle: (the rater's choice of n - the mean sample) / (the best sample - the mean sample)
    lift of the best of n              the best sample minus the mean sample by the oracle, divided by the best writer's score on these
                                       prompts: a preference needs a difference
    steps of a training                of the shortest one
    LC win rate minus SFT's            of each run, in points; ``largest`` of the methods of Table 4
    win rate minus SFT's               likewise, with its standard error, paired over the instructions
    methods above SFT                  the share of the methods of Table 4 whose win rate is above SFT's by three standard errors; after
                                       `snakemake paper` these contain the standard deviation between chains of such a difference
    gain at temperature 0              the largest gain of a method on SFT by the oracle's score of greedy answers, in standard errors
    order of the methods               Spearman's rho of the methods' LC win rates in the setting and in a chain, the smallest over chains;
                                       it has no verdict where a chain has few methods
    reach of a sweep                   the largest difference between two values of a sweep in held-out accuracy or LC, in standard errors

Standard errors are over the instructions or pairs, but for what contains the chains' spread. Chains and sweeps are in the report after
`snakemake paper`.
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

from analysis.stats import pooled, spearman
from stages.benchmarks.paired import Difference, difference
from stages.benchmarks.rows import read_rows
from stages.lib import files
from stages.lib.errors import UserError
from stages.mini.language import words
from stages.mini.oracle import Oracle, load_oracle
from stages.mini.writers import Writer, write
from stages.plan.values import plain

START = "sft"
VARIANTS = ("simpo_no_ln", "simpo_no_margin")  # ablations, which the paper's Table 4 does not have
MANY = 8  # methods, from which on an order says something
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
    found = files.read_json(run / "eval/oracle/scores.json")
    ended = fmean(row["finish_reason"] == "stop" for row in answers)
    return [
        criterion("share of the best writer's score", found["mean"] / best, 0.35, 0.65, setting=setting, method=START),
        criterion("share that ends by itself", ended, 0.95, setting=setting, method=START),
        criterion("spread of lengths", spread(row["output"] for row in answers), 5.0, setting=setting, method=START),
        criterion("repeated claims an answer", found["findings"]["repeated"], None, 0.1, setting=setting, method=START),
    ]


def never_right(folder: Path, runs: Iterable[str], oracle: Oracle) -> list[str]:
    """The kinds of task of which each run answers less than a tenth with at least nine points."""
    best: dict[str, float] = {}
    for run in runs:
        right: dict[str, list[bool]] = {}
        for row in read_rows(folder / run / "eval/oracle/annotations.json", ("instruction", "score")):
            right.setdefault(oracle.read_task(row["instruction"]).kind, []).append(row["score"] >= 9)
        best = {kind: max(best.get(kind, 0.0), fmean(found)) for kind, found in right.items()}
    return sorted(kind for kind, share in best.items() if share < 0.1)


def report_rater(scored: Path, oracle: Oracle, setting: str) -> list[Row]:
    """How well the rater of a setting's samples knows what the oracle knows. ``scored``: of stages/annotate.py."""
    alike, lifts, reached = [], [], []
    for row in files.read_rows(scored):
        turns = tuple(message["content"] for message in row["messages"])
        true, rated = [oracle.score(turns, answer) for answer in row["all_generated_responses"]], row["all_rm_scores"]
        ordered = [(true[i] - true[j], rated[i] - rated[j]) for i in range(len(true)) for j in range(i) if true[i] != true[j]]
        alike += [a * b > 0 for a, b in ordered]
        lifts.append(max(true) - fmean(true))
        reached.append(true[max(range(len(true)), key=rated.__getitem__)] - fmean(true))
    error = math.sqrt(fmean(alike) * (1 - fmean(alike)) / len(lifts))  # the pairs of a prompt count as one
    return [
        criterion("agreement of the rater", fmean(alike), 0.8, setting=setting, standard_error=error),
        criterion("lift by the rater", fmean(reached) / fmean(lifts), 0.6, setting=setting),
    ]


def lc(run: Path) -> float:
    return float(files.read_json(run / "eval/alpacaeval2/scores.json")["length_controlled_winrate"])


def won(run: Path, start: Path) -> Difference:
    """The win rate of a run minus that of its start model, in points."""
    judged = "eval/alpacaeval2/annotations.json"
    return difference(run / judged, start / judged, "alpacaeval2")


def between_chains(results: Path, setting: str, chains: dict[str, list[str]]) -> float:
    """The standard deviation between chains of a method's win rate minus SFT's, pooled over the chains' methods; 0 without chains."""
    folders = [results / name / "runs" for name in (setting, *chains)]
    methods = [run for run in next(iter(chains.values()), []) if run != START]
    noise = pooled([won(folder / run, folder / START).mean for folder in folders] for run in methods)
    return noise.s if noise else 0.0


def report_effects(results: Path, runs: dict[str, str], setting: str, chains: dict[str, list[str]]) -> list[Row]:
    """Each run's differences to SFT. ``runs``: methods by run."""
    folder = results / setting / "runs"
    rows, above, gains = [], [], []
    spread_of_chains = between_chains(results, setting, chains)
    for run, method in runs.items():
        if method == START:
            continue
        gap, gain = won(folder / run, folder / START), lc(folder / run) - lc(folder / START)
        error = math.hypot(gap.standard_error, spread_of_chains)
        rows.append(criterion("LC win rate minus SFT's", gain, setting=setting, method=run))
        rows.append(criterion("win rate minus SFT's", gap.mean, setting=setting, method=run, standard_error=error))
        if method not in VARIANTS:
            gains.append(gain)
            above.append(gap.mean > 3 * error)
    if not gains:
        return rows
    rows.append(criterion("largest LC win rate minus SFT's", max(gains), 8.0, setting=setting))
    return [*rows, criterion("methods above SFT", fmean(above), 2 / 3, setting=setting)]


def report_greedy(scores: dict[str, list[float]], runs: dict[str, str], setting: str) -> list[Row]:
    """The largest gain at temperature 0. ``scores``: of stages/mini/greedy.py, which answers with the models that are made here."""
    if START not in scores:
        return []
    start, ratios = np.array(scores[START]), []
    for run, method in runs.items():
        if method != START and method not in VARIANTS and run in scores:
            gaps = np.array(scores[run]) - start
            error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
            ratios.append(float(gaps.mean()) / error if error else 0.0)
    return [criterion("gain at temperature 0", max(ratios), 3.0, setting=setting)] if ratios else []


def report_order(results: Path, setting: str, chains: dict[str, list[str]]) -> list[Row]:
    """Whether the methods come in the same order in the setting and in its chains."""
    found = []
    for chain, runs in chains.items():
        ours, theirs = (np.array([lc(results / name / "runs" / run) for run in runs]) for name in (setting, chain))
        found.append(spearman(ours, theirs))
    if not found:
        return []
    enough = min(map(len, chains.values())) >= MANY
    return [criterion("order of the methods", min(found), 0.8 if enough else None, setting=setting)]


def report_sweep(results: Path, name: str, trials: list[Row]) -> list[Row]:
    """How far a sweep moves what it measures. ``trials``: its runs, all in one setting."""
    measured: dict[str, list[tuple[float, float]]] = {"held-out accuracy": [], "LC": []}
    for trial in trials:
        run = results / trial["setting"] / "runs" / trial["run"]
        manifest, scores = files.read_manifest(run), files.read_json(run / "eval/alpacaeval2/scores.json")
        share = manifest["heldout"]["rewards/accuracies"]
        measured["held-out accuracy"].append((share, math.sqrt(share * (1 - share) / manifest["heldout_pairs"])))
        measured["LC"].append((scores["length_controlled_winrate"], scores["standard_error"]))
    rows = []
    for what, values in measured.items():
        low, high = min(values), max(values)
        rows.append(
            criterion(f"reach of the sweep {name}, {what}", (high[0] - low[0]) / math.hypot(low[1], high[1]), setting=trials[0]["setting"])
        )
    largest = max(row["value"] for row in rows)
    return [*rows, criterion(f"reach of the sweep {name}", largest, 3.0, setting=trials[0]["setting"])]


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
        trained = [run for run, method in runs.items() if method != START and (results / setting / "runs" / run / "train.jsonl").is_file()]
        folder, chains = results / setting, config["chains"][setting]
        rows += report_start(folder / "runs" / START, best, setting)
        rows.append(criterion("kinds that no model gets right", len(never_right(folder / "runs", runs, oracle)), None, 0, setting=setting))
        if setting in config["generated"]:
            writer = Writer(**made["writers"][names["baseline"]])
            lift = lift_of_best(files.read_rows(folder / "generate/generations.jsonl"), writer, oracle, made["seed"])
            rows.append(criterion("lift of the best of n", lift, 0.15, setting=setting))
            rows += report_rater(folder / "annotate/scored.jsonl", oracle, setting)
        if trained:
            longer = extra_length(files.read_rows(folder / "data/train.jsonl"))
            rows.append(criterion("chosen longer than rejected, training pairs", longer, setting=setting))
            steps = min(files.read_manifest(folder / "runs" / run)["steps"] for run in trained)
            rows.append(criterion("steps of a training", steps, 100, setting=setting))
            rows += report_effects(results, runs, setting, chains)
            rows += report_greedy(files.read_json(folder / "greedy/greedy.json"), runs, setting)
            rows += report_order(results, setting, chains)
    for name, trials in config["sweeps"].items():
        if len({trial["setting"] for trial in trials}) == 1 and len(trials) > 1:
            rows += report_sweep(results, name, trials)
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
