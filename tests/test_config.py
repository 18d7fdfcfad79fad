"""conf/ and its bridge to Snakemake (stages/plan): the schema, its errors, the stage configurations, and what may vary between runs."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import MISSING, OmegaConf

from stages.lib.errors import UserError
from stages.plan import Plan, check, compose, planning, targets
from stages.plan.compose import CONF, compose_config
from stages.plan.stage_configs import MADE_HERE

Node = tuple[str, dict[str, str]]
SETTINGS = ("mini_base", "mini_instruct")
METHODS_LIKE_SIMPO = ("dpo", "simpo", "simpo_no_ln", "simpo_no_margin")

SETTING_STAGES = ("sft", "generate", "reward", "annotate", "pairs", "reference")
RUN_STAGES = ("train", "answer", "judge", "loglik")


@pytest.fixture(scope="module")
def planned() -> Plan:
    return Plan()


@pytest.fixture
def plan(planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The default scale's, for a test that changes no value of it; what it writes lies in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return planned


def nodes(plan: Plan) -> list[Node]:
    """Every stage of the scale with its wildcards."""
    found: list[Node] = [("world", {"world": plan.base.world.name}), ("calibrate", {"world": plan.base.world.name})]
    found += [("assets", {"benchmark": name}) for name in plan.benchmarks if plan.base.benchmarks[name].assets]
    found.append(("pretrain", {"setting": "mini_base"}))
    for setting in plan.scale["settings"]:
        for stage in SETTING_STAGES:
            if stage not in MADE_HERE or plan.setting(setting).setting[stage] is not None:
                found.append((stage, {"setting": setting}))
    for setting, run in targets.runs(plan):
        found += [(stage, {"setting": setting, "run": run}) for stage in RUN_STAGES if (stage, run) != ("train", "sft")]
        found.append(("score", {"setting": setting, "run": run}))
    return [*found, ("controls", {"judge": plan.base.judge.name})]


@dataclass
class Inner:
    flag: bool = MISSING
    few: list[int] = field(default_factory=list)


@dataclass
class Outer:
    """Every type that the schema has."""

    whole: int = 1
    number: float = 1.5
    word: str = "a"
    maybe: float | None = None
    what: Any = None
    named: dict[str, float] = field(default_factory=dict)
    loose: dict[str, dict[str, Any]] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    perhaps: Inner | None = None
    parts: dict[str, Inner] = field(default_factory=dict)


def test_what_the_schema_takes_as_it_is_is_what_omegaconf_makes_of_it() -> None:
    """stages.plan.check: what _fitted reads without OmegaConf, of right and of wrong types, against OmegaConf; it is sure of most of it."""
    simple: list[Any] = [
        None,
        True,
        0,
        7,
        2**60,
        10**400,
        2.0,
        1e-7,
        math.inf,
        "",
        "a",
        "7",
        "1e3",
        "true",
        "null",
        "???",
        "${whole}",
        "a${b}",
    ]
    inner: list[Any] = [{}, {"flag": True}, {"flag": 1}, {"flag": True, "few": [1, 2]}, {"flag": True, "few": ["x"]}, {"flga": True}]
    nested = [
        [],
        [1],
        ["a", None],
        {"a": 1},
        {1: 2},
        {"a": None},
        {"a": {"b": 1}},
        {"a": {"b": [1, {"c": "x"}]}},
        *({"a": each} for each in inner),
    ]
    fitted = 0
    for key in (*(each.name for each in fields(Outer)), "wrod"):
        for value in [*simple, *nested, *inner]:
            try:
                found = check._fitted(Outer, {"inner": {"flag": False}} | {key: value})
            except check._NoFit:
                continue
            made = OmegaConf.merge(OmegaConf.structured(Outer), {"inner": {"flag": False}} | {key: value})
            assert repr(found) == repr(OmegaConf.to_container(made, resolve=True, throw_on_missing=True)), (key, value)
            fitted += 1
    assert fitted > 60


def trial_nodes(plan: Plan) -> list[Node]:
    """The stages that results/tuning.csv needs besides: the trials, trained and judged."""
    found: list[Node] = [("train", {"setting": trial.setting, "run": trial.run}) for trial in plan.trials]
    return found + [("develop", {"setting": setting, "method": method}) for setting, method in targets.tuned(plan)]


@pytest.mark.parametrize("judge", sorted(path.stem for path in (CONF / "judge").glob("*.yaml")))
@pytest.mark.slow
def test_every_judge_composes(judge: str) -> None:
    """conf/judge: each file has the schema's keys, and either an endpoint or a server of its own."""
    config = compose_config("scale=mini", f"judge={judge}").judge
    assert bool(config.base_url) != bool(config.server)


