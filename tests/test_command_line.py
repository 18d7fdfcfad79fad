"""Values of the command line, of run names, of conf/ and of --runtime: what is of the wrong type stops before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from stages import reference
from stages import run as front_door
from stages.judging import session
from stages.lib import files
from stages.lib.errors import UserError
from stages.plan import Plan, check, compose, knobs, run_names, schema
from stages.plan.values import value_of

ROOT = Path(__file__).resolve().parents[1]
SIMPO = ["setting=mini_base", "method=simpo"]
NUMBER, WHOLE, BOOL, LOSS = "expected a number", "expected a whole number", "expected true or false", "expected sigmoid or hinge"
WRONG = [
    ("method.beta=null", NUMBER),
    ("method.beta=", NUMBER),
    ("method.beta=[1,2]", NUMBER),
    ("method.beta={a:1}", NUMBER),
    ("method.beta=abc", NUMBER),
    ("method.beta=true", NUMBER),
    ("method.beta=nan", NUMBER),
    ("method.beta=inf", NUMBER),
    ('method.beta="2.0"', NUMBER),
    ("method.beta=???", "no value"),
    ("method.beta=${nope}", "no value"),
    ("method.learning_rate=null", NUMBER),
    ("method.learning_rate=true", NUMBER),
    ("method.label_smoothing=false", NUMBER),
    ("method.length_normalization=1", BOOL),
    ("method.length_normalization=maybe", BOOL),
    ("method.length_normalization=null", BOOL),
    ("method.loss_type=3", LOSS),
    ("method.loss_type=true", LOSS),
    ("method.loss_type=", LOSS),
    ("method.epochs=1.5", WHOLE),
    ("method.epochs=1.0", WHOLE),
    ("method.batch_size=2.0", WHOLE),
    ("method.batch_size=many", WHOLE),
    ("seed=1.5", WHOLE),
    ("seed=42.0", WHOLE),
    ("seed=true", WHOLE),
    ("seed=", WHOLE),
    ("seed=[0,1]", WHOLE),
    ("seed=-1", "expected at least 0"),
]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return Plan()


@pytest.fixture(scope="module")
def planned() -> Plan:
    return Plan("mini")


# -- the front door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("override", "expected"), WRONG)
@pytest.mark.slow
def test_a_value_of_the_wrong_type_is_no_run(planned: Plan, override: str, expected: str) -> None:
    """stages.run: the sentence names key, value and type."""
    wanted, wrong = front_door.runs_of([[*SIMPO, override]], planned)
    assert not wanted
    key, _, _ = override.partition("=")
    (sentence,) = wrong
    said = sentence.removeprefix(f"error: {' '.join(SIMPO)} {override}: ")
    assert said != sentence and expected in said and (said.startswith(f"{key}=") or expected == "no value")


@pytest.mark.parametrize("text", ["0.1", ".1", "0.10", "1e-1", "10e-2"])
@pytest.mark.slow
def test_one_value_in_all_spellings_is_one_run(planned: Plan, text: str) -> None:
    wanted, wrong = front_door.runs_of([[*SIMPO, f"method.beta={text}"]], planned)
    assert (wanted, wrong) == ([("mini_base", "simpo+beta=0.1")], [])


@pytest.mark.parametrize(
    ("override", "run"),
    [
        ("method.beta=2", "simpo"),
        ("method.beta=2.0", "simpo"),
        ("method.gamma=1", "simpo+gamma=1"),
        ("method.gamma=1.0", "simpo+gamma=1"),
        ("method.label_smoothing=0", "simpo"),
        ("method.length_normalization=false", "simpo+length_normalization=false"),
        ("method.loss_type=hinge", "simpo+loss_type=hinge"),
        ("method.epochs=2", "simpo+epochs=2"),
        ("seed=0", "simpo+seed=0"),
    ],
)
@pytest.mark.slow
def test_a_whole_number_is_a_float_and_what_is_right_stays_right(planned: Plan, override: str, run: str) -> None:
    assert front_door.runs_of([[*SIMPO, override]], planned) == ([("mini_base", run)], [])


def made(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str, status: int = 0) -> list[str]:
    """What ``python -m stages.run`` in this process would have Snakemake make; its SystemExit goes through."""
    targets: list[str] = []

    def snakemake(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        targets.extend(word for word in command if word.startswith("results/"))
        return subprocess.CompletedProcess(command, status)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["stages.run", *arguments, "hydra.callbacks.snakemake.until=train"])
    monkeypatch.setattr(front_door.subprocess, "run", snakemake)
    try:
        front_door.main()
    except SystemExit as exit_:
        targets.append(f"exit: {exit_.code}")
    return targets


@pytest.mark.slow
def test_in_a_multirun_the_good_points_are_made_and_the_status_is_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the wrong point comes first, and where Hydra itself cannot read it."""
    targets = made(monkeypatch, tmp_path, "-m", *SIMPO, "method.beta=null,2.5,'${nope}',true")
    assert targets[:-1] == ["results/mini_base/runs/simpo+beta=2.5/manifest.json"]
    assert targets[-1].startswith("exit: error: ")
    for wrong in ("method.beta=null: expected a number", "'${nope}", "method.beta=true: expected a number"):
        assert wrong in targets[-1]


