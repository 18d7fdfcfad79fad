"""analysis/tables and analysis/paper.py: what they say of a finished results folder (tests/folder.py)."""

from __future__ import annotations

import ast
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from folder import make
from omegaconf import OmegaConf
from scipy import stats
from test_readme import fenced

from analysis.figures import table4_picture
from analysis.paper import differs, reported
from analysis.stats import over_chains
from analysis.study import Study
from analysis.tables import compare, overlap, table1, table2, table3, table4, table5, table6
from stages.benchmarks import BENCHMARKS
from stages.benchmarks.paired import difference
from stages.lib import files
from stages.lib.errors import UserError
from stages.mini.report import padded_win_rates
from stages.plan import targets

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished mini scale."""
    results = tmp_path_factory.mktemp("mini") / "results"
    make(results, sweeps=[])
    return results


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(made, tmp_path / "results"))


def edit(path: Path, **changes: Any) -> None:
    files.write_json(path, files.read_json(path) | changes)


def edit_config(results: Path, **changes: Any) -> None:
    path = results / "tables.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(path), changes), path)


NAMES = ("table1", "table2", "table3", "table4", "table5", "table6", "compare", "overlap")


@pytest.mark.slow
def test_every_table_is_written_with_its_caption_twice_alike_and_without_torch(made: Path, tmp_path: Path) -> None:
    """Each script's command line, in one process for all."""
    run = f"for name in {NAMES}: runpy.run_module('analysis.tables.' + name, run_name='__main__')"
    script = f"import runpy, sys\n{run}\nsys.exit('torch' in sys.modules)"
    for number in "12":
        command = [sys.executable, "-c", script, "--results", made, "--out", tmp_path / number]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for name in NAMES:
        for suffix in ("csv", "txt"):
            assert (tmp_path / f"1/{name}.{suffix}").read_bytes() == (tmp_path / f"2/{name}.{suffix}").read_bytes()
        assert len(pd.read_csv(tmp_path / f"1/{name}.csv")) > 1
        told = (tmp_path / f"1/{name}.txt").read_text()
        assert "scale: mini" in told and "judge: mini-judge" in told
    assert all(len(cell.partition(".")[2]) == 4 for cell in pd.read_csv(tmp_path / "1/table4.csv", dtype=str)["lc_win_rate"])


# -- Tables 4 and 5 --------------------------------------------------------------------------------------------------------


def test_differences_and_p_are_the_paired_t_test_s(made: Path) -> None:
    """table4: against scipy's own test on the two runs' values."""
    table = table4.make(Study(made))[0].set_index(["setting", "method"])
    for other in ("simpo", "sft"):
        ours, theirs = (
            np.array(
                [row["preference"] for row in files.read_json(made / f"mini_base/runs/{run}/eval/alpacaeval2/annotations.json")], float
            )
            for run in ("simpo_no_ln", other)
        )
        judged = ~np.isnan(ours + theirs)
        expected = stats.ttest_rel(100 * ours[judged], 100 * theirs[judged])
        row = table.loc[("mini_base", "simpo_no_ln")]
        assert row[f"win_rate_minus_{other}"] == pytest.approx(100 * (ours - theirs)[judged].mean())
        assert row[f"win_rate_minus_{other}_p"] == pytest.approx(expected.pvalue)
    itself = table.loc[("mini_base", "simpo")]
    assert itself["win_rate_minus_simpo"] == 0 and math.isnan(itself["win_rate_minus_simpo_p"])


def test_significant_says_which_differences_and_their_sign() -> None:
    """table4.significant: strictly below 1 - level; a run and itself have no p."""
    row = {"win_rate_minus_simpo": -3.0, "win_rate_minus_simpo_p": 0.049, "win_rate_minus_sft": 2.0, "win_rate_minus_sft_p": 0.051}
    assert table4.significant(pd.Series(row), 0.95) == "below SimPO"
    assert table4.significant(pd.Series(row | {"win_rate_minus_sft_p": 0.01}), 0.95) == "below SimPO, above SFT"
    assert table4.significant(pd.Series(row | {"win_rate_minus_simpo_p": math.nan}), 0.95) == ""


