"""``plan()``: the bridge from Hydra, which owns values, to Snakemake, which owns files.

``plan(scale)`` composes the scale, and each of its settings and methods once. It writes the *stage configuration* of each stage
(stage_configs.py), but only if its text changed. A stage configuration is an input of the stage's rule, so Snakemake makes again only what
a changed value touches. Only the Snakefile's main process and ``stages.run`` plan.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from analysis import inventory
from stages.benchmarks import BENCHMARKS
from stages.lib import files
from stages.lib.errors import UserError
from stages.plan import compose, run_names, targets
from stages.plan.check import validate, validate_judge, validate_method, validate_scale
from stages.plan.knobs import needed_knobs
from stages.plan.stage_configs import MADE_HERE, STAGES, VERSIONS, StageConfig, as_plain, not_ready, stage_of, upstream_manifests
from stages.plan.values import nearest, plain

TABLES = Path("results/tables.yaml")
CHAIN = "+chain="  # between the name of a setting and the seed of a chain, in the name of the chain's folder
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Plan:
    """The configuration of one scale, composed and checked, and the stage configurations that follow from it."""

    def __init__(self, scale: str | None = None) -> None:
        self._raw = compose.compose_raw(overrides=[f"scale={scale}"] if scale else [])
        self._settings: dict[str, DictConfig] = {}
        self._methods: dict[tuple[str, str], DictConfig] = {}
        self._contexts: dict[str, DictConfig] = {}  # a setting, for the method that takes values of it
        self._composed: dict[tuple[Any, ...], StageConfig] = {}
        self.chained: list[targets.Row] = []  # the runs of the chains that the tables contain
        self.scale = validate_scale(self._raw.scale)
        try:
            validate_judge(self._raw.judge)
        except UserError as error:
            raise UserError(f"{error} ({judge_file(self._raw.judge.get('name'))})") from None
        self.base = self.setting(self.scale["settings"][0])  # for the values that do not depend on the setting
        self.benchmarks = list(self.base.benchmarks)
        self.answered = [name for name in self.benchmarks if self.base.benchmarks[name].answers == name]
        # Runtime knobs change the speed and never the result. They are options of a stage's command, and do not cause a rerun.
        runtime = plain(self.base.runtime)
        if self.base.judge.budget is not None:
            runtime.setdefault("judge", {})["budget"] = self.base.judge.budget
        given = {stage: " ".join(f"{key}={value}" for key, value in knobs.items()) for stage, knobs in runtime.items()}
        self.knobs = {stage: f"--runtime {given.get(stage, '')}" for stage in VERSIONS}
        self.efficiency = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in runtime.get("efficiency", {}).items())
        self.warm = bool(runtime.get("workflow", {}).get("warm"))
        processes = runtime.get("train", {}).get("processes", 1)
        # Torch's launcher starts a training of several processes.
        self.launcher = f"torch.distributed.run --standalone --nproc-per-node {processes} -m " if processes > 1 else ""

    sweeps = cached_property(targets.sweeps)
    trials = cached_property(targets.trials)

    @cached_property
    def chains(self) -> dict[str, tuple[str, int]]:
        """The settings of the scale's chains, by name: (setting of the scale, seed of the chain). The seed is in place of ``seed``."""
        settings, seeds = self.scale["settings"], self.scale["chains"]
        return {f"{setting}{CHAIN}{seed}": (setting, seed) for seed in seeds for setting in settings}

    def setting(self, name: str) -> DictConfig:
        """The configuration of a setting, with the scale's first method. A setting on which another one builds may be outside the scale."""
        if name not in self._settings:
            of, _, seed = name.partition(CHAIN)
            self._raw.setting = compose.part_of_conf("setting", of)
            self._raw.setting.name = name
            self._raw.method = compose.part_of_conf("method", self.scale["methods"][0])
            chain = {"seed": int(seed), "chain": f"{CHAIN}{seed}"} if seed.isdecimal() else {}
            given = OmegaConf.create(self._raw)
            given.update(chain)
            self._settings[name] = validate(given)
        return self._settings[name]

    def method(self, setting: str, name: str) -> DictConfig:
        """A method with the values that it has in a setting of this scale."""
        if setting not in (known := [*self.scale["settings"], *self.chains]):
            raise UserError(f"setting {setting!r} is not one of scale {self.scale['name']}: {', '.join(known)}{nearest(setting, known)}")
        if (setting, name) not in self._methods:
            if setting not in self._contexts:
                self._contexts[setting] = OmegaConf.create({"setting": self.setting(setting).setting})
            context = self._contexts[setting]
            context.method = compose.part_of_conf("method", name)
            try:
                self._methods[setting, name] = validate_method(context.method)
            except UserError as error:
                raise UserError(f"{error} (conf/method/{name}.yaml, in setting {setting})") from None
        return self._methods[setting, name]

    def run_name(self, setting: str, method: str, overrides: Mapping[str, run_names.Value]) -> str:
        """The canonical name of a run of ``method`` in ``setting`` with the values ``overrides``."""
        return run_names.canonical(method, self.method(setting, method), self.setting(setting).seed, overrides)

    def run(self, setting: str, name: str) -> run_names.Run:
        """A run by its name; UserError if the name is not canonical in this setting, or a value is out of range."""
        method, overrides = run_names.decode(name)
        config = self.method(setting, method)  # first, for its own errors
        try:
            canonical = self.run_name(setting, method, overrides)
        except UserError as error:
            raise UserError(f"{error} (run {name} of {setting})") from None
        if canonical != name:
            raise UserError(f"run {name!r} of {setting} is {canonical!r}: the rest is its default; write the latter")
        return run_names.with_values(config, self.setting(setting).seed, overrides)

    def composed(self, stage: str, **where: str) -> StageConfig:
        """Path and values of a stage configuration. ``where``: the wildcards of the stage's rule."""
        if (key := (stage, *sorted(where.items()))) not in self._composed:
            path, values = STAGES[stage](self, **where)
            self._composed[key] = path, as_plain(values)
        return self._composed[key]

    def stage_config(self, stage: str, **where: str) -> str:
        """Write a stage configuration if its text changed; its path."""
        path, values = self.composed(stage, **where)
        text = yaml.dump({"stage": stage, "version": VERSIONS.get(stage, 1), **values}, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        file = Path(path)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            files.write_text(file, text)
        return path

    def upstream_manifests(self, stage: str, **where: str) -> list[str]:
        """The manifests of the stages that make the files and folders that a stage configuration names."""
        return upstream_manifests(self.composed(stage, **where))

    def wants_chains(self, named: Iterable[str]) -> bool:
        """Whether the tables contain the scale's chains: `snakemake paper` makes them, and once they are there they stay.

        A job that Snakemake starts as a process of its own plans as results/tables.yaml says.
        """
        if "--target-jobs" in named and TABLES.is_file():
            return bool(yaml.safe_load(TABLES.read_text(encoding="utf-8")).get("chains"))
        runs = targets.chains(self)
        return bool(runs) and ("paper" in named or all(Path(path).is_file() for path in targets.scores(self, [row[:2] for row in runs])))

    def write(self, named: Iterable[str]) -> None:
        """Write every stage configuration that the scale's targets need, and those that the files ``named`` (of runs or tables) need."""
        written: set[tuple[Any, ...]] = set()

        def write(stage: str, **where: str) -> None:
            """Write a stage configuration, and those of all stages upstream."""
            if (key := (stage, *sorted(where.items()))) not in written:
                written.add(key)
                if not self.base.runtime.get(stage) and (needed := needed_knobs(stage)):
                    raise UserError(f"runtime.{stage} is missing in conf/scale/{self.scale['name']}.yaml: it must give {', '.join(needed)}")
                self.stage_config(stage, **where)
                for manifest in self.upstream_manifests(stage, **where):
                    upstream, by = stage_of(manifest)
                    write(upstream, **by)

        evaluated, trained = [row[:2] for row in [*targets.rows(self), *self.chained]], list[tuple[str, str]]()
        for name in named:
            match PurePosixPath(name).parts:
                case ("results", "tuning.csv"):
                    for setting, method in targets.tuned(self):
                        write("develop", setting=setting, method=method)
                    write("tuning")
                case ("results", setting, "tuning", method, *_):
                    write("develop", setting=setting, method=method)
                case ("results", setting, "runs", run, "manifest.json"):
                    trained.append((setting, run))
                case ("results", setting, "runs", run, _, *_):
                    evaluated.append((setting, run))
                case (last,) | (*_, last) if PurePosixPath(last).stem in inventory.SWEPT:
                    evaluated += targets.swept(self)
        for setting, run in trained:
            write("train", setting=setting, run=run)
        for setting, run in evaluated:
            for stage in ("answer", "judge", "score", "loglik"):
                write(stage, setting=setting, run=run)
        for setting in [*self.scale["settings"], *dict.fromkeys(row.setting for row in self.chained)]:
            for stage in MADE_HERE:
                part = self.setting(setting).setting[stage]
                if part is not None and not not_ready(part):
                    write(stage, setting=setting)
        write("tables")
        write("controls", judge=self.base.judge.name)
        if self.base.world is not None:
            for setting in self.scale["settings"]:
                write("greedy", setting=setting)
            write("report")


def judges() -> dict[str, DictConfig]:
    """The files of conf/judge by their names without .yaml."""
    return {path.stem: compose.part_of_conf("judge", path.stem) for path in sorted((compose.CONF / "judge").glob("*.yaml"))}


def judge_file(name: str | None) -> str:
    """The file of the judge with this name; conf/judge if none has it."""
    return next((f"conf/judge/{file}.yaml" for file, judge in judges().items() if judge.get("name") == name), "conf/judge")


def check_retired(planned: Plan, today: date) -> None:
    """UserError if the scale's benchmarks ask a judge that has been switched off; a line on standard error if that day is known."""
    judge, scale = planned.base.judge, planned.scale["name"]
    if judge.retired is None or not any(BENCHMARKS[benchmark.protocol].tokens for benchmark in planned.base.benchmarks.values()):
        return
    said = f"judge {judge.name}: {judge.model} {{}} switched off on {judge.retired} (judge.retired in {judge_file(judge.name)})"
    if date.fromisoformat(judge.retired) > today:
        print(said.format("will be") + "; have all judgments by then", file=sys.stderr)
        return
    others = [
        f"`- /judge: {file}`{f' until {until}' if (until := other.get('retired')) else ''}"
        for file, other in judges().items()
        if not (other.get("retired") and date.fromisoformat(other.retired) <= today) and (other.server is None or planned.base.world)
    ]
    raise UserError(
        f"{said.format('was')}, and scale {scale} needs it. Nothing has been made. In conf/scale/{scale}.yaml take another judge:"
        f" {', '.join(others)}; or correct the date, if your endpoint still has the model"
    )


def plan(scale: str | None = None, named: Sequence[str] = ()) -> Plan:
    """The plan of a scale (None: conf/config.yaml's). Writes its stage configurations, and those that the files ``named`` need.

    If ``paper`` is among them, prints on standard error what the scale has no runs for.
    """
    planned = Plan(scale)
    if "--target-jobs" not in named:  # a job that Snakemake starts goes on with what was planned
        check_retired(planned, date.today())
    planned.chained = targets.chains(planned) if planned.wants_chains(named) else []
    planned.write(named)
    if "paper" in named:
        for name in inventory.ABOUT:
            if lacking := inventory.lacks(planned, name):
                print(f"paper goes without {name}: scale {planned.scale['name']} has no runs of {', '.join(lacking)}", file=sys.stderr)
    return planned
