"""The papers' claims, each with what measures it and which values it says; analysis/scorecard.py judges and draws them.

A claim of several parts is several claims, S1a and S1b, so that no verdict hides another. Each says of a number, the effect, that it lies
in a range: above 0, at most some limit, or within ``about`` (the configuration's ``analysis``) of a value. analysis/evidence.py has the
figures and the intervals. S: SimPO, arXiv 2405.14734, whose tables, figures and sections are named alone; D: DPO, arXiv 2305.18290.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis import theory
from analysis.evidence import ABLATED, Array, Bounds, Evidence
from analysis.paper import reported
from analysis.study import METHODS, SETTINGS, Run, name_of
from stages.lib.errors import UserError

LENGTH_BINS = 5  # of equally many pairs, by length difference
EXACT = 1e-9  # what rounding may leave of an identity

# -- figures, and what compares them ----------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """``of``: the benchmark, or the split of pairs, that it is a figure of."""

    of: str
    value: Callable[[Evidence, Run], Array]


def _answers(column: str) -> Figure:
    return Figure("alpacaeval2", lambda e, run: e.mean("alpacaeval2", e.answers(run)[column].to_numpy(float)))


def _heldout(column: Callable[[pd.DataFrame], pd.Series]) -> Figure:
    return Figure("heldout", lambda e, run: e.mean("heldout", column(e.pairs(run, "heldout")).to_numpy(float)))


LC = Figure("alpacaeval2", Evidence.lc)
ARENA_HARD = Figure("arena_hard", Evidence.arena_hard)
LENGTH, ENDED, REPEATED = _answers("length"), _answers("ended"), _answers("repeated")
ACCURACY = _heldout(lambda pairs: 100.0 * pairs["reward"])
CHOSEN = _heldout(lambda pairs: pairs["chosen_average"])
CHOSEN_RATIO = _heldout(lambda pairs: pairs["chosen_logp"] - pairs["chosen_reference_logp"])
SPREAD = Figure("heldout", lambda e, run: e.spread("heldout", e.pairs(run, "heldout")["margin"].to_numpy(float)))
RHO = Figure("heldout", Evidence.length_correlation)
OWN_RATIO = Figure("alpacaeval2", lambda e, run: e.mean("alpacaeval2", e.own_ratio(run)))

Measure = Callable[[Evidence, str], Bounds]  # in a setting
OTHERS = ("*",)  # Table 4's methods that a comparison does not name


def compare(figure: Figure, of: tuple[str, ...], minus: tuple[str, ...]) -> Measure:
    """The figure of each of ``of`` minus that of each of ``minus``, the smallest."""

    def measure(e: Evidence, setting: str) -> Bounds:
        others = tuple(method for method in e.methods() if method not in (*of, *minus))
        pairs = [(a, b) for a in (others if of == OTHERS else of) for b in (others if minus == OTHERS else minus)]
        if not pairs:
            raise UserError(f"scale {e.study.config['name']} has no other method to compare with; name some in conf/scale")
        runs = e.by_seed(setting, dict.fromkeys(method for pair in pairs for method in pair))
        effects = [[figure.value(e, by[a]) - figure.value(e, by[b]) for a, b in pairs] for by in runs]
        nearest = pairs[int(np.array(effects)[:, :, 0].mean(axis=0).argmin())]
        note = "" if len(pairs) == 1 else " against ".join(name_of(method, METHODS) for method in nearest)
        return e.bounds(effects, e.size(figure.of, runs[0][nearest[0]]), note=note)

    return measure


def families(figure: Figure) -> Measure:
    """The figure in an Instruct setting minus that in its Base setting, mean over Table 4's methods; ``setting``: both, a space between."""

    def measure(e: Evidence, setting: str) -> Bounds:
        base, instruct = (e.by_seed(of, e.methods()) for of in setting.split())
        effects = [
            [np.mean([figure.value(e, b[method]) - figure.value(e, a[method]) for method in e.methods()], axis=0)]
            for a, b in zip(base, instruct, strict=False)
        ]
        return e.bounds(effects, e.size(figure.of, next(iter(base[0].values()))))

    return measure


def longer(other: str) -> Measure:
    """By how many percent SimPO's answers are longer than the other's."""

    def measure(e: Evidence, setting: str) -> Bounds:
        runs = e.by_seed(setting, ("simpo", other))
        effects = [[100 * (LENGTH.value(e, of["simpo"]) / LENGTH.value(e, of[other]) - 1)] for of in runs]
        return e.bounds(effects, e.size(LENGTH.of, runs[0]["simpo"]))

    return measure