@pytest.mark.parametrize("arguments", [SIMPO, ["-m", *SIMPO, "method.beta=2,2.5"]])
@pytest.mark.slow
def test_a_bug_while_planning_ends_with_its_traceback_and_a_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Hydra turns an exception of a callback into a warning, and the status into 0."""

    def broken(*_: Any) -> None:
        raise TypeError("a bug of ours")

    monkeypatch.setattr(Plan, "run_name", broken)
    assert made(monkeypatch, tmp_path, *arguments) == ["exit: 1"]
    said = capsys.readouterr().err
    assert "Traceback" in said and "a bug of ours" in said


@pytest.mark.slow
def test_the_status_of_snakemake_is_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert made(monkeypatch, tmp_path, *SIMPO, status=7)[-1] == "exit: 7"
    monkeypatch.setenv("SNAKEMAKE_ARGS", "'")
    assert made(monkeypatch, tmp_path, *SIMPO) == ["exit: error: SNAKEMAKE_ARGS: No closing quotation"]


@pytest.mark.slow
def test_the_command_itself_ends_with_1(tmp_path: Path) -> None:
    """One real call, in a folder without results: nothing is planned, and no warning of Hydra's is in the way."""
    command = [sys.executable, "-m", "stages.run", *SIMPO, "method.beta=null"]
    environment = {**os.environ, "SNAKEMAKE_ARGS": "-n", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: setting=mini_base method=simpo method.beta=null: method.beta=null: expected a number"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *(
            (f"{key}={value}", "expected the name of a file in conf/")
            for key in ("method", "setting", "scale", "+sweep")
            for value in (5, "null")
        ),
        ("method=true", "expected the name of a file in conf/method"),
        ("method=simpo,5", "expected the name of a file in conf/method"),
        ("method.beta=interval(1,2)", "one by one"),
        ("method.beta=glob(*)", "one by one"),
    ],
)
def test_what_hydra_meets_with_a_traceback_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, override: str, message: str
) -> None:
    (said,) = made(monkeypatch, tmp_path, "-m", override)
    assert said.startswith(f"exit: error: {override}: ") and message in said


def test_what_hydra_reads_passes() -> None:
    front_door.check_overrides(
        ["-m", "--cfg", "job", "method=simpo,dpo", "setting=glob(*)", "method.beta=range(1,3)", "+sweep=mini/dpo", "~x"]
    )


