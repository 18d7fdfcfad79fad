"""The whole path, for real, at a small size: `snakemake` in a copy of the tree, with vLLM, TRL and the local judge."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import chromium
import pandas as pd
import psutil
import pytest
import torch
from checkout import copy_to
from omegaconf import OmegaConf
from test_report_page import check_report

from analysis.inventory import FIGURES, TABLES
from stages.lib import files, models
from stages.lib.engine import seed_of, start_engine

pytestmark = pytest.mark.slow

TABLE = "results/table4.csv"
SCALE = ("--config", "scale=smoke")
CANARY = f"sk-canary-{uuid4().hex}"  # the judge's key, in the environment of every run here


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


@pytest.fixture(scope="module", autouse=True)
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", CANARY)
        yield


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would take, in which all that the smoke scale asks for has been made."""
    tree = copy_to(tmp_path_factory.mktemp("tree"))
    judge = tree / "conf/judge/mini.yaml"
    judge.write_text(judge.read_text().replace("api_key_env: null", "api_key_env: OPENAI_API_KEY"))  # sent to the local server
    done = snakemake(tree, *SCALE)
    assert done.returncode == 0, done.stdout[-5000:]
    return tree


def test_the_tables_have_a_row_a_method_and_no_empty_cell(tree: Path) -> None:
    for name, methods in (("table4", ["sft", "dpo", "simpo"]), ("table5", ["simpo", "simpo_no_ln"])):
        table = pd.read_csv(tree / f"results/{name}.csv")
        assert list(zip(table["setting"], table["method"], strict=True)) == [(s, m) for s in ("smoke", "smoke_on_policy") for m in methods]
        assert table["win_rate"].between(0, 100).all()
        assert table["arena_hard_win_rate"].between(0, 100).all()
        assert table["mt_bench"].between(1, 10).all()
        assert table["oracle"].between(0, 10).all()
        assert table["lc_standard_error"].notna().all()
    assert (tree / "results/figures/table4.png").read_bytes().startswith(b"\x89PNG")
    report = files.read_json(tree / "results/world_report.json")
    assert {row["setting"] for row in report} == {None, "smoke", "smoke_on_policy"}


def test_every_question_of_every_benchmark_is_answered_and_judged(tree: Path) -> None:
    """AlpacaEval 60 pairs, Arena-Hard 30 questions in two games, MT-Bench 8 of two turns: a verdict or a recorded failure each."""
    for run in (tree / "results").glob("smoke*/runs/*"):
        scores = {path.parent.name: files.read_json(path) for path in run.glob("eval/*/scores.json")}
        assert scores.keys() == {"alpacaeval2", "arena_hard", "mt_bench", "oracle"}
        totals = {name: scores[name]["n_total"] + scores[name]["n_failed"] for name in ("alpacaeval2", "arena_hard", "mt_bench")}
        assert totals == {"alpacaeval2": 60, "arena_hard": 60, "mt_bench": 16}
        assert scores["oracle"]["n"] == 60
        for row in files.read_rows(run / "eval/mt_bench/model_answer.jsonl"):
            assert len(row["choices"][0]["turns"]) == 2


def test_on_policy_pairs_are_the_start_model_s_own_answers(tree: Path) -> None:
    setting = tree / "results/smoke_on_policy"
    own = {(row["prompt_id"], row["response"]) for row in files.read_rows(setting / "generate/generations.jsonl")}
    for split in ("train", "heldout"):
        for pair in files.read_rows(setting / f"data/{split}.jsonl"):
            assert {(pair["prompt_id"], pair[side][0]["content"]) for side in ("chosen", "rejected")} <= own
            assert pair["score_chosen"] > pair["score_rejected"]
    counts = files.read_manifest(setting / "data")["pairs"]
    assert counts["read"] == 160
    assert counts["read"] == sum(count for key, count in counts.items() if key != "read")


def test_a_finished_table_leaves_nothing_to_do(tree: Path) -> None:
    assert "Nothing to be done" in snakemake(tree, TABLE, *SCALE).stdout


def test_models_moved_and_every_output_stands_in_a_manifest(tree: Path) -> None:
    weights = [files.sha256(path) for path in (tree / "results").rglob("model/model.safetensors")]
    assert len(set(weights)) == len(weights) == 1 + 2 + 1 + 2 * 3  # pretrained, SFT, reward model, DPO and SimPO with and without LN
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
        run = "results/smoke/runs/dpo"  # smoke_on_policy has a learning rate of its own
        made = ["manifest.json", *(f"eval/{b}/scores.json" for b in ("alpacaeval2", "arena_hard", "mt_bench", "oracle"))]
        made += [f"eval/alpacaeval2/{file}.json" for file in ("model_outputs", "annotations")] + ["eval/oracle/annotations.json"]
        made += [f"eval/{b}/model_{file}.jsonl" for b in ("arena_hard", "mt_bench") for file in ("answer", "judgment")]
        table = {TABLE, *(TABLE.replace("csv", kind) for kind in ("txt", "html"))}
        assert scheduled(tree) == {f"{run}/{file}" for file in made} | table
    finally:
        setting.write_text(original)
    assert scheduled(tree) == set()


