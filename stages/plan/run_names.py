"""Names of runs: ``simpo``, ``dpo``, ``simpo+beta=2.5+gamma=0.75``, ``simpo+seed=1``, and what may vary between runs of a method.

A name is the method, then each value that differs from its default in the setting, sorted by key, numbers in their shortest decimal form.
Each run has one name, and each name is one run: ``decode(encode(x)) == x``, and a name that is not canonical is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from stages.lib.errors import UserError
from stages.plan.check import check_kind, check_range, kind_of, validate_method
from stages.plan.schema import FIXED_KEYS
from stages.plan.values import finite, nearest, plain

Value = bool | int | float | str
_METHOD = re.compile(r"[a-z][a-z0-9_]*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Run(NamedTuple):
    """The values of a run. All others are its setting's."""

    method: DictConfig
    seed: int


def canonical(name: str, method: DictConfig, seed: int, overrides: Mapping[str, Value]) -> str:
    """The canonical name of a run, without the values that are the defaults of its setting.

    UserError if a run of the method cannot vary a key, or if a value has the wrong type or is out of range.

    name: the method's name, with which the run's name begins
    method, seed: the defaults: the method's values in the run's setting, and the configuration's seed
    overrides: the values of the run, by key
    """
    defaults = {str(key): value for key, value in method.items() if key not in FIXED_KEYS and value is not None} | {"seed": seed}
    for key, value in overrides.items():
        if key not in defaults:
            raise UserError(f"{key}: a run of {name} cannot vary it{nearest(key, defaults)}")
        check_kind(key if key == "seed" else f"method.{key}", value, kind_of(method, key))
    different = {key: value for key, value in overrides.items() if defaults[key] != value}
    with_values(method, seed, different)
    return encode(name, different)


def with_values(method: DictConfig, seed: int, overrides: Mapping[str, Value]) -> Run:
    """The run with ``overrides`` in place of the defaults ``method`` and ``seed``; UserError if a value is out of range."""
    if changed := {key: value for key, value in overrides.items() if key != "seed"}:
        method = validate_method(OmegaConf.create(plain(method) | changed))
    return Run(method, check_range("seed", overrides.get("seed", seed)))


def encode(method: str, overrides: Mapping[str, Value]) -> str:
    """The name of a run; UserError if method, key or value cannot be part of a name."""
    if not _METHOD.fullmatch(method):
        raise UserError(f"method {method!r}: expected lower-case letters, digits and _")
    for key in overrides:
        if not _METHOD.fullmatch(key):
            raise UserError(f"key {key!r} in a run of {method}: expected lower-case letters, digits and _")
    return "+".join([method, *(f"{key}={_format(key, overrides[key])}" for key in sorted(overrides))])


def decode(name: str) -> tuple[str, dict[str, Value]]:
    """Method and overrides of a run's name. If the name is not canonical, UserError gives the canonical one."""
    method, *parts = name.split("+")
    overrides: dict[str, Value] = {}
    for part in parts:
        key, equals, text = part.partition("=")
        if not equals or key in overrides:
            raise UserError(f"run name {name!r}: {part!r} is not a key=value, or its key comes twice")
        overrides[key] = _parse(key, text)
    canonical = encode(method, overrides)
    if canonical != name:
        raise UserError(f"run name {name!r} is not canonical; write {canonical!r}")
    return method, overrides


def _format(key: str, value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        if not finite(value):
            raise UserError(f"{key}={value}: expected a finite number")
        mantissa, _, exponent = repr(float(value)).partition("e")
        mantissa = mantissa.removesuffix(".0")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    if not _WORD.fullmatch(value) or value in ("true", "false", "nan", "inf", "infinity"):
        raise UserError(f"{key}={value!r}: expected a number, true, false or a word")
    return value


def _parse(key: str, text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d{1,400}", text):  # int refuses thousands of digits, and float reads infinity
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        raise UserError(f"{key}={text}: expected a finite number")
    return value
