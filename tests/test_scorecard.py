"""analysis/scorecard.py, claims.py, evidence.py: every effect against a computation of its own, the rule on constructed cases."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from scipy import stats

from analysis import scorecard
from analysis.claims import CLAIMS, LC, Paper, in_paper
from analysis.evidence import Bounds, Evidence
from analysis.paper import reported
from analysis.study import STYLE, Study, command_line
from stages.lib import files
from stages.lib.errors import UserError
from tests import folder

METHODS = ["sft", "rrhf", "slic_hf", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo", "simpo"]
CHAINS = ("", "+chain=1", "+chain=2")  # after the setting's name
BASE, INSTRUCT = "mini_base", "mini_instruct"
WINS = {"A>>B": (0, 3), "A>B": (0, 1), "A=B": (0.5, 1), "B>A": (1, 1), "B>>A": (3, 3)}  # the second assistant's points, of how many


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("study") / "results"
    folder.make(results, with_chains=True)
    return results


@pytest.fixture(scope="module")
def rows(made: Path) -> pd.DataFrame:
    return scorecard.rows(Study(made)).set_index(["id", "setting"])


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def linked(made: Path, tmp_path: Path) -> Path:
    """A copy whose files are to be replaced and not written over."""
    return Path(shutil.copytree(made, tmp_path / "results", copy_function=os.link))


@pytest.fixture
def alone(results: Path) -> Path:
    """A copy to spoil, of a scale with one chain."""
    config: Any = OmegaConf.load(results / "tables.yaml")
    config.chains = []
    OmegaConf.save(config, results / "tables.yaml")
    return results


class Plain:
    """The same figures from the same files, without the project's code."""

    def __init__(self, results: Path, setting: str) -> None:
        self.results, self.runs = results, results / setting / "runs"

    def lc(self, run: str) -> float:
        return json.loads((self.runs / run / "eval/alpacaeval2/scores.json").read_text())["length_controlled_winrate"]

    def wins(self, run: str) -> np.ndarray:
        judged = json.loads((self.runs / run / "eval/alpacaeval2/annotations.json").read_text())
        return np.array([np.nan if row["preference"] is None else 100 * row["preference"] - 100 for row in judged])

    def arena(self, run: str) -> float:
        won = asked = 0.0
        for line in (self.runs / run / "eval/arena_hard/model_judgment.jsonl").read_text().splitlines():
            (first, of_first), (second, of_second) = (WINS[game["score"]] for game in json.loads(line)["games"])
            won, asked = won + first + of_second - second, asked + of_first + of_second
        return 100 * won / asked

    def ratings(self, run: str) -> pd.Series:
        lines = (self.runs / run / "eval/mt_bench/model_judgment.jsonl").read_text().splitlines()
        return pd.DataFrame(map(json.loads, lines)).groupby("question_id")["score"].mean()

    def answers(self, run: str) -> list[str]:
        return [row["output"] for row in json.loads((self.runs / run / "eval/alpacaeval2/model_outputs.json").read_text())]

    def length(self, run: str) -> float:
        return float(np.mean([len(text) for text in self.answers(run)]))

    def repeated(self, run: str) -> float:
        shares = []
        for text in self.answers(run):
            words = text.split()
            grams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
            shares.append(sum(gram in grams[:i] for i, gram in enumerate(grams)) / len(grams))
        return 100 * float(np.mean(shares))

    def texts(self, run: str, split: str, side: str) -> pd.DataFrame:
        frame = pd.read_parquet(self.runs / run / "eval/loglik.parquet")
        return frame[(frame["split"] == split) & (frame["side"] == side)].reset_index(drop=True)

    def rewards(self, run: str, split: str, side: str) -> np.ndarray:
        method = json.loads((self.runs / run / "manifest.json").read_text())["config"]["method"]
        values, texts = method["hyperparameters"], self.texts(run, split, side)
        if run.startswith("dpo"):
            return (values["beta"] * (texts["logp"] - texts["reference_logp"])).to_numpy()
        return (values["beta"] * texts["logp"] / (1 if run == "simpo_no_ln" else texts["length"])).to_numpy()

    def margins(self, run: str, split: str = "heldout") -> np.ndarray:
        return self.rewards(run, split, "chosen") - self.rewards(run, split, "rejected")

    def longer(self, run: str) -> np.ndarray:
        return (self.texts(run, "heldout", "chosen")["length"] - self.texts(run, "heldout", "rejected")["length"]).to_numpy()

    def average(self, run: str, split: str, side: str) -> np.ndarray:
        texts = self.texts(run, split, side)
        return (texts["logp"] / texts["length"]).to_numpy()

    def rho(self, run: str) -> float:
        both = pd.concat([self.texts(run, "heldout", side) for side in ("chosen", "rejected")])
        return float(stats.spearmanr(both["logp"] / both["length"], both["length"])[0])

    def lowest_margin(self, run: str) -> float:
        longer = self.longer(run)
        edges = np.quantile(longer, [0.2, 0.4, 0.6, 0.8])
        return float(pd.Series(self.margins(run)).groupby([sum(x > edge for edge in edges) for x in longer]).mean().min())

    def accuracy(self, run: str) -> float:
        return 100 * float((self.margins(run) > 0).mean())

    def ratio(self, run: str, split: str, side: str) -> float:
        texts = self.texts(run, split, side)
        texts = texts[texts["benchmark"].isna() | (texts["benchmark"] == "alpacaeval2")]
        return float((texts["logp"] - texts["reference_logp"]).mean())

    def wrong(self, run: str) -> float:
        right = self.margins(run, "train") > 0
        likely = self.average(run, "train", "chosen") > self.average(run, "train", "rejected")
        return 100 * float((right & ~likely).sum() / right.sum())

    def separation(self, values: list[Any]) -> float:
        """√F of the two-way layout, by its sums of squares."""
        table = np.array(values).T
        table = table[~np.isnan(table).any(axis=1)]
        n, k = table.shape
        grand, of_run, of_question = table.mean(), table.mean(axis=0), table.mean(axis=1)
        between = n * ((of_run - grand) ** 2).sum() / (k - 1)
        rest = ((table - of_run - of_question[:, None] + grand) ** 2).sum() / ((n - 1) * (k - 1))
        return float(np.sqrt(between / rest))