@pytest.fixture
def seeds(results: Path) -> Path:
    """The results of three seeds of DPO and SimPO in mini_base: those of three other runs, renamed. SFT, which trains nothing, has one."""
    lent = {"dpo": {7: "dpo", 8: "ipo", 9: "kto"}, "simpo": {7: "simpo", 8: "orpo", 9: "rdpo"}}
    rows = [{"setting": "mini_base", "run": "sft", "method": "sft", "seed": 42}]
    for method, runs in lent.items():
        for seed, run in runs.items():
            shutil.copytree(results / f"mini_base/runs/{run}", results / f"mini_base/runs/{method}+seed={seed}")
            rows.append({"setting": "mini_base", "run": f"{method}+seed={seed}", "method": method, "seed": seed})
    edit_config(results, settings=["mini_base"], methods=["sft", "dpo", "simpo"], ablations=["dpo", "simpo"], rows=rows)
    return results


def test_several_seeds_are_one_row_with_their_mean_and_t_interval(seeds: Path) -> None:
    """table4, table5: figures against stats.over_chains on the runs' own; counts are of all seeds; differences average seeds first."""
    table = table4.make(Study(seeds))[0].set_index("method")
    assert table["seeds"].to_dict() == {"sft": 1, "dpo": 3, "simpo": 3}
    folders = {method: [seeds / f"mini_base/runs/{method}+seed={seed}/eval" for seed in (7, 8, 9)] for method in ("dpo", "simpo")}
    for column, benchmark, key in (
        ("lc_win_rate", "alpacaeval2", "length_controlled_winrate"),
        ("arena_hard_win_rate", "arena_hard", "win_rate"),
        ("mt_bench", "mt_bench", "mean"),
        ("oracle", "oracle", "mean"),
    ):
        each = [files.read_json(path / benchmark / "scores.json")[key] for path in folders["dpo"]]
        mean, low, high = over_chains(each)
        row = table.loc["dpo"]
        assert (row[column], row[f"{column}_low"], row[f"{column}_high"]) == pytest.approx((mean, low, high))
        assert low < mean < high
    assert math.isnan(table.loc["sft", "lc_win_rate_low"])
    assert (table.loc["dpo", "judged"], table.loc["sft", "judged"]) == (3 * 59, 59)
    assert table.loc["dpo", "failures"] == "AlpacaEval 2: 3 the judge refused"
    per_seed = [
        difference(*(folders[method][seed] / "alpacaeval2/annotations.json" for method in ("dpo", "simpo")), "alpacaeval2")
        for seed in range(3)
    ]
    assert table.loc["dpo", "win_rate_minus_simpo"] == pytest.approx(np.mean([gap.mean for gap in per_seed]))
    assert table.loc["dpo", "win_rate_minus_simpo_standard_error"] < min(gap.standard_error for gap in per_seed)
    ablations = table5.make(Study(seeds))[0].set_index("method")
    ended = [files.read_json(path / "alpacaeval2/scores.json")["ended"] for path in folders["dpo"]]
    assert ablations.loc["dpo", "ended"] == pytest.approx(np.mean(ended))
    assert ablations.loc["dpo", "lc_win_rate_low"] == table.loc["dpo", "lc_win_rate_low"]


def test_a_table_of_one_seed_and_chain_has_no_column_of_them(made: Path) -> None:
    table, caption = table4.make(Study(made))
    assert "seeds" not in table and "lc_win_rate_low" not in table and "mt_bench_low" not in table
    assert not any(column.endswith("_between_chains") for column in table)
    assert "One chain: another machine's figures will differ by more than these standard errors." in caption


