"""One run, or a Hydra multirun, as one Snakemake call.

    python -m stages.run setting=mini_base method=simpo method.beta=2.5
    python -m stages.run -m setting=mini_base method=simpo method.beta=2,2.5 method.gamma=0.3,0.5,1
    python -m stages.run +sweep=mini/dpo setting=mini_base,mini_instruct

Each job of Hydra becomes a run with a name (stages/plan/run_names.py), trained and evaluated on the scale's benchmarks. The runs share the
SFT model and the reference, and what exists is not made again. `snakemake` finds the same results. A run can vary ``method.*`` and
``seed``; change conf/ for everything else. Snakemake's own options go into SNAKEMAKE_ARGS.

A sweep of conf/sweep/<scale>/ is the multirun among which a method's values are chosen. It only trains
(``hydra.callbacks.snakemake.until=train``). The target results/tuning.csv also has its trials judged (stages/develop.py). Any call may give
this key, or ``=score``. If the command line gives a key that the sweep varies, its values replace the sweep's.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import traceback
from typing import Any

import hydra
from hydra.conf import OverridesConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, ValueType
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stages.lib.errors import UserError
from stages.plan import Plan, targets
from stages.plan.compose import CONF, ROOT, compose_raw, sweep
from stages.plan.values import plain, value_of


class OneWorkflow(Callback):
    """Collects the runs that the jobs name, and makes them in one Snakemake call at the end. ``until``: score, or train."""

    def __init__(self, until: str) -> None:
        self.until = until
        self.points: list[list[str]] = []

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        self.points.append(_texts(HydraConfig.get().overrides))

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        make(self.points, self.until)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        make(self.points, self.until)


def _texts(overrides: OverridesConf) -> list[str]:
    """The texts of a job's overrides; unresolved if one is ``${…}`` of a key that does not exist, which planning then names."""
    try:
        return list(overrides.task)
    except OmegaConfBaseException:
        return plain(overrides, resolve=False)["task"]


CHOICES = ("scale", "setting", "method", "+sweep")


def chosen(point: list[str]) -> dict[str, str]:
    """The files of conf/ that a job's overrides choose; an empty text where they do not choose one."""
    given = dict.fromkeys(CHOICES, "")
    for override in point:
        key, _, text = override.partition("=")
        if key in given:
            given[key] = text
    return given


def check_overrides(arguments: list[str]) -> None:
    """UserError for an override that would end Hydra with a traceback, or leave it nothing to do. Hydra names other errors itself."""
    for argument in arguments:
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException:
            continue
        is_file, kind = (CONF / override.key_or_group).is_dir(), override.value_type
        if kind == ValueType.INTERVAL_SWEEP or (kind == ValueType.GLOB_CHOICE_SWEEP and not is_file):
            raise UserError(f"{argument}: give the values of a sweep one by one, {override.key_or_group}=a,b, or as range(…)")
        if is_file and not override.is_delete() and kind != ValueType.GLOB_CHOICE_SWEEP:
            values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
            if not all(isinstance(value, str | list | QuotedString) for value in values):
                raise UserError(f"{argument}: expected the name of a file in conf/{override.key_or_group}, without .yaml")


def varied(point: list[str]) -> dict[str, Any]:
    """The values that a job's overrides vary in a run; UserError if a run cannot vary a key."""
    values: dict[str, Any] = {}
    for override in point:
        key, _, text = override.partition("=")
        if key == "seed" or key.startswith("method."):
            values[key.removeprefix("method.")] = value_of(text)
        elif key not in CHOICES:
            raise UserError(f"{override}: a run can vary method.* and seed; change conf/ for everything else, or add a setting to it")
    # Hydra reads the values of a sweep only if all jobs have the same sweep.
    if (name := chosen(point)["+sweep"]) and not sweep(name).keys() - {"setting", "method"} <= values.keys():
        raise UserError(f"+sweep={name}: Hydra has not read its values; give one sweep in a call")
    return values


def make(points: list[list[str]], until: str) -> None:
    """Make the runs of all points. Exit with a status other than 0 if a point is not a run, or a run fails.

    Hydra turns an exception in a callback into a warning, so no exception may leave this function.
    """
    try:
        _make(points, until)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _make(points: list[list[str]], until: str) -> None:
    if until not in ("train", "score"):
        raise UserError(f"hydra.callbacks.snakemake.until={until}: expected train or score")
    try:
        options = shlex.split(os.environ.get("SNAKEMAKE_ARGS", ""))
    except ValueError as error:
        raise UserError(f"SNAKEMAKE_ARGS: {error}") from None
    # The scale of a job is the one that it names, or its sweep's; an empty text is the scale of conf/config.yaml.
    scales = {choices["scale"] or choices["+sweep"].partition("/")[0] for choices in map(chosen, points)}
    if len(scales) != 1:
        raise UserError("a call makes runs of one scale; give scale=… once, without alternatives")
    (scale,) = scales
    planned = Plan(scale or None)
    wanted, wrong = runs_of(points, planned)
    status = 1
    if wanted:
        wanted_files = targets.scores(planned, wanted) if until == "score" else targets.trainings(wanted)
        command = [sys.executable, "-m", "snakemake", "--cores", "all", "--keep-going", *options, *wanted_files]
        command += ["--config", f"scale={scale}"] if scale else []
        print(f"{len(wanted)} runs: {', '.join(run for _, run in wanted)}\n{shlex.join(command)}", flush=True)
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if wrong or status:
        sys.exit("\n".join(wrong) or status)


def runs_of(points: list[list[str]], planned: Plan) -> tuple[list[tuple[str, str]], list[str]]:
    """(setting, run) of the points that are runs, each once; and an error's sentence for each other point."""
    defaults = compose_raw()
    wanted: dict[tuple[str, str], None] = {}
    wrong: list[str] = []
    for point in points:
        try:
            choices = chosen(point)
            setting, method = choices["setting"] or defaults.setting.name, choices["method"] or defaults.method.name
            wanted[setting, planned.run_name(setting, method, varied(point))] = None
        except UserError as error:
            wrong.append(f"error: {' '.join(point)}: {error}")
    return list(wanted), wrong


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def job(config: DictConfig) -> None:
    """The job itself does nothing. ``OneWorkflow`` collects its overrides, and runs the workflow at the end."""


def main() -> None:
    try:
        check_overrides(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    job()


if __name__ == "__main__":
    main()
