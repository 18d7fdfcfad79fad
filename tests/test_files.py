"""Whole files or none, errors that name file and next step: stages/lib/files.py, models.py:found, assets.py, pairs.py."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stages.assets import fetch
from stages.lib import files, models
from stages.lib.errors import UserError
from stages.pairs import clean, split_turns


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.write_jsonl(path, [{"a": 1}])
    with pytest.raises(TypeError):
        files.write_jsonl(path, [{"a": 2}, {"a": {1, 2}}])  # a set is no JSON
    assert files.read_rows(path) == [{"a": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_jsonl_cut_at_any_byte_is_an_error_or_fewer_whole_rows_never_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "one"}, {"text": "zwölf"}]
    files.write_jsonl(path, rows)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        complete = [count for count, last in ((1, whole.index(b"\n")), (2, len(whole) - 1)) if end in (last, last + 1)]
        if complete:  # in a file of the user's nothing tells; of ours, see the next test
            assert files.read_rows(path) == rows[: complete[0]]
            continue
        with pytest.raises(UserError, match=r"rows\.jsonl"):
            files.read_rows(path)


def test_a_jsonl_of_another_stage_is_never_read_short_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at any byte, the end of a line included, or with any byte flipped, it is held against its stage's manifest."""
    monkeypatch.chdir(tmp_path)
    path = Path("results/s/data/train.jsonl")
    files.write_jsonl(path, [{"text": "one"}, {"text": "zwölf"}])
    files.write_manifest(path.parent, OmegaConf.create({"stage": "pairs"}))
    whole = path.read_bytes()
    again = r"train\.jsonl .*; make it again with: snakemake --cores all --forcerun results/s/data/manifest\.json"
    for position in range(len(whole)):
        path.write_bytes(whole[:position])
        with pytest.raises(UserError, match=again):
            files.read_rows(path)
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(UserError, match=again):
            files.read_rows(path)
    path.write_bytes(whole)
    assert len(files.read_rows(path)) == 2


def test_a_flipped_byte_in_a_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages/lib/models.py:found, through which every stage loads its model; a model of the user's has no manifest to hold it against."""
    monkeypatch.chdir(tmp_path)
    for folder in (Path("results/s/sft"), Path("results/s/runs/dpo")):
        weights = folder / "model/model.safetensors"
        files.write_json(folder / "model/config.json", {})
        files.write_text(weights, "weights")
        files.write_text(folder / "eval/oracle/scores.json", "no file of the training")
        files.write_manifest(folder, OmegaConf.create({"stage": "x"}))
        assert models.checked_model(str(folder / "model")) == str(folder / "model")
        right = files.sha256(weights)
        weights.write_text("weighus")
        with pytest.raises(UserError, match=rf"{weights} .* {files.sha256(weights)}, {right} .*snakemake .*{folder}/manifest\.json"):
            models.checked_model(str(folder / "model"))
        weights.unlink()
        with pytest.raises(UserError, match=rf"{weights} is missing; make it again with"):
            models.checked_model(str(folder / "model"))
    files.write_text("results/s/reward/model/config.json", "{}")
    with pytest.raises(UserError, match=r"results/s/reward/manifest\.json does not exist: that stage has not finished; make it again"):
        models.checked_model("results/s/reward/model")
    files.write_text("mine/config.json", "{}")
    for name in ("mine", "./mine", str(tmp_path / "mine"), "organisation/model"):
        assert models.checked_model(name) == name


def test_an_empty_answers_file_is_named_with_the_command_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = "results/s/runs/dpo/eval/alpacaeval2/model_outputs.json"
    files.write_text(path, "")
    with pytest.raises(UserError, match=rf"{path} is not whole JSON .*; make it again with: snakemake --cores all --forcerun {path}"):
        files.read_json(path)


def test_a_manifest_tells_a_missing_and_a_changed_file(tmp_path: Path) -> None:
    files.write_json(tmp_path / "model/a.json", [1])
    files.write_json(tmp_path / ".work/b.json", [1])
    files.write_manifest(tmp_path, OmegaConf.create({"stage": "x"}), steps=3)
    manifest = files.read_manifest(tmp_path)
    assert list(manifest["outputs"]) == ["model/a.json"]
    assert manifest["steps"] == 3
    (tmp_path / "model/a.json").write_text("[12345]")
    with pytest.raises(UserError, match=r"a\.json has 7 bytes"):
        files.read_manifest(tmp_path)
    (tmp_path / "model/a.json").unlink()
    with pytest.raises(UserError, match=r"a\.json is missing"):
        files.read_manifest(tmp_path)
    with pytest.raises(UserError, match=r"nowhere/manifest\.json does not exist"):
        files.read_manifest(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_manifest_records_the_machine_and_loads_no_torch_for_it(tmp_path: Path) -> None:
    """The processor and the switches that are set; kernels and threads only where the stage has loaded torch."""
    write = "from pathlib import Path; from omegaconf import OmegaConf; from stages.lib import files; import sys"
    write += "; files.write_manifest(Path(sys.argv[1]), OmegaConf.create()); print('torch' in sys.modules)"
    env = {**os.environ, "MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", write, str(tmp_path)], env=env, capture_output=True, text=True, check=True)
    machine = files.read_manifest(tmp_path)["machine"]
    assert done.stdout == "False\n"
    assert machine.pop("switches").items() >= {"MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}.items()
    name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert list(machine) == ["processor"] and machine["processor"].startswith(name[1] if name else platform.machine())
    import torch

    files.write_manifest(tmp_path, OmegaConf.create())
    machine = files.read_manifest(tmp_path)["machine"]
    assert (machine["kernels"], machine["threads"]) == (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("results/worlds/mini/preferences.jsonl", "results/worlds/mini/manifest.json"),
        ("results/mini_base/sft/model", "results/mini_base/sft/manifest.json"),
        ("results/mini_base/reference", "results/mini_base/reference/manifest.json"),
        ("results/s/runs/simpo+beta=3/model/model.safetensors", "results/s/runs/simpo+beta=3/manifest.json"),
        ("results/s/runs/dpo/eval/oracle/scores.json", "results/s/runs/dpo/eval/oracle/scores.json"),
    ],
)
def test_an_error_names_the_command_that_makes_the_file_again(path: str, made: str) -> None:
    assert files.again(path) == f"make it again with: snakemake --cores all --forcerun {made} -- {made}"
    assert files.again(f"/elsewhere/{path}") == "replace it by a complete file"