def lowest_margin(e: Evidence, setting: str) -> Bounds:
    """The lowest of SimPO's mean margins in LENGTH_BINS bins of the length difference."""
    pairs = [e.pairs(of["simpo"], "heldout") for of in e.by_seed(setting, ("simpo",))]
    difference = pairs[0]["longer"].to_numpy(float)
    bins = np.searchsorted(np.unique(np.quantile(difference, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1])), difference)
    members = [bins == place for place in np.unique(bins)]
    effects = [[e.ratio("heldout", np.where(inside, part["margin"], 0), inside) for inside in members] for part in pairs]
    lowest = difference[members[int(np.array(effects)[:, :, 0].mean(axis=0).argmin())]]
    return e.bounds(effects, len(difference), note=f"where |y_w| - |y_l| is {lowest.min():.0f} to {lowest.max():.0f} tokens")


def margin_follows_length(e: Evidence, setting: str) -> Bounds:
    """ρ(margin, length difference) of SimPO without length normalisation."""
    pairs = [e.pairs(of["simpo_no_ln"], "heldout") for of in e.by_seed(setting, ("simpo_no_ln",))]
    effects = [[e.spearman("heldout", part["margin"].to_numpy(float), part["longer"].to_numpy(float))] for part in pairs]
    return e.bounds(effects, len(pairs[0]))


def rise(sweep: str, key: str, figure: Figure, sign: int = 1) -> Measure:
    """``sign`` times the figure at a sweep's largest value minus that at its smallest."""

    def measure(e: Evidence, setting: str) -> Bounds:
        by_value = e.sweep(sweep, key, setting)
        low, high = min(by_value), max(by_value)
        pairs = list(zip(by_value[low], by_value[high], strict=False))
        effects = [[sign * (figure.value(e, b) - figure.value(e, a))] for a, b in pairs]
        return e.bounds(effects, e.size(figure.of, pairs[0][0]), note=f"{GREEK[key]} from {low:g} to {high:g}")

    return measure


def rise_and_fall(e: Evidence, setting: str) -> Bounds:
    """LC at the best γ inside the sweep minus LC at the better of its ends."""
    by_value = e.sweep("gamma", "gamma", setting, least=3)
    first, *inside, last = by_value
    seeds = range(min(map(len, by_value.values())))
    effects = [[e.lc(by_value[gamma][seed]) - e.lc(by_value[end][seed]) for gamma in inside for end in (first, last)] for seed in seeds]

    def to_ends(values: Array) -> Array:
        worse: Array = values.reshape(len(inside), 2).min(axis=1)
        return worse

    best = inside[int(to_ends(np.array(effects)[:, :, 0].mean(axis=0)).argmax())]
    note = f"best inside γ = {best:g}, ends {first:g} and {last:g}"
    return e.bounds(effects, e.size(LC.of, by_value[best][0]), lambda values: float(to_ends(values).max()), note)


def ranked_wrong(method: str) -> Measure:
    """Of the training pairs that the method's reward ranks right, the percentage that the average log-likelihood ranks wrong."""

    def measure(e: Evidence, setting: str) -> Bounds:
        pairs = [e.pairs(of[method], "train") for of in e.by_seed(setting, (method,))]
        effects = [[100 * e.ratio("train", (p["reward"] & ~p["likelihood"]).to_numpy(float), p["reward"].to_numpy())] for p in pairs]
        return e.bounds(effects, len(pairs[0]))

    return measure


def harder(e: Evidence, setting: str) -> Bounds:
    """AlpacaEval's win rate minus Arena-Hard's, mean over Table 4's methods; the questions are others, and resampled apart."""
    runs = e.by_seed(setting, e.methods())
    effects = [[np.mean([e.win_rate(run) - e.arena_hard(run) for run in of.values()], axis=0)] for of in runs]
    return e.bounds(effects, min(e.size(name, next(iter(runs[0].values()))) for name in ("alpacaeval2", "arena_hard")))


def separates_less(e: Evidence, setting: str) -> Bounds:
    """AlpacaEval's separation of Table 4's methods minus MT-Bench's."""
    runs = e.by_seed(setting, e.methods())
    found = [[e.separation(benchmark, list(of.values())) for benchmark in ("alpacaeval2", "mt_bench")] for of in runs]
    (alpaca, asked), (rated, questions) = found[0]
    note = f"√F {alpaca[0]:.2f} and {rated[0]:.2f}"
    return e.bounds([[ours[0] - theirs[0]] for ours, theirs in found], min(asked, questions), note=note)