# -- the other places where such values arrive ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("simpo+beta=abc", r"method.beta=abc: expected a number \(run simpo\+beta=abc of mini_base\)"),
        ("simpo+beta=true", "method.beta=true: expected a number"),
        ("simpo+seed=1.5", "seed=1.5: expected a whole number"),
        ("simpo+epochs=1.5", "method.epochs=1.5: expected a whole number"),
        ("simpo+length_normalization=1", "method.length_normalization=1: expected true or false"),
        ("simpo+loss_type=3", "method.loss_type=3: expected sigmoid or hinge"),
    ],
)
@pytest.mark.slow
def test_a_run_s_name_in_a_target_is_held_to_the_types(plan: Plan, run: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan.write([f"results/mini_base/runs/{run}/manifest.json"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.beta=abc", "method.beta=abc: expected a number"),
        ("method.beta=null", "method.beta=null: expected a number"),
        ("method.learning_rate=null", "method.learning_rate=null: expected a number"),
        ("method.epochs=2.0", "method.epochs=2.0: expected a whole number"),
        ("method.loss_type=1", "method.loss_type=1: expected sigmoid or hinge"),
        ("~method.batch_size", "lacks 'batch_size'"),
        ("setting.tuned.simpo.gamma=true", "setting.tuned.simpo.gamma=true: expected a number"),
        ("setting.tuned.dpo.beta=[0.1]", r"setting.tuned.dpo.beta=\[0.1\]: expected a number"),
        ("setting.training.weight_decay=nan", "setting.training.weight_decay=nan: expected a finite number"),
        ("setting.tuned.simpo.beta=${nope}", "nope"),
    ],
)
@pytest.mark.slow
def test_a_value_of_conf_is_held_to_the_types(override: str, message: str) -> None:
    """conf/method and the values that a setting has for its methods."""
    with pytest.raises(UserError, match=message):
        compose.compose_config(override)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": [1.5]}, r"scale.seeds.*1.5"),
        ({"seeds": [True]}, r"scale.seeds.*(True|true)"),
        ({"seeds": [0, -1]}, r"scale.seeds\[1\]=-1: expected at least 0"),
        ({"seeds": [None]}, r"scale.seeds"),
        ({"seeds": 42}, r"scale.seeds"),
        ({"seeds": []}, r"scale.seeds is empty"),
        ({"settings": []}, r"scale.settings is empty"),
        ({"sedes": [1]}, r"scale.sedes.*did you mean 'seeds'"),
    ],
)
@pytest.mark.slow
def test_the_seeds_of_a_scale_are_whole_numbers(monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str) -> None:
    compose_raw = compose.compose_raw

    def composed(*given: Any, **more: Any) -> Any:
        config = compose_raw(*given, **more)
        OmegaConf.set_struct(config, False)
        if "scale" in config:
            config.scale = OmegaConf.merge({key: value for key, value in config.scale.items() if key not in changed}, changed)
        return config

    monkeypatch.setattr(compose, "compose_raw", composed)
    with pytest.raises(UserError, match=message):
        Plan()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("{method: simpo, method.beta: 'null,2'}", "conf/sweep/mini/own.yaml, in mini_base: method.beta=null: expected a number"),
        ("{method: simpo, method.beta: [1, 2]}", r"conf/sweep/mini/own.yaml, in mini_base: method.beta=\[1,2\]: expected a number"),
        ("{method: simpo, seed: '0,1.5'}", "conf/sweep/mini/own.yaml, in mini_base: seed=1.5: expected a whole number"),
        ("{method: 3}", "conf/sweep/mini/own.yaml: hydra.sweeper.params.method=3: expected a word"),
        ("{method: simpo, method.beta: '???'}", "conf/sweep/mini/own.yaml: .*"),
    ],
)
@pytest.mark.slow
def test_a_sweep_of_conf_is_held_to_the_types(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: str, message: str
) -> None:
    files.write_text(tmp_path / "conf/sweep/mini/own.yaml", f"hydra:\n  sweeper:\n    params: {params}\n")
    plan.scale["sweeps"] = ["own"]
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    with pytest.raises(UserError, match=message):
        _ = plan.sweeps


@pytest.mark.parametrize("key", [8, True, 1.5])
def test_a_key_that_is_no_text_is_named(key: Any) -> None:
    with pytest.raises(UserError, match=rf"runtime.train.{key}: .*known are: gradient_checkpointing"):
        knobs.check_runtime({"train": {key: 1}})
    with pytest.raises(UserError, match=rf"method.{key}: objective 'dpo' has no such parameter; known are: batch_size"):
        check.validate_method(OmegaConf.create({"name": "dpo", "objective": "dpo", key: 1}))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: {~: 1}", "conf/: .*a key is null"), ("a: {~: {}}", "conf/: .*a key is null"), (f"a: {'9' * 5000}", "conf/: .*5000 digits")],
)
def test_what_yaml_cannot_hold_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    files.write_text(tmp_path / "config.yaml", text)
    monkeypatch.setattr(compose, "CONF", tmp_path)
    with pytest.raises(UserError, match=message):
        compose.compose_raw()


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_that_no_float_holds_is_none(digits: int) -> None:
    with pytest.raises(UserError, match="beta=9+: expected a finite number"):
        run_names.decode(f"simpo+beta={'9' * digits}")
    with pytest.raises(UserError, match="expected a finite number|is no value"):
        check.check_range("method.beta", value_of("9" * digits))


