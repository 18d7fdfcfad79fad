"""The papers' claims: for each, what measures it and which values it asserts. analysis/scorecard.py judges and draws them.

A claim of several parts is several claims, S1a and S1b, so that no verdict hides another. Each says that a number, the effect, lies in a
range: above 0, at most a limit, or within ``about`` (the configuration's ``analysis``) of a value. analysis/evidence.py has the figures and
the intervals. S is SimPO, arXiv 2405.14734, whose tables, figures and sections are cited without a name; D is DPO, arXiv 2305.18290.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis import theory
from analysis.evidence import ABLATED, Bounds, Evidence
from analysis.paper import reported
from analysis.stats import Array, bins
from analysis.study import GREEK, METHODS, SETTINGS, Run, name_of
from stages.lib.errors import UserError

LENGTH_BINS = 5  # of equally many pairs, by length difference
EXACT = 1e-9  # what rounding may leave of an identity

# -- figures, and what compares them ----------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """A number of a run.

    of:     the benchmark, or the split of pairs, that it is computed on
    unit:   its name and unit, as the scorecard prints them
    value:  computes it
    digits: how many decimals the scorecard prints
    metric: its name in analysis/paper.yaml, where that has it
    """

    of: str
    unit: str
    value: Callable[[Evidence, Run], Array]
    digits: int = 1
    metric: str = ""


def _answers(column: str, unit: str, digits: int = 1) -> Figure:
    return Figure("alpacaeval2", unit, lambda e, run: e.mean("alpacaeval2", e.answers(run)[column].to_numpy(float)), digits)


def _heldout(unit: str, values: Callable[[Evidence, Run], pd.Series], digits: int) -> Figure:
    return Figure("heldout", unit, lambda e, run: e.mean("heldout", values(e, run).to_numpy(float)), digits)


HELDOUT, RATIO = "held-out pairs", "mean log π/π_ref of"
LC = Figure("alpacaeval2", "LC win rate, points", Evidence.lc, metric="lc_win_rate")
ARENA_HARD = Figure("arena_hard", "Arena-Hard win rate, points", Evidence.arena_hard, metric="arena_hard_win_rate")
LENGTH, ENDED = _answers("length", "characters an answer"), _answers("ended", "answers that end, points")
REPEATED = _answers("repeated", "repeated 3-grams, points", 2)
ACCURACY = _heldout(f"reward accuracy on {HELDOUT}, points", lambda e, run: 100.0 * e.rewards(run, "heldout")["reward_right"], 1)
CHOSEN = _heldout(
    f"average log-likelihood of chosen responses, nats a token, {HELDOUT}", lambda e, run: e.pairs(run, "heldout")["chosen_average"], 2
)
CHOSEN_RATIO = _heldout(f"{RATIO} held-out chosen responses, nats", Evidence.chosen_ratio, 2)
OWN_RATIO = Figure("alpacaeval2", f"{RATIO} own answers, nats", lambda e, run: e.mean("alpacaeval2", e.own_ratio(run)), 2)
SPREAD = Figure(
    "heldout",
    f"standard deviation of the margin on {HELDOUT}",
    lambda e, run: e.spread("heldout", e.rewards(run, "heldout")["margin"].to_numpy(float)),
    2,
)
RHO = Figure("heldout", f"Spearman's ρ of average log-likelihood and length, {HELDOUT}", Evidence.length_correlation, 2, metric="spearman")

Measure = Callable[[Evidence, str], Bounds]  # in a setting
OTHERS = ("*",)  # all methods of Table 4 that a comparison does not name


def compare(figure: Figure, of: tuple[str, ...], minus: tuple[str, ...]) -> Measure:
    """The smallest difference between the figure of a method in ``of`` and that of a method in ``minus``."""

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
    """The figure in an Instruct setting minus that in its Base setting, mean over Table 4's methods. ``setting`` is "base instruct"."""

    def measure(e: Evidence, setting: str) -> Bounds:
        base, instruct = (e.by_seed(of, e.methods()) for of in setting.split())
        effects = [
            [np.mean([figure.value(e, b[method]) - figure.value(e, a[method]) for method in e.methods()], axis=0)]
            for a, b in zip(base, instruct, strict=False)
        ]
        return e.bounds(effects, e.size(figure.of, next(iter(base[0].values()))))

    return measure


