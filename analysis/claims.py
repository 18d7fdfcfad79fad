"""The papers' claims: for each, how it is measured and which values it asserts. analysis/scorecard.py judges and draws them.

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

from analysis import draw, theory
from analysis.evidence import ABLATED, Bounds, Evidence, Runs, in_chains
from analysis.inventory import LIKELIHOOD
from analysis.paper import reported
from analysis.stats import Array, Noise, bins, pooled
from analysis.study import GREEK, METHODS, SETTINGS, Run, name_of
from stages.lib.errors import UserError

LENGTH_BINS = 5  # of equally many pairs, by length difference
EXACT = 1e-9  # the largest deviation from an identity that rounding may leave

# -- figures, and what compares them ----------------------------------------------------------------------------------------


# Whose noise: of all methods minus SFT; of the methods that have rewards, which SFT has not; of the claim's own method, where methods have
# different scales (nats of a log-ratio, a reward's units).
MINUS_SFT, REWARDED, OWN = "minus SFT", "rewarded", "own"


class Figure(NamedTuple):
    """A number of a run.

    of:     the benchmark, or the split of pairs, that it is computed on
    unit:   its name and unit, as the scorecard prints them
    value:  computes it
    digits: how many decimals the scorecard prints
    metric: its name in analysis/paper.yaml, where that has it
    noise:  whose noise between chains stands for that of methods with one chain (``between_chains``): MINUS_SFT, REWARDED, or OWN
    """

    of: str
    unit: str
    value: Callable[[Evidence, Run], Array]
    digits: int = 1
    metric: str = ""
    noise: str = MINUS_SFT


def _mean(of: str, unit: str, values: Callable[[Evidence, Run], pd.Series | Array], digits: int = 1, noise: str = MINUS_SFT) -> Figure:
    """The mean of ``values``, which has one value for each answer or pair."""
    return Figure(of, unit, lambda e, run: e.mean(of, np.asarray(values(e, run), dtype=float)), digits, noise=noise)


HELDOUT, RATIO = "held-out pairs", "mean log π/π_ref of"
AVERAGE = f"average log-likelihood of chosen responses, nats a token, {HELDOUT}"
LC = Figure("alpacaeval2", "LC win rate, points", Evidence.lc, metric="lc_win_rate")
ARENA_HARD = Figure("arena_hard", "Arena-Hard win rate, points", Evidence.arena_hard, metric="arena_hard_win_rate")
LENGTH = _mean("alpacaeval2", "characters an answer", lambda e, run: e.answers(run)["length"])
ENDED = _mean("alpacaeval2", "answers that end, points", lambda e, run: e.answers(run)["ended"])
REPEATED = _mean("alpacaeval2", "repeated 3-grams, points", lambda e, run: e.answers(run)["repeated"], 2)
ACCURACY = _mean(
    "heldout", f"reward accuracy on {HELDOUT}, points", lambda e, run: 100.0 * e.rewards(run, "heldout")["reward_right"], noise=REWARDED
)
CHOSEN = _mean("heldout", AVERAGE, lambda e, run: e.pairs(run, "heldout")["chosen_average"], 2)
CHOSEN_RATIO = _mean("heldout", f"{RATIO} held-out chosen responses, nats", Evidence.chosen_ratio, 2, OWN)
OWN_RATIO = _mean("alpacaeval2", f"{RATIO} own answers, nats", Evidence.own_ratio, 2, OWN)
SPREAD = Figure("heldout", f"standard deviation of the margin on {HELDOUT}", Evidence.margin_spread, 2, noise=OWN)
RHO = Figure("heldout", f"Spearman's ρ of average log-likelihood and length, {HELDOUT}", Evidence.length_correlation, 2, metric="spearman")

Measure = Callable[[Evidence, str], Bounds]  # in a setting
OTHERS = ("*",)  # all methods of Table 4 that a comparison does not name


def _pairs(of: tuple[str, ...], minus: tuple[str, ...], every: list[str]) -> list[tuple[str, str]]:
    """The pairs of methods that a comparison is over. OTHERS are those of ``every`` that are named on neither side."""
    others = tuple(method for method in every if method not in (*of, *minus))
    return [(a, b) for a in (others if of == OTHERS else of) for b in (others if minus == OTHERS else minus)]


def between_chains(e: Evidence, setting: str, figure: Figure, method: str = "") -> Noise | None:
    """The noise between chains of a difference of a figure between two runs of one chain; None where that is not known.

    figure: says whose noise it is. Where that is of a run, and not of its difference to SFT, two runs have √2 of it
    method: the claim's own
    """
    methods = {MINUS_SFT: LIKELIHOOD if figure.of == "heldout" else (), REWARDED: draw.REWARDED, OWN: (method,)}[figure.noise]
    minus = "sft" if figure.noise == MINUS_SFT else ""
    noise = e.study.between_chains(setting, lambda run: float(figure.value(e, run)[0]), methods, minus)
    return noise if minus or noise is None else Noise(math.sqrt(2) * noise.s, noise.df)


def compare(figure: Figure, of: tuple[str, ...], minus: tuple[str, ...]) -> Measure:
    """The smallest difference between the figure of a method in ``of`` and that of a method in ``minus``."""

    def measure(e: Evidence, setting: str) -> Bounds:
        pairs = _pairs(of, minus, e.methods())
        if not pairs:
            raise UserError(f"scale {e.study.config['name']} has no other method to compare with; name some in conf/scale")
        runs = e.by_seed(setting, dict.fromkeys(method for pair in pairs for method in pair))
        effects = [[figure.value(e, by[a]) - figure.value(e, by[b]) for a, b in pairs] for by in runs]
        nearest = pairs[int(np.array(effects)[:, :, 0].mean(axis=0).argmin())]
        note = "" if len(pairs) == 1 else " against ".join(name_of(method, METHODS) for method in nearest)
        noise = None if in_chains(runs) else between_chains(e, setting, figure)
        return e.bounds(effects, e.size(figure.of, runs[0][nearest[0]]), note=note, noise=noise)

    return measure


def each_chain(of: tuple[str, ...], methods: tuple[str, ...], effect: Callable[[Evidence, Runs], Array]) -> Measure:
    """An effect that is one number of a setting's runs of a chain.

    of:      the benchmarks, or the split of pairs, that it is computed on
    methods: whose runs it needs; none means all methods of Table 4, of which it is a mean
    effect:  computes it
    """

    def measure(e: Evidence, setting: str) -> Bounds:
        runs = e.by_seed(setting, methods or e.methods())
        effects = [[effect(e, by)] for by in runs]
        noise = None if methods or in_chains(runs) else _of_all([effect(e, by) for by in e.chained(setting)])
        return e.bounds(effects, min(e.size(name, next(iter(runs[0].values()))) for name in of), noise=noise)

    return measure


def _of_all(by_chain: list[Array]) -> Noise | None:
    """The noise of an effect over all methods: that of the same effect over the methods that all chains have."""
    return pooled([[float(effect[0]) for effect in by_chain]])


def families(figure: Figure) -> Measure:
    """The figure in an Instruct setting minus that in its Base setting, mean over Table 4's methods. ``setting`` is "base instruct"."""

    def effect(e: Evidence, base: Runs, instruct: Runs) -> Array:
        gaps: Array = np.mean([figure.value(e, instruct[method]) - figure.value(e, base[method]) for method in base], axis=0)
        return gaps

    def measure(e: Evidence, setting: str) -> Bounds:
        base, instruct = setting.split()
        own = [e.by_seed(of, e.methods()) for of in (base, instruct)]
        effects = [[effect(e, *runs)] for runs in zip(*own, strict=False)]
        chains = [e.chained(of) for of in (base, instruct)]
        noise = None if in_chains(own[0]) else _of_all([effect(e, *runs) for runs in zip(*chains, strict=False)])
        return e.bounds(effects, e.size(figure.of, next(iter(own[0][0].values()))), noise=noise)

    return measure


