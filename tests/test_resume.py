"""stages/lib/checkpoints.py, files.py:lock: killed at any moment, a training ends with the bytes of one that nobody disturbed.

The trainings are the stages' own, in processes that are really killed. Importing what they need takes eight seconds, so one worker
imports it and forks a process for each attempt.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from omegaconf import OmegaConf

from stages.lib import checkpoints, files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
WORKER = """
import json, os, sys
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, TrainingArguments
from trl import SFTConfig, SFTTrainer
from stages.lib import files
from stages import pretrain, reference, train
from stages.preference import refcache, trainer

stages = {"pretrain": pretrain, "reference": reference, "train": train}
for line in sys.stdin:
    stage, folder, runtime = json.loads(line)
    child = os.fork()
    if not child:
        said = os.open(folder + "/said.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        sys.argv = [stage, "--config", folder + "/config.yaml", "--runtime", *runtime]
        files.run(stages[stage].main)
        sys.exit()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LENGTHS = {"max_length": 200, "max_prompt_length": 100, "empty_system": False, "precision": "fp32"}
START = {"setting": "tiny", "model": "results/tiny/sft/model", "revision": None, "pairs": "results/tiny/data", **LENGTHS}
SCHEDULE = {"epochs": 4, "batch_size": 2, "scheduler": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0}
ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
DPO = {"name": "dpo", "objective": "dpo", "mismatched": False, "learning_rate": 1e-3, **SCHEDULE, **ADAM}
SLICES: dict[str, dict[str, Any]] = {
    "reference": {"stage": "reference", **START},
    "train": {
        **{"stage": "train", **START, "run": "dpo", "seed": 42, "reference": "results/tiny/reference"},
        "method": {**DPO, "hyperparameters": {"beta": 0.1, "label_smoothing": 0.0}},
    },
    "pretrain": {
        **{"stage": "pretrain", "seed": 42, "tokenizer": "results/tiny/sft/model", "data": "results/tiny/data/corpus.jsonl"},
        "architecture": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "training": {"learning_rate": 1e-3, **SCHEDULE, "max_length": 32, "precision": "fp32"},
    },
}
RUNTIME = {"reference": ["token_budget=100"], "train": ["token_budget=60", "save_steps=4"], "pretrain": ["micro_batch=1", "save_steps=4"]}

COMMAND = [sys.executable, "-m", "stages.train", "--runtime", "token_budget=60", "--config"]

Stage = tuple[int, Callable[[], int]]  # a process id, and a function that waits for the process to end and returns its exit status
Begin = Callable[..., Stage]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a start model and data, each with a manifest, as the stages before leave them."""
    tree = tmp_path_factory.mktemp("tree")
    model, data = tree / "results/tiny/sft", tree / "results/tiny/data"
    tiny.llama().save_pretrained(model / "model")
    tiny.tokenizer().save_pretrained(model / "model")
    files.write_jsonl(data / "train.jsonl", tiny.pairs(40))
    files.write_jsonl(data / "heldout.jsonl", tiny.pairs(6, seed=1))
    files.write_jsonl(data / "corpus.jsonl", [{"text": row["chosen"][0]["content"]} for row in tiny.pairs(200)])
    for folder in (model, data):
        files.write_manifest(folder, OmegaConf.create({"stage": folder.name}))
    return tree


@pytest.fixture(scope="module")
def begin(tree: Path) -> Iterator[Begin]:
    """Start a stage in a folder of the tree, on its slice with ``changes``."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], cwd=tree, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        orders, replies = worker.stdin, worker.stdout
        assert orders and replies

        def start(stage: str, folder: str, **changes: Any) -> Stage:
            files.write_text(tree / folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(SLICES[stage] | changes)))
            print(json.dumps([stage, folder, RUNTIME[stage]]), file=orders, flush=True)
            return int(replies.readline()), lambda: int(replies.readline())

        yield start
        orders.close()


@pytest.fixture(scope="module")
def finish(tree: Path, begin: Begin) -> Callable[..., dict[str, Any]]:
    """Run a stage to its end; its manifest."""

    def run(stage: str, folder: str, **changes: Any) -> dict[str, Any]:
        _, status = begin(stage, folder, **changes)
        assert status() == 0, (tree / folder / "said.log").read_text()[-3000:]
        assert not (tree / folder / ".work").exists()
        return files.read_manifest(tree / folder)

    return run


