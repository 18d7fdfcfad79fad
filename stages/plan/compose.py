"""Reads conf/ with Hydra: the whole configuration, one file of a group by itself, a sweep's grid."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.lib.errors import UserError
from stages.plan.check import check_kind, validate
from stages.plan.schema import Kind
from stages.plan.values import nearest, value_of

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def compose_raw(name: str = "config", overrides: Iterable[str] = ()) -> DictConfig:
    """The configuration that Hydra composes from conf/<name>.yaml, with its interpolations unresolved."""
    is_up = GlobalHydra.instance().is_initialized()  # within ``python -m stages.run``
    try:
        with nullcontext() if is_up else initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split()) or f"{type(error).__name__}: a key is null (~); give it a name"
        raise UserError(f"conf/: {said}") from None


def compose_config(*overrides: str) -> DictConfig:
    """The composed and validated configuration of one setting and method."""
    return validate(compose_raw(overrides=overrides))


@cache
def part_of_conf(group: str, name: str) -> DictConfig:
    """conf/<group>/<name>.yaml with its defaults, composed by itself, which takes a tenth of the time of the whole configuration."""
    known = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if name not in known:
        raise UserError(f"{group} {name!r}: conf/{group}/{name}.yaml does not exist{nearest(name, known)}")
    part: DictConfig = compose_raw(f"{group}/{name}")[group]
    return part


def sweep(name: str) -> dict[str, list[Any]]:
    """The keys that conf/sweep/<name>.yaml varies, each with its values: ``method``, the keys of a run's name, and perhaps ``setting``.

    Hydra's own grammar reads the file, so the runs are those of Hydra's multirun. UserError names file and key.
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
        raise UserError(f"{where}: hydra.sweeper.params.method is missing; name the method whose runs it varies")
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
