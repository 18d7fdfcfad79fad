"""``plan()``: the bridge from Hydra, which owns values, to Snakemake, which owns files.

``plan(scale)`` composes the configuration once for each setting and method that is asked for, and writes for each stage the
*slice* that the stage depends on, only when its text changed. A slice is a plain input of the stage's rule, so Snakemake
reruns what a changed value touches and nothing else. Nothing but the Snakefile's main process and ``stages.run`` calls it.

What a slice names under ``results/`` another stage makes: the first three parts of such a path are that stage's folder, and
its ``manifest.json`` stands for all that it made. Anything else is taken as it is (a hub id, a file of the user's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from stages import files, runs
from stages.schema import ConfigError, Method, leaves, nearest, plain, validate

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


def compose_config(*overrides: str) -> DictConfig:
    """The composed and validated configuration of one setting and method."""
    is_up = GlobalHydra.instance().is_initialized()  # within ``python -m stages.run``
    try:
        with nullcontext() if is_up else initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=list(overrides))
    except (HydraException, YAMLError) as error:
        raise ConfigError(f"conf/: {' '.join(str(error).split())}") from None
    return validate(config)


def default_of(config: DictConfig, key: str) -> Any:
    """The value that ``key`` of a run's name has where the name does not say it; ConfigError where a run has no such key."""
    if key == "seed":
        return config.seed
    fixed = ("name", "objective", "reference")
    varying = [k for k in config.method if k not in fixed and config.method[k] is not None]
    if key not in varying:
        raise ConfigError(f"{key}: a run of {config.method.name} cannot vary it{nearest(key, [*varying, 'seed'])}")
    return config.method[key]


class Plan:
    """All that Snakemake needs to know of the configuration of one scale."""

    def __init__(self, scale: str | None = None) -> None:
        self._scale = [f"scale={scale}"] if scale else []
        self.base = compose_config(*self._scale)
        self.scale = plain(self.base.scale)
        self.runtime = plain(self.base.runtime)
        self.benchmarks = list(self.base.benchmarks)
        self.answered = [name for name in self.benchmarks if self.base.benchmarks[name].answers == name]
        self._configs: dict[tuple[str, str], DictConfig] = {}

    def config(self, setting: str, method: str) -> DictConfig:
        """The configuration of a setting and method of this scale."""
        for kind, name, known in (("setting", setting, self.scale["settings"]), ("method", method, _names("method"))):
            if name not in known:
                raise ConfigError(f"{kind} {name!r} is not one of scale {self.scale['name']}: {', '.join(known)}{nearest(name, known)}")
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
        method_values = {key: value for key, value in overrides.items() if key != "seed"}
        changed = {"seed": overrides.get("seed", config.seed), "method": plain(config.method) | method_values}
        return validate(OmegaConf.create(plain(config) | changed)) if overrides else config

    # -- slices -------------------------------------------------------------------------------------------------------

    def slice(self, stage: str, **where: str) -> str:
        """The path of a stage's slice, written first where its text changed. ``where``: the wildcards of the stage's rule."""
        path, values = _SLICES[stage](self, **where)
        text = OmegaConf.to_yaml(OmegaConf.create({"stage": stage, "version": VERSIONS.get(stage, 1), **values}), resolve=True)
        file = Path(path)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            files.write_text(file, text)
        return path

    def made(self, stage: str, **where: str) -> list[str]:
        """The manifests of the stages that make what a stage's slice names."""
        path, values = _SLICES[stage](self, **where)
        own = str(PurePosixPath(path).parent)
        named = [PurePosixPath(v) for _, v in leaves(plain(OmegaConf.create(values))) if isinstance(v, str) and v.startswith("results/")]
        folders = {"/".join(path.parts[:3]) for path in named if path.parts[2] != "runs"}
        # A run's other files are literal inputs of the rules.
        folders |= {str(path.parent) for path in named if path.parts[2] == "runs" and path.name == "model"}
        return sorted(f"{folder}/manifest.json" for folder in folders if folder != own)

    def write(self, named: Iterable[str]) -> None:
        """Every slice of the scale's runs, and of the runs whose files are ``named``: paths below results/<setting>/runs/<run>/."""
        self.slice("tables")
        for benchmark in filter(lambda name: self.base.benchmarks[name].assets, self.benchmarks):
            self.slice("assets", benchmark=benchmark)
        if self.base.world is not None:
            for stage in ("world", "calibrate"):
                self.slice(stage, world=self.base.world.name)
        wanted = [PurePosixPath(name).parts for name in named]
        runs_ = self.runs() + [(parts[1], parts[3]) for parts in wanted if len(parts) > 4 and (parts[0], parts[2]) == ("results", "runs")]
        for setting in dict.fromkeys(setting for setting, _ in runs_):
            given = self.setting(setting).setting
            for stage in ("pretrain", "sft", "pairs", "reference"):
                if stage in ("pairs", "reference") or given[stage] is not None:
                    self.slice(stage, setting=setting)
        for setting, run in dict.fromkeys(runs_):
            if self.run(setting, run).method.objective is not None:
                self.slice("train", setting=setting, run=run)
            self.slice("answer", setting=setting, run=run)
            self.slice("judge", setting=setting, run=run)
            for benchmark in self.benchmarks:
                self.slice("score", setting=setting, run=run, benchmark=benchmark)

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


_SLICES: dict[str, Callable[..., Slice]] = {
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


def plan(scale: str | None = None, named: Iterable[str] = ()) -> Plan:
    """The plan of a scale (``None``: conf/config.yaml's), its slices written, and those of the runs whose files are ``named``."""
    made = Plan(scale)
    made.write(named)
    return made


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))