def longer(other: str) -> Measure:
    """How much longer SimPO's answers are than those of ``other``, in percent."""

    def effect(e: Evidence, by: Runs) -> Array:
        return 100 * (LENGTH.value(e, by["simpo"]) / LENGTH.value(e, by[other]) - 1)

    return each_chain((LENGTH.of,), ("simpo", other), effect)


def lowest_margin(e: Evidence, setting: str) -> Bounds:
    """SimPO's mean margin in each of LENGTH_BINS bins of the length difference; the lowest of these."""
    pairs = [e.rewards(of["simpo"], "heldout") for of in e.by_seed(setting, ("simpo",))]
    effects, differences, members = [], [], []
    for part in pairs:  # another chain's pairs are others
        difference = part["longer"].to_numpy(float)
        places = bins(difference, LENGTH_BINS)
        members.append([places == place for place in np.unique(places)])
        differences.append(difference)
        effects.append([e.ratio("heldout", np.where(inside, part["margin"], 0), inside) for inside in members[-1]])
    if len({len(inside) for inside in members}) > 1:
        raise UserError(f"the chains' held-out pairs in {setting} fall into different numbers of bins by length difference")
    difference = differences[0]
    lowest = difference[members[0][int(np.array(effects)[:, :, 0].mean(axis=0).argmin())]]
    return e.bounds(effects, len(difference), note=f"where |y_w| - |y_l| is {lowest.min():.0f} to {lowest.max():.0f} tokens")