def over_chains(effect: Callable[[Plain], float]) -> Callable[[Plain, Plain], float]:
    """The mean of an effect over a setting's chains."""
    return lambda p, _: float(np.mean([effect(Plain(p.results, p.runs.parent.name + chain)) for chain in CHAINS]))


FAST = "+learning_rate=0.0001"  # of the figures' sweeps
EXPECTED: dict[str, Callable[[Plain, Plain], float]] = {
    "S1a": lambda p, _: p.lc("simpo") - max(p.lc(run) for run in METHODS[:-1]),
    "S1b": lambda p, _: p.arena("simpo") - max(p.arena(run) for run in METHODS[:-1]),
    "S1c": over_chains(lambda p: p.lc("simpo") - p.lc("dpo")),
    "S1d": over_chains(lambda p: p.arena("simpo") - p.arena("dpo")),
    "S2a": lambda p, _: min(p.lc(run) for run in METHODS[1:]) - p.lc("sft"),
    "S2b": lambda p, _: min(p.arena(run) for run in METHODS[1:]) - p.arena("sft"),
    "S3a": lambda p, base: float(np.mean([p.lc(run) - base.lc(run) for run in METHODS])),
    "S3b": lambda p, base: float(np.mean([p.arena(run) - base.arena(run) for run in METHODS])),
    "S4a": lambda p, _: min(over_chains(lambda p, run=run: p.lc(run) - p.lc("simpo_no_ln"))(p, p) for run in ("simpo", "simpo_no_margin")),
    "S4b": over_chains(lambda p: p.length("simpo_no_ln") - p.length("simpo")),
    "S4c": over_chains(lambda p: p.repeated("simpo_no_ln") - p.repeated("simpo")),
    "S5a": over_chains(lambda p: p.lc("simpo") - p.lc("simpo_no_margin")),
    "S5b": over_chains(lambda p: p.arena("simpo") - p.arena("simpo_no_margin")),
    "S6b": over_chains(lambda p: float(stats.spearmanr(p.margins("simpo_no_ln"), p.longer("simpo_no_ln"))[0])),
    "S7a": over_chains(lambda p: p.rho("simpo_no_ln") - p.rho("dpo")),
    "S7b": over_chains(lambda p: p.rho("dpo") - p.rho("simpo")),
    "S8a": lambda p, _: p.accuracy(f"simpo+gamma=8{FAST}") - p.accuracy(f"simpo+gamma=0{FAST}"),
    "S8b": lambda p, _: (
        max(map(p.lc, (f"simpo{FAST}", *(f"simpo+gamma={g}{FAST}" for g in (0.5, 2, 4)))))
        - max(p.lc(f"simpo+gamma=0{FAST}"), p.lc(f"simpo+gamma=8{FAST}"))
    ),
    "S9a": lambda p, _: float(np.std(p.margins(f"simpo+gamma=8{FAST}"), ddof=1) - np.std(p.margins(f"simpo+gamma=0{FAST}"), ddof=1)),
    "S9b": lambda p, _: float(
        p.average(f"simpo+gamma=0{FAST}", "heldout", "chosen").mean() - p.average(f"simpo+gamma=8{FAST}", "heldout", "chosen").mean()
    ),
    "S10a": over_chains(lambda p: p.wrong("dpo")),
    "S10b": lambda p, _: 0.0,
    "S11": over_chains(lambda p: p.accuracy("simpo") - p.accuracy("dpo")),
    "S12a": lambda p, _: p.ratio(f"dpo+beta=0.01{FAST}", "heldout", "chosen") - p.ratio(f"dpo+beta=0.5{FAST}", "heldout", "chosen"),
    "S12b": lambda p, _: p.ratio(f"simpo+beta=0.5{FAST}", "heldout", "chosen") - p.ratio(f"simpo+beta=8{FAST}", "heldout", "chosen"),
    "S12c": lambda p, _: p.ratio(f"dpo+beta=0.01{FAST}", "answers", "answer") - p.ratio(f"dpo+beta=0.5{FAST}", "answers", "answer"),
    "S12d": lambda p, _: p.ratio(f"simpo+beta=0.5{FAST}", "answers", "answer") - p.ratio(f"simpo+beta=8{FAST}", "answers", "answer"),
    "S12e": lambda p, _: p.lc(f"dpo+beta=0.01{FAST}") - p.lc(f"dpo+beta=0.5{FAST}"),
    "S12f": lambda p, _: p.lc(f"simpo+beta=0.5{FAST}") - p.lc(f"simpo+beta=8{FAST}"),
    "S14a": over_chains(lambda p: 100 * p.length("simpo") / p.length("sft") - 100),
    "S14b": over_chains(lambda p: 100 * p.length("simpo") / p.length("dpo") - 100),
    "S15a": lambda p, _: float(np.mean([np.nanmean(p.wins(run)) - p.arena(run) for run in METHODS])),
    "S15b": lambda p, _: p.separation(list(map(p.wins, METHODS))) - p.separation(list(map(p.ratings, METHODS))),
}


