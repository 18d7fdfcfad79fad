"""analysis/fig1_scores to fig5_beta, curves and sweep: what they draw is what the results say, and it can be read in print.

The statistics are computed again from parquet and JSON, with scipy where the scripts use formulas of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from omegaconf import OmegaConf
from scipy import stats

from analysis import inventory
from analysis.figures import curves, fig1_scores, fig2_length, fig3_gamma, fig4_dpo, fig5_beta, sweep
from analysis.stats import spearman
from analysis.study import PAGE, STYLE, Drawn, Study, figure, save
from stages.lib import files
from stages.lib.errors import UserError
from stages.plan import Plan
from tests import folder

SCRIPTS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (fig1_scores, fig2_length, fig3_gamma, fig4_dpo, fig5_beta, curves)
}
Z = stats.norm.ppf(0.975)


@pytest.fixture(scope="module")
def results(finished: Path) -> Path:
    return finished


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    """A results folder to change."""
    return Path(shutil.copytree(results, tmp_path / "results", copy_function=os.link))


@pytest.fixture
def seeded(copied: Path) -> Path:
    """A results folder with two more seeds of DPO's training."""
    plan = Plan("mini")
    for setting in ("mini_base", "mini_instruct"):
        for run in ("dpo+seed=0", "dpo+seed=1"):
            folder.make_run(copied / setting / "runs" / run, plan, setting, run, "dpo")
    return copied


@pytest.fixture(scope="module")
def made_and_saved(results: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Drawn], Path]:
    """Saved as made: a figure that is drawn twice is laid out twice."""
    path = tmp_path_factory.mktemp("saved")
    found = {name: made(module, results) for name, module in SCRIPTS.items()}
    with mpl.style.context(STYLE):
        for name, parts in found.items():
            save(path / name, *parts)
    return found, path


@pytest.fixture(scope="module")
def drawn(made_and_saved: tuple[dict[str, Drawn], Path]) -> dict[str, Drawn]:
    return made_and_saved[0]


@pytest.fixture(scope="module")
def saved(made_and_saved: tuple[dict[str, Drawn], Path]) -> Path:
    return made_and_saved[1]


def made(module: ModuleType, results: Path) -> Drawn:
    with mpl.style.context(STYLE):
        drawn: Drawn = module.make(Study(results))
    return drawn


def rewritten(path: Path, change: Callable[[Any], Any]) -> None:
    """A JSON file, changed; a file of its own again where it was a link."""
    files.write_json(path, change(json.loads(path.read_text())))


def texts(results: Path, setting: str, run: str, split: str, side: str) -> pd.DataFrame:
    found = pd.read_parquet(results / setting / "runs" / run / "eval" / "loglik.parquet")
    return found[(found["split"] == split) & (found["side"] == side)].reset_index(drop=True)


def beta(results: Path, setting: str, run: str) -> float:
    manifest = json.loads((results / setting / "runs" / run / "manifest.json").read_text())
    return float(manifest["config"]["method"]["hyperparameters"]["beta"])