def margin_follows_length(e: Evidence, setting: str) -> Bounds:
    """ρ(margin, length difference) of SimPO without length normalisation."""

    def effect(e: Evidence, by: Runs) -> Array:
        pairs = e.rewards(by["simpo_no_ln"], "heldout")
        return e.spearman("heldout", pairs["margin"].to_numpy(float), pairs["longer"].to_numpy(float))

    return each_chain(("heldout",), ("simpo_no_ln",), effect)(e, setting)


def rise(sweep: str, key: str, figure: Figure, sign: int = 1) -> Measure:
    """How much a figure rises over a sweep: its value at the largest value of the key minus that at the smallest.

    sweep:  conf/sweep/<scale>/<sweep>.yaml
    key:    the hyperparameter that it varies
    figure: the figure
    sign:   -1 measures how much it falls
    """

    def measure(e: Evidence, setting: str) -> Bounds:
        by_value = e.sweep(sweep, key, setting)
        low, high = min(by_value), max(by_value)
        pairs = list(zip(by_value[low], by_value[high], strict=False))
        effects = [[sign * (figure.value(e, b) - figure.value(e, a))] for a, b in pairs]
        noise = between_chains(e, setting, figure, pairs[0][0].method)
        return e.bounds(effects, e.size(figure.of, pairs[0][0]), note=f"{GREEK[key]} from {low:g} to {high:g}", noise=noise)

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
    noise = between_chains(e, setting, LC)
    return e.bounds(effects, e.size(LC.of, by_value[best][0]), lambda values: float(to_ends(values).max()), note, noise)


def ranked_wrong(method: str) -> Measure:
    """The percentage that average log-likelihood ranks wrong, among the training pairs that the method's reward ranks right."""

    def effect(e: Evidence, by: Runs) -> Array:
        pairs = e.rewards(by[method], "train")
        right = pairs["reward_right"].to_numpy()
        return 100 * e.ratio("train", (right & ~pairs["likelihood_right"].to_numpy()).astype(float), right)

    return each_chain(("train",), (method,), effect)


def harder(e: Evidence, setting: str) -> Bounds:
    """AlpacaEval's win rate minus Arena-Hard's, mean over Table 4's methods. Their questions differ and are resampled apart."""

    def effect(e: Evidence, by: Runs) -> Array:
        gaps: Array = np.mean([e.win_rate(run) - e.arena_hard(run) for run in by.values()], axis=0)
        return gaps

    return each_chain(("alpacaeval2", "arena_hard"), (), effect)(e, setting)


