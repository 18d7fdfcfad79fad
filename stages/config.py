"""The schema of conf/, and ``plan()``: the bridge from Hydra, which owns values, to Snakemake, which owns files.

``plan(scale)`` composes the configuration once for each setting and method that is asked for, and writes for each stage the
*slice* that the stage depends on, only when its text changed. A slice is a plain input of the stage's rule, so Snakemake
reruns what a changed value touches and nothing else. Nothing but the Snakefile's main process and ``stages.run`` calls it.

What a slice names under ``results/`` another stage makes: the first three parts of such a path are that stage's folder, and
its ``manifest.json`` stands for all that it made. Anything else is taken as it is (a hub id, a file of the user's).
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages import files, runs

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"

# A stage whose numbers change without a change of conf/ carries a higher version; it is part of the stage's slice.
VERSIONS = {
    "assets": 1,
    "world": 1,
    "calibrate": 1,
    "pretrain": 1,
    "sft": 1,
    "pairs": 1,
    "reference": 1,
    "train": 1,
    "answer": 1,
    "judge": 1,
    "score": 1,
}


@dataclass
class Scale:
    """What the tables and figures are made of."""

    name: str = MISSING
    settings: list[str] = MISSING
    methods: list[str] = MISSING


@dataclass
class Corpus:
    questions: int = MISSING
    portraits: int = MISSING
    shared: int = MISSING


@dataclass
class Writer:
    wrong: float = MISSING
    omit: float = MISSING
    off_topic: float = MISSING
    repeat: float = MISSING
    filler: float = MISSING
    broken: float = MISSING


@dataclass
class Demonstrations:
    n: int = MISSING
    writers: dict[str, float] = MISSING


@dataclass
class WorldPreferences:
    n: int = MISSING
    candidates: int = MISSING
    writers: list[str] = MISSING


@dataclass
class Annotator:
    length_bias: float = MISSING
    noise: float = MISSING


@dataclass
class WorldBenchmark:
    n: int = MISSING
    baseline: str = MISSING
    concise: str = MISSING
    verbose: str = MISSING
    mix: dict[str, float] = MISSING


@dataclass
class World:
    """The mini world's constants: stages/mini, stages/world.py."""

    name: str = MISSING
    seed: int = MISSING
    n_towns: int = MISSING
    mix: dict[str, float] = MISSING
    writers: dict[str, Writer] = MISSING
    corpus: Corpus = MISSING
    demonstrations: dict[str, Demonstrations] = MISSING
    preferences: WorldPreferences = MISSING
    annotator: Annotator = MISSING
    alpacaeval2: WorldBenchmark = MISSING


@dataclass
class Architecture:
    """Keys of transformers.LlamaConfig."""

    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    max_position_embeddings: int = MISSING
    tie_word_embeddings: bool = MISSING


@dataclass
class Supervised:
    """How SFT and pretraining train: stages/models.py:supervise."""

    learning_rate: float = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    max_length: int = MISSING
    scheduler: str = MISSING
    warmup_ratio: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    precision: str = MISSING


@dataclass
class Pretrain:
    tokenizer: str = MISSING
    data: str = MISSING
    architecture: Architecture = field(default_factory=Architecture)
    training: Supervised = field(default_factory=Supervised)


@dataclass
class Sft:
    model: str = MISSING
    revision: str | None = MISSING
    data: str = MISSING
    training: Supervised = field(default_factory=Supervised)


@dataclass
class Pairs:
    data: str = MISSING
    heldout: int = MISSING
    max_length: int = MISSING
    max_prompt_length: int = MISSING
    empty_system: bool = MISSING


@dataclass
class PreferenceTraining:
    """What all preference methods of a setting share: stages/preference/trainer.py."""

    epochs: int = MISSING
    batch_size: int = MISSING
    scheduler: str = MISSING
    warmup_ratio: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    adam_beta1: float = MISSING
    adam_beta2: float = MISSING
    adam_epsilon: float = MISSING
    precision: str = MISSING


@dataclass
class Decoding:
    temperature: float = MISSING
    top_p: float = MISSING
    max_tokens: int = MISSING
    seed: int = MISSING


