"""analysis/tables/table4.py, table5.py, stages/benchmarks/paired.py: the tables say what scores and judgments say.

analysis/figures/table4_picture.py: no text touches another, bold is the best, and the same table gives the same bytes.
"""

from __future__ import annotations

import math
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from analysis.figures import table4_picture
from analysis.study import Study, command_line, table
from analysis.tables.table4 import COUNTS, DECIMALS
from analysis.tables.table4 import make as make4
from analysis.tables.table5 import make as make5
from stages.benchmarks import BENCHMARKS as KNOWN
from stages.benchmarks.paired import difference
from stages.lib import files
from stages.lib.errors import UserError

BENCHMARKS = ("alpacaeval2", "arena_hard", "mt_bench", "oracle")
COLUMNS = {name: {column.name: column.key for column in one.columns} for name, one in KNOWN.items()}
METHODS, ABLATIONS = ("sft", "dpo", "simpo"), ("dpo", "simpo", "simpo_no_ln")
# By run: AlpacaEval's preferences and the oracle's scores on four instructions. A null failed; 0 is the package's other name of a draw.
PREFERENCES = {"sft": [1, 1, 1, 1], "dpo": [1.0, 2.0, 1.5, 1.25], "simpo": [0, 2.0, 1.0, None], "simpo_no_ln": [1.0, 1.0, None, 1.0]}
ORACLE = {"sft": [0, 0, 0, 0], "dpo": [4, 6, 5, 5], "simpo": [5, 5, 5, 5], "simpo_no_ln": [5, 3, 1, 3]}