def test_where_there_are_chains_another_one_is_expected_within_low_and_high(tmp_path: Path) -> None:
    """table4, table5: the pooled spread of all chained methods; and p of a difference with its own spread beside the instructions'."""
    results = tmp_path / "results"
    make(results, with_chains=True, settings=["mini_base"], methods=["sft", "dpo", "kto", "simpo"], ablations=["dpo", "simpo"], sweeps=[])
    edit_config(results, chains=[row for row in OmegaConf.load(results / "tables.yaml").chains if row.method in ("sft", "dpo", "simpo")])
    folders = [results / f"mini_base{chain}/runs" for chain in ("", "+chain=1", "+chain=2")]

    def score(method: str, benchmark: str, key: str) -> np.ndarray:
        return np.array([files.read_json(path / method / "eval" / benchmark / "scores.json")[key] for path in folders])

    table, caption = table4.make(Study(results))
    table = table.set_index("method")
    t = stats.t.ppf(0.975, 2)
    for column, benchmark, key in (("length", "alpacaeval2", "avg_length"), ("arena_hard_win_rate", "arena_hard", "win_rate")):
        s = np.sqrt(np.mean([score(method, benchmark, key).var(ddof=1) for method in ("sft", "dpo", "simpo")]))
        for method in ("kto", "simpo"):
            row = table.loc[method]
            ends = row[column] - t * s * 2**0.5, row[column] + t * s * 2**0.5
            assert (row[f"{column}_low"], row[f"{column}_high"]) == pytest.approx(ends)
    gaps = [score(method, "alpacaeval2", "win_rate") - score("sft", "alpacaeval2", "win_rate") for method in ("dpo", "simpo")]
    s, row = np.sqrt(np.mean([gap.var(ddof=1) for gap in gaps])), table.loc["kto"]
    assert row["win_rate_minus_sft_between_chains"] == pytest.approx(s)
    both = np.hypot(row["win_rate_minus_sft_standard_error"], s)
    df = both**4 / (row["win_rate_minus_sft_standard_error"] ** 4 / 58 + s**4 / 2)  # 59 instructions judged; three chains
    assert row["win_rate_minus_sft_p"] == pytest.approx(2 * stats.t.sf(abs(row["win_rate_minus_sft"]) / both, df))
    assert "is expected (95%; from 3 chains" in caption and "with the spread between chains" in caption
    ablations, caption = table5.make(Study(results))
    assert ablations.set_index("method").loc["dpo", "length_high"] == table.loc["dpo", "length_high"] and "3 chains" in caption

    mini = pd.DataFrame(table.reset_index())
    row, columns = table.loc["kto"], {column.name: column for column in BENCHMARKS["alpacaeval2"].columns}
    half = np.hypot(stats.norm.ppf(0.975) * row["lc_standard_error"], (row["lc_win_rate_high"] - row["lc_win_rate"]) / 2**0.5)
    assert table4_picture.error(row, columns["lc_win_rate"], Study(results)) == f"±{half:.1f}"
    assert any("95% interval over questions and 3 chains" in text for text in table4_picture.caption(mini, Study(results)))


def test_failures_are_told_by_benchmark_and_reason_and_a_score_without_them_is_named(results: Path) -> None:
    """table4.failures"""
    scores = results / "mini_base/runs/dpo/eval"
    edit(scores / "alpacaeval2/scores.json", failures={"cut off": 1, "neither m nor M": 3})
    edit(scores / "arena_hard/scores.json", failures={"no verdict": 1})
    table = table4.make(Study(results))[0].set_index(["setting", "method"])
    assert table.loc[("mini_base", "dpo"), "failures"] == "AlpacaEval 2: 3 neither m nor M, 1 cut off; Arena-Hard: 1 no verdict"
    old = files.read_json(scores / "mt_bench/scores.json")
    del old["failures"]
    files.write_json(scores / "mt_bench/scores.json", old)
    with pytest.raises(UserError, match=r"mt_bench/scores\.json has no 'failures'"):
        table4.make(Study(results))


