"""analysis/differences.py: where two results folders part first, and why."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from analysis import differences
from stages.lib import files

CONFIGS: dict[str, dict[str, Any]] = {
    "worlds/tiny": {"stage": "world", "towns": 3},
    "s/pretrain": {"stage": "pretrain", "data": "results/worlds/tiny/corpus.jsonl", "runtime": {"micro_batch": 1}},
    "s/sft": {"stage": "sft", "model": "results/s/pretrain/model", "data": "results/worlds/tiny/corpus.jsonl"},
    "s/runs/dpo": {"stage": "train", "model": "results/s/sft/model", "method": {"learning_rate": 1e-4, "hyperparameters": {"beta": 2.0}}},
    "s/runs/simpo": {"stage": "train", "model": "results/s/sft/model", "method": {"learning_rate": 1e-4, "hyperparameters": {"beta": 2.5}}},
}
MACHINE = {"processor": "Some (A 1 2 3)", "switches": {}, "kernels": "AVX512", "threads": 1}


def stage(results: Path, place: str, made: dict[str, Any], **facts: Any) -> None:
    """A finished stage: its outputs, configuration and manifest, which says ``facts`` in place of this machine's."""
    folder = results / place
    for name, value in made.items():
        write = files.write_jsonl if name.endswith(".jsonl") else files.write_json
        write(folder / name, value)
    config = OmegaConf.create(CONFIGS[place])
    OmegaConf.save(config, folder / "config.yaml")
    files.write_manifest(folder, config)
    change(folder, **{"machine": MACHINE, "git_commit": "aaa", "packages": {"torch": "2.13.0"}} | facts)


def change(folder: Path, **facts: Any) -> None:
    files.write_json(folder / files.MANIFEST, files.read_json(folder / files.MANIFEST) | facts)


def text_of(place: Path, old: str, new: str) -> None:
    """Change a file, and where a manifest lists it, the manifest too: as if the stage had made it so."""
    place.write_text(place.read_text().replace(old, new))
    for folder in place.parents:
        if (folder / files.MANIFEST).is_file() and "eval" not in place.relative_to(folder).parts:
            made = files.read_json(folder / files.MANIFEST)["outputs"]
            made[str(place.relative_to(folder))] = {"bytes": place.stat().st_size, "sha256": files.sha256(place)}
            return change(folder, outputs=made)
    return None


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal folders: a world, a base model, two runs with answers, judgments and scores, and a table."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    stage(ours, "worlds/tiny", {"corpus.jsonl": [{"text": "Mimton grows hops."}]})
    stage(ours, "s/pretrain", {"model/model.json": {"weights": [1, 2]}})
    stage(ours, "s/sft", {"model/model.json": {"weights": [2, 2]}})
    for run in ("dpo", "simpo"):
        history = [{"step": step, "grad_norm": 1.0, "loss": 1 / step} for step in (1, 2, 3)]
        stage(ours, f"s/runs/{run}", {"model/model.json": {"weights": [3, 2]}, "train.jsonl": history})
        folder = ours / f"s/runs/{run}/eval"
        answers = f"results/s/runs/{run}/eval/arena_hard/model_answer.jsonl"
        shared = {"answers": answers, "judgments": answers.replace("answer", "judgment")}
        OmegaConf.save(OmegaConf.create({"model": f"results/s/runs/{run}/model"}), folder.parent / "answer.yaml")
        folder.mkdir(exist_ok=True)
        (folder.parent / "answer.yaml").rename(folder / "answer.yaml")
        OmegaConf.save(OmegaConf.create({"benchmarks": {"arena_hard": shared}}), folder / "judge.yaml")
        rows = [{"question_id": f"q{i}", "choices": [{"turns": [f"Town {i} grows hops."]}]} for i in range(4)]
        files.write_jsonl(folder / "arena_hard/model_answer.jsonl", rows)
        files.write_jsonl(folder / "arena_hard/model_judgment.jsonl", [{"question_id": "q0", "games": [{"score": "A>B"}]}])
        OmegaConf.save(OmegaConf.create({"benchmarks": {"arena_hard": {"protocol": "arena_hard"}}}), folder / "score.yaml")
        files.write_json(folder / "arena_hard/scores.json", {"win_rate": 20.5})
    files.write_text(ours / "table4.csv", "setting,method,win_rate\ns,dpo,20.5\ns,simpo,20.5\n")
    shutil.copytree(ours, theirs)
    return ours, theirs


def told(both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The exit status of the command, and what it prints."""
    monkeypatch.setattr(sys, "argv", ["differences", *map(str, both), *words])
    with pytest.raises(SystemExit) as caught:
        differences.main()
    return int(caught.value.code or 0), capsys.readouterr().out


def test_equal_folders_are_equal_whatever_the_machine(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another machine, commit and time are no difference, and weights need not be there."""
    assert told(both, monkeypatch, capsys)[0] == 0
    change(both[1] / "s/sft", machine=MACHINE | {"kernels": "AVX2"}, git_commit="bbb", seconds=99)
    shutil.rmtree(both[1] / "s/runs/dpo/model")
    status, text = told(both, monkeypatch, capsys)
    assert status == 0 and "12 stages are in both folders, and they are equal." in text
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines() if line.startswith(" ")}
    assert rows["sft", "s"] == ["1", "1", "0", "0", "0", "1"] and rows["answers", "s"] == ["2", "2", "0", "0", "0", "0"]


