"""`alpaca_eval evaluate`, the package's own command line, against the mini judge: the annotations and scores are our stages' own."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from omegaconf import OmegaConf

from stages import assets, judge, score
from stages.lib import files
from stages.mini import calibrate, world
from stages.plan import Plan

pytestmark = pytest.mark.slow

REVISION = "2edc6fad8be6b14ea7230aabfd08188da6b8b814"
PARSED = {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False}
RATES = ("length_controlled_winrate", "lc_standard_error", "win_rate", "standard_error", "discrete_win_rate")
COUNTS = ("n_total", "n_wins", "n_wins_base", "n_draws")


def serve(config: Path) -> subprocess.Popen[str]:
    """The mini judge as a process; its first line says where it listens."""
    command = [sys.executable, "-u", "-m", "stages.mini.server", "--config", str(config)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def packages_own(eval_: Path, composed: Any, gamed: str, address: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Annotations and the leaderboard's row of the package's command line, offline: the judge is a folder of its ``annotators_config``, the
    baseline is given, and df_gamed.csv lies in a cache as the hub's client keeps one."""
    cache = eval_ / "hf/hub/datasets--tatsu-lab--alpaca_eval"
    files.write_text(cache / "refs/main", REVISION)
    files.write_text(cache / f"snapshots/{REVISION}/df_gamed.csv", Path(gamed).read_text())
    benchmark = composed.benchmarks.alpacaeval2
    asked = {key: benchmark.decoding[key] for key in ("max_tokens", "temperature", "logprobs", "top_logprobs")}
    annotator = {
        "prompt_template": str(Path(benchmark.template).absolute()),
        "fn_completions": "openai_completions",
        "completions_kwargs": {"model_name": composed.judge.model, **asked},
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": PARSED,
        "completion_key": "completions_all",
        "batch_size": 1,
    }
    files.write_text(eval_ / f"{composed.judge.name}/configs.yaml", OmegaConf.to_yaml({composed.judge.name: annotator}))
    files.write_text(eval_ / "openai.yaml", OmegaConf.to_yaml({"default": [{"api_key": "none", "base_url": address}]}))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str((eval_ / "hf").absolute()), "NO_PROXY": "127.0.0.1"}
    env = os.environ | offline | {"OPENAI_CLIENT_CONFIG_PATH": str((eval_ / "openai.yaml").absolute())}
    options = {
        "model_outputs": benchmark.answers,
        "reference_outputs": benchmark.baseline,
        "annotators_config": (eval_ / composed.judge.name).absolute(),
        "caching_path": None,
        "metric_kwargs": {"save_weights_dir": None},
        "output_path": eval_ / "out",
    }
    command = [Path(sys.executable).parent / "alpaca_eval", "evaluate", *(f"--{key}={value}" for key, value in options.items())]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = (eval_ / "out").rglob("annotations.json")
    with (made.parent / "leaderboard.csv").open() as file:
        (row,) = csv.DictReader(file)
    return files.read_json(made), row


def test_the_packages_command_line_gives_our_annotations_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.judge and stages.score, as planned, against `alpaca_eval evaluate` on the same sixty outputs and the same judge.

    Each preference is the same number, order and draws too; so are all rates, errors and counts.
    """

    def stage(module: Any, *words: str) -> None:
        monkeypatch.setattr("sys.argv", [module.__name__, *words])
        module.main()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the judge's server is a process of its own
    plan = Plan("smoke")
    stage(world, "--config", plan.stage_config("world", world="smoke"))
    stage(assets, "--config", plan.stage_config("assets", benchmark="alpacaeval2"))
    stage(calibrate, "--config", plan.stage_config("calibrate", world="smoke"))
    path = plan.stage_config("judge", setting="smoke", run="sft")
    composed = OmegaConf.load(path)
    composed.benchmarks = {"alpacaeval2": composed.benchmarks.alpacaeval2}
    files.write_text(path, OmegaConf.to_yaml(composed))
    benchmark, eval_ = composed.benchmarks.alpacaeval2, Path(path).parent
    rows = files.read_json("results/worlds/smoke/alpacaeval2/writers/gossip.json")
    for row, theirs in zip(rows[:3], files.read_json(benchmark.baseline), strict=False):
        row["output"] = theirs["output"]  # a draw that no judge is asked about
    files.write_json(benchmark.answers, rows)

    stage(judge, "--config", path)
    told = [f"--answers={benchmark.answers}", f"--judgments={benchmark.judgments}", f"--out={eval_}/scores.json"]
    stage(score, "--benchmark", "alpacaeval2", "--gamed", plan.base.benchmarks.alpacaeval2.gamed, *told)
    ours, scores = files.read_json(benchmark.judgments), files.read_json(eval_ / "scores.json")

    with serve(Path(path)) as server:
        assert server.stdin and server.stdout
        try:
            address = server.stdout.readline().removeprefix("listening on ").strip()
            theirs, row = packages_own(eval_, composed, plan.base.benchmarks.alpacaeval2.gamed, address)
        finally:
            server.stdin.close()

    keys = ("instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator", "preference")
    assert len(ours) == 60
    assert [tuple(row[key] for key in keys[:-1]) for row in ours] == [tuple(row[key] for key in keys[:-1]) for row in theirs]
    assert [row["preference"] for row in ours] == pytest.approx([row["preference"] for row in theirs], abs=1e-10)
    assert [row["preference"] for row in ours[:3]] == [1.5] * 3
    assert {key: scores[key] for key in RATES} == pytest.approx({key: float(row[key]) for key in RATES}, abs=1e-7)
    assert {key: scores[key] for key in COUNTS} == {key: float(row[key]) for key in COUNTS}
    assert int(scores["avg_length"]) == int(row["avg_length"])
    assert 1 < scores["length_controlled_winrate"] < 99 and scores["n_failed"] == 0