@pytest.mark.parametrize(
    "stage", ["mini.world", "pretrain", "sft", "pairs", "reference", "train", "answer", "judge", "mini.calibrate", "assets"]
)
@pytest.mark.slow
def test_every_stage_says_what_it_does_and_what_it_lacks(stage: str, tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-m", f"stages.{stage}", "--help"], capture_output=True, text=True, check=True)
    assert f"python -m stages.{stage}" in told.stdout
    missing = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", "--config", str(tmp_path / "config.yaml")], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1
    assert "does not exist; Snakemake writes it" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_an_asset_is_verified_and_a_mirror_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source.txt"
    source.write_text("published")
    asset = OmegaConf.create({"url": source.as_uri(), "package": None, "path": None, "sha256": files.sha256(source), "licence": "MIT"})
    assert fetch("a.txt", asset, tmp_path / "out/a.txt") == source.as_uri()
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/a.txt").write_text("published")
    assert fetch("a.txt", asset, tmp_path / "out/a.txt", str(tmp_path / "mirror")) == str(tmp_path / "mirror/a.txt")
    (tmp_path / "mirror/a.txt").write_text("changed")
    with pytest.raises(UserError, match=f"sha256 {files.sha256(tmp_path / 'mirror/a.txt')}, conf/benchmark says {asset.sha256}"):
        fetch("a.txt", asset, tmp_path / "out/a.txt", str(tmp_path / "mirror"))
    assert (tmp_path / "out/a.txt").read_text() == "published"
    asset.url = (tmp_path / "nowhere").as_uri()
    with pytest.raises(UserError, match="set ASSETS_DIR"):
        fetch("a.txt", asset, tmp_path / "out/b.txt")


def preference(chosen: str, rejected: str, scores: tuple[float, float] = (2.0, 1.0), prompt: str = "Q") -> dict:
    user = {"role": "user", "content": prompt}
    sides = {side: [user, {"role": "assistant", "content": text}] for side, text in (("chosen", chosen), ("rejected", rejected))}
    return {"prompt": prompt, "prompt_id": "1", **sides, "score_chosen": scores[0], "score_rejected": scores[1]}


def test_pairs_that_say_nothing_are_dropped_and_counted() -> None:
    rows = [preference("A", "B"), preference("A", "A"), preference("A", "B", (1.0, 1.0))]
    kept, counts = clean([split_turns(row, "f, line 1") for row in rows])
    assert counts == {"read": 3, "dropped_identical": 1, "dropped_tied": 1}
    assert kept == [
        {
            "prompt_id": "1",
            "score_chosen": 2.0,
            "score_rejected": 1.0,
            "prompt": [{"role": "user", "content": "Q"}],
            "chosen": [{"role": "assistant", "content": "A"}],
            "rejected": [{"role": "assistant", "content": "B"}],
        }
    ]


def test_a_row_that_is_no_pair_is_named() -> None:
    other = preference("A", "B")
    other["rejected"][0] = {"role": "user", "content": "another question"}
    for row, message in (
        (other, "line 7: 'chosen' and 'rejected' answer different prompts"),
        ({**preference("A", "B"), "chosen": "A"}, "line 7: 'chosen' must be a list"),
    ):
        with pytest.raises(UserError, match=message):
            split_turns(row, "preferences.jsonl, line 7")


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """files.run and its readers: a missing asset, a missing file of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    for name, advice in (
        ("results/assets/arena_hard/judge_config.yaml", "snakemake --cores all --forcerun results/assets/arena_hard/manifest.json"),
        ("my.jsonl", "replace it by a complete file"),
    ):
        with pytest.raises(SystemExit) as caught:
            files.run(lambda name=name: print(files.read_text(name)))
        assert str(caught.value).startswith(f"error: {name} does not exist; ")
        assert advice in str(caught.value)
