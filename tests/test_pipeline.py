"""The whole path, for real, at a small size: `snakemake results/table4.csv` in a copy of the tree, with vLLM, TRL and the local judge."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from stages import files, models
from stages.engine import seed_of, start_engine

ROOT = Path(__file__).parent.parent
TABLE = "results/table4.csv"
SCALE = ("--config", "scale=smoke")


def snakemake(tree: Path, *arguments: str, cores: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), *arguments]
    done = subprocess.run(command, cwd=tree, env=os.environ | environment, capture_output=True, text=True, check=False)
    done.stdout += done.stderr
    return done


def scheduled(tree: Path) -> set[str]:
    """The outputs that the table's dry-run would make, as the last parts of their paths."""
    done = snakemake(tree, "-n", TABLE, *SCALE)
    assert done.returncode == 0, done.stdout
    return {path.strip() for line in re.findall(r"^ +output: (.*)$", done.stdout, re.MULTILINE) for path in line.split(",")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would take, in which the smoke scale's table has been made."""
    tree = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    done = snakemake(tree, TABLE, *SCALE)
    assert done.returncode == 0, done.stdout[-5000:]
    return tree


def test_the_table_has_a_row_a_method_and_no_empty_cell(tree: Path) -> None:
    table = pd.read_csv(tree / TABLE)
    assert list(table["method"]) == ["sft", "dpo", "simpo"]
    assert set(table["setting"]) == {"smoke"}
    assert table.notna().all(axis=None)
    assert (table["judged"] + table["failed"] == 60).all()
    assert table["win_rate"].between(0, 100).all()
    assert table["oracle"].between(0, 10).all()
    assert (table["lc_standard_error"] > 0).all()


def test_a_finished_table_leaves_nothing_to_do(tree: Path) -> None:
    assert scheduled(tree) == set()
    assert "Nothing to be done" in snakemake(tree, TABLE, *SCALE).stdout


def test_models_moved_and_every_output_stands_in_a_manifest(tree: Path) -> None:
    weights = [
        files.sha256(tree / f"results/smoke/{folder}/model/model.safetensors") for folder in ("pretrain", "sft", "runs/dpo", "runs/simpo")
    ]
    assert len(set(weights)) == 4
    for path in (tree / "results").rglob("manifest.json"):
        manifest = files.read_manifest(path.parent)
        for name, made in manifest["outputs"].items():
            assert files.sha256(path.parent / name) == made["sha256"]


def test_a_comment_schedules_nothing_and_a_learning_rate_its_own_run_alone(tree: Path) -> None:
    setting = tree / "conf/setting/mini_base.yaml"
    original = setting.read_text()
    try:
        setting.write_text(original + "\n# a thought\n")
        assert scheduled(tree) == set()
        changed = re.sub(r"(  dpo:\n    learning_rate: )\S+", r"\g<1>3.0e-4", original)
        assert changed != original
        setting.write_text(changed)
        run = "results/smoke/runs/dpo"
        evaluation = {f"{run}/eval/{b}/{f}.json" for b in ("alpacaeval2", "oracle") for f in ("annotations", "scores")}
        assert scheduled(tree) == {f"{run}/manifest.json", f"{run}/eval/alpacaeval2/model_outputs.json", TABLE} | evaluation
    finally:
        setting.write_text(original)
    assert scheduled(tree) == set()


def test_one_core_gives_the_same_bytes(tree: Path) -> None:
    """A run made again from the same start, on one core and killed once in the middle, changes nothing in the table."""
    before = (tree / TABLE).read_bytes()
    manifest = files.read_manifest(tree / "results/smoke/runs/dpo")
    shutil.rmtree(tree / "results/smoke/runs/dpo")
    (tree / TABLE).unlink()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", TABLE, *SCALE]
    with subprocess.Popen(command, cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not (tree / "results/smoke/runs/dpo/stage.log").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(3)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tree / "results/smoke/runs/dpo/manifest.json").exists()
    assert snakemake(tree, "--unlock", TABLE, *SCALE).returncode == 0
    done = snakemake(tree, TABLE, *SCALE, cores=1)
    assert done.returncode == 0, done.stdout[-5000:]
    assert (tree / TABLE).read_bytes() == before
    assert (
        files.read_manifest(tree / "results/smoke/runs/dpo")["outputs"]["model/model.safetensors"]
        == manifest["outputs"]["model/model.safetensors"]
    )


def test_vllm_answers_as_transformers_does_and_a_question_s_seed_alone_decides(tree: Path) -> None:
    """stages/engine.py: greedy answers equal Transformers', sampled ones do not depend on order or company."""
    from transformers import AutoModelForCausalLM
    from vllm import SamplingParams

    folder = str(tree / "results/smoke/sft/model")
    tokenizer = models.load_tokenizer(folder)
    questions = [row["instruction"] for row in files.read_json(tree / "results/worlds/smoke/alpacaeval2/baseline.json")][:24]
    chats = [[{"role": "user", "content": question}] for question in questions]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] for chat in chats]
    engine = start_engine(OmegaConf.create({"model": folder, "revision": None}), 256)

    def answers(numbers: list[int], **sampling: float) -> list[list[int]]:
        wanted = [SamplingParams(max_tokens=40, seed=seed_of(questions[n], 0), **sampling) for n in numbers]
        outputs = engine.generate([{"prompt_token_ids": prompts[n]} for n in numbers], wanted, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt, answer in zip(prompts, answers(list(range(24)), temperature=0.0), strict=True):
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0].tolist()
        assert answer == whole[len(prompt) :]
    together = answers(list(range(24)), temperature=0.9, top_p=1.0)
    assert together != answers(list(range(24)), temperature=0.0)
    some = [17, 3, 8]
    assert answers(some, temperature=0.9, top_p=1.0) == [together[n] for n in some]


def test_a_failing_stage_names_the_file_and_the_next_command(tree: Path) -> None:
    answers = tree / "results/smoke/runs/simpo/eval/alpacaeval2/model_outputs.json"
    whole = answers.read_text()
    annotations = answers.with_name("annotations.json")
    kept = annotations.read_text()
    try:
        answers.write_text("[]")
        annotations.unlink()
        done = snakemake(tree, str(annotations.relative_to(tree)), *SCALE)
        assert done.returncode != 0
        name = answers.relative_to(tree)
        assert f"error: {name} holds no rows" in done.stdout  # the stage's own sentence; Snakemake names the file in any case
        assert "Traceback" not in done.stdout
    finally:
        answers.write_text(whole)
        annotations.write_text(kept)


def test_the_front_door_makes_a_multirun_in_one_workflow_and_then_nothing(tree: Path) -> None:
    command = [sys.executable, "-m", "stages.run", "-m", "scale=smoke", "setting=smoke", "method=simpo", "method.gamma=1,0.5"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert (tree / "results/smoke/runs/simpo+gamma=0.5/eval/oracle/scores.json").is_file()
    again = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert "Nothing to be done" in again.stdout + again.stderr
    wrong = subprocess.run([*command[:-1], "setting.sft.training.epochs=9"], cwd=tree, capture_output=True, text=True, check=False)
    assert wrong.returncode != 0
    assert "a run can vary method.* and seed" in wrong.stdout + wrong.stderr