@dataclass
class Start:
    model: str = MISSING
    revision: str | None = MISSING


@dataclass
class Setting:
    """A start model (made by ``pretrain`` and ``sft`` where these are given), its data, and the values chosen for each method."""

    name: str = MISSING
    pretrain: Pretrain | None = MISSING
    sft: Sft | None = MISSING
    start: Start = field(default_factory=Start)
    pairs: Pairs = field(default_factory=Pairs)
    training: PreferenceTraining = field(default_factory=PreferenceTraining)
    decoding: dict[str, Decoding] = MISSING
    tuned: dict[str, dict[str, Any]] = MISSING


@dataclass
class Method:
    """A method: its objective and how it is trained. All further keys are the objective's hyperparameters (objectives.py).

    Every key but ``name``, ``objective`` and ``reference`` may differ between runs, and is then part of the run's name.
    """

    name: str = MISSING
    objective: str | None = MISSING
    reference: str | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int | None = None


@dataclass
class Asset:
    """A file that somebody else published: at an address, or in an installed Python package."""

    sha256: str = MISSING
    licence: str = MISSING
    url: str | None = None
    package: str | None = None
    path: str | None = None


@dataclass
class Benchmark:
    """``protocol`` is a module of stages/judging, or ``oracle``; ``answers`` names the benchmark whose answers are judged."""

    protocol: str = MISSING
    answers: str = MISSING
    baseline: str | None = MISSING
    template: str | None = MISSING
    gamed: str | None = MISSING
    world: str | None = MISSING
    swap_seed: int | None = MISSING
    decoding: dict[str, Any] = MISSING
    assets: dict[str, Asset] = MISSING


@dataclass
class Server:
    """A judge that runs here, for as long as the judge stage does: a module, and its temperament (stages/mini/raters.py)."""

    module: str = MISSING
    world: str = MISSING
    sharpness: float = MISSING
    length_bias: float = MISSING
    position_bias: float = MISSING
    noise: float = MISSING
    seed: int = MISSING


@dataclass
class Judge:
    name: str = MISSING
    model: str = MISSING
    base_url: str | None = MISSING
    api_key_env: str | None = MISSING
    server: Server | None = MISSING


@dataclass
class Config:
    seed: int = MISSING
    scale: Scale = field(default_factory=Scale)
    world: World | None = None
    setting: Setting = field(default_factory=Setting)
    method: Method = field(default_factory=Method)
    benchmarks: dict[str, Benchmark] = MISSING
    judge: Judge = field(default_factory=Judge)
    runtime: dict[str, dict[str, int]] = MISSING


# Allowed ranges: (lowest, is it allowed itself, highest). Values outside stop before anything runs.
RANGES: dict[str, tuple[float, bool, float]] = {
    "learning_rate": (0, False, 1),
    "beta": (0, False, 1e4),
    "gamma": (0, True, 1e4),
    "label_smoothing": (0, True, 0.5),
    "sft_weight": (0, True, 1e4),
    "epochs": (0, False, 1000),
    "batch_size": (0, False, 1e6),
    "max_length": (0, False, 1e7),
    "max_prompt_length": (0, False, 1e7),
    "warmup_ratio": (0, True, 1),
    "temperature": (0, True, 10),
    "top_p": (0, False, 1),
    "max_tokens": (0, False, 1e6),
    "seed": (0, True, 2**32 - 1),
    "noise": (0, True, 1e4),
}


class ConfigError(ValueError):
    """The user's mistake in conf/ or on the command line."""


