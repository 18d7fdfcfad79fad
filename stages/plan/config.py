"""``plan()``: the bridge from Hydra, which owns values, to Snakemake, which owns files.

``plan(scale)`` composes the scale, each setting and each method that is asked for once, and writes for each stage the *slice* of
the configuration that the stage depends on, only when its text changed. A slice is a plain input of the stage's rule, so Snakemake
reruns what a changed value touches and nothing else. Nothing but the Snakefile's main process and ``stages.run`` calls it.

What a slice names under ``results/`` another stage makes: the first three parts of such a path are that stage's folder, and
its ``manifest.json`` stands for all that it made. Anything else is taken as it is (a hub id, a file of the user's).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import cache, cached_property
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.lib import files
from stages.lib.errors import UserError
from stages.plan import run_names
from stages.plan.schema import (
    FIXED_KEYS,
    MODEL_KEYS,
    Kind,
    Method,
    check_kind,
    check_range,
    kind_of,
    leaves,
    nearest,
    needed_knobs,
    plain,
    validate,
    validate_method,
    validate_scale,
    value_of,
)

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"

# A stage whose numbers change without a change of conf/ carries a higher version; it is part of the stage's slice.
VERSIONS = {
    "assets": 1,
    "world": 3,
    "calibrate": 1,
    "pretrain": 1,
    "sft": 1,
    "generate": 1,
    "reward": 2,
    "annotate": 1,
    "pairs": 2,
    "reference": 2,
    "train": 2,
    "answer": 1,
    "judge": 2,
    "score": 4,
    "loglik": 1,
    "controls": 2,
    "report": 1,
}
# Where a protocol's answers and judgments lie, in the folder of a run's benchmark: the benchmarks' own formats.
ANSWERS = {"alpacaeval2": "model_outputs.json", "arena_hard": "model_answer.jsonl", "mt_bench": "model_answer.jsonl"}
JUDGMENTS = {
    "alpacaeval2": "annotations.json",
    "oracle": "annotations.json",
    "arena_hard": "model_judgment.jsonl",
    "mt_bench": "model_judgment.jsonl",
}
SCORED_WITH = {"alpacaeval2": ("gamed",), "arena_hard": ("baseline",), "mt_bench": ("questions",)}  # options of stages/score.py
MADE_HERE = ("pretrain", "sft", "generate", "reward", "annotate")  # the parts of a setting that may be null
# The scripts of analysis/, a table each, a figure each, and what the report calls them; below, what some of them read.
TABLES = {
    "table1": "Table 1",
    "table2": "Table 2",
    "table3": "Table 3",
    "table4": "Table 4",
    "table5": "Table 5",
    "table6": "Table 6",
    "compare": "Comparison with the paper",
    "overlap": "Overlap of the data",
}
FIGURES = {
    "fig1_scores": "Figure 1",
    "fig2_length": "Figure 2",
    "fig3_gamma": "Figure 3",
    "fig4_dpo": "Figure 4",
    "fig5_beta": "Figure 5",
    "curves": "Training curves",
}
LIKELIHOOD = ("sft", "dpo", "simpo", "simpo_no_ln")  # whose log-likelihoods the paper looks at: Table 6, Figures 2 and 4
# What there must be runs of, methods or sweeps of the scale, for a table or figure to be about anything; Table 5 looks at ablations alone.
ABOUT = {
    "table5": ("simpo",),
    "fig2_length": ("sft", "simpo", "simpo_no_ln"),
    "fig3_gamma": ("gamma",),
    "fig4_dpo": ("dpo", "simpo"),
    "fig5_beta": ("beta_dpo", "beta_simpo"),
}
SWEPT = ("paper", "fig3_gamma", "fig5_beta", "scorecard")  # the targets that draw on sweeps
EFFICIENCY = "results/efficiency/train_step.json"
CONTROL_PROMPTS = 50  # of each benchmark: a share of them is known to 7 points
# Names that conf/ may give and that this version cannot run yet: planning what needs one stops, and says so.
NOT_READY = {
    "llm-blender/PairRM": "PairRM",
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": "ArmoRM",
}
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def compose_raw(name: str = "config", overrides: Iterable[str] = ()) -> DictConfig:
    """What Hydra composes from conf/<name>.yaml, interpolations as they stand."""
    is_up = GlobalHydra.instance().is_initialized()  # within ``python -m stages.run``
    try:
        with nullcontext() if is_up else initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    except (HydraException, yaml.YAMLError) as error:
        raise UserError(f"conf/: {' '.join(str(error).split())}") from None


def compose_config(*overrides: str) -> DictConfig:
    """The composed and validated configuration of one setting and method."""
    return validate(compose_raw(overrides=overrides))


class Run(NamedTuple):
    """What a run has of its own; the rest is its setting's."""

    method: DictConfig
    seed: int


