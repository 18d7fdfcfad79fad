"""What the runs of a results folder show, with bootstrap intervals: the figures that analysis/claims.py compares.

In: the runs' scores, judgments, answers and log-likelihoods, and the rule in tables.yaml (``analysis``: level, resamples, seed).
Out: ``Bounds``.

**Figures and resamples.** A figure of a run is an array (1 + resamples,): its value, then its value in each bootstrap resample of the
questions, or of the pairs, that it is a mean over. Runs are resampled together, so that a difference of two arrays is the paired bootstrap
of the difference. A judgment that failed counts for nothing in its own run's mean.

**LC win rate.** Its fit gives an instruction no value that a judge observed, and the package's standard error is the spread of the fit's
smooth function of difficulty: that leaves out what the judge happened to prefer. Here the resampled win rate moves it instead,
LC + s (WR* - WR) with s = LC (100 - LC) / (WR (100 - WR)), the logistic model's slope at the one over that at the other: what a shift of
the logit that moves the win rate by one point does to LC. Refits of the package's model on 40 to 60 resamples spread the difference of two
models by 1.10 and 1.19 points (published annotations: vicuna 13B and 7B, FuseChat 8B and 3B), and by 0.58, 0.45 and 0.35 (mini_base: SimPO
and SFT, DPO, SimPO without LN). This gives 1.01, 1.27, 0.55, 0.39 and 0.36; the package's standard errors 0.77, 0.96, 0.34, 0.34 and 0.35.

**Intervals.** With D_j what a claim compares (SimPO minus each other method, say), D*_j its resamples and s_j their standard deviation, all
D_j lie in D_j ± c s_j at once, with the configured level, where c is that quantile of max_j |D*_j - D_j| / s_j. The effect is a monotone
function of the D_j (the smallest of them, where the claim is that all are positive), and its interval goes from that function of the lower
bounds to that of the upper. Choosing the best of the others is thus part of the interval. The percentiles of the resampled smallest would
lie too low, and contradict "highest of all" where all are equal. With one D it is D ± the quantile of |D* - D|.

**Seeds.** Where all the runs that a claim compares were trained with several seeds, each D_j is the mean over these, and Student's t over
the seeds' effects gives a second interval around it. SFT is the same start for every seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.draw import swept
from analysis.study import METHODS, Run, Study, over_seeds
from stages.benchmarks import arena_hard, mt_bench, paired
from stages.benchmarks.rows import Row, check_same, read_rows
from stages.lib import files
from stages.lib.errors import UserError
from stages.score import repeated_3grams

Array = npt.NDArray[np.float64]
Runs = Mapping[str, Run]  # of one setting and seed, by method
ABLATED = ("simpo_no_ln", "simpo_no_margin")  # variants of SimPO: no methods of Table 4
CELLS = 4_000_000  # of a block of resamples, questions times resamples
ROWS = 64  # resamples that are ranked at a time: as many as stay in the processor's cache


class Bounds(NamedTuple):
    """An effect, its interval over ``n`` questions or pairs, that over seeds where there are several, and what else is worth saying."""

    effect: float
    low: float
    high: float
    n: int
    seed_low: float = math.nan
    seed_high: float = math.nan
    n_seeds: int = 1
    note: str = ""

    def wider(self) -> tuple[float, float]:
        """From the lower of both lows to the higher of both highs."""
        return float(np.nanmin([self.low, self.seed_low])), float(np.nanmax([self.high, self.seed_high]))


def smallest(values: Array) -> float:
    return float(values.min())


class Evidence:
    """What the runs of a results folder show, each figure an array (1 + resamples,); UserError where a file is missing, naming it."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.rule = study.config["analysis"]
        self._blocks: dict[tuple[str, int], Array] = {}
        self._known: dict[tuple[Any, ...], Any] = {}
        self._asked: dict[str, list[Any]] = {}

    # -- runs

    def methods(self) -> list[str]:
        """The paper's that the scale has; claims are about no other."""
        return [method for method in self.study.config["methods"] if method in METHODS and method not in ABLATED]

    def trained(self, setting: str, method: str) -> dict[int | None, Run]:
        """A method's runs by training seed, the tables' first; SFT's one run is under None."""
        runs = [run for run in self.study.rows(method) if run.setting == setting]
        if method == "sft" and runs:
            return {None: runs[0]}
        seeds = [run for run in self.study.sweep("seeds") if (run.setting, run.method) == (setting, method)]
        found = {run.seed: run for run in runs} | {run.varied["seed"]: run for run in seeds}
        if not found:
            raise UserError(f"scale {self.study.config['name']} has no run of {method} in {setting}; name it in conf/scale")
        return found

    def by_seed(self, setting: str, methods: Iterable[str]) -> list[Runs]:
        """The runs of ``methods`` for each seed that all of them were trained with."""
        found = {method: self.trained(setting, method) for method in methods}
        first, *others = [runs for method, runs in found.items() if method != "sft"]
        seeds = [seed for seed in first if all(seed in runs for runs in others)]
        if not seeds:
            raise UserError(f"{', '.join(found)} in {setting} were trained with no seed in common; see seeds in conf/scale and conf/sweep")
        return [{method: runs[None if method == "sft" else seed] for method, runs in found.items()} for seed in seeds]

    def sweep(self, name: str, key: str, setting: str, least: int = 2) -> dict[float, list[Run]]:
        """A sweep's runs in a setting by value, ascending; UserError below ``least`` values."""
        by_setting = swept(self.study, name, key)
        if setting not in by_setting:
            raise UserError(f"the sweep {name} is of {', '.join(by_setting)} alone: conf/sweep/{self.study.config['name']}/{name}.yaml")
        found = by_setting[setting]
        if len(found) < least:
            raise UserError(f"the sweep {name} has {len(found)} values of {key} in {setting}; this claim needs {least}")
        return found

    # -- resamples

    def counts(self, what: str, n: int) -> Iterator[Array]:
        """How often each of ``n`` comes in the sample, then in each resample, in blocks of rows; ``what`` fixes the resamples."""
        yield np.ones((1, n))
        resamples = self.rule["resamples"]
        if (what, n) in self._blocks:
            yield self._blocks[what, n]
            return
        draws, rows = np.random.default_rng([self.rule["seed"], crc32(what.encode())]), max(1, CELLS // n)
        for start in range(0, resamples, rows):
            size = min(rows, resamples - start)
            drawn = draws.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
            block = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)
            if size == resamples:
                self._blocks[what, n] = block
            yield block

    def sums(self, what: str, columns: Array) -> Array:
        """The sum of each of ``columns`` (n, k) in the sample and each resample: (k, 1 + resamples)."""
        return np.concatenate([block @ columns for block in self.counts(what, len(columns))]).T

    def mean(self, what: str, values: Array) -> Array:
        """Over those that are no NaN."""
        there = ~np.isnan(values)
        if not there.any():
            raise UserError(f"nothing to take a mean of: {what}")
        return self.ratio(what, np.where(there, values, 0), there)

    def ratio(self, what: str, over: npt.NDArray[Any], under: npt.NDArray[Any]) -> Array:
        numerator, denominator = self.sums(what, np.stack([over, under.astype(float)], axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = numerator / denominator
        return found

    def spread(self, what: str, values: Array) -> Array:
        """Standard deviation (ddof 1)."""
        n, middle = len(values), values.mean()
        total, squares = self.sums(what, np.stack([values - middle, (values - middle) ** 2], axis=1))
        return np.sqrt(np.maximum(squares - total**2 / n, 0) / (n - 1))

    def spearman(self, what: str, x: Array, y: Array, texts: int = 1) -> Array:
        """Spearman's ρ, equal values sharing the mean of their ranks; a unit's ``texts`` stand ``len(x) / texts`` apart and go together."""
        found = []
        for block in self.counts(what, len(x) // texts):
            for start in range(0, len(block), ROWS):
                weights = np.tile(block[start : start + ROWS], (1, texts))
                a, b = (_ranks(values, weights) - (len(x) + 1) / 2 for values in (x, y))
                ab, aa, bb = (np.einsum("ij,ij,ij->i", weights, left, right) for left, right in ((a, b), (a, a), (b, b)))
                with np.errstate(divide="ignore", invalid="ignore"):
                    found.append(ab / np.sqrt(aa * bb))
        return np.concatenate(found)

    def bounds(self, effects: list[list[Array]], n: int, join: Callable[[Array], float] = smallest, note: str = "") -> Bounds:
        """The interval of ``join`` of what is compared: ``effects``, for each seed a list of arrays (1 + resamples,). See this module."""
        by_seed = np.array(effects)
        together = by_seed.mean(axis=0)
        values, draws = together[:, 0], together[:, 1:]
        if not np.isfinite(values).all():
            raise UserError("a figure of it is no number: a mean over nothing, or a correlation with a constant")
        draws = np.where(np.isfinite(draws), draws, values[:, None])  # a resample without any of a rare kind says nothing
        spread = draws.std(axis=1)
        scaled = np.abs(draws - values[:, None]) / np.where(spread > 0, spread, 1)[:, None]
        reach = np.quantile(scaled.max(axis=0), self.rule["level"]) * spread
        low, high = join(values - reach), join(values + reach)
        _, seed_low, seed_high = over_seeds((join(effect[:, 0]) for effect in by_seed), self.rule["level"])
        return Bounds(join(values), low, high, n, seed_low, seed_high, len(by_seed), note)

    def size(self, of: str, run: Run) -> int:
        """How many questions a benchmark has, or pairs a split."""
        return len(self.pairs(run, of) if of in ("train", "heldout") else self.question_ids(of))

    # -- figures of a run

    def _once(self, name: str, run: Run, make: Callable[[Run], Any]) -> Any:
        if (key := (name, run.setting, run.run)) not in self._known:
            self._known[key] = make(run)
        return self._known[key]

    def require_file(self, path: Path) -> Path:
        if not path.is_file():
            raise UserError(f"{path} does not exist; make it with: snakemake --cores all {path}")
        return path

    def rows(self, run: Run, name: str, *keys: str) -> list[Row]:
        """The rows of a file of a run's evaluation, each with ``keys``."""
        return read_rows(self.require_file(self.study.folder(run) / "eval" / name), keys)

    def question_ids(self, benchmark: str) -> list[Any]:
        """A benchmark's questions: the instructions of AlpacaEval 2, elsewhere the ids."""
        if benchmark not in (known := self.study.config["questions"]):
            raise UserError(f"scale {self.study.config['name']} has no benchmark {benchmark}; name it in conf/scale")
        if benchmark not in self._asked:
            key = "instruction" if benchmark == "alpacaeval2" else "question_id"
            path = self.require_file(self.study.path(known[benchmark]))
            self._asked[benchmark] = [row[key] for row in read_rows(path, (key,))]
        return self._asked[benchmark]

    def check_questions(self, benchmark: str, run: Run, asked: list[Any]) -> None:
        """Runs are compared question by question: UserError unless a run has the benchmark's, in its order."""
        check_same(f"{self.study.folder(run)}/eval/{benchmark}", asked, "the benchmark's questions", self.question_ids(benchmark))

    def preferences(self, run: Run) -> Array:
        """AlpacaEval's wins in [0, 100], NaN where the judgment failed: (questions,)."""

        def read(run: Run) -> Array:
            asked, found = paired.values(self.study.annotations(run, "alpacaeval2"), "alpacaeval2")
            self.check_questions("alpacaeval2", run, asked)
            return found

        values: Array = self._once("preferences", run, read)
        return values

    def win_rate(self, run: Run) -> Array:
        """AlpacaEval 2's, in percent."""
        found: Array = self._once("win_rate", run, lambda run: self.mean("alpacaeval2", self.preferences(run)))
        return found

    def lc(self, run: Run) -> Array:
        """AlpacaEval 2's length-controlled win rate, in percent."""
        rate, lc = self.win_rate(run), self.study.score(run, "alpacaeval2", "length_controlled_winrate")
        steep = rate[0] * (100 - rate[0])
        return lc + (lc * (100 - lc) / steep if steep > 0 else 1.0) * (rate - rate[0])

    def answers(self, run: Run) -> pd.DataFrame:
        """A run's answers to AlpacaEval 2: ``length`` in characters, ``ended`` by itself and ``repeated`` 3-grams, both in percent."""

        def read(run: Run) -> pd.DataFrame:
            rows = self.rows(run, "alpacaeval2/model_outputs.json", "instruction", "output")
            self.check_questions("alpacaeval2", run, [row["instruction"] for row in rows])
            reasons = [row.get("finish_reason") for row in rows]
            return pd.DataFrame(
                {
                    "length": [float(len(row["output"])) for row in rows],
                    "ended": [math.nan if reason is None else 100.0 * (reason == "stop") for reason in reasons],
                    "repeated": [100 * repeated_3grams(row["output"]) for row in rows],
                }
            )

        frame: pd.DataFrame = self._once("answers", run, read)
        return frame

    def arena_hard(self, run: Run) -> Array:
        """Arena-Hard's win rate, in percent: the mean over battles, resampled by question."""

        def read(run: Run) -> Array:
            rows = self.rows(run, "arena_hard/model_judgment.jsonl", "question_id", "games")
            self.check_questions("arena_hard", run, [row["question_id"] for row in rows])
            points = [arena_hard.battles(row["games"]) for row in rows]
            return self.ratio("arena_hard", np.array([100 * sum(won) for won in points]), np.array([len(won) for won in points]))

        found: Array = self._once("arena_hard", run, read)
        return found

    def ratings(self, run: Run) -> Array:
        """MT-Bench's mean rating of each question, NaN where none was given: (questions,)."""
        rows = self.rows(run, "mt_bench/model_judgment.jsonl", "question_id", "score")
        frame = pd.DataFrame(rows)[["question_id", "score"]]
        means = (
            frame.assign(score=frame["score"].where(frame["score"] != mt_bench.FAILED)).groupby("question_id", sort=False)["score"].mean()
        )
        self.check_questions("mt_bench", run, list(means.index))
        return means.to_numpy(float)

    def separation(self, benchmark: str, runs: list[Run]) -> tuple[Array, int]:
        """How clearly a benchmark tells runs apart: the square root of F, the spread of their means over that of chance; and its questions.

        F of the two-way layout runs x questions without interaction, over the questions on which every run has a value.
        """
        values = np.stack([(self.preferences if benchmark == "alpacaeval2" else self.ratings)(run) for run in runs], axis=1)
        values = values[~np.isnan(values).any(axis=1)]
        n, k = values.shape
        if n < 2 or k < 2:
            raise UserError(f"{benchmark} has {n} questions on which all {k} runs have a value; a comparison needs two of each")
        within = values - values.mean(axis=1, keepdims=True)
        *means, total = self.sums(f"{benchmark} separation", np.column_stack([within, (within**2).sum(axis=1)]))
        between = (np.array(means) ** 2).sum(axis=0) / n
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(between / (k - 1) / ((total - between) / ((n - 1) * (k - 1)))), n

    def pairs(self, run: Run, split: str) -> pd.DataFrame:
        """As study.pairs; ``margin``, ``longer`` (|y_w| - |y_l|, tokens), and whether ``reward`` and ``likelihood`` rank a pair right."""

        def read(run: Run) -> pd.DataFrame:
            pairs = self.study.pairs(run, split)
            return pairs.assign(
                margin=pairs["chosen_reward"] - pairs["rejected_reward"],
                longer=pairs["chosen_length"] - pairs["rejected_length"],
                reward=pairs["chosen_reward"] > pairs["rejected_reward"],
                likelihood=pairs["chosen_average"] > pairs["rejected_average"],
            )

        frame: pd.DataFrame = self._once(split, run, read)
        return frame

    def length_correlation(self, run: Run) -> Array:
        """ρ(average log-likelihood, length) over held-out responses, chosen and rejected; resampled by pair."""
        pairs = self.pairs(run, "heldout")
        average, length = (np.concatenate([pairs[f"{side}_{key}"] for side in ("chosen", "rejected")]) for key in ("average", "length"))
        return self.spearman("heldout", average, length, texts=2)

    def own_ratio(self, run: Run) -> Array:
        """log π(y|x) - log π_ref(y|x) of its own answers to AlpacaEval 2, nats a sequence; NaN for a blank one, which has no row."""
        texts = self.study.loglik(run)
        own = texts[(texts["split"] == "answers") & (texts["benchmark"] == "alpacaeval2")].set_index("id")
        asked = [str(number) for number in range(len(self.preferences(run)))]
        ratio: Array = (own["logp"] - own["reference_logp"]).reindex(asked).to_numpy(float)
        return ratio

    def step(self, cost: str) -> Bounds:
        """What SimPO saves of a training step's ``cost``, as in the paper (protocol A), in percent."""
        path = self.require_file(self.study.results / "efficiency/train_step.json")
        found = [row for row in files.read_json(path).get("claim", []) if row["protocol"] == "A"]
        if not found or found[0].get(f"{cost}_saved") is None:
            raise UserError(
                f"{path} has no {cost} of protocol A; make it again with: snakemake --cores all --forcerun efficiency -- {path}"
            )
        row = found[0]
        value, low, high = (row.get(f"{cost}_saved{end}", row[f"{cost}_saved"]) for end in ("", "_low", "_high"))
        where = f"{row['device']}, {row['shape']}" if {"device", "shape"} <= row.keys() else row["what"]
        return Bounds(100 * value, 100 * low, 100 * high, row["steps"], note=where)


def _ranks(values: Array, weights: Array) -> Array:
    """The mean rank of each of ``values`` (n,) where it comes ``weights`` (rows, n) times."""
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    of_group = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(of_group, axis=1) - (of_group - 1) / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = middle[:, group]
    return ranks