@pytest.mark.parametrize("claim", EXPECTED)
@pytest.mark.slow
def test_an_effect_is_what_its_files_say(claim: str, made: Path, rows: pd.DataFrame) -> None:
    """Where all of its runs are in several chains, the mean over them."""
    base, instruct = Plain(made, BASE), Plain(made, INSTRUCT)
    for setting in rows.loc[claim].index:
        row = rows.loc[claim, setting]
        if row["verdict"] == scorecard.NOT_MEASURED:
            assert setting == BASE and "conf/sweep/mini/" in row["reason"]
            continue
        assert row["effect"] == pytest.approx(EXPECTED[claim](base if setting == BASE else instruct, base), abs=1e-9)
        assert row["low"] <= row["effect"] <= row["high"]


@pytest.mark.slow
def test_the_lowest_bin_of_margins(made: Path, rows: pd.DataFrame) -> None:
    """S6a: each chain's pairs have bins of their own, averaged before the lowest is taken."""
    for setting in (BASE, INSTRUCT):
        binned = []
        for chain in CHAINS:
            plain = Plain(made, setting + chain)
            longer = plain.longer("simpo")
            edges = np.quantile(longer, [0.2, 0.4, 0.6, 0.8])
            binned.append(pd.Series(plain.margins("simpo")).groupby([sum(x > edge for edge in edges) for x in longer]).mean())
        assert rows.loc[("S6a", setting), "effect"] == pytest.approx(np.mean(binned, axis=0).min())


def test_what_is_said_once_is_measured_once(rows: pd.DataFrame) -> None:
    """The step's costs as the file has them; PPO never; the theory's deviations at rounding."""
    time, memory = rows.loc[("S13a", "a training step")], rows.loc[("S13b", "a training step")]
    assert tuple(time[["effect", "low", "high", "n"]]) == pytest.approx((20, 15, 25, 16))
    assert tuple(memory[["effect", "low", "high"]]) == pytest.approx((10, 10, 10))
    assert (time["verdict"], memory["verdict"]) == (scorecard.REPRODUCED, scorecard.REPRODUCED)
    assert set(rows.loc[["D1", "D2"], "verdict"]) == {scorecard.NOT_MEASURED}
    assert set(rows.loc[["D3a", "D3b", "D3c", "D3d"], "verdict"]) == {scorecard.REPRODUCED}
    assert rows.loc[["D3a", "D3b", "D3c", "D3d"], "effect"].max() < 1e-11
    assert {claim.id for claim in CLAIMS} == set(rows.index.get_level_values("id"))
    assert set(EXPECTED) | {"S4d", "S6a", "S13a", "S13b", "D1", "D2", "D3a", "D3b", "D3c", "D3d"} == {claim.id for claim in CLAIMS}


# -- intervals


def test_an_interval_of_paired_means_is_that_of_their_standard_error(made: Path, rows: pd.DataFrame) -> None:
    answers = [[Plain(made, BASE + chain).answers(run) for run in ("simpo_no_ln", "simpo")] for chain in CHAINS]
    gaps = np.mean([[len(a) - len(b) for a, b in zip(*both, strict=True)] for both in answers], axis=0)
    row = rows.loc[("S4b", BASE)]
    assert (row["high"] - row["low"]) / 2 == pytest.approx(1.96 * gaps.std(ddof=1) / len(gaps) ** 0.5, rel=0.1)


