"""A researcher's own objective: the function and the file that the README shows are all it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from checkout import copy_to
from omegaconf import OmegaConf
from test_readme import fenced

from stages.lib import files

pytestmark = pytest.mark.slow

PLAN = "import sys; from stages.plan import Plan; Plan().write(sys.argv[1:])"


def test_the_readmes_objective_trains(tmp_path: Path) -> None:
    """README.md, section "Add a method", verbatim: in a fresh tree its run is planned, named by what it varies, and trained with a
    cached reference; it starts at log 2, as the policy is the reference, and ends lower."""
    tree = copy_to(tmp_path / "tree")
    function, method = fenced("python", "def ln_dpo"), fenced("yaml", "name: ln_dpo")
    assert function and yaml.safe_load(method)["objective"] == "ln_dpo"
    with (tree / "stages/preference/objectives.py").open("a") as file:
        file.write(f"\n\n{function}")
    (tree / "conf/method/ln_dpo.yaml").write_text(method)
    setting = tree / "results/mini_base"
    tiny.llama().save_pretrained(setting / "sft/model")
    tiny.tokenizer().save_pretrained(setting / "sft/model")
    files.write_jsonl(setting / "data/train.jsonl", tiny.pairs(64))
    files.write_jsonl(setting / "data/heldout.jsonl", tiny.pairs(8, seed=1))
    for folder in ("sft", "data"):
        files.write_manifest(setting / folder, OmegaConf.create({"stage": folder}))
    run = "results/mini_base/runs/ln_dpo+beta=5"

    def python(*words: str) -> str:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *words], cwd=tree, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    python("-c", PLAN, f"{run}/manifest.json")
    for stage, folder in (("reference", "results/mini_base/reference"), ("train", run)):
        python("-m", f"stages.{stage}", "--config", f"{folder}/config.yaml", "--runtime", "token_budget=200")
    made = files.read_json(tree / run / "manifest.json")
    assert made["config"]["method"]["hyperparameters"] == {"beta": 5}
    log = files.read_rows(tree / run / "train.jsonl")
    assert len(log) == made["steps"] == 4
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert made["heldout"]["loss"] < log[0]["loss"]