def validate(config: DictConfig) -> DictConfig:
    """``config`` against the schema and the ranges; ConfigError names the key, what is wrong and the nearest key."""
    method = OmegaConf.to_container(config.method, resolve=True)
    known = {f.name for f in fields(Method)}
    hyperparameters = {key: value for key, value in method.items() if key not in known}
    allowed = objective_parameters(method["objective"]) if method.get("objective") else ()
    for key in hyperparameters:
        if key not in allowed:
            raise ConfigError(f"method.{key}: objective {method.get('objective')!r} has no such parameter{_nearest(key, [*known, *allowed])}")
    for key in allowed:
        if key not in hyperparameters:
            raise ConfigError(f"conf/method/{method['name']}.yaml lacks {key!r}, which objective {method['objective']!r} needs")
    plain = OmegaConf.to_container(config, resolve=True)
    plain["method"] = {key: value for key, value in method.items() if key in known}
    try:
        typed = OmegaConf.merge(OmegaConf.structured(Config), plain)
        container = OmegaConf.to_container(typed, throw_on_missing=True)
    except OmegaConfBaseException as error:
        where = error.full_key or ""
        siblings = [f.name for f in fields(error.object_type)] if hasattr(error.object_type, "__dataclass_fields__") else []
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{where}: {reason}{_nearest(where.rpartition('.')[2], siblings) if 'not in' in reason else ''}") from None
    container["method"] |= hyperparameters
    for where, value in _leaves(container):
        key = where.rpartition(".")[2]
        if key in RANGES and isinstance(value, int | float) and not isinstance(value, bool):
            low, inclusive, high = RANGES[key]
            if not (low <= value <= high) or (value == low and not inclusive):
                raise ConfigError(f"{where}={value}: expected {'at least' if inclusive else 'more than'} {low:g} and at most {high:g}")
    return OmegaConf.create(container)


def objective_parameters(objective: str) -> tuple[str, ...]:
    """The keyword-only parameters of a function in objectives.py, read from its source: planning imports no torch."""
    functions = _objectives()
    if objective not in functions:
        raise ConfigError(f"method.objective={objective}: no such function in stages/preference/objectives.py{_nearest(objective, list(functions))}")
    return functions[objective]


@cache
def _objectives() -> dict[str, tuple[str, ...]]:
    tree = ast.parse((ROOT / "stages/preference/objectives.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"))
    return {node.name: tuple(argument.arg for argument in node.args.kwonlyargs) for node in functions if node.args.kwonlyargs}


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(sorted(known))}" if known else ""


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{where}[{number}]")
    else:
        yield where, value


def compose_config(*overrides: str) -> DictConfig:
    """The composed and validated configuration of one setting and method."""
    if GlobalHydra.instance().is_initialized():  # within ``python -m stages.run`` Hydra is up already
        return validate(compose("config", overrides=list(overrides)))
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return validate(compose("config", overrides=list(overrides)))
    except HydraException as error:
        raise ConfigError(f"conf/: {' '.join(str(error).split())}") from None


def default_of(config: DictConfig, key: str) -> Any:
    """The value that ``key`` of a run's name has where the name does not say it; ConfigError where a run has no such key."""
    if key == "seed":
        return config.seed
    fixed = ("name", "objective", "reference")
    varying = [k for k in config.method if k not in fixed and config.method[k] is not None]
    if key not in varying:
        raise ConfigError(f"{key}: a run of {config.method.name} cannot vary it{_nearest(key, [*varying, 'seed'])}")
    return config.method[key]