def test_resamples_are_the_statistic_of_resampled_rows(made: Path) -> None:
    """ρ, a standard deviation and √F of the counted sample are scipy's and numpy's of the rows, each as often as it was drawn."""
    study = Study(made)
    study.config["analysis"] |= {"resamples": 3}
    evidence = Evidence(study)
    draws = np.random.default_rng(0)
    x, y = draws.integers(0, 6, 40).astype(float), draws.standard_normal(40)
    counts = np.concatenate(list(evidence.counts("x", 40))).astype(int)
    assert counts.shape == (4, 40) and (counts[0] == 1).all() and (counts.sum(axis=1) == 40).all() and (counts[1] != counts[2]).any()
    drawn = [np.repeat(np.arange(40), row) for row in counts]
    np.testing.assert_allclose(evidence.spearman("x", x, y), [stats.spearmanr(x[i], y[i])[0] for i in drawn])
    np.testing.assert_allclose(evidence.spread("x", y), [y[i].std(ddof=1) for i in drawn])
    twice = np.concatenate([list(block) for block in evidence.counts("x", 20)]).astype(int)
    both = [np.concatenate([i, i + 20]) for i in (np.repeat(np.arange(20), row) for row in twice)]
    np.testing.assert_allclose(evidence.spearman("x", x, y, texts=2), [stats.spearmanr(x[i], y[i])[0] for i in both])

    runs = [run for run in study.rows(*METHODS) if run.setting == BASE]
    found, n = evidence.separation("mt_bench", evidence.ratings, runs)
    values = np.array([Plain(made, BASE).ratings(run.run) for run in runs])
    resampled = np.concatenate(list(evidence.counts("mt_bench separation", n))).astype(int)
    expected = [Plain(made, BASE).separation(list(values[:, np.repeat(np.arange(n), row)])) for row in resampled]
    np.testing.assert_allclose(found, expected)


def test_lc_moves_with_the_win_rate_by_the_logistic_slope(made: Path) -> None:
    evidence = Evidence(Study(made))
    run = evidence.trained(BASE, "simpo")[42]
    lc, rate = LC.value(evidence, run), evidence.win_rate(run)
    logit = np.log(lc[0] / (100 - lc[0])) + np.array([-1e-4, 1e-4])
    of_rate = np.log(rate[0] / (100 - rate[0])) + np.array([-1e-4, 1e-4])
    slope = np.diff(1 / (1 + np.exp(-logit)))[0] / np.diff(1 / (1 + np.exp(-of_rate)))[0]
    np.testing.assert_allclose((lc - lc[0])[1:], slope * (rate - rate[0])[1:], rtol=1e-5)


def test_highest_of_all_is_not_contradicted_where_all_are_equal(made: Path) -> None:
    """In 300 studies of ten equal methods; the percentiles of the resampled smallest contradict the claim in most of them."""
    study = Study(made)
    study.config["analysis"] |= {"resamples": 300}
    evidence, draws = Evidence(study), np.random.default_rng(5)
    ours = percentiles = 0
    for number in range(300):
        values = draws.standard_normal((50, 10))
        sums = evidence.sums(f"study {number}", values) / 50
        gaps = [sums[0] - other for other in sums[1:]]
        ours += evidence.bounds([gaps], 50).high < 0
        percentiles += np.quantile(np.min(gaps, axis=0)[1:], 0.975) < 0
    assert ours <= 15 < 100 < percentiles


def test_chains_widen_the_interval_that_a_verdict_is_on(made: Path, rows: pd.DataFrame) -> None:
    """Student's t over the chains' effects, as scipy has it."""
    effects = [plain.arena("simpo") - plain.arena("dpo") for plain in (Plain(made, BASE + chain) for chain in CHAINS)]
    expected = stats.ttest_1samp(effects, 0).confidence_interval(0.95)
    row = rows.loc[("S1d", BASE)]
    assert (row["chain_low"], row["chain_high"]) == pytest.approx(tuple(expected))
    assert row["n_chains"] == 3 and rows.loc[("S1b", BASE), "n_chains"] == 1
    assert Bounds(2, 1, 3, 9, -1, 5, 3).wider() == (-1, 5)
    assert Bounds(2, 1, 3, 9, 1.5, 2.5, 3).wider() == (1, 3)
    assert Bounds(2, 1, 3, 9).wider() == (1, 3)


def test_a_claim_about_methods_with_one_chain_has_the_others_noise(made: Path, rows: pd.DataFrame) -> None:
    """S2a, nine methods: the spread of LC minus SFT's, pooled over four methods of three chains, Bonferroni over nine differences.

    S12d: SimPO's own spread, of two runs. S3a: the spread of the same mean over the methods that all chains have.
    """
    chains = [Plain(made, BASE + chain) for chain in CHAINS]
    four = ("dpo", "simpo", "simpo_no_ln", "simpo_no_margin")
    gaps = np.array([[p.lc(run) - p.lc("sft") for p in chains] for run in four])
    reach = stats.t.ppf(1 - 0.05 / 18, 2) * np.sqrt(gaps.var(axis=1, ddof=1).mean())
    row = rows.loc[("S2a", BASE)]
    assert (row["effect"] - row["chain_low"], row["chain_high"] - row["effect"]) == pytest.approx((reach, reach))

    own = [Plain(made, INSTRUCT + chain).ratio("simpo", "answers", "answer") for chain in CHAINS]
    row = rows.loc[("S12d", INSTRUCT)]
    assert row["chain_high"] - row["effect"] == pytest.approx(stats.t.ppf(0.975, 2) * 2**0.5 * np.std(own, ddof=1))

    means = [
        np.mean([Plain(made, INSTRUCT + chain).lc(run) - Plain(made, BASE + chain).lc(run) for run in ("sft", "dpo", "simpo")])
        for chain in CHAINS
    ]
    row = rows.loc[("S3a", f"{BASE} {INSTRUCT}")]
    assert row["chain_high"] - row["effect"] == pytest.approx(stats.t.ppf(0.975, 2) * np.std(means, ddof=1))


