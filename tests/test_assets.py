"""stages/assets.py with the reference data as the offline mirror: what conf pins is what was published, and nothing else passes.

Published data: the folder in REFERENCE_DATA (default ../shared/reference_data beside the repository); skipped where it is absent.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from published import REFERENCE, needed

from stages.lib import files
from stages.plan import Plan

# Where the reference data has each asset of the paper's scale; alpaca_eval_clf.txt comes with the package.
MIRRORED = {
    "gpt4_1106_preview.json": "alpaca_eval/model_outputs/gpt4_1106_preview.json.gz",
    "df_gamed.csv": "alpaca_eval/glm/df_gamed_surrogate.csv.gz",  # not the official file, which could not be had
    "arena_hard_question.jsonl": "arena_hard/question.jsonl.gz",
    "gpt-4-0314.jsonl": "arena_hard/model_answer/gpt-4-0314.jsonl.gz",
    "judge_config.yaml": "arena_hard/judge/judge_config.yaml",
    "mt_bench_question.jsonl": "mt_bench/question.jsonl",
    "judge_prompts.jsonl": "mt_bench/judge_prompts.jsonl",
    "gpt-4-1106-preview.jsonl": "mt_bench/reference_answer/gpt-4-1106-preview.jsonl",
}
published = needed()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    for name, path in MIRRORED.items():
        data = (REFERENCE / path).read_bytes()
        (folder / name).write_bytes(gzip.decompress(data) if path.endswith(".gz") else data)
    return folder


def fetch(plan: Plan, benchmark: str, folder: Path, mirror: Path) -> subprocess.CompletedProcess[str]:
    """The stage's own command on the stage configuration that the paper's scale has for it."""
    folder.mkdir(exist_ok=True)
    _, values = plan.composed("assets", benchmark=benchmark)
    (folder / "config.yaml").write_text(yaml.dump({"stage": "assets", **values}, sort_keys=False))
    command = [sys.executable, "-m", "stages.assets", "--config", str(folder / "config.yaml")]
    return subprocess.run(command, env=os.environ | {"ASSETS_DIR": str(mirror)}, capture_output=True, text=True, check=False)


@published
@pytest.mark.slow
def test_the_papers_files_come_from_a_mirror_and_a_stand_in_is_refused_with_both_hashes(tmp_path: Path, mirror: Path) -> None:
    plan = Plan("paper")
    assert set(MIRRORED) | {"alpaca_eval_clf.txt"} == {name for b in plan.benchmarks for name in plan.base.benchmarks[b].assets}
    for benchmark in ("arena_hard", "mt_bench"):
        done = fetch(plan, benchmark, tmp_path / benchmark, mirror)
        assert done.returncode == 0, done.stderr
        manifest = files.read_manifest(tmp_path / benchmark)
        pinned = {name: asset.sha256 for name, asset in plan.base.benchmarks[benchmark].assets.items()}
        assert {name: made["sha256"] for name, made in manifest["outputs"].items()} == pinned
        assert manifest["licences"].keys() == pinned.keys()

    done = fetch(plan, "alpacaeval2", tmp_path / "alpacaeval2", mirror)
    assert done.returncode == 1
    official = OmegaConf.to_container(plan.base.benchmarks.alpacaeval2.assets["df_gamed.csv"])["sha256"]
    assert f"asset df_gamed.csv from {mirror / 'df_gamed.csv'} has sha256 {files.sha256(mirror / 'df_gamed.csv')}" in done.stderr
    assert official in done.stderr and "Traceback" not in done.stderr
    assert files.sha256(tmp_path / "alpacaeval2/gpt4_1106_preview.json") == files.sha256(mirror / "gpt4_1106_preview.json")
    assert not (tmp_path / "alpacaeval2/df_gamed.csv").exists() and not (tmp_path / "alpacaeval2/manifest.json").exists()
