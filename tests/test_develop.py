"""stages/develop.py by its command: random models of the mini world's tokenizer as trials, vLLM, and the mini world's judge."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import tiny
import yaml
from omegaconf import OmegaConf

from stages import assets, develop
from stages.lib import files, models
from stages.lib.errors import UserError
from stages.mini.world import make_world
from stages.plan import Plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CONFIG = Path("results/smoke/tuning/simpo/config.yaml")
RUNS = ["simpo", "simpo+learning_rate=0.0001", "simpo+learning_rate=0.0003"]
N = 20  # the world's development questions


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world, three trials' models, and the configuration that planning writes for smoke's, with a third trial."""
    folder = tmp_path_factory.mktemp("before")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = Plan("smoke")
        world, published = Path("results/worlds/smoke"), Path("results/assets/alpacaeval2/alpaca_eval_clf.txt")
        small = {"corpus": {"questions": 20, "portraits": 1}, "preferences": {"n": 10}}
        make_world(OmegaConf.merge(plan.base.world, small), world)
        files.write_manifest(world, OmegaConf.create({"stage": "world"}))
        published.parent.mkdir(parents=True)
        assets.fetch(published.name, plan.base.benchmarks.alpacaeval2.assets[published.name], published)
        tokenizer = models.load_tokenizer(str(world / "tokenizer"))
        for seed, run in enumerate(RUNS):
            shape = {"hidden_size": 64, "num_attention_heads": 2, "vocab_size": len(tokenizer)}  # vLLM knows no narrower heads on a CPU
            model = tiny.llama(seed, **shape, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)
            make_trial(run, model, tokenizer)
        path = Path(plan.stage_config("develop", setting="smoke", method="simpo"))
        assert path == CONFIG
        config = yaml.safe_load(path.read_text())
        assert list(config["trials"]) == RUNS[:2]
        config["trials"][RUNS[2]] = f"results/smoke/runs/{RUNS[2]}/model"
        config["benchmarks"]["development"]["max_tokens"] = 24
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def make_trial(run: str, model: Any, tokenizer: Any) -> None:
    folder = Path(f"results/smoke/runs/{run}")
    models.save_model(folder, model, tokenizer)
    files.write_manifest(folder, OmegaConf.create({"stage": "train"}))


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "stages.develop", "--config", str(CONFIG), *words]
    return subprocess.Popen(arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder: Path) -> str:
    said, errors = (process := command(folder)).communicate()
    assert process.returncode == 0, errors[-3000:]
    return said