def test_a_verdict_needs_the_noise_between_chains_where_the_scale_has_several(alone: Path, rows: pd.DataFrame) -> None:
    """S15b has no like effect in the chains. Identities and a step's costs need none. Without chains verdicts are on questions alone."""
    for setting in (BASE, INSTRUCT):
        row = rows.loc[("S15b", setting)]
        assert row["verdict"] == scorecard.UNDECIDED and row["reason"].startswith("one chain") and np.isnan(row["chain_low"])
    for claim in ("S13a", "D3a", "S10b"):
        assert (rows.loc[claim, "verdict"] == scorecard.REPRODUCED).all()
    study = Study(alone)
    assert study.n_chains == 1 and study.chains(BASE) == []
    claim = next(claim for claim in CLAIMS if claim.id == "S2a")
    bounds = claim.measured(Evidence(study), BASE)
    assert np.isnan(bounds.chain_low) and bounds.wider() == (bounds.low, bounds.high)


@pytest.mark.slow
def test_the_rule_moves_intervals_and_no_effect(made: Path, rows: pd.DataFrame) -> None:
    def with_rule(**rule: float) -> pd.DataFrame:
        study = Study(made)
        study.config["analysis"] |= rule
        return scorecard.rows(study).set_index(["id", "setting"])

    other = with_rule(level=0.5, resamples=400, seed=7, about=0.45)
    pd.testing.assert_series_equal(rows["effect"], other["effect"])
    pd.testing.assert_series_equal(rows["measure"], other["measure"])
    wide = rows["high"] - rows["low"] > 1e-9
    wide &= rows.index.get_level_values("id") != "S13a"  # which its file gives
    narrower = (other["high"] - other["low"])[wide] < (rows["high"] - rows["low"])[wide]
    assert wide.sum() > 50 and narrower.all()
    assert (rows.loc[("S10a", BASE), "claimed"], other.loc[("S10a", BASE), "claimed"]) == ("40 to 60", "5 to 95")
    assert rows.loc[("S10a", BASE), "verdict"] == scorecard.CONTRADICTED != other.loc[("S10a", BASE), "verdict"]


# -- verdicts

ABOVE, LIMIT, ABOUT = (0.0, np.inf), (-np.inf, 10.0), (40.0, 60.0)


@pytest.mark.parametrize(
    ("low", "high", "claimed", "expected"),
    [
        (0.1, 2, ABOVE, scorecard.REPRODUCED),
        (-2, -0.1, ABOVE, scorecard.CONTRADICTED),
        (-0.1, 2, ABOVE, scorecard.UNDECIDED),
        (0, 2, ABOVE, scorecard.UNDECIDED),
        (0, 0, ABOVE, scorecard.UNDECIDED),
        (-3, 10, LIMIT, scorecard.REPRODUCED),
        (11, 12, LIMIT, scorecard.CONTRADICTED),
        (9, 11, LIMIT, scorecard.UNDECIDED),
        (41, 59, ABOUT, scorecard.REPRODUCED),
        (20, 39, ABOUT, scorecard.CONTRADICTED),
        (61, 70, ABOUT, scorecard.CONTRADICTED),
        (30, 70, ABOUT, scorecard.UNDECIDED),
        (0, 0, (-np.inf, 0), scorecard.REPRODUCED),
        (0.1, 0.3, (-np.inf, 0), scorecard.CONTRADICTED),
    ],
)
def test_a_verdict_is_where_the_interval_lies(low: float, high: float, claimed: tuple[float, float], expected: str) -> None:
    assert scorecard.verdict(low, high, claimed)[0] == expected


def rewrite(results: Path, run: str, text: Callable[[int, str], str]) -> None:
    path = results / BASE / "runs" / run / "eval/alpacaeval2/model_outputs.json"
    rows = json.loads(path.read_text())
    files.write_json(path, [row | {"output": text(i, row["output"])} for i, row in enumerate(rows)])


def only(monkeypatch: pytest.MonkeyPatch, claim: str) -> None:
    monkeypatch.setattr(scorecard, "CLAIMS", tuple(other for other in CLAIMS if other.id == claim))