@pytest.fixture(scope="module")
def reference(finish: Callable[..., dict[str, Any]]) -> None:
    """What every training here reads."""
    finish("reference", "results/tiny/reference")


@pytest.fixture(scope="module")
def undisturbed(reference: None, finish: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {stage: finish(stage, f"results/tiny/runs/undisturbed_{stage}") for stage in ("train", "pretrain")}


def result(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of the result, and not of how it came about; the worker's own log is no part of it."""
    return {key: value for key, value in manifest.items() if key not in ("seconds", "resumed_at")}


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"


def saved(work: Path) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    return max((int(marker.parent.name.removeprefix("checkpoint-")) for marker in work.glob(f"*/{checkpoints.MARKER}")), default=0)


def torn(work: Path) -> list[Path]:
    return [folder for folder in work.glob("checkpoint-*") if not (folder / checkpoints.MARKER).exists()]


def kill_while_saving(pid: int, work: Path) -> None:
    """SIGKILL between a checkpoint's first file and its marker: the process is stopped there first, so that it cannot slip on."""
    while True:
        until(lambda: torn(work))
        os.kill(pid, signal.SIGSTOP)
        if torn(work):
            return os.kill(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGCONT)


def test_five_kills_at_random_moments_change_no_byte(
    tree: Path, begin: Begin, finish: Callable[..., dict[str, Any]], undisturbed: dict[str, dict[str, Any]]
) -> None:
    """stages.train: SIGKILL in training and in mid-save; weights, tokenizer and train.jsonl are those of the undisturbed run."""
    folder, draw = "results/tiny/runs/killed", random.Random(0)
    work = tree / folder / ".work"
    moments = zip(("", "saving", "", "saving", ""), [0, *sorted(draw.sample(range(8, 64), 4))], strict=True)
    for saving, step in moments:
        pid, status = begin("train", folder)
        until(lambda: saved(work) >= step)  # noqa: B023
        if saving:
            kill_while_saving(pid, work)
        else:
            time.sleep(draw.uniform(0, 0.05 if step else 1))
            os.kill(pid, signal.SIGKILL)
        assert status() == -signal.SIGKILL
        assert not (tree / folder / files.MANIFEST).exists()
    made = finish("train", folder)
    assert result(made) == result(undisturbed["train"])
    assert len(set(made["resumed_at"])) >= 3
    assert (tree / folder / "said.log").read_text().count("is removed: its saving was cut short") >= 2


def test_sigterm_saves_and_the_same_command_goes_on(
    tree: Path, begin: Begin, finish: Callable[..., dict[str, Any]], undisturbed: dict[str, dict[str, Any]]
) -> None:
    """stages.pretrain (SFT is the same code): SIGTERM gives exit 143 and a checkpoint of the step; then SIGKILL; the bytes are the same."""
    folder = "results/tiny/runs/terminated"
    work = tree / folder / ".work"
    pid, status = begin("pretrain", folder)
    until(lambda: saved(work))
    os.kill(pid, signal.SIGTERM)
    assert status() == 143
    stopped = saved(work)
    assert f"ended by SIGTERM at step {stopped} of" in (tree / folder / "said.log").read_text()
    pid, status = begin("pretrain", folder)
    until(lambda: saved(work) > stopped)
    kill_while_saving(pid, work)
    assert status() == -signal.SIGKILL
    made = finish("pretrain", folder)
    assert result(made) == result(undisturbed["pretrain"])
    assert made["resumed_at"][0] == stopped < made["resumed_at"][1]


def test_sigterm_before_training_ends_a_stage_at_once(tree: Path) -> None:
    folder = tree / "results/tiny/runs/early"
    files.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(SLICES["train"])))
    with subprocess.Popen(COMMAND + [str(folder / "config.yaml")], cwd=tree, env=ENVIRONMENT) as process:
        until(lambda: (folder / ".config.lock").exists())
        process.terminate()
        assert process.wait(30) == 143