class Plan:
    """All that Snakemake needs to know of the configuration of one scale."""

    def __init__(self, scale: str | None = None) -> None:
        self._scale = [f"scale={scale}"] if scale else []
        self.base = compose_config(*self._scale)
        self.scale = OmegaConf.to_object(self.base.scale)
        self.runtime = OmegaConf.to_object(self.base.runtime)
        self.benchmarks = list(self.base.benchmarks)
        self.answered = [name for name in self.benchmarks if self.base.benchmarks[name].answers == name]
        self._configs: dict[tuple[str, str], DictConfig] = {}

    def config(self, setting: str, method: str) -> DictConfig:
        """The configuration of a setting and method of this scale."""
        for kind, name, known in (("setting", setting, self.scale["settings"]), ("method", method, _names("method"))):
            if name not in known:
                raise ConfigError(f"{kind} {name!r} is not one of scale {self.scale['name']}: {', '.join(known)}{_nearest(name, known)}")
        if (setting, method) not in self._configs:
            self._configs[setting, method] = compose_config(*self._scale, f"setting={setting}", f"method={method}")
        return self._configs[setting, method]

    def setting(self, name: str) -> DictConfig:
        """The configuration of what all methods of a setting share."""
        return self.config(name, self.scale["methods"][0])

    def run_name(self, setting: str, method: str, overrides: Mapping[str, runs.Value]) -> str:
        """The canonical name of a run: overrides that are the setting's default anyway are left out."""
        config = self.config(setting, method)
        return runs.encode(method, {key: value for key, value in overrides.items() if default_of(config, key) != value})

    def run(self, setting: str, name: str) -> DictConfig:
        """The configuration of a run by its name; ConfigError where the name is not canonical in this setting."""
        method, overrides = runs.decode(name)
        if (canonical := self.run_name(setting, method, overrides)) != name:
            raise ConfigError(f"run {name!r} of {setting} is {canonical!r}: the rest is its default; write the latter")
        config = self.config(setting, method)
        changes = {"method": {key: value for key, value in overrides.items() if key != "seed"}}
        if "seed" in overrides:
            changes["seed"] = overrides["seed"]
        return validate(OmegaConf.merge(config, changes)) if overrides else config

    # -- slices -------------------------------------------------------------------------------------------------------

    def slice(self, stage: str, *, world: str = "", benchmark: str = "", setting: str = "", run: str = "") -> str:
        """The path of a stage's slice, written first where its text changed."""
        path, values = _SLICES[stage](self, world=world, benchmark=benchmark, setting=setting, run=run)
        text = OmegaConf.to_yaml(OmegaConf.create({"stage": stage, "version": VERSIONS.get(stage, 1), **values}), resolve=True)
        file = Path(path)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            files.write_text(file, text)
        return path

    def made(self, stage: str, **where: str) -> list[str]:
        """The manifests of the stages that make what a stage's slice names."""
        path = self.slice(stage, **where)
        slice_ = OmegaConf.to_container(OmegaConf.load(path))
        own = str(PurePosixPath(path).parent)
        named = [PurePosixPath(v) for _, v in _leaves(slice_) if isinstance(v, str) and v.startswith("results/")]
        folders = {"/".join(path.parts[:3]) for path in named if path.parts[2] != "runs"}
        folders |= {str(path.parent) for path in named if path.parts[2] == "runs" and path.name == "model"}  # a run's files are literal inputs
        return sorted(f"{folder}/manifest.json" for folder in folders if folder != own)

    # -- targets ------------------------------------------------------------------------------------------------------

    def runs(self) -> list[tuple[str, str]]:
        """(setting, run) of every row of the tables."""
        return [(setting, method) for setting in self.scale["settings"] for method in self.scale["methods"]]

    def scores(self, runs_: list[tuple[str, str]] | None = None) -> list[str]:
        """The scores.json of runs on every benchmark."""
        wanted = self.runs() if runs_ is None else runs_
        return [f"results/{setting}/runs/{run}/eval/{benchmark}/scores.json" for setting, run in wanted for benchmark in self.benchmarks]


Slice = tuple[str, dict[str, Any]]


def _world(plan: Plan, *, world: str, **_: str) -> Slice:
    config = plan.base.world
    if config is None or config.name != world:
        raise ConfigError(f"world {world!r}: scale {plan.scale['name']} has {config.name if config else 'none'}")
    return f"results/worlds/{world}/config.yaml", dict(config)


def _calibrate(plan: Plan, *, world: str, **_: str) -> Slice:
    config = plan.base
    if config.judge.server is None:
        raise ConfigError(f"judge {config.judge.name}: only a judge with a server of its own can calibrate world {world}")
    named = {key: config.world.alpacaeval2[key] for key in ("baseline", "concise", "verbose")}
    swap_seed = config.benchmarks.alpacaeval2.swap_seed
    return f"results/calibration/{world}/config.yaml", {**named, "swap_seed": swap_seed, "server": config.judge.server}


def _assets(plan: Plan, *, benchmark: str, **_: str) -> Slice:
    return f"results/assets/{benchmark}/config.yaml", {"assets": plan.base.benchmarks[benchmark].assets}


def _pretrain(plan: Plan, *, setting: str, **_: str) -> Slice:
    config = plan.setting(setting)
    return f"results/{setting}/pretrain/config.yaml", {"seed": config.seed, **_given(config, "pretrain")}


def _sft(plan: Plan, *, setting: str, **_: str) -> Slice:
    config = plan.setting(setting)
    return f"results/{setting}/sft/config.yaml", {"seed": config.seed, **_given(config, "sft")}


