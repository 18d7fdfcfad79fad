"""The numbers of runs ("figures") that analysis/claims.py compares, with bootstrap intervals.

In: the runs' scores, judgments, answers and log-likelihoods, and the rule in tables.yaml (``analysis``: level, resamples, seed).
Out: ``Bounds``.

**Figures and resamples.** A figure of a run is an array (1 + resamples,): its value, then its value in each bootstrap resample of the
questions or pairs that it averages. All runs share the resamples, so the difference of two arrays is the paired bootstrap of the
difference. A run's mean leaves out its failed judgments.

**LC win rate.** The fit of the length-controlled win rate gives no observed value for a single instruction. The package's standard error is
the spread of the fit's smooth function of difficulty, and leaves out the chance in the judge's preferences. Here the resampled win rate WR*
moves LC: LC* = LC + s (WR* - WR), s = LC (100 - LC) / (WR (100 - WR)). A shift of the logit that moves the win rate by one point moves LC
by s, the ratio of the logistic model's two slopes. The standard deviation of the difference between two models, in points:

    models                                             refits (40 to 60 resamples)    here                package
    vicuna 13B and 7B, FuseChat 8B and 3B (published)  1.10, 1.19                     1.01, 1.27          0.77, 0.96
    mini_base: SimPO and SFT, DPO, SimPO without LN    0.58, 0.45, 0.35               0.55, 0.39, 0.36    0.34, 0.34, 0.35

**Intervals.** D_j are the differences that a claim compares (SimPO minus each other method, say), D*_j their resamples and s_j the standard
deviation of these. The intervals D_j ± c s_j hold for all j at once, at the configured level, where c is that quantile of
max_j |D*_j - D_j| / s_j. The effect is a monotone function of the D_j (the smallest, where the claim is that all are positive). Its
interval goes from that function of the lower bounds to that function of the upper bounds, so it includes the choice of the best other
method. The percentiles of the resampled smallest would lie too low: they would contradict "highest of all" where all are equal. With one D
the interval is D ± the quantile of |D* - D|.

**Chains.** A chain repeats pretraining, SFT, pairs and trainings with another seed. Where all runs that a claim compares are in several
chains (or were trained with several seeds), each D_j is the mean over these, and Student's t over their effects gives a second interval.
Each chain is compared with its own SFT; SFT is the same start for every training seed of a chain.

Methods that are not in the other chains have one chain. The second interval is then D_j ± t s, for all j at once (Bonferroni). s is the
standard deviation between chains of a like difference, pooled over the methods that are in all chains (analysis/claims.py, ``Figure``):
the method minus SFT, in the same figure. Where there is no such figure either, no verdict is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import stats
from analysis.draw import swept
from analysis.stats import Array, Noise
from analysis.study import LOGLIK, METHODS, PLANNED, REWARDS, Run, Study, read_object, require
from stages.benchmarks import arena_hard, mt_bench, paired
from stages.benchmarks.rows import Row, as_number, check_same, check_texts, read_rows
from stages.lib import files
from stages.lib.errors import UserError
from stages.score import repeated_3grams

Runs = Mapping[str, Run]  # of one setting and seed, by method
ABLATED = ("simpo_no_ln", "simpo_no_margin")  # variants of SimPO, which Table 4 does not have
T = TypeVar("T")


class Bounds(NamedTuple):
    """An effect with its interval over ``n`` questions or pairs, its interval over chains, and a note.

    ``n_chains`` are the chains or training seeds of which the effect is the mean. For one, the interval over chains is of the noise
    of other methods; NaN where that is not known.
    """

    effect: float
    low: float
    high: float
    n: int
    chain_low: float = math.nan
    chain_high: float = math.nan
    n_chains: int = 1
    note: str = ""

    def wider(self) -> tuple[float, float]:
        """The lower of both lows and the higher of both highs."""
        return float(np.nanmin([self.low, self.chain_low])), float(np.nanmax([self.high, self.chain_high]))


def in_chains(draws: list[Runs]) -> bool:
    """Whether the runs of ``Evidence.by_seed`` are of several chains, so that they show the noise between chains themselves."""
    return len({run.setting for runs in draws for run in runs.values()}) > 1


def once(make: Callable[..., T]) -> Callable[..., T]:
    """Compute a figure only once for each run."""

    @wraps(make)
    def kept(self: Evidence, run: Run, *args: str) -> T:
        key = (make.__name__, run.setting, run.run, *args)
        if key not in self._known:
            self._known[key] = make(self, run, *args)
        found: T = self._known[key]
        return found

    return kept


class Evidence:
    """The figures of a results folder's runs, each an array (1 + resamples,). UserError names a file that is missing."""

    def __init__(self, study: Study) -> None:
        self.study = study
        rule = study.config.get("analysis")
        if not isinstance(rule, dict) or not {"level", "resamples", "seed", "about"} <= rule.keys():
            raise UserError(f"{study.results}/tables.yaml has no whole 'analysis'; {PLANNED}")
        self.rule = rule
        self._counts: dict[tuple[str, int], list[Array]] = {}
        self._known: dict[tuple[Any, ...], Any] = {}
        self._asked: dict[str, list[Any]] = {}
        self._paired: dict[tuple[str, str], tuple[str, list[Any]]] = {}

    # -- runs

    def methods(self) -> list[str]:
        """The scale's methods that are in the paper's Table 4. Claims are about these alone."""
        return [method for method in self.study.config["methods"] if method in METHODS and method not in ABLATED]

    def trained(self, setting: str, method: str) -> dict[int | None, Run]:
        """A method's runs by training seed, those of the tables first. SFT has one run, under None."""
        runs = [run for run in self.study.rows(method) if run.setting == setting]
        if method == "sft" and runs:
            return {None: runs[0]}
        seeds = [run for run in self.study.sweep("seeds") if (run.setting, run.method) == (setting, method)]
        found = {run.seed: run for run in runs} | {run.varied["seed"]: run for run in seeds}
        if not found:
            raise UserError(f"scale {self.study.config['name']} has no run of {method} in {setting}; name it in conf/scale")
        return found

    def by_seed(self, setting: str, methods: Iterable[str]) -> list[Runs]:
        """The runs of ``methods``, for each seed with which all of them were trained, then for each further chain that has all of them."""
        found = {method: self.trained(setting, method) for method in methods}
        first, *rest = [runs for method, runs in found.items() if method != "sft"]
        seeds = [seed for seed in first if all(seed in runs for runs in rest)]
        if not seeds:
            raise UserError(f"{', '.join(found)} in {setting} were trained with no seed in common; see seeds in conf/scale and conf/sweep")
        own: list[Runs] = [{method: runs[None if method == "sft" else seed] for method, runs in found.items()} for seed in seeds]
        others = [runs for runs in self.study.chains(setting)[1:] if found.keys() <= runs.keys()]
        return [*own, *({method: runs[method] for method in found} for runs in others)]

    def chained(self, setting: str) -> list[Runs]:
        """The runs of a setting's chains, of Table 4's methods; empty where it has one chain."""
        return [{method: run for method, run in runs.items() if method in self.methods()} for runs in self.study.chains(setting)]

    def sweep(self, name: str, key: str, setting: str, least: int = 2) -> dict[float, list[Run]]:
        """A sweep's runs in a setting by their value of ``key``, ascending; UserError for fewer than ``least`` values.

        name:    conf/sweep/<scale>/<name>.yaml
        key:     the hyperparameter that it varies
        setting: the setting
        least:   how many values the claim needs
        """
        by_setting = swept(self.study, name, key)
        if setting not in by_setting:
            raise UserError(f"the sweep {name} is of {', '.join(by_setting)} alone: conf/sweep/{self.study.config['name']}/{name}.yaml")
        found = by_setting[setting]
        if len(found) < least:
            raise UserError(f"the sweep {name} has {len(found)} values of {key} in {setting}; this claim needs {least}")
        return found

    # -- resamples

    def counts(self, what: str, n: int) -> Iterable[Array]:
        """``stats.counts`` of ``n`` units by the analysis' rule. ``what`` fixes the resamples."""
        if (what, n) in self._counts:
            return self._counts[what, n]
        blocks = stats.counts(n, self.rule["resamples"], [self.rule["seed"], crc32(what.encode())])
        if n * self.rule["resamples"] > stats.CELLS:
            return blocks
        return self._counts.setdefault((what, n), list(blocks))

    def sums(self, what: str, columns: Array) -> Array:
        """The sum of each of ``columns`` (n, k) in the sample and each resample: (k, 1 + resamples)."""
        return np.concatenate([block @ columns for block in self.counts(what, len(columns))]).T

    def mean(self, what: str, values: Array) -> Array:
        """The mean of those ``values`` (n,) that are not NaN: (1 + resamples,). ``what`` fixes the resamples."""
        there = ~np.isnan(values)
        if not there.any():
            raise UserError(f"nothing to take a mean of: {what}")
        return self.ratio(what, np.where(there, values, 0), there)

    def ratio(self, what: str, over: npt.NDArray[Any], under: npt.NDArray[Any]) -> Array:
        """The sum of ``over`` (n,) divided by the sum of ``under`` (n,): (1 + resamples,). ``what`` fixes the resamples."""
        numerator, denominator = self.sums(what, np.stack([over, under.astype(float)], axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = numerator / denominator
        return found

    def spread(self, what: str, values: Array) -> Array:
        """The standard deviation (ddof 1) of ``values`` (n,): (1 + resamples,)."""
        n, middle = len(values), values.mean()
        total, squares = self.sums(what, np.stack([values - middle, (values - middle) ** 2], axis=1))
        return np.sqrt(np.maximum(squares - total**2 / n, 0) / (n - 1))

    def spearman(self, what: str, x: Array, y: Array, texts: int = 1) -> Array:
        """Spearman's ρ of ``x`` and ``y`` (n,): (1 + resamples,).

        what:  fixes the resamples
        x, y:  the values
        texts: how many values a unit has; they stand n / texts apart and are drawn together
        """
        return stats.resampled_spearman(x, y, self.counts(what, len(x) // texts))

    def bounds(
        self, effects: list[list[Array]], n: int, join: Callable[[Array], float] = np.min, note: str = "", noise: Noise | None = None
    ) -> Bounds:
        """The interval of an effect; see Intervals and Chains above.

        effects: for each chain or seed the differences D_j, arrays (1 + resamples,)
        n:       how many questions or pairs there are
        join:    the effect as a monotone function of the D_j
        note:    what else to say
        noise:   of a D_j between chains, where ``effects`` are of one chain and others are there
        """
        by_chain = np.array(effects)
        together = by_chain.mean(axis=0)
        values, draws = together[:, 0], together[:, 1:]
        if not np.isfinite(values).all():
            raise UserError("one of its figures is not a number: a mean over nothing, or a correlation with a constant")
        draws = np.where(np.isfinite(draws), draws, values[:, None])  # a resample may contain none of a rare kind
        spread = draws.std(axis=1)
        scaled = np.abs(draws - values[:, None]) / np.where(spread > 0, spread, 1)[:, None]
        reach = np.quantile(scaled.max(axis=0), self.rule["level"]) * spread
        effect, low, high = (float(join(part)) for part in (values, values - reach, values + reach))
        _, chain_low, chain_high = stats.over_chains((join(part[:, 0]) for part in by_chain), self.rule["level"])
        if noise:
            half = noise.reach(self.rule["level"], of=len(values))
            chain_low, chain_high = float(join(values - half)), float(join(values + half))
        return Bounds(effect, low, high, n, chain_low, chain_high, len(by_chain), note)

    def size(self, of: str, run: Run) -> int:
        """The number of a benchmark's questions, or of a run's pairs in a split."""
        return len(self.pairs(run, of) if of in ("train", "heldout") else self.question_ids(of))

    # -- figures of a run

    def rows(self, run: Run, name: str, *keys: str) -> list[Row]:
        """The rows of the file ``name`` of a run's evaluation. Each must have ``keys``."""
        return read_rows(require(self.study.evaluated(run, name)), keys)

    def judgments(self, run: Run, benchmark: str) -> list[Row]:
        """A run's judgments on a benchmark. UserError for values that the benchmark's protocol does not have."""
        of = self.study.benchmark(benchmark)
        rows = self.rows(run, f"{benchmark}/{of.judgments}", *of.judgment_keys)
        of.check(rows, str(self.study.evaluated(run, f"{benchmark}/{of.judgments}")))
        return rows

    def question_ids(self, benchmark: str) -> list[Any]:
        """The instructions of AlpacaEval 2, or the ids of another benchmark's questions."""
        if benchmark not in (known := self.study.config["questions"]):
            raise UserError(f"scale {self.study.config['name']} has no benchmark {benchmark}; name it in conf/scale")
        if benchmark not in self._asked:
            key = self.study.benchmark(benchmark).format.key
            path = require(self.study.path(known[benchmark]))
            self._asked[benchmark] = [row[key] for row in read_rows(path, (key,))]
        return self._asked[benchmark]

    def check_questions(self, benchmark: str, run: Run, asked: list[Any]) -> None:
        """UserError unless a run has the benchmark's questions in their order: runs are compared question by question."""
        check_same(f"{self.study.folder(run)}/eval/{benchmark}", asked, "the benchmark's questions", self.question_ids(benchmark))

    @once
    def preferences(self, run: Run) -> Array:
        """AlpacaEval's wins in [0, 100], NaN where the judgment failed: (questions,)."""
        asked, found = paired.values(self.study.annotations(run, "alpacaeval2"), "alpacaeval2")
        self.check_questions("alpacaeval2", run, asked)
        return found

    @once
    def win_rate(self, run: Run) -> Array:
        """AlpacaEval 2's win rate, in percent."""
        return self.mean("alpacaeval2", self.preferences(run))

    def lc(self, run: Run) -> Array:
        """AlpacaEval 2's length-controlled win rate, in percent."""
        rate, lc = self.win_rate(run), self.study.score(run, "alpacaeval2", "length_controlled_winrate")
        steep = rate[0] * (100 - rate[0])
        return lc + (lc * (100 - lc) / steep if steep > 0 else 1.0) * (rate - rate[0])

    @once
    def answers(self, run: Run) -> pd.DataFrame:
        """A run's answers to AlpacaEval 2: ``length`` in characters; ``ended`` by itself and ``repeated`` 3-grams, both in percent."""
        name, keys = "alpacaeval2/model_outputs.json", ("instruction", "output")
        rows = self.rows(run, name, *keys)
        check_texts(rows, keys, str(self.study.evaluated(run, name)))
        self.check_questions("alpacaeval2", run, [row["instruction"] for row in rows])
        reasons = [row.get("finish_reason") for row in rows]
        return pd.DataFrame(
            {
                "length": [float(len(row["output"])) for row in rows],
                "ended": [math.nan if reason is None else 100.0 * (reason == "stop") for reason in reasons],
                "repeated": [100 * repeated_3grams(row["output"]) for row in rows],
            }
        )

    @once
    def arena_hard(self, run: Run) -> Array:
        """Arena-Hard's win rate, in percent: the mean over battles, resampled by question."""
        rows = self.judgments(run, "arena_hard")
        if wrong := [row["question_id"] for row in rows if len(row["games"]) != 2]:
            path = self.study.evaluated(run, "arena_hard/model_judgment.jsonl")
            raise UserError(f"{path}, question {wrong[0]!r}: 'games' must be a list of two, null where one failed; {files.again(path)}")
        self.check_questions("arena_hard", run, [row["question_id"] for row in rows])
        points = [arena_hard.battles(row["games"]) for row in rows]
        return self.ratio("arena_hard", np.array([100 * sum(won) for won in points]), np.array([len(won) for won in points]))

    def ratings(self, run: Run) -> Array:
        """MT-Bench's mean rating of each question, NaN where none was given: (questions,)."""
        rows = self.judgments(run, "mt_bench")
        if wrong := [row["question_id"] for row in rows if not isinstance(row["question_id"], str | int)]:
            path = self.study.evaluated(run, "mt_bench/model_judgment.jsonl")
            raise UserError(f"{path}: 'question_id' is {wrong[0]!r}; expected a number or a text; {files.again(path)}")
        frame = pd.DataFrame(rows)
        means = frame["score"].where(frame["score"] != mt_bench.FAILED).groupby(frame["question_id"], sort=False).mean()
        self.check_questions("mt_bench", run, list(means.index))
        return means.to_numpy(float)

    def separation(self, benchmark: str, values_of: Callable[[Run], Array], runs: list[Run]) -> tuple[Array, int]:
        """(√F, number of questions): how clearly a benchmark separates runs.

        benchmark: its name
        values_of: gives a run's value for each question
        runs:      the runs

        F is the statistic of the two-way layout runs x questions without interaction: the variance of the runs' means divided by the
        variance that chance gives them. Only questions on which every run has a value count.
        """
        values = np.stack([values_of(run) for run in runs], axis=1)
        values = values[~np.isnan(values).any(axis=1)]
        n, k = values.shape
        if n < 2 or k < 2:
            raise UserError(f"{benchmark} has {n} questions on which all {k} runs have a value; a comparison needs two of each")
        within = values - values.mean(axis=1, keepdims=True)
        *means, total = self.sums(f"{benchmark} separation", np.column_stack([within, (within**2).sum(axis=1)]))
        between = (np.array(means) ** 2).sum(axis=0) / n
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(between / (k - 1) / ((total - between) / ((n - 1) * (k - 1)))), n

    @once
    def pairs(self, run: Run, split: str) -> pd.DataFrame:
        """``Study.pairs``; UserError unless the setting's other runs have the same pairs."""
        pairs = self.study.pairs(run, split)
        ids = list(pairs.index)
        first, known = self._paired.setdefault((run.setting, split), (run.run, ids))
        if ids != known:
            path = self.study.evaluated(run, LOGLIK)
            raise UserError(f"{path} and that of {first} hold different {split} pairs; {files.again(path)}")
        return pairs

    def rewards(self, run: Run, split: str) -> pd.DataFrame:
        """``pairs`` with rewards; UserError unless the run's objective defines them."""
        pairs = self.pairs(run, split)
        if "margin" not in pairs:
            path = self.study.folder(run) / files.MANIFEST
            raise UserError(f"{path} names no objective that defines rewards ({', '.join(REWARDS)}); {files.again(path)}")
        return pairs

    def length_correlation(self, run: Run) -> Array:
        """ρ(average log-likelihood, length) over chosen and rejected held-out responses, resampled by pair."""
        pairs = self.pairs(run, "heldout")
        average, length = (np.concatenate([pairs[f"{side}_{key}"] for side in ("chosen", "rejected")]) for key in ("average", "length"))
        return self.spearman("heldout", average, length, texts=2)

    def margin_spread(self, run: Run) -> Array:
        """The standard deviation of the reward margin over the held-out pairs."""
        return self.spread("heldout", self.rewards(run, "heldout")["margin"].to_numpy(float))

    def chosen_ratio(self, run: Run) -> pd.Series:
        """``Study.log_ratio`` of the chosen held-out responses."""
        pairs = self.pairs(run, "heldout")
        return pairs["chosen_logp"] - pairs["chosen_reference_logp"]

    def own_ratio(self, run: Run) -> Array:
        """``Study.log_ratio`` of the run's answers to AlpacaEval 2: (questions,). A blank answer has no row, and NaN here."""
        asked = [str(number) for number in range(len(self.preferences(run)))]
        return self.study.log_ratio(run, "answers").reindex(asked).to_numpy(float)

    def step(self, cost: str) -> Bounds:
        """What SimPO saves of a training step's ``cost`` (time or memory) in the paper's protocol, A, in percent."""
        path = self.study.results / "efficiency/train_step.json"
        claim = read_object(path).get("claim")
        rows = [row for row in claim if isinstance(row, dict)] if isinstance(claim, list) else []
        row: Any = next((row for row in rows if row.get("protocol") == "A"), {})
        again = f"make it again with: snakemake --cores all --forcerun efficiency -- {path}"
        if row.get(f"{cost}_saved") is None:
            raise UserError(f"{path} has no {cost} of protocol A; {again}")
        ends = [row.get(f"{cost}_saved{end}", row[f"{cost}_saved"]) for end in ("", "_low", "_high")]
        value, low, high = (as_number(end, f"{path}: {cost} saved") for end in ends)
        if not all(map(math.isfinite, (value, low, high))):
            raise UserError(f"{path}: {cost} saved in protocol A, or an end of its interval, is not a number; {again}")
        if not isinstance(row.get("steps"), int) or not {"device", "shape"} <= row.keys():
            raise UserError(f"{path}: protocol A lacks its 'steps', 'device' or 'shape'; {again}")
        return Bounds(100 * value, 100 * low, 100 * high, row["steps"], note=f"{row['device']}, {row['shape']}")