OBJECTIVES = """
def own(sums, *, beta: float, steps: int, kind: Literal["a", "b"], top: float | None, plain, listed: list[int]): ...
"""


def test_a_type_is_that_of_the_objective_s_annotation_and_else_of_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages/preference/objectives.py is read, not imported; an annotation counts before the value in conf/."""
    (tmp_path / "objectives.py").write_text(OBJECTIVES)
    monkeypatch.setattr(schema, "OBJECTIVES", tmp_path / "objectives.py")
    schema.objectives.cache_clear()
    try:
        shared = {"name": "own", "objective": "own", "learning_rate": 1e-4, "epochs": 1, "batch_size": 4}
        given = {"beta": 2, "steps": 3, "kind": "a", "top": None, "plain": 1, "listed": True}
        method = check.validate_method(OmegaConf.create(shared | given))
        for key, right, wrong, expected in (
            ("beta", 2.5, True, NUMBER),
            ("steps", 4, 2.5, WHOLE),
            ("kind", "b", "c", "kind=c: expected a or b"),
            ("top", 0.5, "x", "expected a number or null"),
            ("plain", 2, 2.5, WHOLE),
            ("listed", False, "x", BOOL),
        ):
            kind = check.kind_of(method, key)
            assert check.check_kind(key, right, kind) == right
            with pytest.raises(UserError, match=expected):
                check.check_kind(key, wrong, kind)
        with pytest.raises(UserError, match="method.plain=null: expected a number, a word, true or false"):
            check.validate_method(OmegaConf.create(shared | given | {"plain": None}))
    finally:
        schema.objectives.cache_clear()


# -- runtime knobs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+runtime.train.gradient_checkpoiting=1", "runtime.train.gradient_checkpoiting: .*did you mean 'gradient_checkpointing'"),
        ("+runtime.answer={batch:4}", "runtime.answer: .*known are: pretrain, sft, reward, reference, loglik, train, judge, efficiency"),
        ("+runtime.generate={}", "runtime.generate: .*known are: pretrain,"),
        ("+runtime.trian={token_budget:4}", "runtime.trian: .*did you mean 'train'"),
        ("runtime.train.token_budget=0", "runtime.train.token_budget=0: expected a whole number, at least 1"),
        ("runtime.train.token_budget=1e3", "runtime.train.token_budget=1000.0: expected a whole number"),
        ("runtime.train.token_budget=null", "runtime.train.token_budget=null: expected a whole number"),
        ("+runtime.train.processes=0", "runtime.train.processes=0: expected a whole number, at least 1"),
        ("+runtime.train.gradient_checkpointing=2", "gradient_checkpointing=2: expected a whole number, at least 0 and at most 1"),
        ("runtime.sft.micro_batch=true", "runtime.sft.micro_batch=true: expected a whole number"),
        ("runtime.sft.save_steps=0", "runtime.sft.save_steps=0: expected a whole number, at least 1"),
        ("runtime.judge.timeout=0", "runtime.judge.timeout=0: expected a number, at least 0.001"),
        ("runtime.judge.rpm=-1", "runtime.judge.rpm=-1: expected a whole number, at least 0"),
        ("+runtime.efficiency.batch=6", "runtime.efficiency.batch=6: expected a whole number, at least 4 and a multiple of 4"),
        ("~runtime.reference.token_budget", "runtime.reference.token_budget=… is missing"),
        ("runtime.train=4", "runtime.train=4: expected keys with values"),
        ("runtime=null", "runtime=null: expected keys with values"),
    ],
)
@pytest.mark.slow
def test_a_wrong_runtime_knob_of_conf_stops_the_planning(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose.compose_config(override)


@pytest.mark.slow
def test_a_scale_without_the_knobs_of_a_stage_that_it_has_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan.write; a stage that the scale does not have needs none: paper has no pretrain and no reward."""
    compose_raw = compose.compose_raw

    def composed(name: str = "config", overrides: Any = ()) -> Any:
        return compose_raw(name, [*overrides, "~runtime.sft"] if name == "config" else overrides)

    monkeypatch.setattr(compose, "compose_raw", composed)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runtime.sft is missing in conf/scale/mini.yaml: it must give micro_batch"):
        Plan().write([])


