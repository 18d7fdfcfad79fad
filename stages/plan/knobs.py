"""Runtime knobs change the speed of a stage and never its result (``Runtime`` of schema.py)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING

from stages.lib.errors import UserError
from stages.plan.schema import SAME_KNOBS, TYPES, Kind, Runtime
from stages.plan.values import mapping, nearest, shown, value_of


def knobs_of(stage: str) -> dict[str, Field[Any]]:
    """The knobs of a stage, by name."""
    stage = SAME_KNOBS.get(stage, stage)
    holders = {name: get_args(hint)[0] for name, hint in get_type_hints(Runtime).items()}
    return {knob.name: knob for knob in fields(holders[stage])} if stage in holders else {}


def needed_knobs(stage: str) -> list[str]:
    """The knobs that a stage cannot start without."""
    return [name for name, knob in knobs_of(stage).items() if knob.default == MISSING]


def check_runtime(given: Any) -> dict[str, dict[str, Any]]:
    """``runtime`` of the configuration, as it is given. UserError names an unknown stage, and what is wrong with a stage's knobs."""
    known = [f.name for f in fields(Runtime)]
    for stage, knobs in mapping("runtime", given).items():
        if stage not in known:
            near = difflib.get_close_matches(str(stage), known, n=1, cutoff=0.75)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"runtime.{stage}: nothing of that name has runtime knobs; {meant}known are: {', '.join(known)}")
        check_knobs(stage, mapping(f"runtime.{stage}", knobs), f"runtime.{stage}.")
    return {stage: dict(knobs) for stage, knobs in given.items()}


def check_knobs(stage: str, given: Mapping[str, Any], where: str = "--runtime ") -> dict[str, Any]:
    """The knobs given to a stage. UserError names unknown and missing knobs and wrong values, with ``where`` before a knob's name."""
    known, wrong = knobs_of(stage), []
    for key, value in given.items():
        if key not in known:
            meant = nearest(key, known) if known else "; it has none"
            wrong.append(f"{where}{key}: {stage} has no such runtime knob{meant}")
        elif not (_kind_of(known[key]).holds(value) and ((range_ := known[key].metadata["range"]) is None or range_.holds(value))):
            wrong.append(f"{where}{key}={shown(value)}: expected {_expected(known[key])}")
    missing = [key for key in needed_knobs(stage) if key not in given]
    wrong += [f"{where}{key}=… is missing: expected {_expected(known[key])}" for key in missing]
    if wrong:
        raise UserError("; ".join(wrong))
    return dict(given)


def read_knobs(stage: str | None, texts: Sequence[str]) -> dict[str, Any]:
    """The knobs on a stage's command line, KEY=VALUE each. They are not checked if ``stage`` is None (unknown)."""
    given: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--runtime {text}: expected KEY=VALUE")
        given[key] = value_of(value)
    return given if stage is None else check_knobs(stage, given)


def _expected(knob: Field[Any]) -> str:
    range_ = knob.metadata["range"]
    return f"{_kind_of(knob).expected}{f', {range_.expected}' if range_ else ''} ({knob.metadata['words']})"


def _kind_of(knob: Field[Any]) -> Kind:
    return Kind(TYPES[str(knob.type).partition(" ")[0]])