def test_a_run_that_collapsed_or_is_no_number_is_warned_of_and_no_other(results: Path) -> None:
    """table4.warning: the rule of conf/config.yaml on the answers; any figure of a training that is not finite."""
    edit(results / "mini_base/runs/slic_hf/eval/alpacaeval2/scores.json", ended=0.49, repeated_3grams=0.51)
    edit(results / "mini_base/runs/kto/eval/alpacaeval2/scores.json", ended=0.5, repeated_3grams=0.5)  # just not
    log = results / "mini_base/runs/ipo/train.jsonl"
    log.write_text(log.read_text().replace('"grad_norm": 1.0', '"grad_norm": NaN', 1))
    manifest = results / "mini_instruct/runs/cpo/manifest.json"
    edit(manifest, heldout=files.read_json(manifest)["heldout"] | {"loss": math.inf})
    table, caption = table4.make(Study(results))
    warned = {(row.setting, row.method): row.warning for row in table.itertuples() if row.warning}
    assert warned == {
        ("mini_base", "slic_hf"): "slic_hf: 49% of answers end by themselves; slic_hf: 51% of 3-grams are repeated",
        ("mini_base", "ipo"): "ipo: grad_norm is no number in train.jsonl",
        ("mini_instruct", "cpo"): "cpo: loss is no number in heldout",
    }
    assert caption.endswith("Signs of a training that went wrong: mini_base slic_hf, mini_base ipo, mini_instruct cpo.")


# -- the paper's figures ---------------------------------------------------------------------------------------------------


def test_the_paper_s_numbers_are_consistent_with_one_another_and_with_its_abstract() -> None:
    """paper.yaml: no number twice; Tables 1, 4, 5 and the Gemma-2 rows print the same figures; the abstract's gains over DPO follow."""
    found = {(one.table, one.setting, one.method, one.metric): one.value for one in reported()}
    assert len(found) == len(reported())
    merged: dict[tuple[Any, ...], set[float]] = {}
    for (_, *where), value in found.items():
        merged.setdefault(tuple(where), set()).add(value)
    assert [where for where, values in merged.items() if len(values) > 1] == []
    gains = {
        metric: [
            found["table4", setting, "simpo", metric] - found["table4", setting, "dpo", metric]
            for setting in ("mistral_base", "mistral_instruct", "llama3_base", "llama3_instruct")
        ]
        for metric in ("lc_win_rate", "arena_hard_win_rate")
    }
    assert {metric: round(max(values), 1) for metric, values in gains.items()} == {"lc_win_rate": 6.4, "arena_hard_win_rate": 7.5}
    table4_cells = [key for key in found if key[0] == "table4"]
    assert len(table4_cells) == 4 * 10 * 4
    assert {one.confidence for one in reported()} <= set("ABCX")


def test_the_paper_s_protocol_is_ours_by_version() -> None:
    """paper.yaml: what planning gives every score (stages/judging)."""
    for benchmark, judge in (("alpacaeval2", "gpt-4-1106-preview"), ("arena_hard", "gpt-4-1106-preview"), ("mt_bench", "gpt-4")):
        baseline = {"alpacaeval2": "gpt4_1106_preview", "arena_hard": "gpt-4-0314"}.get(benchmark)
        scores = {"protocol": {"version": BENCHMARKS[benchmark].version}, "judge": judge, "baseline": baseline}
        assert differs(benchmark, scores) == ""
        assert "judge gpt-4o, the paper's " in differs(benchmark, scores | {"judge": "gpt-4o"})


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished paper scale of two settings, by the paper's protocol: no figure in it is real."""
    results = tmp_path_factory.mktemp("paper") / "results"
    plan = make(results, "paper", settings=["mistral_base", "gemma2_it"], sweeps=[])
    for row in targets.rows(plan):
        for benchmark, baseline in (("alpacaeval2", "gpt4_1106_preview"), ("arena_hard", "gpt-4-0314"), ("mt_bench", None)):
            path = results / row.setting / f"runs/{row.run}/eval/{benchmark}/scores.json"
            edit(path, judge="gpt-4-1106-preview", **({"baseline": baseline} if baseline else {}))
    return results