def test_snakemake_killed_leaves_one_writer_and_then_the_same_bytes_on_one_core(tree: Path) -> None:
    """A kill of snakemake alone leaves its training at work: a second writer is refused by name; when the first has ended, the same command
    makes the same table."""
    run = tree / "results/smoke/runs/dpo"
    before = (tree / TABLE).read_bytes()
    manifest = files.read_manifest(run)
    shutil.rmtree(run)
    (tree / TABLE).unlink()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", TABLE, *SCALE]
    with subprocess.Popen(command, cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (run / ".config.lock").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.kill()
    writer = psutil.Process(int((run / ".config.lock").read_text().split()[0]))
    writer.suspend()  # so that it is still at work
    assert not (run / "manifest.json").exists()
    assert snakemake(tree, "--unlock", TABLE, *SCALE).returncode == 0
    done = snakemake(tree, TABLE, *SCALE, cores=1)
    assert done.returncode != 0
    assert f"process {writer.pid} " in done.stdout and "is at work on results/smoke/runs/dpo/config.yaml" in done.stdout, done.stdout[
        -3000:
    ]
    writer.resume()
    writer.wait(120)
    done = snakemake(tree, TABLE, *SCALE, cores=1)
    assert done.returncode == 0, done.stdout[-5000:]
    assert (tree / TABLE).read_bytes() == before
    assert files.read_manifest(run)["outputs"]["model/model.safetensors"] == manifest["outputs"]["model/model.safetensors"]


def test_vllm_answers_as_transformers_does_and_a_question_s_seed_alone_decides(tree: Path) -> None:
    """stages/lib/engine.py: greedy answers equal Transformers', sampled ones do not depend on order or company."""
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


def test_a_multirun_is_one_workflow_whose_failing_points_leave_the_others_done(tree: Path) -> None:
    """stages.run: four points, of which two are no runs (beta = -1) and one fails in training (the hinge loss knows no smoothing)."""

    def run(*points: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "stages.run", "-m", "scale=smoke", "setting=smoke", "method=simpo", "method.loss_type=hinge"]
        done = subprocess.run([*command, *points], cwd=tree, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    status, said = run("method.label_smoothing=0,0.1", "method.beta=2,-1")
    assert status != 0
    assert said.count("method.beta=-1: expected more than 0") == 2
    assert "method.label_smoothing=0.1: the hinge loss knows none" in said
    assert (tree / "results/smoke/runs/simpo+loss_type=hinge/eval/oracle/scores.json").is_file(), said[-5000:]
    assert not (tree / "results/smoke/runs/simpo+label_smoothing=0.1+loss_type=hinge/manifest.json").exists()
    status, said = run("method.label_smoothing=0")
    assert status == 0
    assert "Nothing to be done" in said
    status, said = run("setting.sft.training.epochs=9")
    assert status != 0
    assert "a run can vary method.* and seed" in said


def test_the_trials_of_a_sweep_are_judged_and_make_their_table_and_the_front_door_finds_them_made(tree: Path) -> None:
    """Snakefile's rules develop and tuning; stages.run with the same sweep. No trial is asked a benchmark's questions."""
    done = snakemake(tree, "results/tuning.csv", *SCALE)
    assert done.returncode == 0, done.stdout[-5000:]
    table = pd.read_csv(tree / "results/tuning.csv")
    assert table["setting"].tolist() == ["smoke", "smoke", "smoke_on_policy", "smoke_on_policy"]
    assert table["accuracy"].between(0, 1).all() and (table["heldout_pairs"] > 1).all()
    assert table["win_rate"].between(0, 100).all() and (table["n_total"] + table["n_failed"] == 20).all()
    assert table.groupby("setting")["chosen"].sum().tolist() == [1, 1]
    assert table["edge"].isna().all()  # two learning rates are two edges
    for row in table.itertuples():
        folder = tree / f"results/{row.setting}/tuning/simpo/{row.run}"
        assert {path.name for path in folder.iterdir()} == {"identity.json", "model_outputs.json", "annotations.json"}
        # The trial with the setting's own values is the table's run, which is evaluated; no other is.
        assert (tree / f"results/{row.setting}/runs/{row.run}/eval").exists() == (row.run == "simpo")
    command = [sys.executable, "-m", "stages.run", "+sweep=smoke/simpo", "setting=smoke,smoke_on_policy"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def paper(tree: Path) -> Path:
    """The tree with every table and figure."""
    done = snakemake(tree, "paper", *SCALE)
    assert done.returncode == 0, done.stdout[-5000:]
    return tree


def test_every_table_and_figure_is_made_with_its_numbers_and_caption(paper: Path) -> None:
    results = paper / "results"
    for name in TABLES:
        assert len(pd.read_csv(results / f"{name}.csv")) > 0, name
        assert (results / f"{name}.txt").read_text().strip(), name
    for name in FIGURES:
        assert (results / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG"), name
        assert (results / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF"), name
        assert len(pd.read_csv(results / f"figures/{name}.csv")) > 0, name
        assert "smoke" in (results / f"figures/{name}.txt").read_text(), name
    card = pd.read_csv(results / "scorecard.csv")
    assert set(card["verdict"]) <= {"reproduced", "contradicted", "undecided", "not measured"}
    assert card.loc[card["verdict"] == "not measured", "reason"].str.len().gt(0).all()
    assert "Nothing to be done" in snakemake(paper, "paper", *SCALE).stdout


@chromium.needed
def test_the_report_opens_offline_with_all_of_it(paper: Path) -> None:
    """snakemake --report, on results that were really made."""
    check_report(paper, *(f"results/{name}.csv" for name in TABLES), *(f"results/figures/{name}.png" for name in FIGURES))


def test_the_judge_s_key_is_in_no_file(paper: Path) -> None:
    """results/, logs, the report, Snakemake's own notes; each judgment was asked for with the key in its request's header."""
    assert "api_key_env: OPENAI_API_KEY" in (paper / "results/smoke/runs/sft/eval/judge.yaml").read_text()
    files_of_run = [path for path in paper.rglob("*") if path.is_file()]
    assert any(".snakemake" in path.parts for path in files_of_run)
    assert not [path for path in files_of_run if CANARY.encode() in path.read_bytes()]