def step(cost: str) -> Measure:
    """What SimPO saves of DPO's training step, in percent."""
    return lambda e, setting: e.step(cost)


def no_ppo(e: Evidence, setting: str) -> Bounds:
    raise UserError("no PPO is built here, which this claim compares with")


@cache
def _deviations() -> dict[str, float]:
    return theory.deviations()


def exact(part: str) -> Measure:
    """The largest deviation from a statement of analysis/theory.py, over its instances."""

    def measure(e: Evidence, setting: str) -> Bounds:
        deviation = _deviations()[part]
        return Bounds(deviation, deviation, deviation, theory.INSTANCES)

    return measure


# -- the claims ----------------------------------------------------------------------------------------------------------


class Range(NamedTuple):
    """What a claim says: above ``low``, and at most ``high``; ``about``: each end moves outwards by that much of 100 %."""

    low: float
    high: float
    about: bool = False

    def within(self, about: float) -> tuple[float, float]:
        wider = 100 * about if self.about else 0.0
        return self.low - wider, self.high + wider


ABOVE_0, NONE, IDENTITY = Range(0, math.inf), Range(-math.inf, 0), Range(-math.inf, EXACT)
ABOUT_HALF, ABOUT_A_FIFTH, ABOUT_A_TENTH = Range(50, 50, True), Range(20, 20, True), Range(10, 10, True)
NOT_NOTABLY = Range(-math.inf, 0, True)

Values = dict[tuple[str, str], float]  # the paper's, of a setting, by method and metric
IN_SETTINGS, IN_FAMILIES = "settings", "families"
GREEK = {"gamma": "γ", "beta": "β"}


class Paper(NamedTuple):
    """The claim's effect in the paper's own numbers (analysis/paper.yaml): ``of`` those of a setting in these ``tables``."""

    of: Callable[[Values], float]
    tables: tuple[str, ...]


class Claim(NamedTuple):
    """``measure``: what the effect is, with its unit. ``where``: each setting, each family of Base and Instruct, or the place's name."""

    id: str
    claim: str
    measure: str
    measured: Measure
    claimed: Range
    paper: str | Paper
    where: str = IN_SETTINGS
    digits: int = 1


def gap(metric: str, of: tuple[str, ...], minus: tuple[str, ...], *tables: str) -> Paper:
    """As ``compare``."""

    def effect(values: Values) -> float:
        others = [method for method, named in values if named == metric and method not in (*of, *minus, *ABLATED)]
        pairs = [(a, b) for a in (others if of == OTHERS else of) for b in (others if minus == OTHERS else minus)]
        return min(values[a, metric] - values[b, metric] for a, b in pairs)

    return Paper(effect, tables)


TABLE_4 = ("table4", "v0.2", "gemma2")
SIMPO, DPO, SFT, NO_LN, NO_MARGIN = ("simpo",), ("dpo",), ("sft",), ("simpo_no_ln",), ("simpo_no_margin",)
LC_POINTS, AH_POINTS, HELDOUT = "LC win rate, points", "Arena-Hard win rate, points", "held-out pairs"
EFFICIENCY = ("figure5c",)
SAVED = Paper(lambda v: 100 * (1 - v["simpo", "minutes"] / v["dpo", "minutes"]), EFFICIENCY)
SPARED = Paper(lambda v: 100 * (1 - v["simpo", "peak_gb"] / v["dpo", "peak_gb"]), EFFICIENCY)


def _longer(other: str) -> Callable[[Values], float]:
    return lambda values: 100 * (values["simpo", "length"] / values[other, "length"] - 1)


def _harder(values: Values) -> float:
    methods = [method for method, metric in values if metric == "win_rate"]
    return float(np.mean([values[method, "win_rate"] - values[method, "arena_hard_win_rate"] for method in methods]))


LENGTHS = ("table1", "gemma2")


def in_paper(claim: Claim, setting: str) -> str:
    """What the paper has for a claim: in this setting where it has it, else in all that it has."""
    if isinstance(claim.paper, str):
        return claim.paper
    found: dict[str, str] = {}
    for place, values in _reported(claim.paper.tables).items():
        try:
            found[place] = f"{claim.paper.of(values):+.{claim.digits}f}"
        except (KeyError, ValueError):  # not all of the claim's methods are in this setting
            continue
    if setting in found:
        return found[setting]
    return ", ".join(f"{name_of(place, SETTINGS)} {value}" for place, value in found.items())