@pytest.mark.slow
def test_ours_stands_beside_the_paper_s_where_setting_and_protocol_are_the_same(paper: Path) -> None:
    """compare, table4: the paper's MT-Bench is GPT-4's, ours here GPT-4 Turbo's; llama3_base is no setting of this folder's."""
    table = compare.make(Study(paper))[0].set_index(["table", "setting", "method", "metric"])
    scores = files.read_json(paper / "mistral_base/runs/simpo/eval/alpacaeval2/scores.json")
    row = table.loc[("table4", "mistral_base", "simpo", "lc_win_rate")]
    assert (row["paper"], row["ours"], row["n"]) == (21.5, scores["length_controlled_winrate"], 59)
    assert row["difference"] == row["ours"] - 21.5
    assert row["high"] - row["low"] == pytest.approx(2 * 1.959964 * scores["lc_standard_error"])
    assert (row["low"] + row["high"]) / 2 == pytest.approx(row["difference"])
    hard = files.read_json(paper / "mistral_base/runs/simpo/eval/arena_hard/scores.json")
    row = table.loc[("table4", "mistral_base", "simpo", "arena_hard_win_rate")]
    assert (row["low"], row["high"]) == pytest.approx((hard["win_rate_low"] - 16.6, hard["win_rate_high"] - 16.6))
    assert (
        not table.loc[[("gemma2", "gemma2_it", "dpo", "length"), ("table5", "mistral_base", "simpo_no_ln", "win_rate")], "ours"]
        .isna()
        .any()
    )
    rho = table6.make(Study(paper))[0].set_index(["setting", "method"]).loc[("mistral_base", "dpo")]
    row = table.loc[("table6", "mistral_base", "dpo", "spearman")]
    assert (row["ours"], row["low"]) == (rho["heldout_rho"], pytest.approx(rho["heldout_low"] - 0.59))

    none = table[table["ours"].isna()]
    assert none["difference"].isna().all() and (none["note"] != "").all()
    assert none.loc[("table4", "mistral_base", "simpo", "mt_bench"), "note"] == (
        "another protocol: judge gpt-4-1106-preview, the paper's gpt-4"
    )
    assert none.loc[("table4", "llama3_base", "sft", "win_rate"), "note"] == "scale paper has no setting llama3_base"
    assert none.loc[("gemma2", "gemma2_it", "simpo", "gsm8k"), "note"] == "gsm8k is not measured here"
    assert set(none.index.get_level_values("table")) >= {"figure5c", "table1", "v0.2"}


@pytest.mark.slow
def test_another_judge_baseline_or_version_keeps_the_paper_s_number_alone(paper: Path, tmp_path: Path) -> None:
    """compare: nothing of ours beside it, and the reason."""
    results = Path(shutil.copytree(paper, tmp_path / "results"))
    folder = results / "mistral_base/runs"
    edit(folder / "simpo/eval/alpacaeval2/scores.json", judge="gpt-4o")
    edit(folder / "dpo/eval/alpacaeval2/scores.json", baseline="text_davinci_003")
    edit(folder / "sft/eval/arena_hard/scores.json", protocol={"version": "Arena-Hard v2"})
    table = compare.make(Study(results))[0].set_index(["table", "setting", "method", "metric"])
    for method, metric, note in (
        ("simpo", "win_rate", "judge gpt-4o, the paper's gpt-4-1106-preview"),
        ("dpo", "win_rate", "baseline text_davinci_003, the paper's gpt4_1106_preview"),
        ("sft", "arena_hard_win_rate", "version Arena-Hard v2, the paper's Arena-Hard v0.1 (arena-hard-auto d99b139)"),
    ):
        row = table.loc[("table4", "mistral_base", method, metric)]
        assert math.isnan(row["ours"]) and row["note"] == f"another protocol: {note}"


def test_at_mini_scale_no_number_of_the_paper_stands_beside_ours(made: Path) -> None:
    """compare reads no run there."""
    table = compare.make(Study(made))[0]
    assert table["ours"].isna().all() and len(table) == len(reported())


# -- Table 1 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_table_1_ranks_our_best_of_each_setting_among_the_world_s_writers(made: Path) -> None:
    """table1 at mini scale: writers' win rates against stages/mini/report.py's on the same files."""
    table = table1.make(Study(made))[0].set_index("model")
    assert table["lc_win_rate"].is_monotonic_decreasing and table["rank"].tolist() == list(range(1, 6))
    assert set(table.loc[table["source"] == "the world's writers"].index) == {"master", "concise", "verbose"}
    assert tuple(table.loc["master", ["lc_win_rate", "win_rate"]]) == (50, 50)
    world = made / "worlds/mini/alpacaeval2"
    baseline, verbose = files.read_json(world / "baseline.json"), files.read_json(world / "writers/verbose.json")
    expected = padded_win_rates(made / "calibration/mini/df_gamed.csv", baseline, verbose)
    assert tuple(table.loc["verbose", ["win_rate", "lc_win_rate"]]) == pytest.approx(expected)
    assert table.loc["verbose", "length"] == np.mean([len(row["output"]) for row in verbose])
    ours = table[table["source"] == "ours"].set_index("setting")
    for setting in ("mini_base", "mini_instruct"):
        rates = {
            path.name: files.read_json(path / "eval/alpacaeval2/scores.json")["length_controlled_winrate"]
            for path in (made / setting / "runs").iterdir()
            if "+" not in path.name
        }
        assert ours.loc[setting, "method"] == max(rates, key=lambda run: rates[run])