@pytest.fixture(scope="module")
def done(before: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done") / "tree"
    shutil.copytree(before, folder)
    said = run(folder)
    assert [line for line in said.splitlines() if "trial" in line] == [
        f"develop: smoke {name}, trial {number} of 3, {N} questions" for number, name in enumerate(RUNS, start=1)
    ]
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """The bytes of development.json and of all that the trials' folders hold."""
    tuning = (folder / CONFIG).parent
    return {str(path.relative_to(tuning)): path.read_bytes() for path in [tuning / "development.json", *tuning.glob("simpo*/*")]}


def test_every_trial_is_answered_and_judged(done: Path) -> None:
    """main(): a row a trial, its win rate and standard error by hand from the annotations, which are AlpacaEval's own."""
    tuning = (done / CONFIG).parent
    table = files.read_json(tuning / "development.json")
    assert [row["run"] for row in table] == RUNS
    instructions = [row["instruction"] for row in files.read_json(done / "results/worlds/smoke/development/baseline.json")]
    for row in table:
        annotations = files.read_json(tuning / row["run"] / "annotations.json")
        assert [one["instruction"] for one in annotations] == instructions
        assert {one["generator_2"] for one in annotations} == {row["run"]} and {one["judge"] for one in annotations} == {"mini-judge"}
        wins = [100 * (one["preference"] - 1) for one in annotations]
        assert (row["n_total"], row["n_failed"]) == (N, 0)
        assert row["win_rate"] == pytest.approx(fmean(wins))
        assert row["standard_error"] == pytest.approx(stdev(wins) / N**0.5)
    manifest = files.read_manifest(tuning)
    assert {f"{name}/{made}" for name in RUNS for made in ("model_outputs.json", "annotations.json")} < manifest["outputs"].keys()
    assert {f"results/smoke/runs/{name}/manifest.json" for name in RUNS} < manifest["inputs"].keys()


@pytest.mark.parametrize("number", [1, 2])
def test_a_swapped_model_answers_as_in_an_engine_of_its_own(before: Path, done: Path, tmp_path: Path, number: int) -> None:
    """engine.swap_model: neither weights nor the prefix cache of the model before it are left."""
    folder = tmp_path / "tree"
    shutil.copytree(before, folder)
    config = yaml.safe_load((folder / CONFIG).read_text())
    config["trials"] = {RUNS[number]: config["trials"][RUNS[number]]}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    run(folder)
    alone, together = results(folder), results(done)
    name = f"{RUNS[number]}/model_outputs.json"
    assert alone[name] == together[name]
    assert len({made for path, made in together.items() if path.endswith("model_outputs.json")}) == 3


def test_a_killed_job_goes_on_with_the_trials_that_are_not_finished(before: Path, done: Path, tmp_path: Path) -> None:
    """main(): SIGKILL after the first trial's answers, which the second attempt leaves alone; then the bytes of an undisturbed one."""
    folder = tmp_path / "tree"
    shutil.copytree(before, folder)
    first = (folder / CONFIG).parent / RUNS[0] / "model_outputs.json"
    with command(folder) as process:
        while not first.is_file():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not (first.parents[1] / "manifest.json").exists()
    made = first.stat().st_mtime_ns
    said = run(folder)
    assert "trial 1 of 3" not in said and first.stat().st_mtime_ns == made
    assert results(folder) == results(done)


@pytest.fixture
def tree(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished folder, in which the test is."""
    shutil.copytree(done, tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    return tmp_path / "tree"


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """main() in this process, without an engine."""
    monkeypatch.setattr(sys, "argv", ["develop", "--config", str(CONFIG), *words])
    monkeypatch.setattr(develop, "start_engine", lambda *_: pytest.fail("the engine was started"))
    develop.main()


def test_a_trial_that_is_made_of_something_else_is_begun_anew_and_no_other(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """begin(): a model that was trained again, a trial that is no more, the judge's temperament."""
    finished = results(tree)
    call(monkeypatch)
    assert results(tree) == finished
    wanted: Any = yaml.safe_load(CONFIG.read_text())
    make_trial(RUNS[1], tiny.llama(7), tiny.tokenizer())
    develop.begin(CONFIG.parent, wanted)
    left = {path.parent.name for path in CONFIG.parent.glob("*/model_outputs.json")}
    assert left == {RUNS[0], RUNS[2]}
    del wanted["trials"][RUNS[2]]
    develop.begin(CONFIG.parent, wanted)
    assert not (CONFIG.parent / RUNS[2]).exists() and (CONFIG.parent / RUNS[0] / "annotations.json").is_file()
    wanted["judge"]["server"]["noise"] = 0.7
    develop.begin(CONFIG.parent, wanted)
    assert not list(CONFIG.parent.glob("*/annotations.json"))


def test_what_is_missing_or_empty_is_one_sentence_before_an_engine_starts(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """main(): a trial without its model, one whose model has changed, no development questions, an empty file of them."""
    model = Path(f"results/smoke/runs/{RUNS[1]}/model")
    with (model / "model.safetensors").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"model.safetensors has changed.*make it again with: snakemake .*--forcerun"):
        call(monkeypatch)
    shutil.rmtree(model)
    with pytest.raises(UserError, match=r"model results/smoke/runs/simpo\+learning_rate=0.0001/model does not exist; make it again with"):
        call(monkeypatch)
    questions = Path("results/worlds/smoke/development/baseline.json")
    for text, message in (("", "is empty"), ("[]", "holds no rows"), (None, "does not exist")):
        if text is None:
            questions.unlink()
        else:
            questions.write_text(text)
        with pytest.raises(UserError, match=rf"{questions} {message}; make it again with: snakemake .* results/worlds/smoke/manifest.json"):
            call(monkeypatch)


def test_judgments_that_all_failed_are_no_win_rate(tree: Path) -> None:
    """measure(): failed judgments are left out and counted; below two there is no standard error."""
    path = CONFIG.parent / RUNS[0] / "annotations.json"
    rows = files.read_json(path)
    for row in rows[2:]:
        row |= {"preference": None, "failure": "time-out"}
    files.write_json(path, rows)
    assert {key: develop.measure("a", path, "alpacaeval2")[key] for key in ("n_total", "n_failed")} == {"n_total": 2, "n_failed": N - 2}
    rows[0]["preference"] = None
    files.write_json(path, rows)
    with pytest.raises(UserError, match=rf"{path}: 1 of {N} judgments are left"):
        develop.measure("a", path, "alpacaeval2")


def test_the_estimate_counts_a_call_a_trial_and_question(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--estimate: also where a trial has no answers yet, or no model; it writes nothing."""
    shutil.rmtree(CONFIG.parent / RUNS[0])
    shutil.rmtree(f"results/smoke/runs/{RUNS[0]}")
    before = results(tree)
    call(monkeypatch, "--estimate")
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["total", str(3 * N)]
    assert results(tree) == before