@cache
def _reported(tables: tuple[str, ...]) -> dict[str, Values]:
    found: dict[str, Values] = {}
    for number in reported():
        if number.table in tables and number.setting is not None:
            found.setdefault(number.setting, {})[number.method, number.metric] = number.value
    return found


CLAIMS = (
    Claim(
        "S1a",
        "SimPO has the highest LC win rate",
        f"SimPO minus the best other method, {LC_POINTS}",
        compare(LC, SIMPO, OTHERS),
        ABOVE_0,
        gap("lc_win_rate", SIMPO, OTHERS, *TABLE_4),
    ),
    Claim(
        "S1b",
        "SimPO has the highest Arena-Hard win rate",
        f"SimPO minus the best other method, {AH_POINTS}",
        compare(ARENA_HARD, SIMPO, OTHERS),
        ABOVE_0,
        gap("arena_hard_win_rate", SIMPO, OTHERS, *TABLE_4),
    ),
    Claim(
        "S1c",
        "SimPO's LC win rate is above DPO's",
        f"SimPO minus DPO, {LC_POINTS}",
        compare(LC, SIMPO, DPO),
        ABOVE_0,
        gap("lc_win_rate", SIMPO, DPO, *TABLE_4),
    ),
    Claim(
        "S1d",
        "SimPO's Arena-Hard win rate is above DPO's",
        f"SimPO minus DPO, {AH_POINTS}",
        compare(ARENA_HARD, SIMPO, DPO),
        ABOVE_0,
        gap("arena_hard_win_rate", SIMPO, DPO, *TABLE_4),
    ),
    Claim(
        "S2a",
        "Every method beats its SFT start in LC",
        f"the worst method minus SFT, {LC_POINTS}",
        compare(LC, OTHERS, SFT),
        ABOVE_0,
        gap("lc_win_rate", OTHERS, SFT, *TABLE_4),
    ),
    Claim(
        "S2b",
        "Every method beats its SFT start on Arena-Hard",
        f"the worst method minus SFT, {AH_POINTS}",
        compare(ARENA_HARD, OTHERS, SFT),
        ABOVE_0,
        gap("arena_hard_win_rate", OTHERS, SFT, *TABLE_4),
    ),
    Claim(
        "S3a",
        "Instruct settings beat Base settings in LC",
        f"mean over methods of Instruct minus Base, {LC_POINTS}",
        families(LC),
        ABOVE_0,
        "Mistral +11.2, Llama-3 +19.8",
        IN_FAMILIES,
    ),
    Claim(
        "S3b",
        "Instruct settings beat Base settings on Arena-Hard",
        f"mean over methods of Instruct minus Base, {AH_POINTS}",
        families(ARENA_HARD),
        ABOVE_0,
        "Mistral +10.3, Llama-3 +16.2",
        IN_FAMILIES,
    ),
    Claim(
        "S4a",
        "Without LN quality falls most",
        f"the worse of SimPO and SimPO with γ = 0 minus SimPO without LN, {LC_POINTS}",
        compare(LC, (*SIMPO, *NO_MARGIN), NO_LN),
        ABOVE_0,
        gap("lc_win_rate", (*SIMPO, *NO_MARGIN), NO_LN, "table5"),
    ),
    Claim(
        "S4b",
        "Without LN answers grow longer",
        "SimPO without LN minus SimPO, characters an answer",
        compare(LENGTH, NO_LN, SIMPO),
        ABOVE_0,
        "longer (section 4.2)",
    ),
    Claim(
        "S4c",
        "Without LN answers repeat themselves more",
        "SimPO without LN minus SimPO, repeated 3-grams, points",
        compare(REPEATED, NO_LN, SIMPO),
        ABOVE_0,
        "more repetitive (section 4.2)",
        digits=2,
    ),
    Claim(
        "S4d",
        "Without LN fewer answers end by themselves",
        "SimPO minus SimPO without LN, answers that end, points",
        compare(ENDED, SIMPO, NO_LN),
        ABOVE_0,
        "not said: ours, beside length and repetition",
    ),
    Claim(
        "S5a",
        "γ = 0 is worse than the tuned γ in LC",
        f"SimPO minus SimPO with γ = 0, {LC_POINTS}",
        compare(LC, SIMPO, NO_MARGIN),
        ABOVE_0,
        gap("lc_win_rate", SIMPO, NO_MARGIN, "table5"),
    ),
    Claim(
        "S5b",
        "γ = 0 is worse than the tuned γ on Arena-Hard",
        f"SimPO minus SimPO with γ = 0, {AH_POINTS}",
        compare(ARENA_HARD, SIMPO, NO_MARGIN),
        ABOVE_0,
        gap("arena_hard_win_rate", SIMPO, NO_MARGIN, "table5"),
    ),
    Claim(
        "S6a",
        "With LN margins are positive at any length gap",
        f"SimPO's lowest mean margin among {LENGTH_BINS} bins of |y_w| - |y_l|, {HELDOUT}",
        lowest_margin,
        ABOVE_0,
        "positive throughout (Figure 2a)",
        digits=2,
    ),
    Claim(
        "S6b",
        "Without LN margins follow the length difference",
        f"Spearman's ρ of margin and |y_w| - |y_l| without LN, {HELDOUT}",
        margin_follows_length,
        ABOVE_0,
        "rises with it (Figure 2a)",
        digits=2,
    ),
    Claim(
        "S7a",
        "Likelihood follows length more w/o LN than in DPO",
        f"SimPO without LN minus DPO, Spearman's ρ of average log-likelihood and length, {HELDOUT}",
        compare(RHO, NO_LN, DPO),
        ABOVE_0,
        gap("spearman", NO_LN, DPO, "table6"),
        digits=2,
    ),
    Claim(
        "S7b",
        "Likelihood follows length more in DPO than in SimPO",
        f"DPO minus SimPO, Spearman's ρ of average log-likelihood and length, {HELDOUT}",
        compare(RHO, DPO, SIMPO),
        ABOVE_0,
        gap("spearman", DPO, SIMPO, "table6"),
        digits=2,
    ),
    Claim(
        "S8a",
        "Reward accuracy rises with γ",
        f"the largest γ minus the smallest, reward accuracy on {HELDOUT}, points",
        rise("gamma", "gamma", ACCURACY),
        ABOVE_0,
        "rises (Figure 3a)",
    ),
    Claim(
        "S8b",
        "LC rises with γ, then falls",
        f"the best γ inside the sweep minus the better end, {LC_POINTS}",
        rise_and_fall,
        ABOVE_0,
        "rises, then falls (Figure 3a)",
    ),
    Claim(
        "S9a",
        "Margins spread as γ grows",
        f"the largest γ minus the smallest, standard deviation of the margin on {HELDOUT}",
        rise("gamma", "gamma", SPREAD),
        ABOVE_0,
        "flatter with γ (Figure 3b)",
        digits=2,
    ),
    Claim(
        "S9b",
        "Chosen answers grow less likely as γ grows",
        f"the smallest γ minus the largest, average log-likelihood of chosen responses, nats a token, {HELDOUT}",
        rise("gamma", "gamma", CHOSEN, -1),
        ABOVE_0,
        "falls with γ (Figure 3c)",
        digits=2,
    ),
    Claim(
        "S10a",
        "Likelihood ranks half of what DPO ranks right wrong",
        "training pairs that DPO's reward ranks right and average log-likelihood wrong, % of the former",
        ranked_wrong("dpo"),
        ABOUT_HALF,
        "about half (Figure 4b)",
    ),
    Claim(
        "S10b",
        "None of what SimPO ranks right, by construction",
        "training pairs that SimPO's reward ranks right and average log-likelihood wrong, % of the former",
        ranked_wrong("simpo"),
        NONE,
        "none (Figure 4b)",
    ),
    Claim(
        "S11",
        "SimPO's reward accuracy is above DPO's",
        f"SimPO minus DPO, reward accuracy on {HELDOUT}, points",
        compare(ACCURACY, SIMPO, DPO),
        ABOVE_0,
        "above (Figure 4c)",
    ),
    Claim(
        "S12a",
        "DPO: larger β, smaller KL (held-out)",
        "the smallest β minus the largest, mean log π/π_ref of held-out chosen responses, nats",
        rise("beta_dpo", "beta", CHOSEN_RATIO, -1),
        ABOVE_0,
        "falls with β (Figure 5a)",
        digits=2,
    ),
    Claim(
        "S12b",
        "SimPO: larger β, smaller KL (held-out)",
        "the smallest β minus the largest, mean log π/π_ref of held-out chosen responses, nats",
        rise("beta_simpo", "beta", CHOSEN_RATIO, -1),
        ABOVE_0,
        "falls with β (Figure 5a)",
        digits=2,
    ),
    Claim(
        "S12c",
        "DPO: larger β, smaller KL (own answers)",
        "the smallest β minus the largest, mean log π/π_ref of own answers, nats",
        rise("beta_dpo", "beta", OWN_RATIO, -1),
        ABOVE_0,
        "the paper has held-out chosen responses alone",
        digits=2,
    ),
    Claim(
        "S12d",
        "SimPO: larger β, smaller KL (own answers)",
        "the smallest β minus the largest, mean log π/π_ref of own answers, nats",
        rise("beta_simpo", "beta", OWN_RATIO, -1),
        ABOVE_0,
        "the paper has held-out chosen responses alone",
        digits=2,
    ),
    Claim(
        "S12e",
        "DPO: smaller β, better LC",
        f"the smallest β minus the largest, {LC_POINTS}",
        rise("beta_dpo", "beta", LC, -1),
        ABOVE_0,
        "falls with β (Figure 5b)",
    ),
    Claim(
        "S12f",
        "SimPO: smaller β, better LC",
        f"the smallest β minus the largest, {LC_POINTS}",
        rise("beta_simpo", "beta", LC, -1),
        ABOVE_0,
        "falls with β (Figure 5b)",
    ),
    Claim(
        "S13a",
        "SimPO takes about 20 % less time",
        "time saved against DPO with a live reference, % of a step",
        step("time"),
        ABOUT_A_FIFTH,
        SAVED,
        "a training step",
    ),
    Claim(
        "S13b",
        "SimPO takes about 10 % less memory",
        "peak memory saved against DPO with a live reference, %",
        step("memory"),
        ABOUT_A_TENTH,
        SPARED,
        "a training step",
    ),
    Claim(
        "S14a",
        "SimPO does not lengthen answers notably: SFT",
        "SimPO's mean length over SFT's, % longer",
        longer("sft"),
        NOT_NOTABLY,
        Paper(_longer("sft"), LENGTHS),
    ),
    Claim(
        "S14b",
        "SimPO does not lengthen answers notably: DPO",
        "SimPO's mean length over DPO's, % longer",
        longer("dpo"),
        NOT_NOTABLY,
        Paper(_longer("dpo"), LENGTHS),
    ),
    Claim(
        "S15a",
        "Arena-Hard win rates lie below AlpacaEval's",
        "AlpacaEval 2's raw win rate minus Arena-Hard's, mean over methods, points",
        harder,
        ABOVE_0,
        Paper(_harder, ("table4",)),
    ),
    Claim(
        "S15b",
        "MT-Bench separates the methods less clearly",
        "AlpacaEval 2's √F over methods minus MT-Bench's",
        separates_less,
        ABOVE_0,
        "poor separability (section 4.1)",
        digits=2,
    ),
    Claim(
        "D1",
        "DPO's reward-KL frontier is at or above PPO's",
        "expected reward at equal KL, DPO minus PPO",
        no_ppo,
        ABOVE_0,
        "above (DPO, Figure 2)",
        "PPO",
    ),
    Claim(
        "D2",
        "DPO is more robust to the temperature than PPO",
        "win rate lost between temperatures 0 and 1, PPO minus DPO",
        no_ppo,
        ABOVE_0,
        "0.61 to 0.39 against 0.57 to 0.07, digitised (DPO, Figure 2)",
        "PPO",
    ),
    Claim(
        "D3a",
        "r and r + f(x) give the same preferences",
        "largest deviation of Bradley-Terry and Plackett-Luce probabilities",
        exact("preferences"),
        IDENTITY,
        "DPO, Lemma 1",
        "enumerable spaces",
    ),
    Claim(
        "D3b",
        "r and r + f(x) have the same optimal policy",
        "largest deviation of π_r and of what a policy falls short of it",
        exact("policy"),
        IDENTITY,
        "DPO, Eq. 4 and Lemma 2",
        "enumerable spaces",
    ),
    Claim(
        "D3c",
        "β log π/π_ref represents every class, uniquely",
        "largest deviation of a reward's representative",
        exact("representation"),
        IDENTITY,
        "DPO, Theorem 1 and Proposition 1",
        "enumerable spaces",
    ),
    Claim(
        "D3d",
        "DPO's loss has no gradient at the optimal policy",
        "largest gradient of the expected loss",
        exact("gradient"),
        IDENTITY,
        "DPO, Eq. 7",
        "enumerable spaces",
    ),
)