def separates_less(e: Evidence, setting: str) -> Bounds:
    """How clearly AlpacaEval separates Table 4's methods, minus the same for MT-Bench (``Evidence.separation``)."""
    runs = e.by_seed(setting, e.methods())
    compared = (("alpacaeval2", e.preferences), ("mt_bench", e.ratings))
    found = [[e.separation(benchmark, values_of, list(of.values())) for benchmark, values_of in compared] for of in runs]
    (alpaca, asked), (rated, questions) = found[0]
    note = f"√F {alpaca[0]:.2f} and {rated[0]:.2f}"
    return e.bounds([[ours[0] - theirs[0]] for ours, theirs in found], min(asked, questions), note=note)


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
    varies:   whether another chain may have another effect, so that a verdict needs the noise between chains: no identity, and no
              training step's time or memory
    """

    id: str
    claim: str
    measure: str
    measured: Measure
    paper: str | Paper
    claimed: Range = ABOVE_0
    where: str = IN_SETTINGS
    digits: int = 1
    varies: bool = True


def in_paper(claim: Claim, setting: str) -> str:
    """The paper's effect in this setting. If the paper does not have the setting, its effects in all of its settings."""
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


# The claims that one function measures are rows of one kind. Each begins with the id, the claim and the measure without its unit.


def _compared(
    id: str, claim: str, measure: str, figure: Figure, of: tuple[str, ...], minus: tuple[str, ...], paper: str | tuple[str, ...]
) -> Claim:
    """A claim that ``compare`` measures. ``paper``: text, or the tables of paper.yaml that give the same difference."""

    def effect(values: Values) -> float:
        known = [method for method, metric in values if metric == figure.metric and method not in ABLATED]
        return min(values[a, figure.metric] - values[b, figure.metric] for a, b in _pairs(of, minus, known))

    told = paper if isinstance(paper, str) else Paper(effect, paper)
    return Claim(id, claim, f"{measure}, {figure.unit}", compare(figure, of, minus), told, digits=figure.digits)


def _instruct(id: str, claim: str, figure: Figure, paper: str) -> Claim:
    """A claim that ``families`` measures."""
    return Claim(id, claim, f"mean over methods of Instruct minus Base, {figure.unit}", families(figure), paper, where=IN_FAMILIES)


def _risen(id: str, claim: str, sweep: str, key: str, figure: Figure, paper: str, sign: int = 1) -> Claim:
    """A claim that ``rise`` measures."""
    ends = ("largest", "smallest")[::sign]
    measure = f"the {ends[0]} {GREEK[key]} minus the {ends[1]}, {figure.unit}"
    return Claim(id, claim, measure, rise(sweep, key, figure, sign), paper, digits=figure.digits)


def _wrong(id: str, claim: str, method: str, paper: str, claimed: Range, varies: bool = True) -> Claim:
    """A claim that ``ranked_wrong`` measures."""
    ranks = "reward ranks right and average log-likelihood wrong, % of the former"
    return Claim(id, claim, f"training pairs that {METHODS[method]}'s {ranks}", ranked_wrong(method), paper, claimed, varies=varies)


def _less(id: str, claim: str, measure: str, cost: str, reported: str, claimed: Range) -> Claim:
    """What SimPO saves of DPO's training step, in percent. ``cost``: time or memory; ``reported``: its name in paper.yaml."""
    paper = Paper(lambda values: 100 * (1 - values["simpo", reported] / values["dpo", reported]), ("figure5c",))
    told = f"{measure} saved against DPO with a live reference, %"
    return Claim(
        id, claim, told + " of a step" * (cost == "time"), lambda e, _: e.step(cost), paper, claimed, "a training step", varies=False
    )


def _longer(id: str, other: str) -> Claim:
    """A claim that ``longer`` measures."""
    paper = Paper(lambda values: 100 * (values["simpo", "length"] / values[other, "length"] - 1), ("table1", "gemma2"))
    claim, measure = f"SimPO does not lengthen answers notably: {METHODS[other]}", f"SimPO's mean length over {METHODS[other]}'s, % longer"
    return Claim(id, claim, measure, longer(other), paper, NOT_NOTABLY)


def _exact(id: str, claim: str, measure: str, part: str, paper: str) -> Claim:
    """An identity: the largest deviation from the statement ``part`` of analysis/theory.py over its instances."""

    def measured(e: Evidence, setting: str) -> Bounds:
        deviation = theory.deviations()[part]
        return Bounds(deviation, deviation, deviation, theory.INSTANCES)

    return Claim(id, claim, measure, measured, f"DPO, {paper}", IDENTITY, "enumerable spaces", varies=False)