def _given(config: DictConfig, part: str) -> dict[str, Any]:
    if config.setting[part] is None:
        raise ConfigError(f"setting {config.setting.name} has no {part}: it starts from {config.setting.start.model}")
    return dict(config.setting[part])


def _pairs(plan: Plan, *, setting: str, **_: str) -> Slice:
    config = plan.setting(setting)
    pairs = {key: config.setting.pairs[key] for key in ("data", "heldout")}
    return f"results/{setting}/data/config.yaml", {"seed": config.seed, **pairs}


def _lengths(config: DictConfig) -> dict[str, Any]:
    pairs = {key: config.setting.pairs[key] for key in ("max_length", "max_prompt_length", "empty_system")}
    return {**config.setting.start, "pairs": f"results/{config.setting.name}/data", **pairs, "precision": config.setting.training.precision}


def _reference(plan: Plan, *, setting: str, **_: str) -> Slice:
    return f"results/{setting}/reference/config.yaml", {"setting": setting, **_lengths(plan.setting(setting))}


def _train(plan: Plan, *, setting: str, run: str, **_: str) -> Slice:
    config = plan.run(setting, run)
    if config.method.objective is None:
        raise ConfigError(f"run {run}: method {config.method.name} trains nothing; its model is the start model of {setting}")
    known = {f.name for f in fields(Method)}
    shared = {key: value for key, value in config.setting.training.items() if key not in ("epochs", "batch_size", "precision")}
    method = {key: value for key, value in config.method.items() if key in known and key != "reference"}
    hyperparameters = {key: value for key, value in config.method.items() if key not in known}
    reference = f"results/{setting}/reference" if config.method.reference == "cached" else None
    values = {"setting": setting, "run": run, "seed": config.seed, **_lengths(config), "reference": reference}
    return f"results/{setting}/runs/{run}/config.yaml", {**values, "method": {**method, **shared, "hyperparameters": hyperparameters}}


def _answer(plan: Plan, *, setting: str, run: str, **_: str) -> Slice:
    config = plan.run(setting, run)
    start = config.setting.start if config.method.objective is None else {"model": f"results/{setting}/runs/{run}/model", "revision": None}
    benchmarks = {
        name: {"protocol": config.benchmarks[name].protocol, "questions": config.benchmarks[name].baseline, **config.setting.decoding[name]}
        for name in plan.answered
    }
    values = {"setting": setting, "run": run, **start, "benchmarks": benchmarks}
    return f"results/{setting}/runs/{run}/eval/answer.yaml", values


def _judge(plan: Plan, *, setting: str, run: str, **_: str) -> Slice:
    config = plan.run(setting, run)
    folder = f"results/{setting}/runs/{run}/eval"
    benchmarks = {}
    for name, benchmark in config.benchmarks.items():
        given = {key: value for key, value in benchmark.items() if value is not None and key not in ("assets", "gamed")}
        benchmarks[name] = given | {"answers": f"{folder}/{benchmark.answers}/model_outputs.json"}
    return f"{folder}/judge.yaml", {"setting": setting, "run": run, "benchmarks": benchmarks, "judge": config.judge}


def _score(plan: Plan, *, benchmark: str, setting: str, run: str, **_: str) -> Slice:
    config = plan.run(setting, run).benchmarks[benchmark]
    return f"results/{setting}/runs/{run}/eval/{benchmark}/score.yaml", {"protocol": config.protocol, "gamed": config.gamed}


def _tables(plan: Plan, **_: str) -> Slice:
    return "results/tables.yaml", {**plan.scale, "benchmarks": plan.benchmarks}


_SLICES = {
    "assets": _assets,
    "world": _world,
    "calibrate": _calibrate,
    "pretrain": _pretrain,
    "sft": _sft,
    "pairs": _pairs,
    "reference": _reference,
    "train": _train,
    "answer": _answer,
    "judge": _judge,
    "score": _score,
    "tables": _tables,
}


def plan(scale: str | None = None) -> Plan:
    """The plan of a scale; ``None`` is the default of conf/config.yaml."""
    return Plan(scale)


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))
