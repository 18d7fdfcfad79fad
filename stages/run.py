"""The front door by hand: one run, or a Hydra multirun, as one Snakemake call.

    python -m stages.run setting=mini_base method=simpo method.beta=2.5
    python -m stages.run -m setting=mini_base method=simpo method.beta=2,2.5 method.gamma=0.3,0.5,1
    python -m stages.run +sweep=mini/dpo setting=mini_base,mini_instruct

Each point becomes a run with a name (stages/runs.py), trained and evaluated on the scale's benchmarks. What the points share
(SFT model, reference) is made once, what exists is not made again, and the results are those that `snakemake` finds. Whatever a
point cannot vary (``setting.*``, ``world.*`` …) belongs into conf/. Snakemake's own options go into SNAKEMAKE_ARGS.

A sweep of conf/sweep/<scale>/ is the multirun in which a method's values are chosen: it trains, which gives the figures on held-out pairs
(analysis/tuning.py), and neither answers nor judges: ``hydra.callbacks.snakemake.until=train``, which any call may say, or take back with
``=score``. What the command line says of a key that the sweep varies takes the place of the sweep's values.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from stages.config import CONF, ROOT, Plan, compose_raw, sweep, value_of
from stages.errors import UserError


class OneWorkflow(Callback):
    """Collects the runs that the jobs name, and makes them in one Snakemake call at the end: ``until`` their score, or train alone."""

    def __init__(self, until: str) -> None:
        self.until = until
        self.points: list[list[str]] = []

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        self.points.append(list(HydraConfig.get().overrides.task))

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        make(self.points, self.until)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        make(self.points, self.until)


def named(point: list[str]) -> tuple[str, str, str, dict[str, Any]]:
    """(scale, setting, method, what a run varies) of one job's overrides; UserError where a run cannot vary a key."""
    choices = {"scale": "", "setting": "", "method": "", "+sweep": ""}
    varied: dict[str, Any] = {}
    for override in point:
        key, _, text = override.partition("=")
        if key in choices:
            choices[key] = text
        elif key == "seed" or key.startswith("method."):
            varied[key.removeprefix("method.")] = value_of(text)
        else:
            raise UserError(f"{override}: a run can vary method.* and seed; change conf/ for everything else, or add a setting to it")
    name = choices["+sweep"]
    if (
        name and not sweep(name).keys() - {"setting", "method"} <= varied.keys()
    ):  # Hydra reads a sweep's values where all jobs have the same one
        raise UserError(f"+sweep={name}: Hydra has not read its values; give one sweep in a call")
    return choices["scale"] or name.partition("/")[0], choices["setting"], choices["method"], varied


def make(points: list[list[str]], until: str) -> None:
    """Call Snakemake for what all points that are runs shall reach; exits with its status, or with a sentence where a point is none."""
    wanted: dict[tuple[str, str], None] = {}
    wrong: list[str] = []
    try:  # Hydra would turn an exception of a callback into a warning
        if until not in ("train", "score"):
            raise UserError(f"hydra.callbacks.snakemake.until={until}: expected train or score")
        scale = named(points[0])[0]
        if any(named(point)[0] != scale for point in points):
            raise UserError("a call makes runs of one scale; give scale=… once, without alternatives")
        planned = Plan(scale or None)
        defaults = compose_raw()
        for point in points:
            try:
                _, setting, method, varied = named(point)
                setting, method = setting or defaults.setting.name, method or defaults.method.name
                wanted[setting, planned.run_name(setting, method, varied)] = None
            except UserError as error:
                wrong.append(f"error: {' '.join(point)}: {error}")
    except UserError as error:
        sys.exit(f"error: {error}")
    if not wanted:
        sys.exit("\n".join(wrong))
    options = shlex.split(os.environ.get("SNAKEMAKE_ARGS", ""))
    targets = planned.scores(list(wanted)) if until == "score" else planned.trainings(wanted)
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--keep-going", *options, *targets]
    command += ["--config", f"scale={scale}"] if scale else []
    print(f"{len(wanted)} runs: {', '.join(run for _, run in wanted)}\n{shlex.join(command)}", flush=True)
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if wrong:
        sys.exit("\n".join(wrong))
    if status:
        sys.exit(status)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """The job itself does nothing: its overrides are its meaning, and the workflow runs when all are known."""


if __name__ == "__main__":
    main()