def _no_ppo(id: str, claim: str, measure: str, paper: str) -> Claim:
    """A claim that is not measured."""

    def measured(e: Evidence, setting: str) -> Bounds:
        raise UserError("no PPO is built here, which this claim compares with")

    return Claim(id, claim, measure, measured, paper, where="PPO")


def _harder(values: Values) -> float:
    methods = [method for method, metric in values if metric == "win_rate"]
    return float(np.mean([values[method, "win_rate"] - values[method, "arena_hard_win_rate"] for method in methods]))


TABLE_4, TABLE_5, TABLE_6 = ("table4", "v0.2", "gemma2"), ("table5",), ("table6",)
SIMPO, DPO, SFT, NO_LN, NO_MARGIN = ("simpo",), ("dpo",), ("sft",), ("simpo_no_ln",), ("simpo_no_margin",)
# What is measured, where it is said more than once or is long.
BEST, WORST = "SimPO minus the best other method", "the worst method minus SFT"
WORSE = "the worse of SimPO and SimPO with γ = 0 minus SimPO without LN"
MORE, FEWER, LESS = "SimPO without LN minus SimPO", "SimPO minus SimPO without LN", "SimPO minus SimPO with γ = 0"
LOWEST = f"SimPO's lowest mean margin among {LENGTH_BINS} bins of |y_w| - |y_l|, {HELDOUT}"
FOLLOWS = f"Spearman's ρ of margin and |y_w| - |y_l| without LN, {HELDOUT}"
INSIDE = f"the best γ inside the sweep minus the better end, {LC.unit}"
HARDER = "AlpacaEval 2's raw win rate minus Arena-Hard's, mean over methods, points"
CLEARER, DEVIATION = "AlpacaEval 2's √F over methods minus MT-Bench's", "largest deviation of"
NO_OWN = "the paper has held-out chosen responses alone"