def longer(other: str) -> Measure:
    """How much longer SimPO's answers are than those of ``other``, in percent."""

    def measure(e: Evidence, setting: str) -> Bounds:
        runs = e.by_seed(setting, ("simpo", other))
        effects = [[100 * (LENGTH.value(e, of["simpo"]) / LENGTH.value(e, of[other]) - 1)] for of in runs]
        return e.bounds(effects, e.size(LENGTH.of, runs[0]["simpo"]))

    return measure


def lowest_margin(e: Evidence, setting: str) -> Bounds:
    """SimPO's mean margin in each of LENGTH_BINS bins of the length difference; the lowest of these."""
    pairs = [e.rewards(of["simpo"], "heldout") for of in e.by_seed(setting, ("simpo",))]
    difference = pairs[0]["longer"].to_numpy(float)
    places = bins(difference, LENGTH_BINS)
    members = [places == place for place in np.unique(places)]
    effects = [[e.ratio("heldout", np.where(inside, part["margin"], 0), inside) for inside in members] for part in pairs]
    lowest = difference[members[int(np.array(effects)[:, :, 0].mean(axis=0).argmin())]]
    return e.bounds(effects, len(difference), note=f"where |y_w| - |y_l| is {lowest.min():.0f} to {lowest.max():.0f} tokens")


def margin_follows_length(e: Evidence, setting: str) -> Bounds:
    """ρ(margin, length difference) of SimPO without length normalisation."""
    pairs = [e.rewards(of["simpo_no_ln"], "heldout") for of in e.by_seed(setting, ("simpo_no_ln",))]
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
    """The percentage that average log-likelihood ranks wrong, among the training pairs that the method's reward ranks right."""

    def measure(e: Evidence, setting: str) -> Bounds:
        pairs = [e.rewards(of[method], "train") for of in e.by_seed(setting, (method,))]
        effects = [
            [100 * e.ratio("train", (p["reward_right"] & ~p["likelihood_right"]).to_numpy(float), p["reward_right"].to_numpy())]
            for p in pairs
        ]
        return e.bounds(effects, len(pairs[0]))

    return measure


def harder(e: Evidence, setting: str) -> Bounds:
    """AlpacaEval's win rate minus Arena-Hard's, mean over Table 4's methods. Their questions differ and are resampled apart."""
    runs = e.by_seed(setting, e.methods())
    effects = [[np.mean([e.win_rate(run) - e.arena_hard(run) for run in of.values()], axis=0)] for of in runs]
    return e.bounds(effects, min(e.size(name, next(iter(runs[0].values()))) for name in ("alpacaeval2", "arena_hard")))


def separates_less(e: Evidence, setting: str) -> Bounds:
    """How clearly AlpacaEval separates Table 4's methods, minus the same for MT-Bench (``Evidence.separation``)."""
    runs = e.by_seed(setting, e.methods())
    compared = (("alpacaeval2", e.preferences), ("mt_bench", e.ratings))
    found = [[e.separation(benchmark, values_of, list(of.values())) for benchmark, values_of in compared] for of in runs]
    (alpaca, asked), (rated, questions) = found[0]
    note = f"√F {alpaca[0]:.2f} and {rated[0]:.2f}"
    return e.bounds([[ours[0] - theirs[0]] for ours, theirs in found], min(asked, questions), note=note)


def step(cost: str) -> Measure:
    """What SimPO saves of the ``cost`` (time or memory) of DPO's training step, in percent."""
    return lambda e, setting: e.step(cost)


def no_ppo(e: Evidence, setting: str) -> Bounds:
    raise UserError("no PPO is built here, which this claim compares with")


@cache
def _deviations() -> dict[str, float]:
    return theory.deviations()


def exact(part: str) -> Measure:
    """The largest deviation from the statement ``part`` of analysis/theory.py over its instances."""

    def measure(e: Evidence, setting: str) -> Bounds:
        deviation = _deviations()[part]
        return Bounds(deviation, deviation, deviation, theory.INSTANCES)

    return measure


# -- the claims ----------------------------------------------------------------------------------------------------------


class Range(NamedTuple):
    """The values that a claim asserts: above ``low`` and at most ``high``. With ``about`` each end moves outwards by that much of 100 %."""

    low: float
    high: float
    about: bool = False

    def within(self, about: float) -> tuple[float, float]:
        wider = 100 * about if self.about else 0.0
        return self.low - wider, self.high + wider


