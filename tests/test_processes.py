"""Preference training by several processes (accelerate, DDP): the same run as by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from omegaconf import OmegaConf
from safetensors.torch import load_file

from stages import files

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "scheduler": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.0}
ADAM = {"max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
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


def train(folder: Path, launcher: list[str], config: dict[str, Any], out: str) -> Path:
    """Run stages.train as a command; the folder of its run."""
    run = Path("results/tiny/runs") / out
    files.write_text(folder / run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    command = [sys.executable, "-m", *launcher, "stages.train", "--config", f"{run}/config.yaml", "--runtime", "token_budget=60"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("held-out accuracy") == done.stdout.count("layout: shared") == 1  # one process speaks
    return folder / run


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """stages.train under accelerate with gloo: logged steps, held-out figures and weights of one process within 1e-6; one writes."""
    config = start_of(tmp_path)
    one = train(tmp_path, [], config, "one")
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    two = train(tmp_path, [*launcher, "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "-m"], config, "two")
    for first, second in zip(files.read_jsonl(one / "train.jsonl"), files.read_jsonl(two / "train.jsonl"), strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-6)
    manifests = [files.read_json(run / "manifest.json") for run in (one, two)]
    assert manifests[1]["heldout"] == pytest.approx(manifests[0]["heldout"], rel=1e-5, abs=1e-6)
    assert manifests[1]["steps"] == manifests[0]["steps"] == 6
    weights = [load_file(run / "model/model.safetensors") for run in (one, two)]
    for name, weight in weights[0].items():
        assert (weights[1][name] - weight).norm() <= 1e-6 * weight.norm(), name
    assert not (two / ".work").exists()