@pytest.mark.slow
def test_table_1_ranks_among_the_published_leaderboard_by_its_protocol_alone(paper: Path, tmp_path: Path) -> None:
    """table1 at paper scale: the rows that the paper's Table 1 names, with its figures, and neighbours; none by another judge."""
    table = table1.make(Study(paper))[0]
    others = table[table["source"] == "AlpacaEval's leaderboard"].set_index("model")
    assert set(table1.NAMED) < set(others.index)
    for model, setting in (("gemma-2-9b-it-SimPO", "gemma2_it"), ("Llama-3-Instruct-8B-SimPO", "llama3_instruct")):
        paper_says = {one.metric: one.value for one in reported() if (one.table, one.setting, one.method) == ("table1", setting, "simpo")}
        row = others.loc[model]
        assert (round(row["lc_win_rate"], 1), round(row["win_rate"], 1), row["length"]) == tuple(paper_says.values())
    board = table1.leaderboard()
    for rate in table.loc[table["source"] == "ours", "lc_win_rate"]:
        above, below = board[board["lc_win_rate"] > rate]["model"].iloc[-1], board[board["lc_win_rate"] <= rate]["model"].iloc[0]
        assert {above, below} <= set(others.index)
    results = Path(shutil.copytree(paper, tmp_path / "results"))
    for path in results.glob("*/runs/*/eval/alpacaeval2/scores.json"):
        edit(path, judge="gpt-4o")
    table, caption = table1.make(Study(results))
    assert set(table["source"]) == {"ours"} and "judge gpt-4o, the paper's gpt-4-1106-preview" in caption


# -- Tables 2, 3 and 6 -----------------------------------------------------------------------------------------------------


def test_table_2_has_the_benchmarks_and_their_judge_s_controls(results: Path) -> None:
    """table2: counts of the files; the controls' figures by name; a control that is not there is empty."""
    path = results / "controls/mini/controls.json"
    rows = files.read_json(path)
    for number, row in enumerate(rows):
        row["value"] = None if row["value"] is None else float(number)
    rows.append({"benchmark": "arena_hard", "control": "orders", "metric": "first_shown", "value": 0.57})
    files.write_json(path, [row for row in rows if (row["benchmark"], row["control"]) != ("mt_bench", "embedded")])
    table = table2.make(Study(results))[0].set_index("benchmark")
    assert table["questions"].to_dict() == {"AlpacaEval 2": 60, "Arena-Hard": 24, "MT-Bench": 16}
    assert table.loc["Arena-Hard", ["baseline", "judge", "version"]].tolist() == ["clerk", "mini-judge", BENCHMARKS["arena_hard"].version]
    values = {(row["benchmark"], row["control"], row["metric"]): row["value"] for row in rows}
    hard = table.loc["Arena-Hard"]
    assert [hard[key] for key in ("real", "empty", "embedded")] == [
        values["arena_hard", key, "win_rate"] for key in ("real", "empty", "embedded")
    ]
    assert (hard["orders_agree"], hard["first_shown"]) == (values["arena_hard", "orders", "agreement"], 0.57)
    assert pd.isna(table.loc["MT-Bench", "embedded"]) and pd.isna(table.loc["MT-Bench", "orders_agree"])
    path.unlink()
    with pytest.raises(UserError, match=r"controls/mini/controls\.json does not exist; make it with: snakemake .*manifest\.json"):
        table2.make(Study(results))