def test_a_second_writer_is_refused_while_the_first_lives(
    tree: Path, reference: None, begin: Begin, finish: Callable[..., dict[str, Any]]
) -> None:
    folder = "results/tiny/runs/twice"
    pid, status = begin("train", folder)
    until(lambda: saved(tree / folder / ".work"))
    os.kill(pid, signal.SIGSTOP)
    second = subprocess.run(COMMAND + [f"{folder}/config.yaml"], cwd=tree, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"process {pid} (" in second.stderr and f"kill {pid}; then run the same command again" in second.stderr
    assert "Traceback" not in second.stderr
    os.kill(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGCONT)
    assert status() == -signal.SIGKILL
    assert finish("train", folder)["resumed_at"]  # a killed process holds no lock


def test_a_lock_ends_with_its_process_whatever_its_children_do(tmp_path: Path) -> None:
    """stages/lib/files.py:lock: neither a forked nor a started child keeps it."""
    code = "import os, subprocess, sys; from pathlib import Path; from stages.lib import files; files.lock(Path(sys.argv[1]))\n"
    children = "subprocess.Popen(['sleep', '60'], stdout=2)\nif os.fork(): print('locked', flush=True)\nimport time; time.sleep(60)"
    config = tmp_path / "config.yaml"
    with subprocess.Popen(
        [sys.executable, "-c", code + children, str(config)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as first:
        assert first.stdout and first.stdout.readline() == "locked\n"
        try:
            assert subprocess.run([sys.executable, "-c", code, str(config)], env=ENVIRONMENT, check=False).returncode == 1
            first.kill()
            first.wait()
            os.killpg(first.pid, 0)  # the children live on
            assert subprocess.run([sys.executable, "-c", code, str(config)], env=ENVIRONMENT, check=False).returncode == 0
        finally:
            os.killpg(first.pid, signal.SIGKILL)


def test_a_checkpoint_of_another_configuration_is_not_resumed(
    tree: Path, begin: Begin, finish: Callable[..., dict[str, Any]], undisturbed: dict[str, dict[str, Any]]
) -> None:
    folder = "results/tiny/runs/changed"
    pid, status = begin("train", folder, seed=1)
    until(lambda: saved(tree / folder / ".work"))
    os.kill(pid, signal.SIGTERM)
    assert status() == 143
    made = finish("train", folder)
    assert "is removed: it is of another configuration" in (tree / folder / "said.log").read_text()
    assert made["resumed_at"] == []
    assert result(made) == result(undisturbed["train"])


def test_only_a_whole_checkpoint_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stages/lib/checkpoints.py:newest: the newest of those that have all their files and are of this training; the others are removed."""
    identity = {"configuration": "a", "start model": "b", "data": "c"}

    def checkpoint(step: int, whose: dict[str, str] = identity) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
            files.write_text(folder / name, name)
        checkpoints.complete(folder, whose, step)
        return folder

    assert checkpoints.newest(tmp_path, identity) is None
    for step in (9, 10):
        checkpoint(step)
    for number, name in enumerate(("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"), start=11):
        (checkpoint(number) / name).unlink()
    (checkpoint(15) / "optimizer.pt").write_text("optim")
    (checkpoint(16) / checkpoints.MARKER).unlink()
    checkpoint(17, identity | {"data": "d", "start model": "e"})
    assert checkpoints.newest(tmp_path, identity) == tmp_path / "checkpoint-10"
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    said = capsys.readouterr().out
    assert said.count("its optimizer.pt is missing or cut") == 2
    assert "its saving was cut short" in said and "it is of another start model and data" in said


def test_a_training_is_its_configuration_start_model_and_data_and_no_runtime_knob() -> None:
    """stages/lib/checkpoints.py:identify."""
    given: dict[str, Any] = {"seed": 1, "runtime": {"micro_batch": 1}}

    def identify(config: dict[str, Any], seed: int = 0, rows: int = 3) -> dict[str, str]:
        trainer: Any = SimpleNamespace(model=tiny.llama(seed), train_dataset=tiny.pairs(rows))
        return checkpoints.identify(trainer, OmegaConf.create(config))

    this = identify(given)
    assert identify(given | {"runtime": {"micro_batch": 8, "save_steps": 5}}) == this
    others = {"configuration": identify(given | {"seed": 2}), "start model": identify(given, seed=1), "data": identify(given, rows=4)}
    for changed, other in others.items():
        assert [key for key in this if this[key] != other[key]] == [changed]
