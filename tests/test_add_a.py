"""README.md and docs/judges.md, "Add a setting", "Add a reward model", "Add a judge": carried out word for word in a fresh tree.

A section names a file and then shows it; where it says "In `FILE` replace `OLD` with `NEW`", that is done. Its `snakemake -n` then plans
runs whose stage configurations, written while planning, have the new part.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import ROOT, copy_to

pytestmark = pytest.mark.slow

FILE = r"`(conf/[\w/.]+\.yaml)`"


def section(document: str, heading: str) -> str:
    """The text below a heading, up to the next one."""
    whole = (ROOT / document).read_text(encoding="utf-8")
    (text,) = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", whole, re.DOTALL | re.MULTILINE)
    return str(text)


def carry_out(text: str, tree: Path) -> str:
    """Write a section's files, change what it changes, and run its dry-run; what that printed."""
    for before, block in re.findall(r"(.*?)^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        path = tree / re.findall(FILE, before)[-1]
        assert not path.exists(), f"{path}: the section would overwrite a file"
        path.write_text(block, encoding="utf-8")
    replacements = re.findall(rf"In\s{FILE}\sreplace\s`([^`]+)`\swith\s`([^`]+)`", text)
    assert replacements
    for name, old, new in replacements:
        given = (tree / name).read_text(encoding="utf-8")
        assert given.count(old) == 1, f"{name} has {old!r} {given.count(old)} times"
        (tree / name).write_text(given.replace(old, new), encoding="utf-8")
    (command,) = re.findall(r"`(snakemake -n [^`]+)`", text)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(shlex.split(command), cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "This was a dry-run" in done.stdout + done.stderr
    return done.stdout


def stage_config(tree: Path, name: str) -> dict[str, Any]:
    """The configuration that planning wrote for a stage."""
    found = yaml.safe_load((tree / "results" / name).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_to(tmp_path / "tree")


def test_the_readmes_setting_is_planned(tree: Path) -> None:
    """Its runs start from mini_base's SFT model, on the user's pairs; nothing is pretrained or fine-tuned for it."""
    planned = carry_out(section("README.md", "Add a setting"), tree)
    assert "results/my_setting/runs/simpo/eval/oracle/scores.json" in planned
    assert "results/my_setting/sft" not in planned
    data, train = stage_config(tree, "my_setting/data/config.yaml"), stage_config(tree, "my_setting/runs/simpo/config.yaml")
    assert (data["train"]["data"], data["heldout"]) == ("my_pairs.jsonl", 100)
    assert (train["model"], train["pairs"]) == ("results/mini_base/sft/model", "results/my_setting/data")
    other = stage_config(tree, "mini_base/runs/simpo/config.yaml")
    assert train["method"] == other["method"], "what the file leaves out is mini_base's"


def test_the_readmes_reward_model_ranks(tree: Path) -> None:
    """Its setting samples and ranks by that model, trains none, and its pairs are what was ranked."""
    planned = carry_out(section("README.md", "Add a reward model"), tree)
    assert "results/my_ranking/annotate/manifest.json" in planned and "results/my_ranking/reward" not in planned
    annotate = stage_config(tree, "my_ranking/annotate/config.yaml")
    assert (annotate["model"], annotate["revision"]) == ("./my_reward_model", None)
    assert annotate["generations"] == "results/my_ranking/generate/generations.jsonl"
    assert stage_config(tree, "my_ranking/data/config.yaml")["train"]["data"] == "results/my_ranking/annotate/scored.jsonl"


def test_the_readmes_judge_judges_at_paper_scale(tree: Path) -> None:
    planned = carry_out(section("README.md", "Add a judge"), tree)
    assert "results/controls/my_judge/manifest.json" in planned
    judge = stage_config(tree, "llama3_base/runs/simpo/eval/judge.yaml")["judge"]
    assert (judge["name"], judge["base_url"], judge["price"]["output"], judge["cache"]) == ("my_judge", "http://127.0.0.1:8000/v1", 0, True)
    assert stage_config(tree, "controls/my_judge/config.yaml")["judge"] == judge


def test_the_mini_scale_s_judge_is_varied(tree: Path) -> None:
    """docs/judges.md: the world's judge with another temperament judges and calibrates."""
    planned = carry_out(section("docs/judges.md", "Vary the judge of the mini scale"), tree)
    assert "results/controls/no_length_bias/manifest.json" in planned
    judge = stage_config(tree, "mini_base/runs/sft/eval/judge.yaml")["judge"]
    assert (judge["name"], judge["server"]["length_bias"], judge["server"]["noise"]) == ("no_length_bias", 0, 0.8)
    assert stage_config(tree, "calibration/mini/config.yaml")["server"] == judge["server"]