ABOVE_0, NONE, IDENTITY = Range(0, math.inf), Range(-math.inf, 0), Range(-math.inf, EXACT)
ABOUT_HALF, ABOUT_A_FIFTH, ABOUT_A_TENTH = Range(50, 50, True), Range(20, 20, True), Range(10, 10, True)
NOT_NOTABLY = Range(-math.inf, 0, True)

Values = dict[tuple[str, str], float]  # the paper's numbers in a setting, by method and metric
IN_SETTINGS, IN_FAMILIES = "settings", "families"


class Paper(NamedTuple):
    """The claim's effect in the paper's own numbers: ``of`` computes it from a setting's numbers in these ``tables`` of paper.yaml."""

    of: Callable[[Values], float]
    tables: tuple[str, ...]


class Claim(NamedTuple):
    """A claim of a paper.

    measure:  what the effect is, with its unit
    measured: computes it
    paper:    the paper's own effect, as text or from its numbers
    claimed:  the values that the claim asserts
    where:    each setting, each family of Base and Instruct, or the name of the one place
    digits:   how many decimals the scorecard prints
    """

    id: str
    claim: str
    measure: str
    measured: Measure
    paper: str | Paper
    claimed: Range = ABOVE_0
    where: str = IN_SETTINGS
    digits: int = 1


def in_paper(claim: Claim, setting: str) -> str:
    """The paper's effect in this setting, or in all settings that it has where this is none of them."""
    if isinstance(claim.paper, str):
        return claim.paper
    found: dict[str, str] = {}
    for place, values in _reported(claim.paper.tables).items():
        try:
            found[place] = f"{claim.paper.of(values):+.{claim.digits}f}"
        except (KeyError, ValueError):  # the setting lacks a method of the claim
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


def _compared(
    id: str, claim: str, measure: str, figure: Figure, of: tuple[str, ...], minus: tuple[str, ...], paper: str | tuple[str, ...]
) -> Claim:
    """A claim that ``compare`` measures. ``paper``: text, or the tables of paper.yaml that give the same difference."""

    def effect(values: Values) -> float:
        others = [method for method, named in values if named == figure.metric and method not in (*of, *minus, *ABLATED)]
        pairs = [(a, b) for a in (others if of == OTHERS else of) for b in (others if minus == OTHERS else minus)]
        return min(values[a, figure.metric] - values[b, figure.metric] for a, b in pairs)

    told = paper if isinstance(paper, str) else Paper(effect, paper)
    return Claim(id, claim, f"{measure}, {figure.unit}", compare(figure, of, minus), told, digits=figure.digits)


def _risen(id: str, claim: str, sweep: str, key: str, figure: Figure, paper: str, sign: int = 1) -> Claim:
    """A claim that ``rise`` measures."""
    ends = ("largest", "smallest")[::sign]
    measure = f"the {ends[0]} {GREEK[key]} minus the {ends[1]}, {figure.unit}"
    return Claim(id, claim, measure, rise(sweep, key, figure, sign), paper, digits=figure.digits)


def _exact(id: str, claim: str, measure: str, part: str, paper: str) -> Claim:
    """A claim that analysis/theory.py checks."""
    return Claim(id, claim, measure, exact(part), paper, IDENTITY, "enumerable spaces")


def _less(cost: str) -> Paper:
    """What SimPO saves of ``cost`` in the paper's numbers, in percent."""
    return Paper(lambda values: 100 * (1 - values["simpo", cost] / values["dpo", cost]), ("figure5c",))


def _longer(other: str) -> Paper:
    return Paper(lambda values: 100 * (values["simpo", "length"] / values[other, "length"] - 1), ("table1", "gemma2"))


def _harder(values: Values) -> float:
    methods = [method for method, metric in values if metric == "win_rate"]
    return float(np.mean([values[method, "win_rate"] - values[method, "arena_hard_win_rate"] for method in methods]))


TABLE_4, TABLE_5, TABLE_6 = ("table4", "v0.2", "gemma2"), ("table5",), ("table6",)
SIMPO, DPO, SFT, NO_LN, NO_MARGIN = ("simpo",), ("dpo",), ("sft",), ("simpo_no_ln",), ("simpo_no_margin",)
BEST, WORST = "SimPO minus the best other method", "the worst method minus SFT"
MEAN, MORE, LESS = "mean over methods of Instruct minus Base", "SimPO without LN minus SimPO", "SimPO minus SimPO with γ = 0"
WRONG = "reward ranks right and average log-likelihood wrong, % of the former"
FALLS, NO_OWN = "falls with β (Figure 5{})", "the paper has held-out chosen responses alone"