class Trial(NamedTuple):
    """A run of a sweep in a setting, and all that the sweep gives it: key and value, also where that is the setting's default."""

    setting: str
    run: str
    method: str
    varied: dict[str, run_names.Value]


class Row(NamedTuple):
    """A run of the tables: a method of the scale in one of its settings, with one of its seeds."""

    setting: str
    run: str
    method: str
    seed: int


class Plan:
    """All that Snakemake needs to know of the configuration of one scale."""

    def __init__(self, scale: str | None = None) -> None:
        self._raw = compose_raw(overrides=[f"scale={scale}"] if scale else [])
        self._settings: dict[str, DictConfig] = {}
        self._methods: dict[tuple[str, str], DictConfig] = {}
        self._slices: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
        self.scale = validate_scale(self._raw.scale)
        self.base = self.setting(self.scale["settings"][0])  # for what no setting changes
        # What changes the speed and never the result: options of a stage's command, which no rerun depends on.
        runtime = plain(self.base.runtime)
        if self.base.judge.budget is not None:
            runtime.setdefault("judge", {})["budget"] = self.base.judge.budget
        given = {stage: " ".join(f"{key}={value}" for key, value in knobs.items()) for stage, knobs in runtime.items()}
        self.knobs = {stage: f"--runtime {given.get(stage, '')}" for stage in VERSIONS}
        self.efficiency = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in runtime.get("efficiency", {}).items())
        processes = runtime.get("train", {}).get("processes", 1)
        # What starts a training: torch's launcher, where it is to be several processes.
        self.launcher = f"torch.distributed.run --standalone --nproc-per-node {processes} -m " if processes > 1 else ""
        self.benchmarks = list(self.base.benchmarks)
        self.answered = [name for name in self.benchmarks if self.base.benchmarks[name].answers == name]

    def setting(self, name: str) -> DictConfig:
        """The configuration of a setting, with the scale's first method; one that another setting builds on need not be the scale's."""
        if name not in self._settings:
            self._raw.setting = _part_of_conf("setting", name)
            self._raw.method = _part_of_conf("method", self.scale["methods"][0])
            self._settings[name] = validate(self._raw)
        return self._settings[name]

    def method(self, setting: str, name: str) -> DictConfig:
        """A method with the values that it has in a setting of this scale."""
        if setting not in (known := self.scale["settings"]):
            raise UserError(f"setting {setting!r} is not one of scale {self.scale['name']}: {', '.join(known)}{nearest(setting, known)}")
        if (setting, name) not in self._methods:
            shared = self.setting(setting)
            context = OmegaConf.create({"setting": shared.setting, "method": _part_of_conf("method", name)})
            try:
                self._methods[setting, name] = validate_method(context.method)
            except UserError as error:
                raise UserError(f"{error} (conf/method/{name}.yaml, in setting {setting})") from None
        return self._methods[setting, name]

    def default_of(self, setting: str, method: str, key: str) -> Any:
        """The value that ``key`` of a run's name has where the name does not say it; UserError where a run has no such key."""
        if key == "seed":
            return self.base.seed
        config = self.method(setting, method)
        varying = [str(k) for k in config if k not in FIXED_KEYS and config[k] is not None]
        if key not in varying:
            raise UserError(f"{key}: a run of {method} cannot vary it{nearest(key, [*varying, 'seed'])}")
        return config[key]

    def run_name(self, setting: str, method: str, overrides: Mapping[str, run_names.Value]) -> str:
        """The canonical name of a run, without what is the setting's default anyway; UserError where a value has the wrong type."""
        defaults = {key: self.default_of(setting, method, key) for key in overrides}
        for key, value in overrides.items():
            check_kind(key if key == "seed" else f"method.{key}", value, kind_of(self.method(setting, method), key))
        different = {key: value for key, value in overrides.items() if defaults[key] != value}
        self._run(setting, method, different)
        return run_names.encode(method, different)

    def run(self, setting: str, name: str) -> Run:
        """A run by its name; UserError where the name is not canonical in this setting, or a value is out of range."""
        method, overrides = run_names.decode(name)
        self.method(setting, method)  # its own mistakes first
        try:
            canonical = self.run_name(setting, method, overrides)
        except UserError as error:
            raise UserError(f"{error} (run {name} of {setting})") from None
        if canonical != name:
            raise UserError(f"run {name!r} of {setting} is {canonical!r}: the rest is its default; write the latter")
        return self._run(setting, method, overrides)

    def _run(self, setting: str, method: str, overrides: Mapping[str, run_names.Value]) -> Run:
        config = self.method(setting, method)
        if changed := {key: value for key, value in overrides.items() if key != "seed"}:
            config = validate_method(OmegaConf.create(plain(config) | changed))
        return Run(config, check_range("seed", overrides.get("seed", self.base.seed)))

    # -- slices -------------------------------------------------------------------------------------------------------

    def slice(self, stage: str, **where: str) -> str:
        """The path of a stage's slice, written first where its text changed. ``where``: the wildcards of the stage's rule."""
        path, values = self._slice(stage, **where)
        text = yaml.dump({"stage": stage, "version": VERSIONS.get(stage, 1), **values}, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        file = Path(path)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            files.write_text(file, text)
        return path

    def _slice(self, stage: str, **where: str) -> tuple[str, dict[str, Any]]:
        key = (stage, *sorted(where.items()))
        if key not in self._slices:
            path, values = _SLICES[stage](self, **where)
            self._slices[key] = path, _as_plain(values)
        return self._slices[key]

    def made(self, stage: str, **where: str) -> list[str]:
        """The manifests of the stages that make what a stage's slice names."""
        path, values = self._slice(stage, **where)
        own = str(PurePosixPath(path).parent)
        named = [PurePosixPath(value) for _, value in leaves(values) if isinstance(value, str) and value.startswith("results/")]
        folders = {"/".join(path.parts[:3]) for path in named if path.parts[2] != "runs"}
        # A run's other files are literal inputs of the rules.
        folders |= {str(path.parent) for path in named if path.parts[2] == "runs" and path.name == "model"}
        return sorted(f"{folder}/manifest.json" for folder in folders if folder != own)

    def write(self, named: Iterable[str]) -> None:
        """Every slice that the scale's targets need, and that the files ``named`` need: paths of runs, or of the table of all trials."""
        written: set[tuple[Any, ...]] = set()

        def write(stage: str, **where: str) -> None:
            """The slice of a stage, and of all stages that make what it names."""
            if (key := (stage, *sorted(where.items()))) not in written:
                written.add(key)
                if not self.base.runtime.get(stage) and (needed := needed_knobs(stage)):
                    raise UserError(f"runtime.{stage} is missing in conf/scale/{self.scale['name']}.yaml: it must give {', '.join(needed)}")
                self.slice(stage, **where)
                for manifest in self.made(stage, **where):
                    made, by = stage_of(manifest)
                    write(made, **by)

        evaluated, trained = self.runs(), list[tuple[str, str]]()
        for name in named:
            match PurePosixPath(name).parts:
                case ("results", "tuning.csv"):
                    write("tuning")
                    trained += [trial[:2] for trial in self.trials]
                case ("results", setting, "runs", run, "manifest.json"):
                    trained.append((setting, run))
                case ("results", setting, "runs", run, _, *_):
                    evaluated.append((setting, run))
                case (last,) | (*_, last) if PurePosixPath(last).stem in SWEPT:
                    evaluated += self.swept()
        for setting, run in trained:
            write("train", setting=setting, run=run)
        for setting, run in evaluated:
            for stage in ("answer", "judge", "loglik"):
                write(stage, setting=setting, run=run)
            for benchmark in self.benchmarks:
                write("score", setting=setting, run=run, benchmark=benchmark)
        for setting in self.scale["settings"]:
            for stage in MADE_HERE:
                if self.setting(setting).setting[stage] is not None and _ready(self.setting(setting).setting[stage]):
                    write(stage, setting=setting)
        write("tables")
        write("controls", judge=self.base.judge.name)
        if self.base.world is not None:
            write("report")

    # -- targets ------------------------------------------------------------------------------------------------------

    def rows(self, *parts: str) -> list[Row]:
        """Every row of the tables, or of the scale's ``parts`` alone: methods (Table 4), ablations (Table 5)."""
        methods = dict.fromkeys(method for part in parts or ("methods", "ablations") for method in self.scale[part])
        found = []
        for setting, method in product(self.scale["settings"], methods):
            is_trained = self.method(setting, method).objective is not None
            for seed in self.scale["seeds"] if is_trained else [self.base.seed]:  # nothing else depends on the seed
                found.append(Row(setting, self.run_name(setting, method, {"seed": seed}), method, seed))
        return found

    def runs(self, *parts: str) -> list[tuple[str, str]]:
        """(setting, run) of ``rows``."""
        return [row[:2] for row in self.rows(*parts)]

    @cached_property
    def sweeps(self) -> dict[str, list[Trial]]:
        """The runs of the figures' sweeps conf/sweep/<scale>/<name>.yaml in the scale's settings, by the name that it lists, in the grids'
        order; none where it has none of a sweep's settings."""
        found: dict[str, list[Trial]] = {}
        for name in self.scale["sweeps"]:
            grid = sweep(f"{self.scale['name']}/{name}")
            settings, methods = grid.pop("setting", self.scale["settings"]), grid.pop("method")
            # One of conf/ that the scale leaves out is no mistake; one that does not exist is.
            settings = [
                setting for setting in settings if setting in self.scale["settings"] or not (CONF / f"setting/{setting}.yaml").is_file()
            ]
            found[name] = [trial for setting, method in product(settings, methods) for trial in self._trials(name, setting, method, grid)]
        return found

    def swept(self) -> list[tuple[str, str]]:
        """(setting, run) of all figures' sweeps, each once."""
        return list(dict.fromkeys(trial[:2] for trials in self.sweeps.values() for trial in trials))

    def _trials(self, name: str, setting: str, method: str, grid: Mapping[str, list[Any]]) -> list[Trial]:
        """The runs of a grid in a setting; UserError names the sweep's file."""
        varied = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        try:
            return [Trial(setting, self.run_name(setting, method, values), method, values) for values in varied]
        except UserError as error:
            raise UserError(f"conf/sweep/{self.scale['name']}/{name}.yaml, in {setting}: {error}") from None

    @cached_property
    def trials(self) -> list[Trial]:
        """Every run that the sweeps conf/sweep/<scale>/<method>.yaml of the scale's methods name in its settings, in the grids' order."""
        name = self.scale["name"]
        methods = dict.fromkeys([*self.scale["methods"], *self.scale["ablations"]])
        grids = {method: sweep(f"{name}/{method}") for method in methods if (CONF / f"sweep/{name}/{method}.yaml").is_file()}
        if not grids:
            raise UserError(f"scale {name} has no trials: write conf/sweep/{name}/<method>.yaml for methods of conf/scale/{name}.yaml")
        for method, grid in grids.items():
            if grid.pop("method") != [method] or "setting" in grid:
                raise UserError(
                    f"conf/sweep/{name}/{method}.yaml: a method's trials are of the method in the file's name, in every setting"
                )
        return [
            trial
            for setting, method in product(self.scale["settings"], grids)
            for trial in self._trials(method, setting, method, grids[method])
        ]

    def trainings(self, wanted: Iterable[tuple[str, str]]) -> list[str]:
        """The manifests of trained runs."""
        return [f"results/{setting}/runs/{run}/{files.MANIFEST}" for setting, run in wanted]

    def answers(self, benchmark: str) -> str:
        """The answers that a benchmark judges, in the folder eval/ of a run."""
        answered = self.base.benchmarks[benchmark].answers
        return f"{answered}/{ANSWERS[self.base.benchmarks[answered].protocol]}"

    def judgments(self, benchmark: str) -> str:
        """Their judgments, likewise."""
        return f"{benchmark}/{JUDGMENTS[self.base.benchmarks[benchmark].protocol]}"

    def score_options(self, benchmark: str) -> str:
        """The command line's options of stages/score.py for a benchmark."""
        config = self.base.benchmarks[benchmark]
        given = [f"--{key} {config[key]}" for key in SCORED_WITH.get(config.protocol, ())]
        return " ".join([f"--benchmark {config.protocol}", *given])

    def scores(self, wanted: list[tuple[str, str]]) -> list[str]:
        """The scores.json of runs on every benchmark."""
        return [f"results/{setting}/runs/{run}/eval/{benchmark}/scores.json" for setting, run in wanted for benchmark in self.benchmarks]

    def evaluations(self, wanted: list[tuple[str, str]]) -> list[str]:
        """Their scores, and the answers and judgments that these are of."""
        names = dict.fromkeys(of(name) for name in self.benchmarks for of in (self.answers, self.judgments))
        return self.scores(wanted) + [f"results/{setting}/runs/{run}/eval/{name}" for setting, run in wanted for name in names]

    def logliks(self, wanted: Iterable[tuple[str, str]]) -> list[str]:
        """The log-likelihoods of runs."""
        return [f"results/{setting}/runs/{run}/eval/loglik.parquet" for setting, run in wanted]

    def control_answers(self) -> list[str]:
        """The answers whose judgments the controls hold against each other: those of the tables' first run."""
        (setting, run), *_ = self.runs("methods")
        return [f"results/{setting}/runs/{run}/eval/{self.answers(name)}" for name in self.answered]

    @property
    def controls(self) -> str:
        """What the judge says of answers that are none."""
        return f"results/controls/{self.base.judge.name}/{files.MANIFEST}"

    def needs(self, name: str) -> list[str]:
        """What a script of analysis/ reads, besides results/tables.yaml."""
        rows, likelihood = self.runs(), [row[:2] for row in self.rows() if row.method in LIKELIHOOD]
        trained = [row[:2] for row in self.rows() if self.method(row.setting, row.method).objective is not None]
        swept = {sweep: [trial[:2] for trial in self.sweeps[sweep]] for sweep in self.scale["sweeps"]}
        data = [f"results/{setting}/data/{files.MANIFEST}" for setting in self.scale["settings"]]
        match name:
            case "table1" | "fig1_scores":
                return self.scores(self.runs("methods"))
            case "table4":
                return self.evaluations(self.runs("methods"))
            case "compare":  # Tables 4 to 6 of the paper
                return self.scores(rows) + self.logliks(likelihood)
            case "table2":
                return [self.controls, *self.made("tables"), *self.scores(rows[:1])]
            case "table3":
                return self.trainings(trained)
            case "table5":
                return self.evaluations(self.runs("ablations"))
            case "table6" | "fig2_length":
                return self.logliks(likelihood)
            case "fig3_gamma":
                return self.scores(swept.get("gamma", [])) + self.logliks(swept.get("gamma", []))
            case "fig4_dpo":
                return [*self.logliks(likelihood), EFFICIENCY]
            case "fig5_beta":
                beta = [run for sweep in ("beta_dpo", "beta_simpo") for run in swept.get(sweep, [])]
                return self.scores(beta) + self.logliks(beta)
            case "curves":
                return self.scores(rows) + self.trainings(trained)
            case "overlap":
                return [*data, *(made for made in self.made("tables") if made != self.controls)]
            case "answers":
                return self.evaluations(rows) + self.logliks(rows)
            case "scorecard":
                every = list(dict.fromkeys([*rows, *self.swept()]))
                return [*self.evaluations(every), *self.logliks(dict.fromkeys([*likelihood, *self.swept()])), EFFICIENCY]
        raise UserError(f"no script of analysis/ is called {name}{nearest(name, [*TABLES, *FIGURES, 'scorecard', 'answers'])}")

    def lacks(self, name: str) -> list[str]:
        """The methods and sweeps that the scale would have to have for a table or figure to be made."""
        if name == "table5":
            return [f"{wanted} among its ablations" for wanted in ABOUT[name] if wanted not in self.scale["ablations"]]
        methods = (*self.scale["methods"], *self.scale["ablations"])
        return [wanted for wanted in ABOUT.get(name, ()) if wanted not in methods and not self.sweeps.get(wanted)]

    def targets(self) -> list[str]:
        """What the scale asks for."""
        report = ["results/world_report.json"] if self.base.world is not None else []
        tables = [f"results/{name}.csv" for name in ("table2", "table4", "table5") if not self.lacks(name)]
        return [*tables, "results/figures/table4.png", *report]

    def paper(self) -> list[str]:
        """Every table and figure that the scale has the runs for."""
        made = [f"results/{name}.csv" for name in TABLES if not self.lacks(name)]
        made += [f"results/figures/{name}.png" for name in FIGURES if not self.lacks(name)]
        return list(dict.fromkeys([*self.targets(), *made, "results/scorecard.csv", "results/answers.html"]))


def stage_of(path: str) -> tuple[str, dict[str, str]]:
    """The stage that makes a file below results/, and its rule's wildcards."""
    match PurePosixPath(path).parts:
        case ("results", "assets", benchmark, *_):
            return "assets", {"benchmark": benchmark}
        case ("results", "worlds", world, *_):
            return "world", {"world": world}
        case ("results", "calibration", world, *_):
            return "calibrate", {"world": world}
        case ("results", "controls", judge, *_):
            return "controls", {"judge": judge}
        case ("results", setting, "runs", run, *_):
            return "train", {"setting": setting, "run": run}
        case ("results", setting, "data", *_):
            return "pairs", {"setting": setting}
        case ("results", setting, stage, *_) if stage in _SLICES:
            return stage, {"setting": setting}
    raise UserError(f"{path}: no stage makes such a file")


def _ready(part: DictConfig) -> bool:
    return not any(value in NOT_READY for _, value in leaves(plain(part)))


Slice = tuple[str, dict[str, Any]]


def _world(plan: Plan, *, world: str, **_: str) -> Slice:
    config = plan.base.world
    if config is None or config.name != world:
        raise UserError(f"world {world!r}: scale {plan.scale['name']} has {config.name if config else 'none'}")
    return f"results/worlds/{world}/config.yaml", dict(config)


def _calibrate(plan: Plan, *, world: str, **_: str) -> Slice:
    config = plan.base
    if config.judge.server is None:
        raise UserError(f"judge {config.judge.name}: only a judge with a server of its own can calibrate world {world}")
    named = {key: config.world.alpacaeval2[key] for key in ("baseline", "concise", "verbose")}
    swap_seed = config.benchmarks.alpacaeval2.swap_seed
    return f"results/calibration/{world}/config.yaml", {**named, "swap_seed": swap_seed, "server": config.judge.server}


def _assets(plan: Plan, *, benchmark: str, **_: str) -> Slice:
    return f"results/assets/{benchmark}/config.yaml", {"assets": plan.base.benchmarks[benchmark].assets}


def _part(plan: Plan, stage: str, setting: str) -> Slice:
    """The slice of a stage whose values are a part of the setting."""
    config = plan.setting(setting)
    given = config.setting[stage]
    if given is None:
        raise UserError(f"conf/setting/{setting}.yaml has {stage}: null, so that results/{setting}/{stage} is nothing that can be made")
    for key, value in leaves(plain(given)):
        if value in NOT_READY:
            raise UserError(f"not ready: {NOT_READY[value]} (conf/setting/{setting}.yaml, {stage}.{key}); README.md, section Paper scale")
    return f"results/{setting}/{stage}/config.yaml", {"setting": setting, "seed": config.seed, **given}


def _pretrain(plan: Plan, *, setting: str, **_: str) -> Slice:
    return _part(plan, "pretrain", setting)


def _sft(plan: Plan, *, setting: str, **_: str) -> Slice:
    return _part(plan, "sft", setting)


def _generate(plan: Plan, *, setting: str, **_: str) -> Slice:
    path, values = _part(plan, "generate", setting)
    return path, {**plan.setting(setting).setting.start, **values}


def _reward(plan: Plan, *, setting: str, **_: str) -> Slice:
    return _part(plan, "reward", setting)


def _annotate(plan: Plan, *, setting: str, **_: str) -> Slice:
    path, values = _part(plan, "annotate", setting)
    return path, {**values, "generations": f"results/{setting}/generate/generations.jsonl"}


def _pairs(plan: Plan, *, setting: str, **_: str) -> Slice:
    config = plan.setting(setting)
    pairs = {key: config.setting.pairs[key] for key in ("train", "heldout", "heldout_split")}
    return f"results/{setting}/data/config.yaml", {"seed": config.seed, **pairs}


def _lengths(config: DictConfig) -> dict[str, Any]:
    pairs = {key: config.setting.pairs[key] for key in ("max_length", "max_prompt_length", "empty_system")}
    return {**config.setting.start, "pairs": f"results/{config.setting.name}/data", **pairs, "precision": config.setting.training.precision}


def _reference(plan: Plan, *, setting: str, **_: str) -> Slice:
    return f"results/{setting}/reference/config.yaml", {"setting": setting, **_lengths(plan.setting(setting))}


def _train(plan: Plan, *, setting: str, run: str, **_: str) -> Slice:
    config, (method, seed) = plan.setting(setting), plan.run(setting, run)
    if method.objective is None:
        raise UserError(f"run {run}: method {method.name} trains nothing; its model is {method.model or f'the start model of {setting}'}")
    known = {f.name for f in fields(Method)}
    shared = {key: value for key, value in config.setting.training.items() if key not in ("epochs", "batch_size", "precision")}
    given = {key: value for key, value in method.items() if key in known and key not in ("reference", *MODEL_KEYS)}
    hyperparameters = {key: value for key, value in method.items() if key not in known}
    reference = f"results/{setting}/reference" if method.reference == "cached" else method.reference
    values = {"setting": setting, "run": run, "seed": seed, **_lengths(config), "reference": reference}
    return f"results/{setting}/runs/{run}/config.yaml", {**values, "method": {**given, **shared, "hyperparameters": hyperparameters}}


def _answer(plan: Plan, *, setting: str, run: str, **_: str) -> Slice:
    config = plan.setting(setting)
    method = plan.run(setting, run).method
    model = {"model": f"results/{setting}/runs/{run}/model", "revision": None}
    if method.objective is None:
        model = {key: method[key] for key in MODEL_KEYS} if method.model else config.setting.start
    benchmarks = {
        name: {**{key: config.benchmarks[name][key] for key in ("protocol", "questions")}, **config.benchmarks[name].answering}
        for name in plan.answered
    }
    shared = {"empty_system": config.setting.pairs.empty_system, "stop_token_ids": config.setting.stop_token_ids}
    values = {"setting": setting, "run": run, **model, **shared, "benchmarks": benchmarks}
    return f"results/{setting}/runs/{run}/eval/answer.yaml", values


def _judge(plan: Plan, *, setting: str, run: str, **_: str) -> Slice:
    config = plan.setting(setting)
    folder = f"results/{setting}/runs/{run}/eval"
    benchmarks = {}
    for name, benchmark in config.benchmarks.items():
        given = {key: value for key, value in benchmark.items() if value is not None and key not in ("assets", "gamed", "answering")}
        paths = {"answers": f"{folder}/{plan.answers(name)}", "judgments": f"{folder}/{plan.judgments(name)}"}
        benchmarks[name] = given | paths
    judge = {key: value for key, value in config.judge.items() if key != "budget"}
    return f"{folder}/judge.yaml", {"setting": setting, "run": run, "benchmarks": benchmarks, "judge": judge}


def _score(plan: Plan, *, benchmark: str, setting: str, run: str, **_: str) -> Slice:
    config = plan.base.benchmarks[benchmark]
    given = {key: config[key] for key in SCORED_WITH.get(config.protocol, ())}
    return f"results/{setting}/runs/{run}/eval/{benchmark}/score.yaml", {
        "protocol": config.protocol,
        "protocol_version": config.version,
        **given,
    }


def _loglik(plan: Plan, *, setting: str, run: str, **_: str) -> Slice:
    config = plan.setting(setting)
    folder = f"results/{setting}/runs/{run}"
    lengths = _lengths(config)
    reference = {key: lengths.pop(key) for key in MODEL_KEYS}
    answer = plan._slice("answer", setting=setting, run=run)[1]
    benchmarks = {
        name: {"protocol": benchmark["protocol"], "questions": benchmark["questions"], "answers": f"{folder}/eval/{plan.answers(name)}"}
        for name, benchmark in answer["benchmarks"].items()
    }
    model = {key: answer.get(key) for key in MODEL_KEYS}
    known = {"start": reference, "reference": f"results/{setting}/reference"}
    return f"{folder}/eval/loglik.yaml", {"setting": setting, "run": run, **model, **lengths, **known, "benchmarks": benchmarks}


def _controls(plan: Plan, *, judge: str, **_: str) -> Slice:
    """Answers that are none, and, for the agreement of the orders, those of the tables' first run."""
    if judge != plan.base.judge.name:
        raise UserError(f"judge {judge!r}: scale {plan.scale['name']} has {plan.base.judge.name}")
    setting, run = plan.runs("methods")[0]
    judged = plan._slice("judge", setting=setting, run=run)[1]
    benchmarks = {name: value for name, value in judged["benchmarks"].items() if value["protocol"] != "oracle"}
    return f"results/controls/{judge}/config.yaml", {"prompts": CONTROL_PROMPTS, "benchmarks": benchmarks, "judge": judged["judge"]}


def _tables(plan: Plan, **_: str) -> Slice:
    rows = [row._asdict() for row in plan.rows()]
    sweeps = {name: [trial._asdict() for trial in trials] for name, trials in plan.sweeps.items()}
    judge = {"judge": plan.base.judge.model, "controls": str(PurePosixPath(plan.controls).parent)}
    asked = {key: {name: plan.base.benchmarks[name][key] for name in plan.answered} for key in ("questions", "baseline")}
    taught = {name: part.data.data if (part := plan.setting(name).setting.sft) is not None else None for name in plan.scale["settings"]}
    return "results/tables.yaml", {
        **plan.scale,
        "benchmarks": plan.benchmarks,
        **judge,
        **asked,
        "demonstrations": taught,
        "rows": rows,
        "sweeps": sweeps,
        "analysis": plan.base.analysis,
    }


def _tuning(plan: Plan, **_: str) -> Slice:
    references = {name: f"results/{name}/reference" for name in plan.scale["settings"]}
    return "results/tuning.yaml", {"references": references, "trials": [trial._asdict() for trial in plan.trials]}


def _report(plan: Plan, **_: str) -> Slice:
    generated = [name for name in plan.scale["settings"] if plan.setting(name).setting.generate is not None]
    config = {"world": f"results/worlds/{plan.base.world.name}", "gamed": plan.base.benchmarks.alpacaeval2.gamed}
    runs = {name: [run for setting, run in plan.runs() if setting == name] for name in plan.scale["settings"]}
    return "results/world_report.yaml", {**config, "runs": runs, "generated": generated}


_SLICES: dict[str, Callable[..., Slice]] = {
    "assets": _assets,
    "world": _world,
    "calibrate": _calibrate,
    "pretrain": _pretrain,
    "sft": _sft,
    "generate": _generate,
    "reward": _reward,
    "annotate": _annotate,
    "pairs": _pairs,
    "reference": _reference,
    "train": _train,
    "answer": _answer,
    "judge": _judge,
    "score": _score,
    "loglik": _loglik,
    "controls": _controls,
    "tables": _tables,
    "tuning": _tuning,
    "report": _report,
}


def plan(scale: str | None = None, named: Sequence[str] = ()) -> Plan:
    """The plan of a scale (``None``: conf/config.yaml's), its slices written, and those that the files ``named`` need.

    What ``paper`` among them leaves out is said on standard error.
    """
    made = Plan(scale)
    made.write(named)
    if "paper" in named:
        for name in ABOUT:
            if lacking := made.lacks(name):
                print(f"paper goes without {name}: scale {made.scale['name']} has no runs of {', '.join(lacking)}", file=sys.stderr)
    return made


def sweep(name: str) -> dict[str, list[Any]]:
    """What conf/sweep/<name>.yaml varies: ``setting`` (where it says one), ``method``, and the keys of a run's name, each with its values.

    Read with Hydra's own grammar, so that the runs are those of its multirun. UserError names file and key.
    """
    where = f"conf/sweep/{name}.yaml"
    try:
        params = OmegaConf.select(OmegaConf.load(CONF / f"sweep/{name}.yaml"), "hydra.sweeper.params", throw_on_missing=True) or {}
        overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
        texts = {
            str(override.get_key_element()): list(override.sweep_string_iterator())
            if override.is_sweep_override()
            else [override.get_value_element_as_str()]
            for override in overrides
        }
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None
    if "method" not in texts:
        raise UserError(f"{where}: hydra.sweeper.params.method must stand there: a sweep says whose runs it is of")
    for key in texts:
        if key not in ("setting", "method", "seed") and not key.startswith("method."):
            raise UserError(f"{where}: hydra.sweeper.params.{key}: a sweep can vary setting, method, method.* and seed")
    try:
        grid = {key: [value_of(text) for text in values] for key, values in texts.items()}
        for key in grid.keys() & {"setting", "method"}:
            for value in grid[key]:
                check_kind(f"hydra.sweeper.params.{key}", value, Kind(str))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return {key.removeprefix("method."): values for key, values in grid.items()}


@cache
def _part_of_conf(group: str, name: str) -> DictConfig:
    """conf/<group>/<name>.yaml with its defaults, composed by itself: a tenth of the time of the whole configuration."""
    known = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if name not in known:
        raise UserError(f"{group} {name!r}: conf/{group}/{name}.yaml does not exist{nearest(name, known)}")
    part: DictConfig = compose_raw(f"{group}/{name}")[group]
    return part


def _as_plain(value: Any) -> Any:
    """``value`` with its configurations as dicts and lists."""
    if isinstance(value, DictConfig | ListConfig):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {key: _as_plain(inner) for key, inner in value.items()}
    return [_as_plain(inner) for inner in value] if isinstance(value, list) else value