def test_constructed_results_get_each_verdict(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers without LN twice as long as SimPO's, half as long, the same or longer by chance; and a file that is not there."""
    only(monkeypatch, "S4b")

    def verdict() -> tuple[str, str]:
        row = scorecard.rows(Study(alone)).set_index("setting").loc[BASE]
        return row["verdict"], row["reason"]

    rewrite(alone, "simpo", lambda i, _: "a" * (100 + i % 7))
    rewrite(alone, "simpo_no_ln", lambda i, _: "a" * (200 + i % 5))
    assert verdict()[0] == scorecard.REPRODUCED
    rewrite(alone, "simpo_no_ln", lambda i, _: "a" * (50 + i % 5))
    assert verdict()[0] == scorecard.CONTRADICTED
    rewrite(alone, "simpo_no_ln", lambda i, _: "a" * (100 + i % 5 + i % 3))
    assert verdict()[0] == scorecard.UNDECIDED
    (alone / BASE / "runs/simpo_no_ln/eval/alpacaeval2/model_outputs.json").unlink()
    assert verdict()[0] == scorecard.NOT_MEASURED and "simpo_no_ln/eval/alpacaeval2/model_outputs.json" in verdict()[1]


def test_ending_by_themselves(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S4d: one answer in four of SimPO without LN is cut; where a file does not say, there is nothing to measure."""
    only(monkeypatch, "S4d")
    path = alone / BASE / "runs/simpo_no_ln/eval/alpacaeval2/model_outputs.json"
    rows = json.loads(path.read_text())
    files.write_json(path, [row | {"finish_reason": "length" if i % 4 == 0 else "stop"} for i, row in enumerate(rows)])
    found = scorecard.rows(Study(alone)).set_index("setting").loc[BASE]
    assert (found["effect"], found["verdict"]) == (25, scorecard.REPRODUCED)
    files.write_json(path, [{key: value for key, value in row.items() if key != "finish_reason"} for row in rows])
    found = scorecard.rows(Study(alone)).set_index("setting").loc[BASE]
    assert found["verdict"] == scorecard.NOT_MEASURED


@pytest.mark.slow
def test_a_missing_file_leaves_its_claims_unmeasured_and_no_other(results: Path, rows: pd.DataFrame) -> None:
    """The reason names the file, and the command that makes it."""
    lost = results / BASE / "runs/dpo/eval/loglik.parquet"
    lost.unlink()
    (results / "efficiency/train_step.json").unlink()
    found = scorecard.rows(Study(results)).set_index(["id", "setting"])
    now = found.index[(found["verdict"] == scorecard.NOT_MEASURED) & (rows["verdict"] != scorecard.NOT_MEASURED)]
    of_dpo = {(claim, BASE) for claim in ("S7a", "S7b", "S10a", "S11")}
    assert set(now) == of_dpo | {("S13a", "a training step"), ("S13b", "a training step")}
    assert all(str(lost) in found.loc[row, "reason"] and "snakemake" in found.loc[row, "reason"] for row in of_dpo)
    assert "train_step.json" in found.loc[("S13a", "a training step"), "reason"]
    same = found.index.difference(now)
    pd.testing.assert_frame_equal(found.loc[same], rows.loc[same])


SCORES, ANSWERS, WINS_FILE = (f"eval/alpacaeval2/{name}.json" for name in ("scores", "model_outputs", "annotations"))
ARENA, MT, LOGLIK = "eval/arena_hard/model_judgment.jsonl", "eval/mt_bench/model_judgment.jsonl", "eval/loglik.parquet"
STEP = "../../../efficiency/train_step.json"


@pytest.mark.parametrize(
    ("claim", "name", "key", "values"),
    [
        ("S1a", SCORES, "", [None, 5, []]),
        ("S1a", SCORES, "length_controlled_winrate", ["x", "51.2", [], {}, True, -5, 200, 10**400]),
        ("S4b", ANSWERS, "output", [None, 5, []]),
        ("S1b", ARENA, "games", [None, [], [None], "x", [5, 6], [{}, {}]]),
        ("S15b", MT, "score", ["7", [], {}, 10**400]),
        ("S15b", MT, "question_id", [[1]]),
        ("S1a", WINS_FILE, "preference", [7, -1, 0.5, "x"]),
        ("S6a", "manifest.json", "", [{}, [], None]),
        ("S6a", "manifest.json", "config", [None, {}, {"method": {"objective": None}}, {"method": {"objective": "simpo"}}]),
        ("S13a", STEP, "", [[], None, 5]),
        ("S13a", STEP, "claim", [None, [5], [{}], [{"protocol": "A", "time_saved": "x"}], [{"protocol": "A", "time_saved": 0.2}]]),
    ],
)
@pytest.mark.slow
def test_a_damaged_file_leaves_its_claim_unmeasured(
    linked: Path, monkeypatch: pytest.MonkeyPatch, claim: str, name: str, key: str, values: list[Any]
) -> None:
    """The whole file, or ``key`` of it or of its second row, is what no stage writes: the reason names the file."""
    only(monkeypatch, claim)
    path = linked / BASE / "runs/simpo" / name
    read = files.read_rows if name in (ANSWERS, WINS_FILE, ARENA, MT) else files.read_json
    for value in values:
        good: Any = read(path)
        kept = path.read_bytes()
        if isinstance(good, list):
            files.write_rows(path, [good[0], good[1] | {key: value}, *good[2:]])
        else:
            files.write_json(path, good | {key: value} if key else value)
        found = scorecard.rows(Study(linked)).iloc[0]
        assert found["verdict"] == scorecard.NOT_MEASURED and path.name in found["reason"], value
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda texts: texts.drop(columns="logp"), "has no column 'logp'"),
        (lambda texts: texts[:0], "holds no texts"),
        (lambda texts: pd.concat([texts, texts]), "holds a text twice"),
        (lambda texts: texts[: len(texts) // 2], "both responses of each heldout pair"),
        (lambda texts: texts[texts["id"].astype(int) < 10], "different heldout pairs"),
        (lambda texts: texts.assign(logp="x"), "'logp' holds something that is not a number"),
        (None, "no Parquet file"),
    ],
)
@pytest.mark.slow
def test_damaged_log_likelihoods_leave_their_claim_unmeasured(
    results: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pd.DataFrame], pd.DataFrame] | None, message: str
) -> None:
    only(monkeypatch, "S7b")
    path = results / BASE / "runs/simpo" / LOGLIK
    if spoil:
        spoil(pd.read_parquet(path)).to_parquet(path, index=False)
    else:
        path.write_bytes(path.read_bytes()[:500])
    found = scorecard.rows(Study(results)).iloc[0]
    assert found["verdict"] == scorecard.NOT_MEASURED and message in found["reason"] and "loglik.parquet" in found["reason"]


@pytest.mark.parametrize("text", [b"", b"- a", b"hello", b"a: [1", b"name: x", "n\xe4me: x".encode("latin-1")])
def test_damaged_tables_yaml_is_a_sentence(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "tables.yaml").write_bytes(text)
    with pytest.raises(UserError, match=r"tables.yaml .*snakemake -n"):
        scorecard.rows(Study(tmp_path))


def test_runs_with_other_questions_are_not_compared(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "S1b")
    path = results / BASE / "runs/simpo/eval/arena_hard/model_judgment.jsonl"
    files.write_jsonl(path, files.read_rows(path)[::-1])
    found = scorecard.rows(Study(results)).set_index("setting")
    assert found.loc[BASE, "verdict"] == scorecard.NOT_MEASURED and "row 0" in found.loc[BASE, "reason"]
    assert found.loc[INSTRUCT, "verdict"] != scorecard.NOT_MEASURED


@pytest.mark.slow
def test_a_model_of_the_user_s_changes_no_verdict(results: Path) -> None:
    """ "Every" and "best" are of the paper's methods: a checkpoint or an objective that is none, best of all, is in no claim."""
    before = scorecard.rows(Study(results))
    config: Any = OmegaConf.load(results / "tables.yaml")
    config.methods = [*config.methods, "my_model"]
    for setting in config.settings:
        shutil.copytree(results / setting / "runs/rdpo/eval", results / setting / "runs/my_model/eval")
        annotations = results / setting / "runs/my_model/eval/alpacaeval2/annotations.json"
        files.write_json(annotations, [row | {"preference": 2.0} for row in files.read_json(annotations)])
        config.rows.append({"setting": setting, "run": "my_model", "method": "my_model", "seed": 42})
    OmegaConf.save(config, results / "tables.yaml")
    pd.testing.assert_frame_equal(scorecard.rows(Study(results)), before)


def test_a_scale_without_a_method_or_a_sweep_says_so(alone: Path) -> None:
    """The smallest scale: two methods, one seed, one setting, no sweeps."""
    config: Any = OmegaConf.load(alone / "tables.yaml")
    config.settings, config.methods, config.sweeps = [BASE], ["sft", "simpo"], {}
    config.rows = [row for row in config.rows if row.setting == BASE and row.method in ("sft", "simpo")]
    OmegaConf.save(config, alone / "tables.yaml")
    found = scorecard.rows(Study(alone)).set_index("id")
    assert found.loc["S1a", "effect"] == pytest.approx(Plain(alone, BASE).lc("simpo") - Plain(alone, BASE).lc("sft"))
    assert "has no run of dpo in mini_base" in found.loc["S11", "reason"]
    assert "has no sweep gamma" in found.loc["S8a", "reason"]
    assert "S3a" not in found.index


@pytest.mark.parametrize("gone", ["alpacaeval2", "arena_hard", "mt_bench"])
@pytest.mark.slow
def test_a_scale_without_a_benchmark_says_so(results: Path, gone: str) -> None:
    """What the benchmark is needed for is not measured, and why; every other figure stays as it was."""
    before = scorecard.rows(Study(results))
    config: Any = OmegaConf.load(results / "tables.yaml")
    config.benchmarks.remove(gone)
    del config.questions[gone], config.baseline[gone]
    OmegaConf.save(config, results / "tables.yaml")
    after = scorecard.rows(Study(results))
    without = after["reason"].str.contains(f"has no benchmark {gone}; name it in conf/scale", regex=False, na=False)
    assert without.any() and (after[without]["verdict"] == scorecard.NOT_MEASURED).all()
    pd.testing.assert_frame_equal(after[~without], before[~without])


# -- the paper's figures


def test_the_paper_s_figures_are_its_tables(rows: pd.DataFrame) -> None:
    """In a setting of the paper its own figure, elsewhere all of them; what is written by hand is the tables' too."""
    claims = {claim.id: claim for claim in CLAIMS}
    assert in_paper(claims["S1a"], "mistral_base") == "+4.1"
    assert in_paper(claims["S1b"], "mistral_instruct") == "-1.6"
    assert in_paper(claims["S1c"], "gemma2_it") == "+4.6"
    assert in_paper(claims["S5a"], "mistral_instruct") == "+1.2"
    assert in_paper(claims["S7b"], "mistral_base") == "+0.25"
    assert "Llama-3-Base (8B) +17.8" in in_paper(claims["S13a"], "a training step")
    assert "Mistral-Base (7B) +4.1, Mistral-Instruct (7B) +4.8" in rows.loc[("S1a", BASE), "paper"]
    assert (rows["paper"] != "").all()
    known = {(n.setting, n.method, n.metric): n.value for n in reported() if n.table == "table4"}
    for claim, metric in (("S3a", "lc_win_rate"), ("S3b", "arena_hard_win_rate")):
        gaps = {
            family: np.mean([known[f"{family}_instruct", m, metric] - known[f"{family}_base", m, metric] for m in METHODS])
            for family in ("mistral", "llama3")
        }
        assert claims[claim].paper == f"Mistral {gaps['mistral']:+.1f}, Llama-3 {gaps['llama3']:+.1f}"
    assert all(in_paper(claim, "nowhere") for claim in CLAIMS if isinstance(claim.paper, Paper))


# -- the picture


def boxes(drawn: Figure) -> list[Any]:
    FigureCanvasAgg(drawn).draw()  # which places the legend
    texts = [text for text in drawn.axes[0].texts if text.get_text()] + list(drawn.legends[0].get_texts())
    return [artist.get_window_extent() for artist in (*texts, *drawn.axes[0].lines)]


@pytest.mark.parametrize("settings", [1, 2, 4, 6])
@pytest.mark.slow
def test_no_text_or_mark_touches_another_or_leaves_the_page(settings: int, rows: pd.DataFrame) -> None:
    """Also with as many settings as the paper has, whose intervals have no room."""
    frame = rows.reset_index()
    names = [BASE, INSTRUCT, "mistral_base", "mistral_instruct", "llama3_base", "llama3_instruct_v02"][:settings]
    copies = [frame[frame["setting"] == BASE].assign(setting=name) for name in names]
    one = frame[~frame["setting"].isin([BASE, INSTRUCT])].assign(
        setting=lambda rows: rows["setting"].replace(f"{BASE} {INSTRUCT}", names[-1])
    )
    every = pd.concat([*copies, one], ignore_index=True)
    order = [claim.id for claim in CLAIMS]
    with mpl.style.context(STYLE):
        drawn = scorecard.picture(every.sort_values("id", key=lambda ids: ids.map(order.index), kind="stable"), names)
        found = boxes(drawn)
    assert len(found) > 100 and drawn.get_figwidth() == 6.9 and drawn.get_figheight() < 9.5
    assert not [(a, b) for a, b in combinations(found, 2) if a.overlaps(b)]
    assert all(box.x0 >= 0 and box.x1 <= drawn.bbox.width and box.y0 >= 0 and box.y1 <= drawn.bbox.height for box in found)
    assert any("[" in text.get_text() for text in drawn.axes[0].texts)


def test_the_marks_differ_without_colour() -> None:
    shapes = {(look["marker"], look.get("markerfacecolor") == "white") for look in scorecard.MARKS.values()}
    assert len(shapes) == len(scorecard.MARKS) == 4


@pytest.mark.slow
def test_the_command_writes_table_figure_and_captions(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same bytes."""
    for out in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["scorecard", "--results", str(made), "--out", str(tmp_path / out)])
        command_line(scorecard.__doc__, scorecard.write)
    names = ["scorecard.csv", "scorecard.txt", *(f"figures/scorecard.{suffix}" for suffix in ("png", "pdf", "csv", "txt"))]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one/scorecard.csv").read_bytes() == (tmp_path / "one/figures/scorecard.csv").read_bytes()
    table = pd.read_csv(tmp_path / "one/scorecard.csv")
    assert set(table["verdict"]) <= set(scorecard.MARKS) and table["reason"].notna().all()
    assert set(table.columns) == {*scorecard.COLUMNS, "claimed", "paper", "verdict", "reason"}
    counted = table["verdict"].value_counts()
    assert f"{counted['reproduced']} reproduced" in (tmp_path / "one/scorecard.txt").read_text()