def arena_hard(n: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    choices = [{"index": 0, "turns": [{"content": "text", "token_len": 1}]}]
    games = [{"user_prompt": "text", "judgment": "", "score": label, "failure": None} for label in ("A>B", "A>B")]
    answers = [{"question_id": i, "model_id": "m", "choices": choices} for i in range(n)]
    return answers, [{"question_id": i, "model": "m", "judge": "j", "games": games} for i in range(n)]


def mt_bench(n: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    answers = [{"question_id": i, "model_id": "m", "choices": [{"index": 0, "turns": ["one", "two"]}]} for i in range(n)]
    shared = {"model": "m", "judge": ["j", "p"], "user_prompt": "one two", "judgment": "", "failure": None}
    judged = [{"question_id": i, "turn": turn, "score": 5 + i % 2, **shared} for turn in (1, 2) for i in range(n)]
    return answers, judged, [{"question_id": i, "category": "writing", "turns": ["a", "b"]} for i in range(n)]


WANTED = {
    **{"name": "mini", "judge": "j", "settings": ["s", "t"], "methods": METHODS, "ablations": ABLATIONS, "benchmarks": BENCHMARKS},
    "rows": [{"setting": s, "run": m, "method": m, "seed": 42} for s in "st" for m in PREFERENCES],
    "analysis": {"level": 0.95, "resamples": 100, "seed": 0, "collapse": {"ended": 0.5, "repeated_3grams": 0.5}},
}


def table4(results: Path) -> pd.DataFrame:
    return make4(Study(results))[0]


def table5(results: Path) -> pd.DataFrame:
    return make5(Study(results))[0]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two settings, four runs, four benchmarks; a run's figures are its number, plus tenths by the column; its counts are whole."""
    OmegaConf.save(OmegaConf.create(WANTED), tmp_path / "tables.yaml")
    shape = {"protocol": {"version": "v"}, "judge": "j", "failures": {}, "ended": 1.0, "repeated_3grams": 0.0}
    for number, (setting, run) in enumerate((s, r) for s in "st" for r in PREFERENCES):
        folder = tmp_path / f"{setting}/runs/{run}/eval"
        for benchmark, columns in COLUMNS.items():
            figures = {key: number + (i if key in COUNTS else i / 10) for i, key in enumerate(columns.values())}
            files.write_json(folder / benchmark / "scores.json", figures | shape)
        for benchmark, key, values in (("alpacaeval2", "preference", PREFERENCES), ("oracle", "score", ORACLE)):
            rows = [{"instruction": f"question {i}", key: value} for i, value in enumerate(values[run])]
            files.write_json(folder / benchmark / "annotations.json", rows)
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["python", *map(str, arguments)])


@pytest.mark.slow
def test_every_column_of_table4_stands_in_what_the_benchmark_s_score_gives(tmp_path: Path) -> None:
    """Against stages/score.py itself, so that a renamed figure shows here and not in a finished run."""
    answers, judged = arena_hard(4)
    files.write_jsonl(tmp_path / "baseline.jsonl", [{"question_id": 0, "model_id": "b", "choices": []}])
    given = {"arena_hard": KNOWN["arena_hard"].score(answers, judged, tmp_path / "baseline.jsonl")}
    rated, ratings, questions = mt_bench(4)
    files.write_jsonl(tmp_path / "question.jsonl", questions)
    given["mt_bench"] = KNOWN["mt_bench"].score(rated, ratings, tmp_path / "question.jsonl")
    shown = [{"instruction": str(i), "output": "o" * (i % 7), "generator": "m"} for i in range(40)]
    given["oracle"] = KNOWN["oracle"].score(shown, [{**row, "score": i % 5, "false": 0} for i, row in enumerate(shown)], None)
    gamed = {"preference": 0.4, "std_delta_len": np.sin(np.arange(40)), "instruction_difficulty": np.cos(np.arange(40))}
    frames = [pd.DataFrame({"index": range(40), "model": name, **gamed, "not_gamed_baseline": False}) for name in ("concise", "verbose")]
    pd.concat(frames).to_csv(tmp_path / "df_gamed.csv", index=False)
    names = {"output_1": "text", "generator_1": "b", "generator_2": "m", "annotator": "a"}
    judgments = [{**row, **names, "output_2": row["output"], "preference": 1 + (i % 10) / 10} for i, row in enumerate(shown)]
    for name in ("alpacaeval2", "alpacaeval2_fn", "alpacaeval2_ranking"):
        given[name] = KNOWN[name].score(shown, judgments, tmp_path / "df_gamed.csv")
    assert {name: [key for key in columns.values() if key not in given[name]] for name, columns in COLUMNS.items()} == {
        name: [] for name in COLUMNS
    }


def test_table4_has_a_row_a_setting_and_method_and_the_columns_of_the_scale_s_benchmarks_alone(results: Path) -> None:
    table = table4(results)
    assert [(row.setting, row.method) for row in table.itertuples()] == [(s, m) for s in "st" for m in METHODS]
    row = table.iloc[4]  # t, dpo: the sixth run
    assert (row.lc_win_rate, row.win_rate, row.judged, row.failed) == (5.0, 5.2, 10, 11)
    assert (row.arena_hard_win_rate, row.arena_hard_low, row.arena_hard_high, row.arena_hard_judged) == (5.0, 5.1, 5.2, 8)
    assert (row.mt_bench, row.mt_bench_standard_error, row.mt_bench_failed) == (5.0, 5.1, 8)
    wanted: Any = OmegaConf.load(results / "tables.yaml")
    wanted.benchmarks = ["oracle"]
    OmegaConf.save(wanted, results / "tables.yaml")
    assert list(table4(results)) == ["setting", "method", "oracle", "oracle_standard_error", "failures", "warning"]


def test_a_missing_score_and_one_without_a_figure_are_named_with_the_next_command(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(results)
    (results / "results").symlink_to(results)
    path = Path("results/t/runs/simpo/eval/mt_bench/scores.json")
    files.write_json(path, {"mean": 1})
    command(monkeypatch, "--results", "results")
    with pytest.raises(SystemExit, match=rf"error: {path} has no 'standard_error'; make it again with: snakemake .*--forcerun {path}"):
        table(None, "table4", make4, DECIMALS)
    path.unlink()
    with pytest.raises(SystemExit, match=rf"{path} does not exist; make it with: snakemake --cores all {path}"):
        table(None, "table4", make4, DECIMALS)
    assert not Path("results/table4.csv").exists() and not Path("results/table4.txt").exists()


def test_table5_gives_paired_differences_to_simpo_in_the_same_setting(results: Path) -> None:
    """By hand: over the instructions that both were judged on, a draw written as 0 counted as one."""
    found = table5(results)
    table = found.set_index(["setting", "method"])
    assert list(table.index) == [(s, m) for s in "st" for m in ABLATIONS]
    for setting in "st":
        dpo, simpo, no_ln = (table.loc[(setting, method)] for method in ABLATIONS)
        assert dpo.lc_win_rate_minus_simpo == -1
        assert no_ln.lc_win_rate_minus_simpo == 1
        # dpo minus simpo: -50, 0, 50; simpo_no_ln minus simpo: -50, -100
        assert (dpo.win_rate_minus_simpo, dpo.win_rate_minus_simpo_standard_error) == pytest.approx((0, 50 / math.sqrt(3)))
        assert (no_ln.win_rate_minus_simpo, no_ln.win_rate_minus_simpo_standard_error) == pytest.approx((-75, 25))
        # -1, 1, 0, 0 and 0, -2, -4, -2
        assert (dpo.oracle_minus_simpo, dpo.oracle_minus_simpo_standard_error) == pytest.approx((0, math.sqrt(2 / 3) / 2))
        assert (no_ln.oracle_minus_simpo, no_ln.oracle_minus_simpo_standard_error) == pytest.approx((-2, math.sqrt(8 / 3) / 2))
        assert not simpo[[name for name in table if "minus" in name]].any()
    shared = [column for name in ("alpacaeval2", "arena_hard", "mt_bench", "oracle") for column in COLUMNS[name]]
    assert list(found) == [
        *("setting", "method", *shared, "ended", "repeated_3grams", "lc_win_rate_minus_simpo", "win_rate_minus_simpo"),
        *("win_rate_minus_simpo_standard_error", "oracle_minus_simpo", "oracle_minus_simpo_standard_error"),
    ]


def test_table5_needs_simpo(results: Path) -> None:
    wanted: Any = OmegaConf.load(results / "tables.yaml")
    wanted.ablations = ["dpo"]
    OmegaConf.save(wanted, results / "tables.yaml")
    with pytest.raises(UserError, match=r"tables\.yaml: ablations are compared with simpo, which is none of them"):
        table5(results)


def test_only_judgments_of_the_same_instructions_are_compared(results: Path) -> None:
    ours, theirs = (results / f"s/runs/{run}/eval/alpacaeval2/annotations.json" for run in ("dpo", "simpo"))
    assert difference(ours, theirs, "alpacaeval2").n == 3
    files.write_json(theirs, files.read_json(theirs)[::-1])
    with pytest.raises(UserError, match=r"differ in row 0 .*'question 0' and 'question 3'"):
        difference(ours, theirs, "alpacaeval2")
    files.write_json(theirs, [{"instruction": f"question {i}", "preference": None} for i in range(4)])
    with pytest.raises(UserError, match="no instruction on which both were judged"):
        difference(ours, theirs, "alpacaeval2")


def figures(settings: tuple[str, ...], methods: tuple[str, ...], benchmarks: tuple[str, ...], failed: int = 0) -> pd.DataFrame:
    """A table of plausible figures by chance, in table4.csv's columns."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame([{"setting": s, "method": m} for s in settings for m in methods])
    for benchmark in benchmarks:
        for column in COLUMNS[benchmark]:
            table[column] = 0 if "failed" in column else rng.uniform(0.1, 2 if "error" in column else 99, len(table))
    return table.assign(length=rng.uniform(80, 2500, len(table)), judged=805 - failed, failed=failed)


def of_scale(benchmarks: tuple[str, ...] = BENCHMARKS) -> Study:
    """A study whose tables.yaml has what the picture reads."""
    study = Study(Path())
    study.config = {"name": "mini", "benchmarks": list(benchmarks), "judge": "a-judge-of-a-long-name-2024"}
    return study


def picture(settings: tuple[str, ...], methods: tuple[str, ...], benchmarks: tuple[str, ...], failed: int = 0) -> Figure:
    return table4_picture.draw(figures(settings, methods, benchmarks, failed), of_scale(benchmarks))


FIVE = ("sft", "dpo", "simpo", "simpo_no_ln", "simpo_no_margin")
SIX = ("mistral_base", "mistral_instruct", "llama3_base", "llama3_instruct", "llama3_instruct_v02", "gemma2_it")


@pytest.mark.parametrize(
    ("settings", "methods", "benchmarks", "failed"),
    [
        (("mini_base", "mini_instruct"), METHODS, BENCHMARKS, 0),
        (SIX, FIVE, BENCHMARKS, 3),
        (("smoke",), METHODS, ("alpacaeval2", "oracle"), 0),
        (("s",), ("sft",), ("alpacaeval2",), 0),
        (("a_setting_that_nobody_has_named", "llama3_instruct_v02"), FIVE, BENCHMARKS, 805),
    ],
)
@pytest.mark.slow
def test_no_text_of_the_picture_touches_another_or_a_rule_or_the_edge(
    settings: tuple[str, ...], methods: tuple[str, ...], benchmarks: tuple[str, ...], failed: int
) -> None:
    made = picture(settings, methods, benchmarks, failed)
    page = made.bbox
    boxes = {text: text.get_window_extent() for text in made.texts}
    rules = [line.get_window_extent() for line in made.artists]
    for text, box in boxes.items():
        assert page.x0 < box.x0 and box.x1 < page.x1 and page.y0 < box.y0 and box.y1 < page.y1, text
        for rule in rules:
            assert not (rule.y0 < box.y1 and box.y0 < rule.y1 and rule.x0 < box.x1 and box.x0 < rule.x1), text
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one, other)
    assert min(text.get_fontsize() for text in made.texts) >= 6.5
    words = " ".join(text.get_text() for text in made.texts)
    assert ("805 instructions on AlpacaEval 2" in words) and ("failed" in words) == bool(failed)
    assert "a-judge-of-a-long-name-2024" in words


def test_the_picture_s_caption_counts_a_seed_s_judgments_and_names_the_models_that_are_warned_of() -> None:
    """table4_picture.caption: over three seeds the table's counts are those of all."""
    table = figures(("mini_base",), METHODS, BENCHMARKS, 5).assign(seeds=[1, 3, 3], warning=[math.nan, "", "simpo: 9% of answers end"])
    table.loc[1:, ["judged", "failed"]] *= 3
    told = table4_picture.caption(table, of_scale())
    assert "805 instructions on AlpacaEval 2" in told[0] and told[0].endswith(". Means over 3 training seeds.")
    assert told[-1] == "These may have collapsed (table4.csv, warning): Mini-Base SimPO."
    assert not any("collapsed" in text for text in table4_picture.caption(table.drop(columns="warning"), of_scale()))


def test_bold_is_the_best_of_a_column_within_its_setting_and_of_length_none() -> None:
    table = figures(("mini_base", "mini_instruct"), METHODS, BENCHMARKS)
    table.loc[:2, "mt_bench"] = [7.004, 7.003, 6.99]  # the first two are printed alike
    table.loc[3, "oracle"] = math.nan  # a figure that is not there is no best one
    made = table4_picture.draw(table, of_scale())
    bold = sorted(text.get_text() for text in made.texts if text.get_weight() == "bold")
    expected = ["7.00", "7.00", f"{table.mt_bench[3:].max():.2f}"]
    for column, digits in (("lc_win_rate", 1), ("win_rate", 1), ("arena_hard_win_rate", 1), ("oracle", 2)):
        expected += [f"{max(v for v in part if v == v):.{digits}f}" for part in (table[column][:3], table[column][3:])]
    assert bold == sorted(expected)
    assert "–" in [text.get_text() for text in made.texts]


@pytest.mark.slow
def test_the_picture_is_made_from_the_table_at_a_slide_s_size_and_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(monkeypatch, "--results", tmp_path, "--out", tmp_path / "one")
    with pytest.raises(SystemExit, match=r"table4\.csv does not exist; make it with: snakemake"):
        command_line(None, table4_picture.write)
    OmegaConf.save(OmegaConf.create(of_scale().config), tmp_path / "tables.yaml")
    figures(SIX, FIVE, BENCHMARKS).to_csv(tmp_path / "table4.csv", index=False)
    command_line(None, table4_picture.write)
    command(monkeypatch, "--results", tmp_path, "--out", tmp_path / "two")
    command_line(None, table4_picture.write)
    one, two = (tmp_path / f"{name}/figures/table4.png" for name in ("one", "two"))
    with Image.open(one) as image:
        assert image.format == "PNG"
        assert image.width == 2560 and 1300 < image.height <= 1440
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert set(image.info) == {"dpi"}  # no date, no version
    assert one.read_bytes() == two.read_bytes()