@pytest.mark.slow
def test_the_knobs_of_the_shipped_scales_are_passed_on_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mini, smoke, paper = Plan("mini"), Plan("smoke"), Plan("paper")
    assert mini.knobs["train"] == "--runtime token_budget=1024 save_steps=10"
    assert mini.knobs["judge"] == "--runtime concurrency=16 timeout=60 max_retries=5 rpm=0"
    assert mini.knobs["answer"] == "--runtime "
    assert (mini.efficiency, smoke.efficiency, paper.efficiency) == ("--steps 2", "--steps 1 --rounds 1 --batch 4", "")
    assert paper.knobs["train"] == "--runtime token_budget=8192 gradient_checkpointing=1 processes=1 save_steps=50"
    assert paper.knobs["pretrain"] == "--runtime "


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        ("reference", [], "--runtime token_budget=… is missing: expected a whole number, at least 1"),
        ("reference", ["token_budgt=5"], "--runtime token_budgt: .*did you mean 'token_budget'"),
        ("reference", ["token_budget=5", "save_steps=2"], "--runtime save_steps: reference has no such runtime knob"),
        ("sft", ["save_steps=3"], "--runtime micro_batch=… is missing"),
        ("train", ["token_budget=many"], "--runtime token_budget=many: expected a whole number"),
        ("train", ["token_budget=9", "save_steps="], "--runtime save_steps=null: expected a whole number"),
        ("train", ["token_budget=${x}"], "no value"),
        ("train", ["token_budget"], "--runtime token_budget: expected KEY=VALUE"),
        ("judge", ["concurency=2"], "--runtime concurency: .*did you mean 'concurrency'"),
        ("controls", ["budget=-1"], "--runtime budget=-1: expected a number, at least 0"),
        ("pairs", ["token_budget=5"], "--runtime token_budget: pairs has no such runtime knob; it has none"),
    ],
)
def test_a_stage_s_own_command_line_is_held_to_its_knobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, given: list[str], message: str
) -> None:
    files.write_text(tmp_path / "config.yaml", f"stage: {stage}\nversion: 1\n")
    monkeypatch.setattr(sys, "argv", [stage, "--config", str(tmp_path / "config.yaml"), "--runtime", *given])
    with pytest.raises(UserError, match=message):
        files.stage_config(None)


def test_right_knobs_come_back_as_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_text(tmp_path / "config.yaml", "stage: judge\nversion: 1\n")
    monkeypatch.setattr(sys, "argv", ["judge", "--config", str(tmp_path / "config.yaml"), "--runtime", "timeout=0.5", "budget=2"])
    config, _ = files.stage_config(None)
    assert config.runtime == {"timeout": 0.5, "budget": 2}
    monkeypatch.setattr(sys, "argv", ["judge", "--config", str(tmp_path / "config.yaml")])
    assert files.stage_config(None)[0].runtime == {}


def test_a_stage_by_hand_says_what_it_lacks(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.reference on its planned configuration, before it looks for a model."""
    monkeypatch.setattr(sys, "argv", ["reference", "--config", plan.stage_config("reference", setting="mini_base")])
    with pytest.raises(UserError, match="--runtime token_budget=… is missing"):
        reference.main()


def test_a_judge_s_slice_without_its_stage_is_held_to_the_knobs_too() -> None:
    """stages/judging/session.py: before a call is paid for."""
    config = OmegaConf.create({"judge": {}, "benchmarks": {}, "runtime": {"max_retrys": 2}})
    with pytest.raises(UserError, match="--runtime max_retrys: .*did you mean 'max_retries'"):
        session.read_stage_config(config)