CLAIMS = (
    _compared("S1a", "SimPO has the highest LC win rate", BEST, LC, SIMPO, OTHERS, TABLE_4),
    _compared("S1b", "SimPO has the highest Arena-Hard win rate", BEST, ARENA_HARD, SIMPO, OTHERS, TABLE_4),
    _compared("S1c", "SimPO's LC win rate is above DPO's", "SimPO minus DPO", LC, SIMPO, DPO, TABLE_4),
    _compared("S1d", "SimPO's Arena-Hard win rate is above DPO's", "SimPO minus DPO", ARENA_HARD, SIMPO, DPO, TABLE_4),
    _compared("S2a", "Every method beats its SFT start in LC", WORST, LC, OTHERS, SFT, TABLE_4),
    _compared("S2b", "Every method beats its SFT start on Arena-Hard", WORST, ARENA_HARD, OTHERS, SFT, TABLE_4),
    _instruct("S3a", "Instruct settings beat Base settings in LC", LC, "Mistral +11.2, Llama-3 +19.8"),
    _instruct("S3b", "Instruct settings beat Base settings on Arena-Hard", ARENA_HARD, "Mistral +10.3, Llama-3 +16.2"),
    _compared("S4a", "Without LN quality falls most", WORSE, LC, (*SIMPO, *NO_MARGIN), NO_LN, TABLE_5),
    _compared("S4b", "Without LN answers grow longer", MORE, LENGTH, NO_LN, SIMPO, "longer (section 4.2)"),
    _compared("S4c", "Without LN answers repeat themselves more", MORE, REPEATED, NO_LN, SIMPO, "more repetitive (section 4.2)"),
    _compared(
        "S4d", "Without LN fewer answers end by themselves", FEWER, ENDED, SIMPO, NO_LN, "not said: ours, beside length and repetition"
    ),
    _compared("S5a", "γ = 0 is worse than the tuned γ in LC", LESS, LC, SIMPO, NO_MARGIN, TABLE_5),
    _compared("S5b", "γ = 0 is worse than the tuned γ on Arena-Hard", LESS, ARENA_HARD, SIMPO, NO_MARGIN, TABLE_5),
    Claim("S6a", "With LN margins are positive at any length gap", LOWEST, lowest_margin, "positive throughout (Figure 2a)", digits=2),
    Claim("S6b", "Without LN margins follow the length difference", FOLLOWS, margin_follows_length, "rises with it (Figure 2a)", digits=2),
    _compared("S7a", "Likelihood follows length more w/o LN than in DPO", "SimPO without LN minus DPO", RHO, NO_LN, DPO, TABLE_6),
    _compared("S7b", "Likelihood follows length more in DPO than in SimPO", "DPO minus SimPO", RHO, DPO, SIMPO, TABLE_6),
    _risen("S8a", "Reward accuracy rises with γ", "gamma", "gamma", ACCURACY, "rises (Figure 3a)"),
    Claim("S8b", "LC rises with γ, then falls", INSIDE, rise_and_fall, "rises, then falls (Figure 3a)"),
    _risen("S9a", "Margins spread as γ grows", "gamma", "gamma", SPREAD, "flatter with γ (Figure 3b)"),
    _risen("S9b", "Chosen answers grow less likely as γ grows", "gamma", "gamma", CHOSEN, "falls with γ (Figure 3c)", -1),
    _wrong("S10a", "Likelihood ranks half of what DPO ranks right wrong", "dpo", "about half (Figure 4b)", ABOUT_HALF),
    _wrong("S10b", "None of what SimPO ranks right, by construction", "simpo", "none (Figure 4b)", NONE, varies=False),
    _compared("S11", "SimPO's reward accuracy is above DPO's", "SimPO minus DPO", ACCURACY, SIMPO, DPO, "above (Figure 4c)"),
    _risen("S12a", "DPO: larger β, smaller KL (held-out)", "beta_dpo", "beta", CHOSEN_RATIO, "falls with β (Figure 5a)", -1),
    _risen("S12b", "SimPO: larger β, smaller KL (held-out)", "beta_simpo", "beta", CHOSEN_RATIO, "falls with β (Figure 5a)", -1),
    _risen("S12c", "DPO: larger β, smaller KL (own answers)", "beta_dpo", "beta", OWN_RATIO, NO_OWN, -1),
    _risen("S12d", "SimPO: larger β, smaller KL (own answers)", "beta_simpo", "beta", OWN_RATIO, NO_OWN, -1),
    _risen("S12e", "DPO: smaller β, better LC", "beta_dpo", "beta", LC, "falls with β (Figure 5b)", -1),
    _risen("S12f", "SimPO: smaller β, better LC", "beta_simpo", "beta", LC, "falls with β (Figure 5b)", -1),
    _less("S13a", "SimPO takes about 20 % less time", "time", "time", "minutes", ABOUT_A_FIFTH),
    _less("S13b", "SimPO takes about 10 % less memory", "peak memory", "memory", "peak_gb", ABOUT_A_TENTH),
    _longer("S14a", "sft"),
    _longer("S14b", "dpo"),
    Claim("S15a", "Arena-Hard win rates lie below AlpacaEval's", HARDER, harder, Paper(_harder, ("table4",))),
    Claim("S15b", "MT-Bench separates the methods less clearly", CLEARER, separates_less, "poor separability (section 4.1)", digits=2),
    _no_ppo("D1", "DPO's reward-KL frontier is at or above PPO's", "expected reward at equal KL, DPO minus PPO", "above (DPO, Figure 2)"),
    _no_ppo(
        "D2",
        "DPO is more robust to the temperature than PPO",
        "win rate lost between temperatures 0 and 1, PPO minus DPO",
        "0.61 to 0.39 against 0.57 to 0.07, digitised (DPO, Figure 2)",
    ),
    _exact(
        "D3a",
        "r and r + f(x) give the same preferences",
        f"{DEVIATION} Bradley-Terry and Plackett-Luce probabilities",
        "preferences",
        "Lemma 1",
    ),
    _exact(
        "D3b",
        "r and r + f(x) have the same optimal policy",
        f"{DEVIATION} π_r and of what a policy falls short of it",
        "policy",
        "Eq. 4 and Lemma 2",
    ),
    _exact(
        "D3c",
        "β log π/π_ref represents every class, uniquely",
        f"{DEVIATION} a reward's representative",
        "representation",
        "Theorem 1 and Proposition 1",
    ),
    _exact("D3d", "DPO's loss has no gradient at the optimal policy", "largest gradient of the expected loss", "gradient", "Eq. 7"),
)