def test_the_first_stage_that_differs_is_told_with_its_reason(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's weights differ, and all after it: the first is told, though the table's file comes first by name."""
    text_of(both[1] / "s/pretrain/model/model.json", "2", "3")
    change(both[1] / "s/pretrain", machine=MACHINE | {"kernels": "AVX2", "switches": {"MKL_CBWR": "AVX2"}}, packages={"torch": "2.13.0"})
    text_of(both[1] / "s/runs/dpo/train.jsonl", "0.5", "0.625")
    text_of(both[1] / "table4.csv", "s,simpo,20.5", "s,simpo,21.5")
    status, text = told(both, monkeypatch, capsys)
    assert status == 1
    assert text.startswith(
        "They part first at pretrain, s/pretrain:\n  another machine: kernels (AVX512 / AVX2), switches.MKL_CBWR (nothing / AVX2)\n"
    )
    assert "first: model/model.json: row 1: weights[1] (2 / 3)" in text and "ATEN_CPU_CAPABILITY=avx2" in text
    status, text = told(both, monkeypatch, capsys, "--all")
    assert "sft s/sft" not in text  # its inputs differ and its outputs do not
    assert "  first: train.jsonl: step 2: loss (0.5 / 0.625)" in text
    assert "  first: table4.csv: setting s, method simpo: win_rate (20.5 / 21.5)" in text
    found = {at.place: at for at in differences.compare(*both)}
    assert found["s/sft"].inputs == ["results/s/pretrain/model/model.json"] and found["s/sft"].equal


@pytest.mark.parametrize(
    ("facts", "reason", "command"),
    [
        ({"packages": {"torch": "2.14.0"}}, "other packages: torch (2.13.0 / 2.14.0)", "make setup"),
        ({"git_commit": "bbb"}, "another commit: git_commit (aaa / bbb)", "git diff aaa bbb -- stages conf envs"),
        ({"processes": 2}, "also: processes (nothing / 2)", "--all"),
        ({}, "the manifests name no reason", "--all"),
    ],
)
def test_what_the_manifests_tell_is_the_reason(
    both: tuple[Path, Path],
    facts: dict[str, Any],
    reason: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text_of(both[1] / "s/sft/model/model.json", "2", "3")
    change(both[1] / "s/sft", **facts)
    status, text = told(both, monkeypatch, capsys)
    assert status == 1 and text.startswith("They part first at sft, s/sft:\n")
    assert f"\n  {reason}" in text and command in next(line for line in text.splitlines() if line.startswith("Next: "))


def test_another_configuration_is_named_by_its_keys_and_a_knob_is_none(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads(json.dumps(CONFIGS["s/runs/dpo"]))
    config["method"]["hyperparameters"]["beta"] = 2.25
    change(both[1] / "s/runs/dpo", config=config)
    change(both[1] / "s/pretrain", config=CONFIGS["s/pretrain"] | {"runtime": {"micro_batch": 4}})
    status, text = told(both, monkeypatch, capsys)
    assert status == 1
    assert text.startswith("They part first at runs, s/runs/dpo:\n  another configuration: method.hyperparameters.beta (2.0 / 2.25)\n")
    assert f"Next: diff {both[0]}/s/runs/dpo/config.yaml {both[1]}/s/runs/dpo/config.yaml" in text


def test_the_first_question_judgment_and_score_that_differ_are_named(both: tuple[Path, Path]) -> None:
    eval_ = both[1] / "s/runs/simpo/eval/arena_hard"
    text_of(eval_ / "model_answer.jsonl", "Town 2 grows hops.", "Town 2 grows maize.")
    text_of(eval_ / "model_judgment.jsonl", "A>B", "A=B")
    text_of(eval_ / "scores.json", "20.5", "19.5")
    found = {(at.stage, at.place): at for at in differences.compare(*both) if not at.equal}
    assert [stage for stage, _ in found] == ["answers", "judgments", "scores"]
    answers, judgments, scores = found.values()
    assert answers.first == "arena_hard/model_answer.jsonl: question_id q2: choices[0].turns[0] (Town 2 grows hops. / Town 2 grows maize.)"
    assert judgments.first == "arena_hard/model_judgment.jsonl: question_id q0: games[0].score (A>B / A=B)"
    assert scores.first == "arena_hard/scores.json: row 1: win_rate (20.5 / 19.5)"
    assert not answers.inputs and judgments.inputs == ["arena_hard/model_answer.jsonl"]
    assert scores.inputs == ["arena_hard/model_answer.jsonl", "arena_hard/model_judgment.jsonl"]


def test_damage_and_what_one_folder_lacks_are_told(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (both[1] / "s/runs/dpo" / files.MANIFEST).unlink()
    shutil.rmtree(both[0] / "s/runs/simpo/eval")
    status, text = told(both, monkeypatch, capsys)
    assert status == 1 and "8 stages are in both folders, and they are equal." in text
    assert f"Only {both[0]} has s/runs/dpo (unfinished in {both[1]})." in text
    assert f"Only {both[1]} has s/runs/simpo/eval." in text
    for damage, sentence in (("{", "is not whole JSON"), ('{"config": {}}', "is damaged: it lacks config, inputs or outputs")):
        (both[0] / "s/pretrain" / files.MANIFEST).write_text(damage)
        status, text = told(both, monkeypatch, capsys)
        assert status == 1 and text.startswith(f"They part first at pretrain, s/pretrain:\n  {both[0]}/s/pretrain/manifest.json {sentence}")
    shutil.copy(both[1] / "s/pretrain" / files.MANIFEST, both[0] / "s/pretrain" / files.MANIFEST)
    (both[0] / "s/pretrain/model/model.json").write_text("cut")
    assert "model.json has 3 bytes, " in told(both, monkeypatch, capsys)[1]


def test_a_folder_without_results_is_a_sentence(both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "nowhere", both[0] / "s"):
        monkeypatch.setattr(sys, "argv", ["differences", str(both[0]), str(wrong)])
        with pytest.raises(files.UserError, match=f"{wrong.name} is no results folder"):
            differences.main()
