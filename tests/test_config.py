"""conf/ and its bridge to Snakemake (stages/config.py): the schema, its errors, the slices, and what may vary between runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stages import config as bridge
from stages.config import CONF, ConfigError, Plan, compose_config

STAGES = ("world", "calibrate", "assets", "pretrain", "sft", "pairs", "reference", "train", "answer", "judge", "score", "tables")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return Plan()


def where(plan: Plan, run: str = "simpo") -> dict[str, str]:
    return {"world": plan.base.world.name, "benchmark": "alpacaeval2", "setting": plan.scale["settings"][0], "run": run}


@pytest.mark.parametrize("scale", ["mini", "smoke"])
def test_every_setting_and_method_of_every_scale_composes(scale: str) -> None:
    plan = Plan(scale)
    for setting, run in plan.runs():
        assert plan.run(setting, run).method.name == run


def test_every_number_in_conf_has_its_source() -> None:
    """A number's line, or the key above it that opens its block, ends with a comment; runtime knobs need none."""
    for path in sorted(CONF.rglob("*.yaml")):
        above: list[tuple[int, str]] = []
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            indent = len(line) - len(line.lstrip())
            above = [(i, key) for i, key in above if i < indent]
            if re.search(r":.*\b(?<!-)\d+(\.\d+)?(e-?\d+)?\b(?!\w)", re.sub(r"#.*|sha256:.*|\b(path|url|licence):.*|\$\{.*?\}", "", line)):
                sourced = any("#" in key or key.startswith("runtime") for _, key in [*above, (indent, line)])
                assert sourced, f"{path.relative_to(CONF)}:{number}: {line.strip()}"
            if re.match(r"\s*\w+:", line):
                above.append((indent, line.strip()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+method.bta=2"], "method.bta.*did you mean 'beta'"),
        (["method.beta=-1"], "method.beta=-1.*more than 0"),
        (["method.beta=0"], "method.beta=0"),
        (["method.gamma=-0.5"], "gamma=-0.5.*at least 0"),
        (["+setting.pairs.heldot=3"], "heldot.*did you mean 'heldout'"),
        (["setting.training.batch_size=many"], "setting.training.batch_size"),
        (["method=simmpo"], "simmpo"),
        (["+nonsense=1"], "nonsense"),
        (["~setting.pairs.heldout"], "heldout"),
        (["method.objective=simppo"], "simppo.*did you mean 'simpo'"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(*overrides)


def test_a_run_varies_its_method_and_seed_only(plan: Plan) -> None:
    assert plan.run_name("mini_base", "simpo", {"beta": 2.5}) == "simpo+beta=2.5"
    assert plan.run_name("mini_base", "simpo", {"seed": 1, "gamma": 0.3}) == "simpo+gamma=0.3+seed=1"
    default = plan.config("mini_base", "simpo").method
    assert plan.run_name("mini_base", "simpo", {"beta": default.beta, "gamma": float(default.gamma)}) == "simpo"
    for key in ("name", "objective", "bta", "temperature"):
        with pytest.raises(ConfigError, match=key):
            plan.run_name("mini_base", "simpo", {key: 1})
    with pytest.raises(ConfigError, match="seed|vary"):
        plan.run_name("mini_base", "sft", {"beta": 1})


def test_a_run_is_found_by_its_canonical_name_alone(plan: Plan) -> None:
    config = plan.run("mini_base", "simpo+beta=3+seed=7")
    assert (config.method.beta, config.seed) == (3, 7)
    with pytest.raises(ConfigError, match="is 'simpo'"):
        plan.run("mini_base", f"simpo+beta={plan.config('mini_base', 'simpo').method.beta:g}")
    with pytest.raises(ConfigError, match="beta=-1"):
        plan.run("mini_base", "simpo+beta=-1")
    with pytest.raises(ConfigError, match=r"mini_bsae.*did you mean 'mini_base'"):
        plan.run("mini_bsae", "simpo")


def test_a_slice_is_written_only_when_its_text_changes(plan: Plan) -> None:
    paths = [Path(plan.slice(stage, **where(plan))) for stage in STAGES]
    before = {path: path.stat().st_mtime_ns for path in paths}
    again = Plan()
    for stage in STAGES:
        again.slice(stage, **where(again))
    assert before == {path: path.stat().st_mtime_ns for path in paths}


def test_only_the_slices_that_a_value_reaches_change(plan: Plan) -> None:
    """DPO's learning rate: DPO's training and nothing else; the sampling temperature: the answers; another judge: the judgments."""

    def texts(*overrides: str) -> dict[tuple[str, str], str]:
        changed = Plan()
        compose = bridge.compose_config
        changed.base = compose(*overrides)
        for method in ("sft", "dpo", "simpo"):
            changed._configs["mini_base", method] = compose("setting=mini_base", f"method={method}", *overrides)
        keys = [(stage, run) for stage in STAGES for run in ("sft", "dpo", "simpo") if (stage, run) != ("train", "sft")]
        return {(stage, run): Path(changed.slice(stage, **where(changed, run))).read_text() for stage, run in keys}

    base = texts()
    for override, expected in {
        "setting.tuned.dpo.learning_rate=0.00033": {("train", "dpo")},
        "setting.decoding.alpacaeval2.temperature=0.33": {("answer", run) for run in ("sft", "dpo", "simpo")},
        "judge.model=another": {("judge", run) for run in ("sft", "dpo", "simpo")},
        "runtime.train.micro_batch=4": set(),
        "setting.sft.training.epochs=5": {("sft", run) for run in ("sft", "dpo", "simpo")},
    }.items():
        changed = texts(override)
        assert {key for key in base if changed[key] != base[key]} == expected, override


def test_what_a_slice_names_is_an_input(plan: Plan) -> None:
    made = {stage: plan.made(stage, **where(plan)) for stage in STAGES if stage != "tables"}
    assert made["sft"] == ["results/mini_base/pretrain/manifest.json", "results/worlds/mini/manifest.json"]
    assert made["train"] == ["results/mini_base/data/manifest.json", "results/mini_base/sft/manifest.json"]
    assert "results/mini_base/runs/simpo/manifest.json" in made["answer"]
    assert plan.made("train", **where(plan, "dpo")) == [*made["train"][:1], "results/mini_base/reference/manifest.json", *made["train"][1:]]
    assert plan.made("answer", **where(plan, "sft")) == ["results/mini_base/sft/manifest.json", "results/worlds/mini/manifest.json"]


def test_the_slice_of_a_training_holds_its_method_and_no_other_stage(plan: Plan) -> None:
    slice_ = OmegaConf.load(plan.slice("train", **where(plan, "dpo")))
    assert set(slice_.method.hyperparameters) == {"beta", "label_smoothing"}
    assert not {"judge", "decoding", "world", "runtime"} & set(slice_)