def averages(results: Path, setting: str, run: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities a token of chosen and rejected."""
    chosen, rejected = (texts(results, setting, run, split, side) for side in ("chosen", "rejected"))
    return (chosen["logp"] / chosen["length"]).to_numpy(), (rejected["logp"] / rejected["length"]).to_numpy()


def log_ratios(results: Path, setting: str, run: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    chosen, rejected = (texts(results, setting, run, split, side) for side in ("chosen", "rejected"))
    return (chosen["logp"] - chosen["reference_logp"]).to_numpy(), (rejected["logp"] - rejected["reference_logp"]).to_numpy()


def rho(results: Path, setting: str, run: str) -> float:
    both = np.concatenate(averages(results, setting, run, "heldout"))
    lengths = np.concatenate([texts(results, setting, run, "heldout", side)["length"] for side in ("chosen", "rejected")])
    return float(stats.spearmanr(both, lengths).statistic)


def only(frame: pd.DataFrame, **wanted: Any) -> pd.Series:
    """The one row of a table that has these values."""
    for key, value in wanted.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1, wanted
    return frame.iloc[0]


def written(picture: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """The texts that a figure draws: what a tick outside the view would say is none."""
    drawn: list[Text] = []
    draw_text = Text.draw

    def noted(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        draw_text(self, renderer)

    with mpl.style.context(STYLE), monkeypatch.context() as patch:
        picture.set_dpi(200)
        canvas = FigureCanvasAgg(picture)
        canvas.draw()  # the layout settles
        patch.setattr(Text, "draw", noted)
        canvas.draw()
    return list(dict.fromkeys(drawn))


def assert_readable(picture: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text touches another or the figure's edge, none is smaller than 7 points, and the figure fits a page."""
    found = written(picture, monkeypatch)
    with mpl.style.context(STYLE):
        boxes = {text: text.get_window_extent() for text in found}
    assert len(found) > 3
    for one, other in combinations(found, 2):
        first, second = boxes[one], boxes[other]
        apart = max(first.x0 - second.x1, second.x0 - first.x1, first.y0 - second.y1, second.y0 - first.y1)
        assert apart > -1, f"{one.get_text()!r} and {other.get_text()!r} overlap by {-apart:.1f} pixels"
    for text, box in boxes.items():
        inside = min(box.x0, box.y0, picture.bbox.x1 - box.x1, picture.bbox.y1 - box.y1)
        assert inside > -1, f"{text.get_text()!r} is cut off by {-inside:.1f} pixels"
        assert text.get_fontsize() >= 7
    assert picture.get_figwidth() <= PAGE
    assert picture.get_figheight() <= 9


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.slow
def test_a_figure_can_be_read_at_the_size_of_print(name: str, drawn: dict[str, Drawn], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_readable(drawn[name][0], monkeypatch)


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes_in_another_process_with_another_hash_seed(results: Path, saved: Path, tmp_path: Path) -> None:
    """By the scripts' own command line; and none of them imports torch, which would cost seconds."""
    script = f"""
import sys
from analysis.figures import {", ".join(SCRIPTS)}
from analysis.figures import sweep
from analysis.study import figure
for module in ({", ".join(SCRIPTS)}):
    figure(None, module.__name__.rpartition(".")[2], module.make)
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    command = [sys.executable, "-c", script, "--results", str(results), "--out", str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True)
    made = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert made == sorted(f"{name}.{kind}" for name in SCRIPTS for kind in ("csv", "pdf", "png", "txt"))
    assert [name for name in made if (tmp_path / "figures" / name).read_bytes() != (saved / name).read_bytes()] == []


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.slow
def test_a_pdf_embeds_its_fonts_as_outlines(name: str, saved: Path) -> None:
    """TrueType (Type 42), which can be searched and edited, rather than matplotlib's default, Type 3, which some conferences refuse."""
    pdf = (saved / f"{name}.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.slow
def test_a_figure_of_the_paper_s_six_settings_can_be_read_too(
    name: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names are the longest there are; the numbers are the mini settings'."""
    study = Study(tmp_path)
    config = dict(Study(results).config)
    six = ["mistral_base", "mistral_instruct", "llama3_base", "llama3_instruct", "llama3_instruct_v02", "gemma2_it"]
    for setting in six:
        (tmp_path / setting).symlink_to(results / "mini_instruct")
    (tmp_path / "efficiency").symlink_to(results / "efficiency")
    config["rows"] = [row | {"setting": setting} for setting in six for row in config["rows"] if row["setting"] == "mini_instruct"]
    config["sweeps"] = {name: [run | {"setting": s} for s in six[3:5] for run in runs] for name, runs in config["sweeps"].items()}
    study.config = config | {"settings": six}
    with mpl.style.context(STYLE):
        picture, _, _ = SCRIPTS[name].make(study)
    assert_readable(picture, monkeypatch)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.slow
def test_captions_say_settings_scale_judge_seed_and_n(name: str, drawn: dict[str, Drawn]) -> None:
    caption = drawn[name][2]
    for part in ("Mini-Instruct", "scale: mini", "judge: mini-judge", "training seed: 42", "n = "):
        assert part in caption


@pytest.mark.slow
def test_fig1_draws_the_scores_with_their_intervals(results: Path, drawn: dict[str, Drawn]) -> None:
    frame = drawn["fig1_scores"][1]
    assert len(frame) == 2 * 2 * 3
    for row in frame.itertuples():
        benchmark = {"lc_win_rate": "alpacaeval2", "arena_hard": "arena_hard"}[row.metric]
        scores = json.loads((results / row.setting / "runs" / row.method / "eval" / benchmark / "scores.json").read_text())
        if benchmark == "alpacaeval2":
            middle, half = scores["length_controlled_winrate"], Z * scores["lc_standard_error"]
            expected = (middle, middle - half, middle + half)
        else:
            expected = (scores["win_rate"], scores["win_rate_low"], scores["win_rate_high"])
        assert (row.value, row.low, row.high) == pytest.approx(expected, abs=1e-9)
        assert row.n == scores["n_total"]


def test_fig1_draws_the_mean_of_several_seeds_and_the_seeds(seeded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: Any = OmegaConf.to_container(OmegaConf.load(seeded / "tables.yaml"))
    tables["rows"] += [{"setting": "mini_base", "run": f"dpo+seed={seed}", "method": "dpo", "seed": seed} for seed in (0, 1)]
    (seeded / "tables.yaml").unlink()
    OmegaConf.save(OmegaConf.create(tables), seeded / "tables.yaml")
    picture, frame, caption = made(fig1_scores, seeded)
    values = [
        json.loads((seeded / f"mini_base/runs/{run}/eval/alpacaeval2/scores.json").read_text())["length_controlled_winrate"]
        for run in ("dpo", "dpo+seed=0", "dpo+seed=1")
    ]
    mean = only(frame, setting="mini_base", method="dpo", metric="lc_win_rate", seed="mean")
    assert mean["value"] == pytest.approx(np.mean(values), abs=1e-9)
    assert mean["high"] - mean["low"] == pytest.approx(2 * Z, abs=1e-9)  # each run's standard error is 1
    assert "means over seeds" in caption and "0, 1, 42" in caption
    assert_readable(picture, monkeypatch)


@pytest.mark.slow
def test_fig2_bins_rewards_by_length_difference(results: Path, drawn: dict[str, Drawn]) -> None:
    """A bin is a run of pairs in the order of their length difference: all of them, computed again from the parquet."""
    frame = drawn["fig2_length"][1]
    bins = frame[frame["quantity"] == "reward_difference, mean in bins"]
    assert set(bins["setting"]) == {"mini_base", "mini_instruct"}
    for (setting, method), part in bins.groupby(["setting", "method"]):
        chosen, rejected = (texts(results, setting, method, "heldout", side) for side in ("chosen", "rejected"))
        lengths = (chosen["length"] - rejected["length"]).to_numpy()
        if method == "simpo_no_ln":
            rewards = beta(results, setting, method) * (chosen["logp"] - rejected["logp"]).to_numpy()
        else:  # SFT has SimPO's reward, with SimPO's β
            rewards = beta(results, setting, "simpo") * np.subtract(*averages(results, setting, method, "heldout"))
        order = np.argsort(lengths, kind="stable")
        start = 0
        for row in part.itertuples():
            members = order[start : start + int(row.n)]
            start += int(row.n)
            assert row.x == pytest.approx(lengths[members].mean(), abs=1e-9)
            assert row.value == pytest.approx(rewards[members].mean(), abs=1e-9)
            assert row.high - row.value == pytest.approx(Z * stats.sem(rewards[members]), abs=1e-9)
        assert start == len(lengths) == folder.PAIRS["heldout"]
        assert len(part) == 5


@pytest.mark.slow
def test_fig2_and_fig4_give_spearman_s_rho_of_held_out_responses(results: Path, drawn: dict[str, Drawn]) -> None:
    for name, method in (("fig2_length", "simpo"), ("fig2_length", "simpo_no_ln"), ("fig4_dpo", "dpo")):
        found = only(drawn[name][1], quantity="spearman", method=method, setting="mini_base")
        assert found["value"] == pytest.approx(rho(results, "mini_base", method), abs=1e-9)
        assert found["n"] == 2 * folder.PAIRS["heldout"]
        assert f"ρ = {found['value']:.2f}".replace("-", "−") in " ".join(axes.get_title("left") for axes in drawn[name][0].axes)


def test_spearman_shares_ranks_among_equals() -> None:
    x, y = np.array([1, 1, 2, 2, 2, 5.0]), np.array([3, 1, 1, 4, 4, 2.0])
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.slow
def test_fig3_gives_accuracies_win_rates_and_distributions_for_each_gamma(results: Path, drawn: dict[str, Drawn]) -> None:
    frame = drawn["fig3_gamma"][1]
    tables: Any = OmegaConf.load(results / "tables.yaml")
    assert sorted(set(frame["gamma"])) == [0, 0.5, 1, 2, 4, 8]
    for trial in tables.sweeps.gamma:
        gamma = trial.varied.gamma
        chosen, rejected = averages(results, trial.setting, trial.run, "heldout")
        margins = beta(results, trial.setting, trial.run) * (chosen - rejected)
        accuracy = only(frame, gamma=gamma, quantity="reward_accuracy")
        interval = stats.binomtest(int((margins > 0).sum()), len(margins)).proportion_ci(method="wilson")
        expected = ((margins > 0).mean(), interval.low, interval.high)
        assert tuple(accuracy[["value", "low", "high"]]) == pytest.approx(expected, abs=1e-9)
        scores = json.loads((results / trial.setting / "runs" / trial.run / "eval/alpacaeval2/scores.json").read_text())
        rate = only(frame, gamma=gamma, quantity="lc_win_rate")
        assert rate["value"] == pytest.approx(scores["length_controlled_winrate"], abs=1e-9)
        for name, values in (("margin", margins), ("chosen_average", chosen)):
            assert only(frame, gamma=gamma, quantity=f"{name}, mean")["value"] == pytest.approx(values.mean(), abs=1e-9)
            assert only(frame, gamma=gamma, quantity=f"{name}, standard deviation")["value"] == pytest.approx(values.std(ddof=1), abs=1e-9)
            density = frame[(frame["gamma"] == gamma) & (frame["quantity"] == f"{name}, density")]
            np.testing.assert_allclose(density["value"], stats.gaussian_kde(values)(density["x"]), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_fig4_counts_training_pairs_by_both_orders_and_simpo_s_never_differ(results: Path, drawn: dict[str, Drawn]) -> None:
    frame = drawn["fig4_dpo"][1]
    chosen, rejected = averages(results, "mini_base", "dpo", "train")
    ratio_chosen, ratio_rejected = log_ratios(results, "mini_base", "dpo", "train")
    for method in ("dpo", "simpo"):
        cells = frame[(frame["quantity"] == "pairs") & (frame["method"] == method)].set_index("group")["value"]
        assert cells.sum() == folder.PAIRS["train"]
        if method == "simpo":
            assert cells["reward right, likelihood wrong"] == cells["reward wrong, likelihood right"] == 0
            continue
        for reward, by_reward in (("right", ratio_chosen > ratio_rejected), ("wrong", ratio_chosen <= ratio_rejected)):
            for likely, by_likelihood in (("right", chosen > rejected), ("wrong", chosen <= rejected)):
                assert cells[f"reward {reward}, likelihood {likely}"] == (by_reward & by_likelihood).sum()
        assert cells["reward right, likelihood wrong"] > 0  # so that a zero says something


@pytest.mark.slow
def test_fig4_gives_accuracies_with_wilson_s_interval_and_the_costs_as_measured(results: Path, drawn: dict[str, Drawn]) -> None:
    frame = drawn["fig4_dpo"][1]
    for setting in ("mini_base", "mini_instruct"):
        for method, values in (("dpo", log_ratios), ("simpo", averages)):
            chosen, rejected = values(results, setting, method, "heldout")
            right = chosen > rejected
            found = only(frame, setting=setting, method=method, quantity="reward_accuracy")
            interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
            assert tuple(found[["value", "low", "high"]]) == pytest.approx((right.mean(), interval.low, interval.high), abs=1e-9)
    for row in json.loads((results / "efficiency/train_step.json").read_text())["claim"]:
        for method in ("dpo", "simpo"):
            for cost in ("seconds", "peak_mib"):
                assert only(frame, group=row["protocol"], method=method, quantity=cost)["value"] == row[method][cost]
        saved = only(frame, group=row["protocol"], quantity="time_saved")
        assert tuple(saved[["value", "low", "high"]]) == (row["time_saved"], row["time_saved_low"], row["time_saved_high"])


@pytest.mark.slow
def test_fig4_says_what_was_not_measured(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(made: Any) -> Any:
        last = made["claim"][-1]
        last["simpo"]["peak_mib"] = last["dpo"]["peak_mib"] = last["memory_saved"] = None
        return made

    rewritten(copied / "efficiency/train_step.json", without_memory)
    picture, frame, _ = made(fig4_dpo, copied)
    assert [text.get_text() for text in picture.axes[-1].texts] == ["−10 %", "−10 %", "not measured"]
    assert pd.isna(only(frame, group="C", method="dpo", quantity="peak_mib")["value"])
    assert_readable(picture, monkeypatch)


def test_fig4_writes_savings_as_changes() -> None:
    assert [fig4_dpo.change(saved) for saved in (0.2, -0.051, 0.004, -0.0)] == ["−20 %", "+5 %", "0 %", "0 %"]


@pytest.mark.slow
def test_fig5_names_both_estimators_and_computes_them_over_sequences(results: Path, drawn: dict[str, Drawn]) -> None:
    frame = drawn["fig5_beta"][1]
    tables: Any = OmegaConf.load(results / "tables.yaml")
    assert len(frame) == len(tables.sweeps.beta_dpo) + len(tables.sweeps.beta_simpo)
    for trial in [*tables.sweeps.beta_dpo, *tables.sweeps.beta_simpo]:
        row = only(frame, method=trial.method, beta=trial.varied.beta)
        found = pd.read_parquet(results / trial.setting / "runs" / trial.run / "eval/loglik.parquet")
        for name, part in (
            ("kl_mean_log_ratio_heldout_chosen", found.query("split == 'heldout' and side == 'chosen'")),
            ("kl_mean_log_ratio_own_answers", found.query("split == 'answers' and benchmark == 'alpacaeval2'")),
        ):
            ratios = (part["logp"] - part["reference_logp"]).to_numpy()
            assert row[name] == pytest.approx(ratios.mean(), abs=1e-9)
            assert row[f"{name}_standard_error"] == pytest.approx(stats.sem(ratios), abs=1e-9)
            assert row[f"{name}_n"] == len(ratios)
        scores = json.loads((results / trial.setting / "runs" / trial.run / "eval/alpacaeval2/scores.json").read_text())
        assert row["lc_win_rate"] == pytest.approx(scores["length_controlled_winrate"], abs=1e-9)
        sides = averages(results, trial.setting, trial.run, "heldout")
        if trial.method == "dpo":
            sides = log_ratios(results, trial.setting, trial.run, "heldout")
        assert row["reward_accuracy"] == pytest.approx((sides[0] > sides[1]).mean(), abs=1e-9)
    assert all(axes.get_xscale() == "log" for axes in drawn["fig5_beta"][0].axes[:4])


def test_a_sweep_that_varies_another_key_or_is_not_there_is_a_sentence(copied: Path) -> None:
    study = Study(copied)
    study.config["sweeps"]["gamma"][0]["varied"]["beta"] = 3
    with pytest.raises(UserError, match=r"conf/sweep/mini/gamma.yaml varies gamma, beta; this figure draws gamma"):
        fig3_gamma.make(study)
    del study.config["sweeps"]["gamma"]
    with pytest.raises(UserError, match=r"write conf/sweep/mini/gamma.yaml and name it among the sweeps of conf/scale/mini.yaml"):
        fig3_gamma.make(study)


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished scale with chains, in the setting that the sweeps are of."""
    path = tmp_path_factory.mktemp("chained") / "results"
    methods = ["sft", "dpo", "simpo", "simpo_no_ln"]
    folder.make(path, with_chains=True, settings=["mini_instruct"], methods=methods, ablations=["simpo"], chained=methods)
    return path


def spread(chained: Path, value: Callable[[str, str], float], *methods: str) -> float:
    """t s of a figure, pooled over methods of three chains. ``value``: of a setting and method."""
    every = np.array([[value(f"mini_instruct{chain}", method) for chain in ("", "+chain=1", "+chain=2")] for method in methods])
    return float(stats.t.ppf(0.975, 2) * np.sqrt(every.var(axis=1, ddof=1).mean()))


def test_bars_contain_the_spread_between_chains_and_captions_say_so(chained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fig1, fig3, fig5: in squares beside the interval over questions; of accuracy over the methods with rewards."""

    def lc(setting: str, method: str) -> float:
        path = chained / setting / "runs" / method / "eval/alpacaeval2/scores.json"
        return float(json.loads(path.read_text())["length_controlled_winrate"])

    def accuracy(setting: str, method: str) -> float:
        found = log_ratios if method == "dpo" else averages
        chosen, rejected = found(chained, setting, method, "heldout")
        if method == "simpo_no_ln":
            chosen, rejected = (texts(chained, setting, method, "heldout", side)["logp"] for side in ("chosen", "rejected"))
        return float((chosen > rejected).mean())

    half = np.hypot(Z, spread(chained, lc, "sft", "dpo", "simpo", "simpo_no_ln"))  # each run's standard error is 1
    reach = spread(chained, accuracy, "dpo", "simpo", "simpo_no_ln")
    found = {name: made(SCRIPTS[name], chained) for name in ("fig1_scores", "fig3_gamma", "fig5_beta")}
    shown = only(found["fig1_scores"][1], metric="lc_win_rate", method="dpo")
    assert shown["high"] - shown["value"] == pytest.approx(half)
    shown = only(found["fig3_gamma"][1], gamma=8, quantity="lc_win_rate")
    assert shown["high"] - shown["value"] == pytest.approx(half)
    shown = only(found["fig3_gamma"][1], gamma=8, quantity="reward_accuracy")
    interval = stats.binomtest(round(shown["value"] * shown["n"]), int(shown["n"])).proportion_ci(method="wilson")
    assert shown["high"] - shown["value"] == pytest.approx(np.hypot(interval.high - shown["value"], reach))
    frame = found["fig5_beta"][1]
    assert (frame["lc_win_rate_high"] - frame["lc_win_rate"]).tolist() == pytest.approx([half] * len(frame))
    own = "kl_mean_log_ratio_own_answers"  # whose noise at each β is not known
    assert (frame[f"{own}_high"] - frame[own]).tolist() == pytest.approx((Z * frame[f"{own}_standard_error"]).tolist())
    for name, (picture, _, caption) in found.items():
        assert "the spread between 3 chains" in caption
        assert ("All runs have learning_rate = 0.0001." in caption) == (name != "fig1_scores")
        assert_readable(picture, monkeypatch)


@pytest.mark.slow
def test_one_chain_is_said_to_be_one(drawn: dict[str, Drawn]) -> None:
    assert all("One chain: " in drawn[name][2] for name in ("fig1_scores", "fig3_gamma", "fig5_beta"))


def test_a_sweep_over_seeds_too_is_averaged(seeded: Path) -> None:
    study = Study(seeded)
    study.config["sweeps"]["beta_dpo"] = [
        {"setting": "mini_instruct", "run": run, "method": "dpo", "varied": {"learning_rate": 1e-4, "beta": 0.05, "seed": seed}}
        for run, seed in (("dpo", 42), ("dpo+seed=0", 0))
    ] + study.config["sweeps"]["beta_dpo"][2:]
    with mpl.style.context(STYLE):
        _, frame, caption = fig5_beta.make(study)
    row = only(frame, method="dpo", beta=0.05)
    each = [np.mean(log_ratios(seeded, "mini_instruct", run, "heldout")[0]) for run in ("dpo", "dpo+seed=0")]
    assert row["kl_mean_log_ratio_heldout_chosen"] == pytest.approx(np.mean(each), abs=1e-9)
    assert row["seeds"] == 2 and "Means over training seeds" in caption


def test_what_is_missing_is_named_with_the_next_command(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "efficiency/train_step.json").unlink()
    monkeypatch.setattr(sys, "argv", ["python", "--results", str(copied), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"error: .*efficiency/train_step.json does not exist; make it with: snakemake --cores all"):
        figure(None, "fig4_dpo", fig4_dpo.make)
    study = Study(copied)
    study.config["rows"] = [row for row in study.config["rows"] if row["method"] != "simpo_no_ln"]
    with pytest.raises(UserError, match=r"no run of simpo_no_ln in mini_base; add it to the methods or ablations of conf/scale/mini.yaml"):
        fig2_length.make(study)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_curves_hold_every_logged_step_and_cross_out_what_collapsed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rule in tables.yaml: exactly at a limit a run has not collapsed."""
    for run, change in (
        ("kto", {"ended": 0.49}),
        ("orpo", {"ended": 0.9, "repeated_3grams": 0.51}),
        ("dpo", {"ended": 0.5, "repeated_3grams": 0.5}),
    ):
        rewritten(copied / f"mini_base/runs/{run}/eval/alpacaeval2/scores.json", lambda scores, change=change: scores | change)
    picture, frame, caption = made(curves, copied)
    collapsed = frame[(frame["quantity"] == "collapsed") & (frame["value"] == 1)]
    assert [*zip(collapsed["setting"], collapsed["run"], strict=True)] == [("mini_base", "kto"), ("mini_base", "orpo")]
    assert "KTO in Mini-Base (seed 42), ORPO in Mini-Base (seed 42)." in caption
    assert sum(line.get_marker() == "x" for axes in picture.axes for line in axes.lines) == 2
    history = pd.read_json(copied / "mini_instruct/runs/simpo/train.jsonl", lines=True)
    of = frame[(frame["setting"] == "mini_instruct") & (frame["run"] == "simpo")]
    for quantity in ("loss", "rewards/margins", "rewards/accuracies", "avg_logps/chosen", "avg_logps/rejected"):
        assert of[of["quantity"] == quantity]["value"].tolist() == history[quantity].tolist()
    assert "sft" not in set(frame["method"])
    assert_readable(picture, monkeypatch)


@pytest.mark.slow
def test_a_checkpoint_of_the_user_s_has_no_curve_and_no_seed(copied: Path) -> None:
    """What was not trained here has no train.jsonl, and its row's seed is no training's: curves and every caption go without."""
    study = Study(copied)
    expected, caption = curves.make(study)[1], study.caption("What.", study.rows())
    study.config["rows"] += [{"setting": "mini_base", "run": "my_model", "method": "my_model", "seed": 7}]
    pd.testing.assert_frame_equal(curves.make(study)[1], expected)
    assert study.caption("What.", study.rows()) == caption and "training seed: 42" in caption


def test_what_planning_leaves_out_a_figure_for_is_what_the_figure_shows() -> None:
    """inventory.ABOUT against the scripts, which planning does not import."""
    assert (inventory.ABOUT["fig2_length"], inventory.ABOUT["fig4_dpo"]) == (fig2_length.SHOWN, fig4_dpo.SHOWN)


def grid(results: Path, given: dict[str, tuple[dict[str, float], float]], setting: str = "mini_base") -> None:
    """Runs of SimPO with β, γ, seed and a win rate, beside a tables.yaml."""
    for run, (values, rate) in given.items():
        path = results / setting / "runs" / run
        config = {"method": {"learning_rate": 5e-5, "hyperparameters": {"beta": values["beta"], "gamma": values["gamma"]}}}
        facts = {"config": config | {"seed": values.get("seed", 42)}, "heldout": {"rewards/accuracies": rate / 100}, "heldout_pairs": 50}
        files.write_json(path / files.MANIFEST, facts)
        scores = {"length_controlled_winrate": rate, "lc_standard_error": 1.0, "win_rate": rate, "standard_error": 1.0, "n_total": 60}
        files.write_json(path / "eval/alpacaeval2/scores.json", scores | {"judge": "a-judge"})


@pytest.fixture
def swept(results: Path, tmp_path: Path) -> Path:
    """An empty results folder of the same scale."""
    path = tmp_path / "results"
    path.mkdir()
    shutil.copy(results / "tables.yaml", path / "tables.yaml")
    return path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["python", *map(str, arguments)])
    sweep.main()


def of(study: Study, metric: str = "lc_win_rate") -> Drawn:
    (runs,) = sweep.groups(study).values()
    with mpl.style.context(STYLE):
        found = sweep.picture(study, runs, metric)
    assert found is not None
    return found


def test_one_key_makes_a_line_with_seeds_averaged_and_defaults_from_the_manifest(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """simpo's β is nowhere in its name; exactly the points, their values and the mean of two seeds."""
    grid(
        swept,
        {
            "simpo": ({"beta": 2, "gamma": 1}, 30.0),
            "simpo+seed=1": ({"beta": 2, "gamma": 1, "seed": 1}, 32.0),
            "simpo+beta=4": ({"beta": 4, "gamma": 1}, 35.0),
            "simpo+beta=10": ({"beta": 10, "gamma": 1}, 20.0),
        },
    )
    picture, table, caption = of(Study(swept))
    assert table[["beta", "lc_win_rate", "seeds"]].to_numpy().tolist() == [[2, 31, "42 1"], [4, 35, "42"], [10, 20, "42"]]
    (line,) = picture.axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([2, 4, 10], [31, 35, 20])
    assert "judge: a-judge" in caption and "seeds: 1, 42" in caption
    assert table["arena_hard"].isna().all() and table["heldout_accuracy"].tolist() == pytest.approx([0.31, 0.35, 0.2])
    assert_readable(picture, monkeypatch)


def test_two_keys_make_a_heat_map_and_a_cell_without_a_run_stays_empty(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {(2, 0.3): 30.0, (2, 1): 31.0, (4, 0.3): 34.0, (4, 1): 38.0, (8, 1): 25.0}
    grid(
        swept,
        {
            "+".join(["simpo", *([f"beta={b}"] if b != 2 else []), *([f"gamma={g:g}"] if g != 1 else [])]): ({"beta": b, "gamma": g}, rate)
            for (b, g), rate in rates.items()
        },
    )
    picture, table, _ = of(Study(swept))
    assert {(row.beta, row.gamma): row.lc_win_rate for row in table.itertuples()} == rates
    (axes,) = picture.axes
    (image,) = axes.images
    assert [text.get_text() for text in axes.get_yticklabels()] == ["8", "4", "2"]
    np.testing.assert_array_equal(image.get_array().filled(-1), [[-1, 25], [34, 38], [30, 31]])
    assert sorted(text.get_text() for text in axes.texts) == ["25.0", "30.0", "31.0", "34.0", "38.0"]
    assert_readable(picture, monkeypatch)


def test_two_sweeps_that_share_a_point_make_a_line_each(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid(
        swept,
        {
            "simpo": ({"beta": 2, "gamma": 1}, 30.0),
            "simpo+beta=4": ({"beta": 4, "gamma": 1}, 35.0),
            "simpo+gamma=0": ({"beta": 2, "gamma": 0}, 20.0),
            "simpo+gamma=2": ({"beta": 2, "gamma": 2}, 33.0),
        },
    )
    picture, _, _ = of(Study(swept))
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for axes in picture.axes for line in axes.lines]
    assert drawn == [([2, 4], [30, 35]), ([0, 1, 2], [20, 30, 33])]
    assert [axes.get_xlabel() for axes in picture.axes] == ["β", "γ"]
    assert_readable(picture, monkeypatch)


@pytest.mark.slow
def test_every_group_that_varies_is_drawn_and_one_alone_on_request(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"simpo": ({"beta": 2.0, "gamma": 1.0}, 30.0), "simpo+beta=4": ({"beta": 4.0, "gamma": 1.0}, 35.0)}
    grid(swept, runs)
    grid(swept, runs, "mini_instruct")
    grid(swept, {"simpo": ({"beta": 2, "gamma": 1}, 30.0)}, "another")
    command(monkeypatch, "--results", swept, "--out", tmp_path / "all")
    made = sorted(path.name for path in (tmp_path / "all/figures").iterdir())
    assert made == [f"sweep_{setting}_simpo.{kind}" for setting in ("mini_base", "mini_instruct") for kind in ("csv", "pdf", "png", "txt")]
    command(monkeypatch, "--results", swept, "--out", tmp_path / "one", "--setting", "mini_base", "--metric", "heldout_accuracy")
    assert {path.stem for path in (tmp_path / "one/figures").iterdir()} == {"sweep_mini_base_simpo"}


@pytest.mark.slow
def test_a_sweep_in_which_nothing_varies_ends_with_the_command_for_a_multirun(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed alone is no sweep, nor is a run that was not evaluated."""
    grid(swept, {"simpo": ({"beta": 2, "gamma": 1}, 30.0), "simpo+seed=1": ({"beta": 2, "gamma": 1, "seed": 1}, 30.0)})
    grid(swept, {"simpo+beta=4": ({"beta": 4, "gamma": 1}, 35.0)})
    shutil.rmtree(swept / "mini_base/runs/simpo+beta=4/eval")
    with pytest.raises(UserError, match=r"no two runs of simpo .* make some with: python -m stages.run -m setting=mini_base method=simpo"):
        command(monkeypatch, "--results", swept, "--out", tmp_path / "out", "--method", "simpo")
    command(monkeypatch, "--results", swept, "--out", tmp_path / "out", "--method", "simpo", "--metric", "heldout_accuracy")
    assert pd.read_csv(tmp_path / "out/figures/sweep_mini_base_simpo.csv")["lc_win_rate"].isna().tolist() == [False, True]