@pytest.mark.parametrize("scale", ["mini", "smoke", "paper"])
@pytest.mark.slow
def test_every_setting_and_method_of_every_scale_composes(scale: str) -> None:
    plan = Plan(scale)
    for setting, run in targets.runs(plan):
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
        (["setting=mini_instruct", "setting.annotate.rater=null"], "setting.annotate: nobody scores .*give setting.annotate.model or"),
        (
            ["setting=mini_instruct", "+setting.annotate.model=a/b"],
            "setting.annotate: model a/b and a rater; set .*rater or .*model to null",
        ),
        (["setting=smoke_on_policy", "setting.annotate.max_length=null"], "setting.annotate.max_length: reward models need it"),
        (["setting=smoke_on_policy", "setting.annotate.max_length=0"], "setting.annotate.max_length=0: expected more than 0"),
        (["setting=mini_instruct", "setting.annotate.rater.noise=-1"], "setting.annotate.rater.noise=-1.0: expected at least 0"),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_an_error_that_names_the_key(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(*overrides)


def test_a_run_varies_its_method_and_seed_only(plan: Plan) -> None:
    assert plan.run_name("mini_base", "simpo", {"beta": 2.5}) == "simpo+beta=2.5"
    assert plan.run_name("mini_base", "simpo", {"seed": 1, "gamma": 0.7}) == "simpo+gamma=0.7+seed=1"
    default = plan.method("mini_base", "simpo")
    assert plan.run_name("mini_base", "simpo", {"beta": default.beta, "gamma": float(default.gamma)}) == "simpo"
    for key in ("name", "objective", "bta", "temperature"):
        with pytest.raises(UserError, match=key):
            plan.run_name("mini_base", "simpo", {key: 1})
    with pytest.raises(UserError, match="seed|vary"):
        plan.run_name("mini_base", "sft", {"beta": 1})
    with pytest.raises(UserError, match="beta=-1"):
        plan.run_name("mini_base", "simpo", {"beta": -1})
    with pytest.raises(UserError, match="seed=-1"):
        plan.run_name("mini_base", "simpo", {"seed": -1})


def test_a_run_is_found_by_its_canonical_name_alone(plan: Plan) -> None:
    method, seed = plan.run("mini_base", "simpo+beta=3+seed=7")
    assert (method.beta, seed) == (3, 7)
    with pytest.raises(UserError, match="is 'simpo'"):
        plan.run("mini_base", f"simpo+beta={plan.method('mini_base', 'simpo').beta:g}")
    with pytest.raises(UserError, match="beta=-1"):
        plan.run("mini_base", "simpo+beta=-1")
    with pytest.raises(UserError, match=r"mini_bsae.*did you mean 'mini_base'"):
        plan.run("mini_bsae", "simpo")
    with pytest.raises(UserError, match=r"smpo.*did you mean 'simpo'"):
        plan.run("mini_base", "smpo")


@pytest.mark.slow
def test_a_stage_configuration_is_written_only_when_its_text_changes(plan: Plan) -> None:
    paths = [Path(plan.stage_config(stage, **where)) for stage, where in nodes(plan)]
    before = {path: path.stat().st_mtime_ns for path in paths}
    plan.write([])
    again = Plan()
    again.write([])
    assert before == {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.slow
def test_all_that_the_targets_need_is_written_while_planning(plan: Plan) -> None:
    plan.write([])
    for stage, where in nodes(plan):
        path = Path(plan.composed(stage, **where)[0])
        assert path.is_file(), path
        assert all((Path(manifest).parent / "config.yaml").is_file() for manifest in plan.upstream_manifests(stage, **where))
    assert not Path("results/mini_base/runs/dpo+beta=0.3").exists()
    plan.write(["results/mini_base/runs/dpo+beta=0.3/eval/oracle/scores.json"])
    assert Path("results/mini_base/runs/dpo+beta=0.3/eval/judge.yaml").is_file()


# What must be made again where a value changes: the stages, by the value's key; the first pattern that matches. `TABLE` is what the
# README promises. "all" means in all runs; a method's own value reaches its own run alone, which is held apart below.
# The controls are of the judge and of the first run's answers, which is SFT's: no training reaches them.
JUDGED = {"judge", "score"}
EVALUATION = {*JUDGED, "controls"}
BY_JUDGE = {"develop", *EVALUATION}
ANSWERED = {"answer", "loglik", *EVALUATION}
FITTED = {"train", "develop", "answer", "loglik", *JUDGED}
TRAINED = {"reference", *FITTED}
ON_POLICY = {"generate", "annotate", "pairs", *TRAINED}
FINE_TUNED = {"sft", "reward", "controls", *ON_POLICY}
PRETRAINED = {"pretrain", *FINE_TUNED}
EVERYTHING = {"world", "calibrate", *PRETRAINED}
NOTHING: set[str] = set()
TABLE: list[tuple[str, set[str]]] = [
    (r"scale\.|analysis\.", NOTHING),
    (r"runtime\.", NOTHING),
    (r"seed$", PRETRAINED),
    (r"world\.", EVERYTHING),
    (r"judge\.server\.", {"calibrate", *BY_JUDGE}),
    (r"judge\.(budget|retired|refuses)", NOTHING),
    (r"judge\.", BY_JUDGE),
    (r"development\.", {"develop"}),
    (r"benchmarks\.alpacaeval2\.assets\.", {"assets", *BY_JUDGE}),
    (r"benchmarks\.alpacaeval2\.swap_seed", {"calibrate", *BY_JUDGE}),
    (r"benchmarks\.alpacaeval2\.(decoding|template)", BY_JUDGE),
    (r"benchmarks\.\w+\.assets\.", {"assets", *EVALUATION}),
    (r"benchmarks\.\w+\.answering\.", ANSWERED),
    (r"benchmarks\.\w+\.(questions|protocol)", ANSWERED),
    (r"benchmarks\.\w+\.gamed", {"score"}),
    (r"benchmarks\.oracle\.", JUDGED),
    (r"benchmarks\.", EVALUATION),
    (r"setting\.pretrain\.", PRETRAINED),
    (r"setting\.sft\.", FINE_TUNED),
    (r"setting\.start\.", {"controls", *ON_POLICY}),
    (r"setting\.generate\.", ON_POLICY),
    (r"setting\.reward\.", {"reward", "annotate", "pairs", *TRAINED}),
    (r"setting\.annotate\.", {"annotate", "pairs", *TRAINED}),
    (r"setting\.pairs\.(train|heldout)", {"pairs", *TRAINED}),
    (r"setting\.pairs\.empty_system", {"controls", *TRAINED}),
    (r"setting\.pairs\.", TRAINED),
    (r"setting\.training\.precision", TRAINED),
    (r"setting\.training\.", FITTED),
    (r"setting\.(decoding\.|stop_token_ids)", {"develop", *ANSWERED}),
    (r"setting\.tuned\.", FITTED),
    (r"method\.", FITTED),
]
# Names and forms: what they change is another experiment, or nothing that can be run.
FIXED = (
    r"(.*\.)?(name|chain|protocol|version|objective|reference|package|path|licence|url)$|benchmarks\.\w+\.answers$|world\.writers\.\w+$"
    r"|judge\.base_url"
)


def another(key: str, value: Any) -> Any:
    """A value that the schema takes in the place of ``value``."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.8 + 0.0137
    if key.endswith("precision"):
        return "bf16"
    if key.endswith(".search"):
        return "width_1_beam"
    if key.endswith(".loss_type"):
        return "hinge"
    return f"{value}x"


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value) of every leaf; a list is none."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, (*path, str(key)))
    elif not isinstance(value, list):
        yield path, value


def jobs(plan: Plan, texts: dict[str, str], before: dict[str, str]) -> set[tuple[str, str]]:
    """(stage, run) of all that Snakemake would make again: what a changed stage configuration belongs to, and all that follows from it."""
    again: set[tuple[str, str]] = set()
    folders: set[str] = set()
    for stage, where in [*nodes(plan), *trial_nodes(plan)]:  # in the order in which one follows from the other
        path = plan.composed(stage, **where)[0]
        run = f"{where.get('setting', '')}/{where.get('run', where.get('method', ''))}"
        needs = {str(Path(manifest).parent) for manifest in plan.upstream_manifests(stage, **where)}
        follows = {"judge": "answer", "loglik": "answer", "score": "judge", "controls": "answer"}.get(stage)
        of = "mini_base/sft" if stage == "controls" else run
        if texts[path] != before.get(path) or needs & folders or (follows, of) in again:
            again.add((stage, run))
            folders.add(str(Path(path).parent))
    return again


@pytest.mark.parametrize("scored_by", ["rater", "reward model"])
@pytest.mark.slow
def test_a_value_makes_again_what_it_reaches_and_nothing_else(scored_by: str, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every leaf of conf/ at mini scale, changed one at a time, against TABLE. Then what is different where mini_instruct has
    smoke_on_policy's reward model in the rater's place."""
    walking = {"rater": "", "reward model": r"setting\.(sft|reward|annotate)\."}[scored_by]
    kept: dict[str, Any] = {}
    change: list[tuple[tuple[str, ...], Any]] = []
    compose_raw = compose.compose_raw

    def composed(name: str = "config", overrides: Iterable[str] = ()) -> Any:
        if name not in kept:
            kept[name] = compose_raw(name, overrides)
            if (name, scored_by) == ("setting/mini_instruct", "reward model"):
                for key in ("reward", "annotate"):
                    kept[name].setting[key] = composed("setting/smoke_on_policy").setting[key]
        config = kept[name].copy()
        if name == "config" and change:  # the other methods are planned as these are; the one whose values change is among them
            config.scale.methods = list(dict.fromkeys(["sft", "dpo", "simpo", *(path[2] for path, _ in change if path[1:2] == ("tuned",))]))
        for path, value in change:
            # A setting's key is changed in the setting that has all stages, and in the one whose model it starts from where it has it.
            group = name.partition("/")[0]
            if path[0] == group or (group == "config" and path[0] not in ("setting", "method")):
                node = config
                for part in path[:-1]:
                    node = node.get(part) if node is not None else None
                if node is not None and path[-1] in node:
                    node[path[-1]] = value
        return config

    monkeypatch.setattr(compose, "compose_raw", composed)
    monkeypatch.setattr(
        compose, "sweep", lambda name: {"method": [name.partition("/")[2]], "seed": [7]}
    )  # a trial with the method's own values

    def texts() -> tuple[Plan, dict[str, str]]:
        compose.part_of_conf.cache_clear()
        changed = Plan()
        found = (changed.composed(stage, **where) for stage, where in [*nodes(changed), *trial_nodes(changed)])
        return changed, {path: str(values) for path, values in found}

    first, before = texts()
    made = {stage for stage, _ in [*nodes(first), *trial_nodes(first)]}  # a stage that no setting of the scale has is made by none
    full = composed()
    full.setting = OmegaConf.merge(composed("setting/mini_base").setting, composed("setting/mini_instruct").setting)
    full.setting.pretrain = composed("setting/mini_base").setting.pretrain
    full.method = composed("method/simpo").method
    walked = 0
    for path, value in walk(OmegaConf.to_container(full, resolve=False)):
        key = ".".join(path)
        if (
            not re.match(walking, key)
            or re.match(FIXED, key)
            or value is None
            or (isinstance(value, str) and "${" in value and "/" not in value)
        ):
            continue
        wanted = next((stages for pattern, stages in TABLE if re.match(pattern, key)), None)
        assert wanted is not None, f"{key}: what it makes again stands in no row of TABLE"
        change[:] = [(path, another(key, value))]
        changed, after = texts()
        found = jobs(changed, after, before)
        assert {stage for stage, _ in found} == wanted & made, key
        if key.startswith("method."):
            assert {run.partition("+")[0] for _, run in found} <= {f"{s}/{m}" for s in SETTINGS for m in METHODS_LIKE_SIMPO}, key
        if key.startswith("setting.tuned."):
            assert {run.partition("/")[2].partition("+")[0] for _, run in found} == {path[2]}, key
        walked += 1
    assert walked > {"rater": 150, "reward model": 20}[scored_by]
    compose.part_of_conf.cache_clear()


def test_trials_are_judged_on_the_scale_s_development_questions(plan: Plan) -> None:
    """stage_configs.develop: its trials' models are inputs; without questions, or without trials, a sentence says what to set."""
    path, values = plan.composed("develop", setting="mini_base", method="dpo")
    assert path == "results/mini_base/tuning/dpo/config.yaml" and len(values["trials"]) == 8
    judged = plan.composed("judge", setting="mini_base", run="dpo")[1]
    assert values["judge"] == judged["judge"]
    answered = plan.composed("answer", setting="mini_base", run="dpo")[1]["benchmarks"]["alpacaeval2"]
    shown = judged["benchmarks"]["alpacaeval2"]
    made = values["benchmarks"]["development"]
    assert made.keys() == answered.keys() | {"version", "baseline", "template", "swap_seed", "decoding"}
    assert all(made[key] == (shown | answered)[key] for key in made.keys() - {"questions", "baseline"})
    upstream = {f"{Path(model).parent}/manifest.json" for model in values["trials"].values()}
    upstream |= {"results/worlds/mini/manifest.json", "results/assets/alpacaeval2/manifest.json"}
    assert set(plan.upstream_manifests("develop", setting="mini_base", method="dpo")) == upstream
    with pytest.raises(UserError, match=r"method sft has no trials in mini_base: write conf/sweep/mini/sft.yaml"):
        plan.composed("develop", setting="mini_base", method="sft")
    with pytest.raises(UserError, match=r"scale paper has no development questions: set development.questions .*in conf/scale/paper.yaml"):
        paper = Plan("paper")
        paper.scale["settings"] = ["llama3_base"]
        paper.write(["results/tuning.csv"])


def test_the_tables_have_the_chains_that_paper_asks_for_and_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan.wants_chains. A chain has its own seed and its own base model; a job of Snakemake's own process plans as tables.yaml says."""
    monkeypatch.chdir(tmp_path)
    plan = Plan()
    assert not plan.wants_chains(["results/table4.csv"])
    assert plan.wants_chains(["paper"])
    plan.chained = targets.chains(plan)
    assert {row.setting for row in plan.chained} == {
        "mini_base+chain=1",
        "mini_base+chain=2",
        "mini_instruct+chain=1",
        "mini_instruct+chain=2",
    }
    assert plan.composed("sft", setting="mini_instruct+chain=2")[1]["model"] == "results/mini_base+chain=2/pretrain/model"
    trained = plan.composed("train", setting="mini_base+chain=1", run="simpo")[1]
    assert (trained["seed"], trained["model"]) == (1, "results/mini_base+chain=1/sft/model")
    assert plan.composed("train", setting="mini_base", run="simpo")[1]["seed"] == 42
    plan.stage_config("tables")
    assert plan.wants_chains(["results/x", "--target-jobs"]) and not plan.wants_chains(["results/x"])
    *most, last = map(Path, targets.scores(plan, [row[:2] for row in plan.chained]))
    for path in (*most, last):
        path.parent.mkdir(parents=True, exist_ok=True)
    for path in most:
        path.touch()
    assert not plan.wants_chains(["results/table4.csv"])
    last.touch()
    assert plan.wants_chains(["results/table4.csv"])
    Plan().stage_config("tables")  # without chains
    assert not plan.wants_chains(["paper", "--target-jobs"])


def test_what_a_stage_configuration_names_is_an_input(plan: Plan) -> None:
    def made(stage: str, setting: str = "mini_base", run: str = "simpo") -> list[str]:
        return plan.upstream_manifests(stage, setting=setting, **({"run": run} if stage in RUN_STAGES else {}))

    assert made("sft") == ["results/mini_base/pretrain/manifest.json", "results/worlds/mini/manifest.json"]
    assert made("sft", "mini_instruct") == made("sft")
    assert made("train") == ["results/mini_base/data/manifest.json", "results/mini_base/sft/manifest.json"]
    assert "results/mini_base/runs/simpo/manifest.json" in made("answer")
    assert made("train", run="dpo") == [*made("train")[:1], "results/mini_base/reference/manifest.json", *made("train")[1:]]
    assert made("answer", run="sft") == ["results/mini_base/sft/manifest.json", "results/worlds/mini/manifest.json"]
    assert made("pairs", "mini_instruct") == ["results/mini_instruct/annotate/manifest.json"]
    assert made("annotate", "mini_instruct") == ["results/mini_instruct/generate/manifest.json", "results/worlds/mini/manifest.json"]
    assert made("generate", "mini_instruct") == ["results/mini_instruct/sft/manifest.json", "results/worlds/mini/manifest.json"]


def test_a_part_that_a_setting_does_not_have_is_an_error_that_names_it(plan: Plan) -> None:
    with pytest.raises(UserError, match=r"conf/setting/mini_base.yaml has generate: null"):
        plan.stage_config("generate", setting="mini_base")


def test_the_configuration_of_a_training_holds_its_method_and_no_other_stage(plan: Plan) -> None:
    composed = OmegaConf.load(plan.stage_config("train", setting="mini_base", run="dpo"))
    assert set(composed.method.hyperparameters) == {"beta", "label_smoothing"}
    assert not {"judge", "decoding", "world", "runtime"} & set(composed)


# -- the judge ------------------------------------------------------------------------------------------------------------

OWN = {"defaults": ["vllm", "_self_"], "name": "own", "model": "own-1", "revision": None, "dtype": None}
PlanOf = Callable[..., Plan]


@pytest.fixture
def paper_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlanOf]:
    """The paper scale with a judge of one's own, conf/judge/own.yaml, and perhaps another text in its file."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    scale = tmp_path / "conf/scale/paper.yaml"
    given = scale.read_text()

    def plan_of(judge: dict[str, Any], old: str = "", new: str = "") -> Plan:
        (tmp_path / "conf/judge/own.yaml").write_text(yaml.safe_dump(OWN | judge, sort_keys=False))
        scale.write_text(given.replace("- /judge: vllm", "- /judge: own").replace(old, new))
        compose.part_of_conf.cache_clear()
        return Plan("paper")

    compose.part_of_conf.cache_clear()
    yield plan_of
    compose.part_of_conf.cache_clear()


def test_a_judge_without_special_keys_has_the_stage_configuration_that_it_had(plan: Plan, paper_of: PlanOf) -> None:
    """stage_configs.judge: a new key makes nothing again where it is not given; what only planning reads is never part of it."""
    judge = plan.composed("judge", setting="mini_base", run="sft")[1]["judge"]
    assert list(judge) == ["name", "model", "base_url", "api_key_env", "server", "price", "cache"]
    own = paper_of({"retired": "2999-01-01", "refuses": ["tools"]}).composed("judge", setting="llama3_base", run="sft")[1]["judge"]
    assert own.keys() == judge.keys()
    given = {"revision": "a1", "dtype": "float16", "chat_template_kwargs": {"enable_thinking": False}, "max_completion_tokens": True}
    own = paper_of(given).composed("judge", setting="llama3_base", run="sft")[1]["judge"]
    assert {key: own[key] for key in own.keys() - judge.keys()} == given


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"dtype": "int8"}, "judge.dtype=int8: expected null or bfloat16 or float16 or float32"),
        ({"refuses": ["top_k"]}, "judge.refuses=top_k: expected temperature or top_p or logprobs or tools"),
        ({"refuses": "logprobs"}, "judge.refuses: "),
        ({"retired": "soon"}, "judge.retired=soon: expected a day, as 2026-03-26, or null"),
        ({"max_completion_tokens": "maybe"}, "judge.max_completion_tokens: "),
        ({"chat_template_kwargs": "enable_thinking"}, "judge.chat_template_kwargs: "),
        ({"revison": "main"}, "judge.revison: .*did you mean 'revision'"),
    ],
)
@pytest.mark.slow
def test_a_wrong_key_of_a_judge_is_named_with_its_file(judge: dict[str, Any], message: str, paper_of: PlanOf) -> None:
    with pytest.raises(UserError, match=rf"(?s)^{message}.* \(conf/judge/own.yaml\)$"):
        paper_of(judge)


@pytest.mark.slow
def test_what_a_judge_refuses_stops_the_plan_with_the_protocol_and_what_to_take(paper_of: PlanOf) -> None:
    """check._check_judged: AlpacaEval 2's other forms; a temperature can also be left out."""
    logprobs = (
        "judge own takes no logprobs, and AlpacaEval 2.0 .weighted_alpaca_eval_gpt4_turbo.* needs it .benchmarks.alpacaeval2.decoding"
    )
    form = "- /benchmark@benchmarks.alpacaeval2: "
    with pytest.raises(
        UserError, match=rf"{logprobs}.*conf/scale/paper.yaml .*{form}alpacaeval2_fn` or `alpacaeval2_ranking`, another form"
    ):
        paper_of({"refuses": ["logprobs"]})
    for name in ("alpacaeval2_fn", "alpacaeval2_ranking"):
        made = paper_of({"refuses": ["logprobs"]}, f"{form}alpacaeval2", f"{form}{name}")
        asked = made.composed("judge", setting="llama3_base", run="sft")[1]["benchmarks"]["alpacaeval2"]
        assert asked["protocol"] == name and "logprobs" not in asked["decoding"]
        assert made.composed("score", setting="llama3_base", run="sft")[1]["benchmarks"]["alpacaeval2"]["protocol"] == name
        assert set(made.base.benchmarks.alpacaeval2.assets) >= {Path(asked["template"]).name, "df_gamed.csv"}
    fn = "own takes no tools, and AlpacaEval 2.0 .alpaca_eval_gpt4_turbo_fn"
    with pytest.raises(UserError, match=rf"{fn}.*{form}alpacaeval2` or `alpacaeval2_ranking`"):
        paper_of({"refuses": ["tools"]}, f"{form}alpacaeval2", f"{form}alpacaeval2_fn")
    with pytest.raises(UserError, match="no temperature, and Arena-Hard v0.1 .*or set benchmarks.arena_hard.decoding.temperature to null"):
        paper_of(
            {"refuses": ["temperature"]},
            "\nbenchmarks:\n  alpacaeval2:",
            "\nbenchmarks:\n  alpacaeval2:\n    decoding: { temperature: null }",
        )


@pytest.mark.slow
def test_a_judge_that_is_switched_off_stops_the_plan_and_a_day_to_come_is_told(
    paper_of: PlanOf, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """planning.check_retired: before anything is written; the judges that the scale can take; from the day on, and not before."""

    class Day(date):
        @classmethod
        def today(cls) -> date:
            return date(2026, 11, 28)

    monkeypatch.setattr(planning, "date", Day)
    paper_of({"model": "gpt-0", "retired": "2026-11-28"})
    with pytest.raises(UserError) as caught:
        planning.plan("paper")
    said = str(caught.value)
    assert said.startswith(
        "judge own: gpt-0 was switched off on 2026-11-28 (judge.retired in conf/judge/own.yaml), and scale paper needs it"
    )
    assert said.count("- /judge: ") == 2 and "`- /judge: gpt41` until 2027-01-14, `- /judge: vllm`;" in said
    assert not Path("results").exists()
    monkeypatch.setattr(Plan, "write", lambda *_: None)
    paper_of({"model": "gpt-0", "retired": "2026-11-29"})
    planning.plan("paper")
    assert capsys.readouterr().err == (
        "judge own: gpt-0 will be switched off on 2026-11-29 (judge.retired in conf/judge/own.yaml); have all judgments by then\n"
    )
    planning.plan("paper", ["snakemake", "--target-jobs"])
    planning.plan("smoke")
    assert capsys.readouterr().err == ""


def test_the_retired_judges_have_their_days() -> None:
    found = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "judge").glob("*.yaml")}
    days = {name: str(judge["retired"]) for name, judge in found.items() if judge.get("retired")}
    assert days == {"gpt4_turbo": "2026-03-26", "gpt4": "2026-10-23", "gpt41": "2027-01-14"}