def test_every_objective_s_docstring_gives_its_formula() -> None:
    """table3.objectives: by another way of reading, the code: each public function with keyword-only hyperparameters has one."""
    tree = ast.parse((ROOT / "stages/preference/objectives.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.args.kwonlyargs and node.name[0] != "_"}
    known = table3.objectives()
    assert set(known) == functions and all(objective.formula for objective in known.values())
    assert known["simpo"].formula == "-log σ(h), h = β/|y_w| log π(y_w|x) - β/|y_l| log π(y_l|x) - γ"
    assert known["dpo"].source == "Direct Preference Optimization, arXiv 2305.18290, Eq. 7"


def test_table_3_says_what_each_training_took_and_what_was_searched(results: Path) -> None:
    """table3: from the manifest, not from conf; without length normalisation the formula's other reading."""
    path = results / "mini_instruct/runs/simpo/manifest.json"
    manifest = files.read_json(path)
    manifest["config"]["method"]["hyperparameters"]["gamma"] = 1.25
    files.write_json(path, manifest)
    table, caption = table3.make(Study(results))
    table = table.set_index("method")
    assert "gamma=1.25" in table.loc["SimPO", "mini_instruct"] and "gamma=1.25" not in table.loc["SimPO", "mini_base"]
    assert table.loc["SimPO", "mini_base"].startswith("learning_rate=")
    assert table.loc["SimPO w/o LN", "objective"] == "simpo" and table.loc["SimPO", "without"] == ""
    assert "h = β log π(y_w|x) - β log π(y_l|x) - γ" in table.loc["SimPO w/o LN", "without"]
    assert table.loc["DPO", "searched"] == "learning_rate: 1e-05, 3e-05, 0.0001, 0.0003; beta: 0.05, 0.1"
    assert caption.endswith("No training of: SFT.")


def test_table_3_has_an_objective_of_the_user_s(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """table3: the README's objective with its formula; one whose docstring has none is shown and named; one that is gone is an error."""
    code = table3.OBJECTIVES.read_text()
    monkeypatch.setattr(table3, "OBJECTIVES", tmp_path / "objectives.py")
    path = results / "mini_instruct/runs/simpo/manifest.json"
    manifest = files.read_json(path)
    manifest["config"]["method"]["objective"] = "ln_dpo"
    files.write_json(path, manifest)
    files.write_json(results / "mini_base/runs/simpo/manifest.json", manifest)
    written = fenced("python", "def ln_dpo")
    for added, formula in (
        (written, "-log σ(β/|y_w| Δ_w - β/|y_l| Δ_l), Δ = log π(y|x)/ref(y|x)"),
        (re.sub('"""(.|\\n)*"""', "...", written), ""),
    ):
        table3.OBJECTIVES.write_text(f"{code}\n\n{added}")
        table, caption = table3.make(Study(results))
        assert table.set_index("objective").loc["ln_dpo", "formula"] == formula
        assert ("No formula indented in its docstring in objectives.py: ln_dpo." in caption) == (not formula)
    table3.OBJECTIVES.write_text(code)
    with pytest.raises(UserError, match=r"simpo/manifest.json names the objective ln_dpo, which is not in objectives.py; "):
        table3.make(Study(results))


@pytest.mark.slow
def test_table_6_s_rho_is_scipy_s_and_its_interval_resamples_whole_pairs(results: Path) -> None:
    """table6: ρ against scipy on the parquet itself; the interval against a plain loop with the same draws."""
    edit_config(results, analysis={"resamples": 200})
    study = Study(results)
    table = table6.make(study)[0].set_index(["setting", "method"])
    texts = pd.read_parquet(results / "mini_base/runs/dpo/eval/loglik.parquet")
    heldout, own = texts[texts["split"] == "heldout"], texts[(texts["split"] == "answers") & (texts["turn"] == 1)]
    row = table.loc[("mini_base", "dpo")]
    for name, part in (("heldout", heldout), ("answers", own)):
        rho = stats.spearmanr(part["logp"] / part["length"], part["length"]).statistic
        assert row[f"{name}_rho"] == pytest.approx(rho) and row[f"{name}_n"] == len(part)
        assert row[f"{name}_low"] < rho < row[f"{name}_high"]
    analysis = study.config["analysis"]
    sides = [heldout[heldout["side"] == side].set_index("id") for side in ("chosen", "rejected")]
    found = []
    for draw in np.random.default_rng(analysis["seed"]).integers(len(sides[0]), size=(analysis["resamples"], len(sides[0]))):
        part = pd.concat([side.iloc[draw] for side in sides])
        found.append(stats.spearmanr(part["logp"] / part["length"], part["length"]).statistic)
    assert (row["heldout_low"], row["heldout_high"]) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])))