CLAIMS = (
    _compared("S1a", "SimPO has the highest LC win rate", BEST, LC, SIMPO, OTHERS, TABLE_4),
    _compared("S1b", "SimPO has the highest Arena-Hard win rate", BEST, ARENA_HARD, SIMPO, OTHERS, TABLE_4),
    _compared("S1c", "SimPO's LC win rate is above DPO's", "SimPO minus DPO", LC, SIMPO, DPO, TABLE_4),
    _compared("S1d", "SimPO's Arena-Hard win rate is above DPO's", "SimPO minus DPO", ARENA_HARD, SIMPO, DPO, TABLE_4),
    _compared("S2a", "Every method beats its SFT start in LC", WORST, LC, OTHERS, SFT, TABLE_4),
    _compared("S2b", "Every method beats its SFT start on Arena-Hard", WORST, ARENA_HARD, OTHERS, SFT, TABLE_4),
    Claim(
        "S3a",
        "Instruct settings beat Base settings in LC",
        f"{MEAN}, {LC.unit}",
        families(LC),
        "Mistral +11.2, Llama-3 +19.8",
        where=IN_FAMILIES,
    ),
    Claim(
        "S3b",
        "Instruct settings beat Base settings on Arena-Hard",
        f"{MEAN}, {ARENA_HARD.unit}",
        families(ARENA_HARD),
        "Mistral +10.3, Llama-3 +16.2",
        where=IN_FAMILIES,
    ),
    _compared(
        "S4a",
        "Without LN quality falls most",
        "the worse of SimPO and SimPO with γ = 0 minus SimPO without LN",
        LC,
        (*SIMPO, *NO_MARGIN),
        NO_LN,
        TABLE_5,
    ),
    _compared("S4b", "Without LN answers grow longer", MORE, LENGTH, NO_LN, SIMPO, "longer (section 4.2)"),
    _compared("S4c", "Without LN answers repeat themselves more", MORE, REPEATED, NO_LN, SIMPO, "more repetitive (section 4.2)"),
    _compared(
        "S4d",
        "Without LN fewer answers end by themselves",
        "SimPO minus SimPO without LN",
        ENDED,
        SIMPO,
        NO_LN,
        "not said: ours, beside length and repetition",
    ),
    _compared("S5a", "γ = 0 is worse than the tuned γ in LC", LESS, LC, SIMPO, NO_MARGIN, TABLE_5),
    _compared("S5b", "γ = 0 is worse than the tuned γ on Arena-Hard", LESS, ARENA_HARD, SIMPO, NO_MARGIN, TABLE_5),
    Claim(
        "S6a",
        "With LN margins are positive at any length gap",
        f"SimPO's lowest mean margin among {LENGTH_BINS} bins of |y_w| - |y_l|, {HELDOUT}",
        lowest_margin,
        "positive throughout (Figure 2a)",
        digits=2,
    ),
    Claim(
        "S6b",
        "Without LN margins follow the length difference",
        f"Spearman's ρ of margin and |y_w| - |y_l| without LN, {HELDOUT}",
        margin_follows_length,
        "rises with it (Figure 2a)",
        digits=2,
    ),
    _compared("S7a", "Likelihood follows length more w/o LN than in DPO", "SimPO without LN minus DPO", RHO, NO_LN, DPO, TABLE_6),
    _compared("S7b", "Likelihood follows length more in DPO than in SimPO", "DPO minus SimPO", RHO, DPO, SIMPO, TABLE_6),
    _risen("S8a", "Reward accuracy rises with γ", "gamma", "gamma", ACCURACY, "rises (Figure 3a)"),
    Claim(
        "S8b",
        "LC rises with γ, then falls",
        f"the best γ inside the sweep minus the better end, {LC.unit}",
        rise_and_fall,
        "rises, then falls (Figure 3a)",
    ),
    _risen("S9a", "Margins spread as γ grows", "gamma", "gamma", SPREAD, "flatter with γ (Figure 3b)"),
    _risen("S9b", "Chosen answers grow less likely as γ grows", "gamma", "gamma", CHOSEN, "falls with γ (Figure 3c)", -1),
    Claim(
        "S10a",
        "Likelihood ranks half of what DPO ranks right wrong",
        f"training pairs that DPO's {WRONG}",
        ranked_wrong("dpo"),
        "about half (Figure 4b)",
        ABOUT_HALF,
    ),
    Claim(
        "S10b",
        "None of what SimPO ranks right, by construction",
        f"training pairs that SimPO's {WRONG}",
        ranked_wrong("simpo"),
        "none (Figure 4b)",
        NONE,
    ),
    _compared("S11", "SimPO's reward accuracy is above DPO's", "SimPO minus DPO", ACCURACY, SIMPO, DPO, "above (Figure 4c)"),
    _risen("S12a", "DPO: larger β, smaller KL (held-out)", "beta_dpo", "beta", CHOSEN_RATIO, FALLS.format("a"), -1),
    _risen("S12b", "SimPO: larger β, smaller KL (held-out)", "beta_simpo", "beta", CHOSEN_RATIO, FALLS.format("a"), -1),
    _risen("S12c", "DPO: larger β, smaller KL (own answers)", "beta_dpo", "beta", OWN_RATIO, NO_OWN, -1),
    _risen("S12d", "SimPO: larger β, smaller KL (own answers)", "beta_simpo", "beta", OWN_RATIO, NO_OWN, -1),
    _risen("S12e", "DPO: smaller β, better LC", "beta_dpo", "beta", LC, FALLS.format("b"), -1),
    _risen("S12f", "SimPO: smaller β, better LC", "beta_simpo", "beta", LC, FALLS.format("b"), -1),
    Claim(
        "S13a",
        "SimPO takes about 20 % less time",
        "time saved against DPO with a live reference, % of a step",
        step("time"),
        _less("minutes"),
        ABOUT_A_FIFTH,
        "a training step",
    ),
    Claim(
        "S13b",
        "SimPO takes about 10 % less memory",
        "peak memory saved against DPO with a live reference, %",
        step("memory"),
        _less("peak_gb"),
        ABOUT_A_TENTH,
        "a training step",
    ),
    Claim(
        "S14a",
        "SimPO does not lengthen answers notably: SFT",
        "SimPO's mean length over SFT's, % longer",
        longer("sft"),
        _longer("sft"),
        NOT_NOTABLY,
    ),
    Claim(
        "S14b",
        "SimPO does not lengthen answers notably: DPO",
        "SimPO's mean length over DPO's, % longer",
        longer("dpo"),
        _longer("dpo"),
        NOT_NOTABLY,
    ),
    Claim(
        "S15a",
        "Arena-Hard win rates lie below AlpacaEval's",
        "AlpacaEval 2's raw win rate minus Arena-Hard's, mean over methods, points",
        harder,
        Paper(_harder, ("table4",)),
    ),
    Claim(
        "S15b",
        "MT-Bench separates the methods less clearly",
        "AlpacaEval 2's √F over methods minus MT-Bench's",
        separates_less,
        "poor separability (section 4.1)",
        digits=2,
    ),
    Claim(
        "D1",
        "DPO's reward-KL frontier is at or above PPO's",
        "expected reward at equal KL, DPO minus PPO",
        no_ppo,
        "above (DPO, Figure 2)",
        where="PPO",
    ),
    Claim(
        "D2",
        "DPO is more robust to the temperature than PPO",
        "win rate lost between temperatures 0 and 1, PPO minus DPO",
        no_ppo,
        "0.61 to 0.39 against 0.57 to 0.07, digitised (DPO, Figure 2)",
        where="PPO",
    ),
    _exact(
        "D3a",
        "r and r + f(x) give the same preferences",
        "largest deviation of Bradley-Terry and Plackett-Luce probabilities",
        "preferences",
        "DPO, Lemma 1",
    ),
    _exact(
        "D3b",
        "r and r + f(x) have the same optimal policy",
        "largest deviation of π_r and of what a policy falls short of it",
        "policy",
        "DPO, Eq. 4 and Lemma 2",
    ),
    _exact(
        "D3c",
        "β log π/π_ref represents every class, uniquely",
        "largest deviation of a reward's representative",
        "representation",
        "DPO, Theorem 1 and Proposition 1",
    ),
    _exact("D3d", "DPO's loss has no gradient at the optimal policy", "largest gradient of the expected loss", "gradient", "DPO, Eq. 7"),
)
