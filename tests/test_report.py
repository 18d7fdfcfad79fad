"""stages/mini/report.py: each criterion of the mini world against figures computed by hand on a tiny world and fabricated runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from stages.benchmarks import BENCHMARKS, alpacaeval2
from stages.lib import files
from stages.lib.errors import UserError
from stages.mini import oracle as oracle_module
from stages.mini import report
from stages.mini.oracle import Oracle, load_oracle
from stages.mini.world import make_world
from stages.mini.writers import Writer, write
from stages.plan.compose import compose_config

PLAIN = Writer(0, 0, 0, 0, 0, 0)
WORLD, SETTING, CHAIN = "results/worlds/smoke", "results/smoke", "results/smoke+chain=1"
Rows = list[dict[str, Any]]


def save(path: str, rows: Rows) -> None:
    (files.write_jsonl if path.endswith(".jsonl") else files.write_json)(path, rows)


def answer(
    run: str,
    outputs: Rows,
    preferences: list[float | None],
    ended: int,
    *,
    lc: float,
    steps: int = 107,
    accuracy: float = 0.5,
    setting: str = SETTING,
) -> None:
    """What the stages leave of a run; the first ``ended`` answers end by themselves."""
    folder = f"{setting}/runs/{run}/eval"
    rows = [{**row, "generator": run, "tokens": 9, "finish_reason": "stop" if i < ended else "length"} for i, row in enumerate(outputs)]
    save(f"{folder}/alpacaeval2/model_outputs.json", rows)
    judged = [{**row, "preference": preference} for row, preference in zip(rows, preferences, strict=True)]
    save(f"{folder}/alpacaeval2/annotations.json", judged)
    found = oracle_module.annotate(rows, WORLD)
    save(f"{folder}/oracle/annotations.json", found)
    files.write_json(f"{folder}/oracle/scores.json", BENCHMARKS["oracle"].score(rows, found, None))
    files.write_json(f"{folder}/alpacaeval2/scores.json", {"length_controlled_winrate": lc, "standard_error": 2.0})
    if run != "sft":
        save(f"{folder}/../train.jsonl", [{"loss": 1.0}])
        facts = {"steps": steps, "heldout": {"rewards/accuracies": accuracy}, "heldout_pairs": 100}
        files.write_manifest(Path(folder).parent, OmegaConf.create(), **facts)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world; SFT answers as its student does and DPO as its master, the baseline itself; on-policy samples, pairs, gamed rows."""
    tree = tmp_path_factory.mktemp("tree")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tree)
        world = compose_config("scale=smoke", "setting=smoke").world
        files.write_manifest(Path(WORLD), world, **make_world(world, Path(WORLD)))
        n = world.alpacaeval2.n
        outputs = {name: files.read_json(f"{WORLD}/alpacaeval2/writers/{name}.json") for name in ("student", "concise", "verbose")}
        outputs["master"] = files.read_json(f"{WORLD}/alpacaeval2/baseline.json")
        answer("sft", outputs["student"], [1.25] * (n - 1) + [None], ended=n - 6, lc=20)
        answer("dpo", outputs["master"], [1.25, 1.75] * (n // 2), ended=n, lc=30)
        answer("simpo", outputs["student"], [1.25] * n, ended=n, lc=18, steps=99)
        answer("simpo+gamma=0", outputs["student"], [1.25] * n, ended=n, lc=12, accuracy=0.8)
        for run, lc, gain in (("sft", 21, 0.0), ("dpo", 17, 0.4), ("simpo", 19, 0.0)):
            answer(run, outputs["student"], [1.25 + gain] * n, ended=n, lc=lc, setting=CHAIN)
        save(f"{SETTING}/annotate/scored.jsonl", scored(load_oracle(WORLD)))
        files.write_json(f"{SETTING}/greedy/greedy.json", {"sft": [4.0, 5.0, 6.0], "dpo": [5.0, 7.0, 9.0], "simpo": [4.0, 5.0, 6.0]})

        save(f"{SETTING}/generate/generations.jsonl", generations(load_oracle(WORLD)))
        train = [{side: [{"content": text}] for side, text in (("chosen", "a b c"), ("rejected", "a b."))} for _ in range(2)]
        save(f"{SETTING}/data/train.jsonl", [*train, {"chosen": [{"content": "a b c d"}], "rejected": [{"content": "a b c d"}]}])
        rng = np.random.default_rng(0)
        frames = []
        for name in ("concise", "verbose"):
            gap = pd.Series([len(a["output"]) - len(b["output"]) for a, b in zip(outputs["master"], outputs[name], strict=True)])
            columns = {"preference": rng.uniform(0, 1, n), "std_delta_len": gap / gap.std(), "instruction_difficulty": np.sin(range(n))}
            frames.append(pd.DataFrame({"index": range(n), "model": name, **columns, "not_gamed_baseline": False}))
        path = Path("results/calibration/smoke/df_gamed.csv")
        path.parent.mkdir(parents=True)
        pd.concat(frames).sample(frac=1, random_state=0).to_csv(path, index=False)  # in any order
        for folder in (f"{SETTING}/generate", f"{SETTING}/annotate", f"{SETTING}/greedy", f"{SETTING}/data", str(path.parent)):
            files.write_manifest(Path(folder), OmegaConf.create())
        sweep = [{"setting": "smoke", "run": run, "method": "simpo"} for run in ("simpo", "simpo+gamma=0")]
        config = {
            "stage": "report",
            "version": 1,
            "world": WORLD,
            "gamed": str(path),
            "runs": {"smoke": {run: run for run in ("sft", "dpo", "simpo")}},
            "generated": ["smoke"],
            "chains": {"smoke": {"smoke+chain=1": ["sft", "dpo", "simpo"]}},
            "sweeps": {"gamma": sweep},
        }
        OmegaConf.save(OmegaConf.create(config), "results/world_report.yaml")
    return tree


def generations(oracle: Oracle) -> Rows:
    """Two samples for each of the world's preference prompts, further turns among them: an ideal answer, and none."""
    rows = []
    for pair in files.read_rows(f"{WORLD}/preferences.jsonl"):
        prompt = pair["chosen"][:-1]
        task = oracle.read_task(*(message["content"] for message in prompt))
        for sample, text in enumerate((write(task, PLAIN, oracle.language, Random(0)), "")):
            rows.append({"prompt_id": pair["prompt_id"], "prompt": prompt, "response": text, "sample": sample})
    assert {len(row["prompt"]) for row in rows} == {1, 3}
    return rows


def scored(oracle: Oracle) -> Rows:
    """Four prompts, each with two samples of 10 points and one of none; the rater has them right once, and half right three times."""
    rows = []
    for number, pair in enumerate(files.read_rows(f"{WORLD}/preferences.jsonl")[:4]):
        prompt = pair["chosen"][:-1]
        ideal = write(oracle.read_task(*(message["content"] for message in prompt)), PLAIN, oracle.language, Random(0))
        scores = [2.0, 3.0, 1.0] if number == 0 else [2.0, 0.0, 1.0]
        rows.append({"messages": prompt, "all_generated_responses": [ideal, ideal, ""], "all_rm_scores": scores})
    return rows


def run_stage(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """stages.mini.report through its command line, in ``tree``."""
    monkeypatch.chdir(tree)
    monkeypatch.setattr(sys, "argv", ["report", "--config", "results/world_report.yaml"])
    report.main()
    rows: Rows = json.loads(Path("results/world_report.json").read_text())
    return rows


@pytest.fixture(scope="module")
def rows(tree: Path) -> Rows:
    with pytest.MonkeyPatch.context() as patch:
        return run_stage(tree, patch)


def the(rows: Rows, criterion: str, method: str | None = None) -> dict[str, Any]:
    found = [row for row in rows if row["criterion"] == criterion and row["method"] == method]
    assert len(found) == 1
    return found[0]


@pytest.mark.slow
def test_the_start_model_s_criteria(tree: Path, rows: Rows) -> None:
    judged = [files.read_json(tree / f"{SETTING}/runs/{run}/eval/oracle/annotations.json") for run in ("sft", "dpo")]
    student, master = (fmean(row["score"] for row in run) for run in judged)  # the baseline's author is the master
    share = the(rows, "share of the best writer's score", "sft")
    assert share["value"] == pytest.approx(student / master)
    assert share["met"] == (0.35 <= student / master <= 0.65)
    ended = the(rows, "share that ends by itself", "sft")
    assert (ended["value"], ended["wanted"], ended["met"]) == (54 / 60, [0.95, None], False)
    repeated = the(rows, "repeated claims an answer", "sft")
    assert repeated["value"] == pytest.approx(fmean(row["repeated"] for row in judged[0]))
    assert repeated["wanted"] == [None, 0.1]


def test_a_kind_that_no_run_gets_right_is_counted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The master gets each kind right; who says nothing, none. A kind counts by its best run."""
    monkeypatch.chdir(tree)
    oracle = load_oracle(WORLD)
    runs = Path(SETTING) / "runs"
    assert report.never_right(runs, ["sft", "dpo"], oracle) == []
    rows = files.read_json(runs / "dpo/eval/oracle/annotations.json")
    save("silent/none/eval/oracle/annotations.json", [row | {"score": 0.0} for row in rows])
    kinds = {oracle.read_task(row["instruction"]).kind for row in rows}
    assert report.never_right(Path("silent"), ["none"], oracle) == sorted(kinds)


def test_the_rater_agrees_and_lifts_as_counted_by_hand(rows: Rows) -> None:
    """Of the eight pairs of different score it has five right; its choice is a best one each time."""
    agreement = the(rows, "agreement of the rater")
    assert (agreement["value"], agreement["wanted"], agreement["met"]) == (5 / 8, [0.8, None], False)
    assert agreement["standard_error"] == pytest.approx((5 / 8 * 3 / 8 / 4) ** 0.5)
    assert the(rows, "lift by the rater")["value"] == pytest.approx(1)


def test_spread_is_the_95th_by_the_5th_percentile_of_words() -> None:
    texts = ["w " * n for n in range(1, 22)]  # 1 to 21 words: the percentiles are 2 and 20
    assert report.spread(texts) == pytest.approx(10)
    row = report.criterion("spread", report.spread(["", "a"]), 5.0)  # a tenth of a word and less: still a number
    assert row["value"] == pytest.approx(0.95 / 0.05)
    row = report.criterion("spread", report.spread([""] * 20 + ["a"] * 2), 5.0)  # of nothing there is no multiple
    assert (row["value"], row["met"]) == (None, False)


@pytest.mark.slow
def test_the_best_of_an_ideal_answer_and_none_lifts_by_half(tree: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 and 0 points: the best is 5 above their mean, whatever the prompt; a best writer without errors gets 10."""
    monkeypatch.chdir(tree)
    oracle = load_oracle(WORLD)
    assert report.lift_of_best(generations(oracle), PLAIN, oracle, 0) == pytest.approx(0.5)
    lift = the(rows, "lift of the best of n")
    assert 0.5 < lift["value"] < 0.6  # the world's best writer does err
    assert (lift["wanted"], lift["met"]) == ([0.15, None], True)


def test_chosen_are_longer_by_mean_words(tree: Path, rows: Rows) -> None:
    facts = files.read_json(tree / WORLD / "manifest.json")["preferences"]
    longer = the(rows, "chosen longer than rejected")
    assert longer["value"] == pytest.approx(facts["mean_words_chosen"] / facts["mean_words_rejected"] - 1, abs=2e-3)
    assert longer["met"] == (0.05 <= longer["value"] <= 0.25)
    training = the(rows, "chosen longer than rejected, training pairs")  # (3 + 3 + 4) and (3 + 3 + 4) words, a full stop being one
    assert (training["value"], training["wanted"], training["met"]) == (0, None, None)


def test_padded_answers_are_scored_as_a_model_s(tree: Path, rows: Rows) -> None:
    """Against stages/benchmarks/alpacaeval2.py:score on annotations of the verbose writer."""
    gamed = alpacaeval2.read_gamed(tree / "results/calibration/smoke/df_gamed.csv")
    baseline, verbose = (files.read_json(tree / WORLD / "alpacaeval2" / name) for name in ("baseline.json", "writers/verbose.json"))
    preferred = dict(gamed[gamed["model"] == "verbose"][["index", "preference"]].itertuples(index=False))
    judged = []
    for i, (theirs, ours) in enumerate(zip(baseline, verbose, strict=True)):
        texts = {"instruction": ours["instruction"], "output_1": theirs["output"], "output_2": ours["output"]}
        judged.append({**texts, "generator_1": "master", "generator_2": "verbose", "annotator": "j", "preference": 1 + preferred[i]})
    scores = alpacaeval2.score(verbose, judged, gamed)
    raw, controlled = (the(rows, f"{kind} win rate of padded answers")["value"] for kind in ("raw", "length-controlled"))
    assert (raw, controlled) == pytest.approx((scores["win_rate"], scores["length_controlled_winrate"]))
    gap = the(rows, "gap of raw and length-controlled")
    assert gap["value"] == pytest.approx(abs(raw - controlled))
    assert gap["met"] == (gap["value"] >= 1)


def test_effects_are_paired_with_sft_over_what_both_were_judged_on(rows: Rows) -> None:
    """DPO wins 50 points more on every other of 60 instructions, SFT's last judgment failed; in the chain DPO wins 40 on each."""
    gains = [0.0, 50.0] * 30
    gains.pop()
    effect = the(rows, "win rate minus SFT's", "dpo")
    over_questions = np.std(gains, ddof=1) / np.sqrt(59)
    between = np.sqrt((np.var([fmean(gains), 40], ddof=1) + 0) / 2)  # pooled over DPO and SimPO, which differs from SFT nowhere
    assert (effect["value"], effect["standard_error"]) == pytest.approx((fmean(gains), np.hypot(over_questions, between)))
    assert effect["met"] is None
    same = the(rows, "win rate minus SFT's", "simpo")
    assert (same["value"], same["standard_error"]) == pytest.approx((0, between))
    assert the(rows, "LC win rate minus SFT's", "simpo")["value"] == -2
    largest = the(rows, "largest LC win rate minus SFT's")
    assert (largest["value"], largest["met"]) == (10, True)
    above = the(rows, "methods above SFT")
    assert (above["value"], above["met"]) == (0.5 * (fmean(gains) > 3 * np.hypot(over_questions, between)), False)


def test_without_chains_an_error_is_over_the_questions_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert report.between_chains(Path("results"), "smoke", {}) == 0
    rows = report.report_effects(Path("results"), {"sft": "sft", "dpo": "dpo"}, "smoke", {})
    gains = ([0.0, 50.0] * 30)[:-1]
    assert the(rows, "win rate minus SFT's", "dpo")["standard_error"] == pytest.approx(np.std(gains, ddof=1) / np.sqrt(59))
    assert the(rows, "methods above SFT")["met"] is True


def test_greedy_gains_order_steps_and_sweeps(rows: Rows) -> None:
    gain = the(rows, "gain at temperature 0")  # DPO's gaps are 1, 2 and 3
    assert (gain["value"], gain["met"]) == (pytest.approx(2 / (1 / 3**0.5)), True)
    order = the(rows, "order of the methods")  # SFT, DPO, SimPO: 20, 30, 18 here, 21, 17, 19 in the chain
    assert (order["value"], order["met"]) == (pytest.approx(-0.5), None)
    steps = the(rows, "steps of a training")
    assert (steps["value"], steps["met"]) == (99, False)
    reach = the(rows, "reach of the sweep gamma")  # accuracies 0.5 and 0.8 of 100 pairs; LC 18 and 12 with errors of 2
    by_accuracy = the(rows, "reach of the sweep gamma, held-out accuracy")["value"]
    assert by_accuracy == pytest.approx(0.3 / np.hypot(0.05, 0.04))
    assert the(rows, "reach of the sweep gamma, LC")["value"] == pytest.approx(6 / 8**0.5)
    assert (reach["value"], reach["met"]) == (by_accuracy, True)


def test_the_report_is_printed_and_one_that_misses_is_no_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run_stage(tree, monkeypatch)
    shown = capsys.readouterr().out
    judged = [row["met"] for row in rows if row["wanted"]]
    assert {True, False} <= set(judged)
    assert shown.count("MISSED") == judged.count(False)
    assert f"report: {sum(judged)} of {len(judged)} criteria met" in shown
    assert len(shown.splitlines()) == len(rows) + 2
    assert all(row["met"] is None for row in rows if not row["wanted"])


@pytest.mark.parametrize(
    ("path", "again"),
    [
        (f"{SETTING}/runs/simpo/eval/alpacaeval2/annotations.json", f"{SETTING}/runs/simpo/eval/alpacaeval2/annotations.json"),
        (f"{SETTING}/generate/generations.jsonl", f"{SETTING}/generate/manifest.json"),
        ("results/calibration/smoke/df_gamed.csv", "results/calibration/smoke/manifest.json"),
    ],
)
def test_a_missing_file_is_named_with_the_next_command(tree: Path, monkeypatch: pytest.MonkeyPatch, path: str, again: str) -> None:
    kept = (tree / path).read_bytes()
    (tree / path).unlink()
    try:
        with pytest.raises(UserError, match=rf"{path} .*make it again with: snakemake --cores all --forcerun {again} -- {again}"):
            run_stage(tree, monkeypatch)
    finally:
        (tree / path).write_bytes(kept)


def test_without_sft_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(UserError, match="smoke has dpo, ipo: without sft there is nothing to compare with; add it to scale.methods"):
        report.report({"world": WORLD, "gamed": "", "runs": {"smoke": {"dpo": "dpo", "ipo": "ipo"}}, "generated": []}, Path("results"))