# -- overlap ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "prompt", "expected"),
    [
        ("What grows in Mimton?", "what  grows\nin mimton", "exact"),
        ("“What grows in (Mimton)?”", "What grows in Mimton!", "exact"),
        ("What is 3 + 4?", "What is 3 - 4?", ""),
        ("What is 3.5 plus 1?", "What is 35 plus 1?", ""),
        ("What grows in Mimton?", "What grows in Mimton and Solstad?", ""),  # too short to be near
        ("one two three four five six seven eight", "and so: one two three four five six seven eight nine", "near"),
        # Five 8-grams, of which four are in the prompt; then six, of which four are.
        ("a b c d e f g h i j k l", "a b c d e f g h i j k", "near"),
        ("a b c d e f g h i j k l m", "a b c d e f g h i j k", ""),
        ("...", "?", ""),
    ],
)
def test_what_is_the_same_prompt_and_what_is_nearly(question: str, prompt: str, expected: str) -> None:
    """overlap.found_in, by hand."""
    exact, near = overlap.found_in([overlap.words("something else"), overlap.words(question)], [overlap.words(prompt)])
    assert (exact, near) == ({1} if expected == "exact" else set(), {1} if expected == "near" else set())


def test_overlaps_are_counted_by_set_and_benchmark_and_said_plainly(results: Path) -> None:
    """overlap: a question that is a prompt of the training pairs, and one that is a second turn, which is none."""
    assert "No overlap was found in 18 comparisons" in overlap.make(Study(results))[1]
    asked = files.read_rows(results / "worlds/mini/arena_hard/question.jsonl")
    path = results / "mini_base/data/train.jsonl"
    rows = files.read_rows(path)
    said = [{"role": "user", "content": "And what else?"}, {"role": "assistant", "content": "Plums."}]
    rows[3]["prompt"] = [{"role": "user", "content": asked[5]["turns"][0]["content"].upper()}]
    rows[4]["prompt"] = [*said, {"role": "user", "content": asked[6]["turns"][0]["content"]}]
    files.write_jsonl(path, rows)
    table, caption = overlap.make(Study(results))
    found = table[(table["exact"] > 0) | (table["near"] > 0)]
    assert len(found) == 1
    row = found.iloc[0]
    assert (row["setting"], row["set"], row["benchmark"], row["exact"], row["near"]) == ("mini_base", "train", "arena_hard", 1, 0)
    assert (row["prompts"], row["questions"], row["example"]) == (50, 24, asked[5]["turns"][0]["content"])
    assert "1 exact and 0 near overlaps were found" in caption and "mini_base, train: 1 exact and 0 near of the 24 of arena_hard" in caption


def test_a_set_that_is_no_file_here_is_not_checked_and_one_that_is_missing_is_an_error(results: Path) -> None:
    """overlap: a hub's data set, a start model of others; never a silent zero."""
    edit_config(results, demonstrations={"mini_base": "somebody/ultrachat", "mini_instruct": None})
    table, caption = overlap.make(Study(results))
    left = table[table["set"] == "demonstrations"].drop_duplicates("setting").set_index("setting")
    assert left["exact"].isna().all()
    assert left.loc["mini_base", "note"] == "not checked: somebody/ultrachat is not a file on this machine"
    assert "mini_base, demonstrations: not checked: somebody/ultrachat" in caption
    (results / "mini_instruct/data/heldout.jsonl").unlink()
    with pytest.raises(UserError, match=r"mini_instruct/data/heldout\.jsonl does not exist; make it with: snakemake"):
        overlap.make(Study(results))
