"""Preference training by several processes (DDP): the same run as by one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from omegaconf import OmegaConf
from safetensors.torch import load_file

from stages.lib import files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "scheduler": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.0}
ADAM = {"max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
TWO = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
KTO = {"beta": 0.1, "chosen_weight": 1.0, "rejected_weight": 1.0}


def start_of(folder: Path) -> dict[str, Any]:
    """A start model and pairs as the stages before leave them; the slice of a training of KTO's, whose KL every process needs whole."""
    start, data = folder / "results/tiny/sft", folder / "results/tiny/data"
    tiny.llama().save_pretrained(start / "model")
    tiny.tokenizer().save_pretrained(start / "model")
    files.write_jsonl(data / "train.jsonl", tiny.pairs(20))
    files.write_jsonl(data / "heldout.jsonl", tiny.pairs(6, seed=1))
    for made in (start, data):
        files.write_manifest(made, OmegaConf.create({"stage": made.name}))
    method = {"name": "kto", "objective": "kto", "mismatched": True, **SHARED, **ADAM, "hyperparameters": KTO}
    lengths = {"max_length": 200, "max_prompt_length": 100, "empty_system": False, "precision": "fp32"}
    values = {"setting": "tiny", "model": "results/tiny/sft/model", "revision": None, "pairs": "results/tiny/data", **lengths}
    return {"stage": "train", "run": "kto", "seed": 42, "reference": "live", "method": method, **values}


def begin(folder: Path, launcher: list[str], config: dict[str, Any], out: str) -> subprocess.Popen[str]:
    """Start stages.train as a command on the slice of the run ``out``."""
    run = Path("results/tiny/runs") / out
    files.write_text(folder / run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    command = [sys.executable, "-m", *launcher, "stages.train", "--config", f"{run}/config.yaml", "--runtime", "token_budget=60"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(folder: Path, launcher: list[str], config: dict[str, Any], out: str) -> Path:
    """Run it to its end; the folder of its run."""
    process = begin(folder, launcher, config, out)
    said, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    assert said.count("held-out accuracy") == said.count("layout: shared") == 1  # one process speaks
    return folder / "results/tiny/runs" / out


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """stages.train by two processes with gloo: logged steps, held-out figures and weights of one process within 1e-6; one writes."""
    config = start_of(tmp_path)
    one = train(tmp_path, [], config, "one")
    two = train(tmp_path, TWO, config, "two")
    for first, second in zip(files.read_rows(one / "train.jsonl"), files.read_rows(two / "train.jsonl"), strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-6)
    manifests = [files.read_json(run / "manifest.json") for run in (one, two)]
    assert manifests[1]["heldout"] == pytest.approx(manifests[0]["heldout"], rel=1e-5, abs=1e-6)
    assert [manifest["processes"] for manifest in manifests] == [1, 2]
    assert manifests[1]["steps"] == manifests[0]["steps"] == 6
    weights = [load_file(run / "model/model.safetensors") for run in (one, two)]
    for name, weight in weights[0].items():
        assert (weights[1][name] - weight).norm() <= 1e-6 * weight.norm(), name
    assert not (two / ".work").exists()


def test_two_processes_end_after_the_same_step_and_one_goes_on(tmp_path: Path) -> None:
    """checkpoints: SIGTERM to the launcher reaches both, which agree on a step and save; one process ends the training, with the
    weights of one that nobody disturbed."""
    config = start_of(tmp_path)
    config["method"] |= {"epochs": 40}
    whole = train(tmp_path, [], config, "whole")
    process, work = begin(tmp_path, TWO, config, "ended"), tmp_path / "results/tiny/runs/ended/.work"
    while not list(work.glob("checkpoint-*/complete.json")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    process.terminate()
    process.communicate()
    assert "ended by SIGTERM at step" in (work / "attempts.log").read_text()
    ended = train(tmp_path, [], config, "ended")
    assert 0 < files.read_json(ended / "manifest.json")["resumed_at"][0] < 120
    one, other = (load_file(run / "model/model.safetensors") for run in (whole, ended))
    assert all((other[name] - weight).norm() <= 1e-6 * weight.norm() for name, weight in one.items())
