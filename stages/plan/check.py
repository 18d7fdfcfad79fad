"""Checks values against the schema: types, ranges, and keys that need each other. A UserError names the key and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from datetime import date
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.benchmarks import BENCHMARKS
from stages.lib.errors import UserError
from stages.plan.knobs import check_runtime
from stages.plan.schema import (
    MODEL_KEYS,
    RANGES,
    REFERENCES,
    SEARCHES,
    TRAINED,
    Config,
    Judge,
    Kind,
    Method,
    Scale,
    objective_kinds,
    objectives,
)
from stages.plan.values import finite, leaves, mapping, nearest, plain, shown

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def validate(config: DictConfig) -> DictConfig:
    """``config``, checked against the schema and the ranges. UserError names the key, what is wrong and the nearest key."""
    given = _resolved(config)
    if "runtime" not in given:
        raise UserError("runtime is missing; give it in a file of conf/scale")
    runtime = check_runtime(given["runtime"])
    _check_tuned(mapping("setting", given["setting"]).get("tuned"))
    container = _merge(Config, given | {"method": {"name": "", "objective": None}})  # before the method, which takes values of the rest
    method = validate_method(config.method)
    if annotate := container["setting"]["annotate"]:
        _check_annotate(annotate)
    for where, value in leaves(container):
        check_range(where, value)
        if where.endswith(".search") and value not in SEARCHES:
            raise UserError(f"{where}={value}: expected {' or '.join(SEARCHES)}")
    for name, benchmark in container["benchmarks"].items():
        protocol, version = benchmark["protocol"], benchmark["version"]
        if protocol not in BENCHMARKS:
            raise UserError(f"benchmarks.{name}.protocol={protocol}: no such protocol in stages/benchmarks{nearest(protocol, BENCHMARKS)}")
        if version != (known := BENCHMARKS[protocol].version):
            raise UserError(f"benchmarks.{name}.version={version!r}: stages/benchmarks has {protocol} as {known!r} and no other")
    validate_judge(config.judge)
    for name, benchmark in container["benchmarks"].items():
        _check_judged(name, benchmark, container["judge"], container["scale"]["name"])
    return OmegaConf.create(container | {"method": method, "runtime": runtime})


def validate_scale(config: DictConfig) -> dict[str, Any]:
    """A scale, checked against the schema and the ranges. UserError as in ``validate``."""
    scale = _merge(Scale, _resolved(config), "scale.")
    for where, value in leaves(scale):
        check_range(f"scale.{where}", value)
    for key in ("settings", "methods", "seeds"):
        if not scale[key]:
            raise UserError(f"scale.{key} is empty: expected at least one")
    return scale


def validate_judge(config: DictConfig) -> dict[str, Any]:
    """A judge, checked against the schema, the ranges and the choices. UserError as in ``validate``."""
    judge = _merge(Judge, _resolved(config), "judge.")
    for where, value in leaves(judge):
        check_range(f"judge.{where}", value)
    for each in fields(Judge):
        given = judge[each.name] if isinstance(judge[each.name], list) else [judge[each.name]]
        for value in given if (choices := each.metadata["choices"]) else ():
            if value not in choices:
                raise UserError(f"judge.{each.name}={shown(value)}: expected {' or '.join(map(shown, choices))}")
    if judge["retired"] is not None:
        try:
            date.fromisoformat(judge["retired"])
        except ValueError:
            raise UserError(f"judge.retired={shown(judge['retired'])}: expected a day, as 2026-03-26, or null") from None
    return judge


def _check_judged(name: str, benchmark: Mapping[str, Any], judge: Mapping[str, Any], scale: str) -> None:
    """UserError if the judge refuses what a benchmark's protocol asks it for. It names the benchmark's other forms."""
    protocol = BENCHMARKS[benchmark["protocol"]]
    for key in judge["refuses"] if protocol.tokens else ():
        if benchmark["decoding"].get(key) is None:
            continue
        of = protocol.form_of or benchmark["protocol"]
        forms = [form for form, known in BENCHMARKS.items() if of in (form, known.form_of) and form != benchmark["protocol"]]
        ways = ["take another judge"]
        if forms:
            ways.append(f"take `- /benchmark@benchmarks.{name}: {'` or `'.join(forms)}`, another form of the benchmark")
        if key not in ("logprobs", "tools"):
            ways.append(f"set benchmarks.{name}.decoding.{key} to null, so that the endpoint's own holds")
        raise UserError(
            f"judge.refuses: judge {judge['name']} takes no {key}, and {protocol.version} needs it (benchmarks.{name}.decoding.{key}). In"
            f" conf/scale/{scale}.yaml {', or '.join(ways)}"
        )


def validate_method(config: DictConfig) -> DictConfig:
    """A method, checked against the schema, its objective's parameters and the ranges. UserError as in ``validate``."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"method.{missing[0].removeprefix('method.')} is missing; give it in a file of conf/method")
    method = _resolved(config)
    known = {f.name for f in fields(Method)}
    hyperparameters = {key: value for key, value in method.items() if key not in known}
    kinds = objective_kinds(method["objective"]) if method.get("objective") else {}
    for key in hyperparameters:
        if key not in kinds:
            raise UserError(f"method.{key}: objective {method.get('objective')!r} has no such parameter{nearest(key, [*known, *kinds])}")
    for key, kind in (kinds | TRAINED if kinds else kinds).items():
        if key not in method:
            raise UserError(f"conf/method/{method['name']}.yaml lacks {key!r}, which objective {method['objective']!r} needs")
        check_kind(f"method.{key}", method[key], kind)
    container = _merge(Method, {key: value for key, value in method.items() if key in known}, "method.") | hyperparameters
    if container["reference"] not in REFERENCES:
        raise UserError(f"method.reference={container['reference']}: expected null, cached or live")
    _check_model(container)
    for key, value in container.items():
        check_range(f"method.{key}", value)
    return OmegaConf.create(container)


def _check_tuned(tuned: Any) -> None:
    """Check the types of a setting's values for its methods. A key that no objective has is found where its method is checked."""
    kinds: dict[str, set[Kind]] = {key: {kind} for key, kind in TRAINED.items()}
    for objective in objectives().values():
        for key, kind in objective.kinds.items():
            kinds.setdefault(key, set()).add(kind)
    for method, values in mapping("setting.tuned", tuned).items():
        for key, value in mapping(f"setting.tuned.{method}", values).items():
            if len(found := kinds.get(key, set())) == 1:
                check_kind(f"setting.tuned.{method}.{key}", value, *found)


def _check_annotate(annotate: Mapping[str, Any]) -> None:
    """Check that samples are scored by a reward model or by a rater. UserError if by neither or both, or if the model has no max_length."""
    model, rater = annotate["model"], annotate["rater"]
    if not model and not rater:
        raise UserError("setting.annotate: nobody scores the samples; give setting.annotate.model or setting.annotate.rater")
    if model and rater:
        raise UserError(f"setting.annotate: model {model} and a rater; set setting.annotate.rater or setting.annotate.model to null")
    if model and annotate["max_length"] is None:
        raise UserError("setting.annotate.max_length: reward models need it: the most tokens of a conversation that one scores")


def _check_model(method: dict[str, Any]) -> None:
    """Check the model that a method without an objective evaluates. UserError if there is no such model, or keys of a training."""
    given = [key for key, value in method.items() if value not in (None, False)]
    if method["objective"] is None:
        wrong, why = [key for key in given if key not in ("name", *MODEL_KEYS)], "it has no objective, and trains nothing"
    else:
        wrong, why = [key for key in given if key in MODEL_KEYS], "it has an objective, and trains the setting's start model"
    if wrong:
        raise UserError(f"method.{wrong[0]}: leave it out of method {method['name']}: {why}")
    model, revision = method["model"], method["revision"]
    if model is None:
        if alone := [key for key in MODEL_KEYS if key in given]:
            raise UserError(f"method.{alone[0]}: there is no method.model to which it could belong")
    elif not model.startswith("results/") and not Path(model).is_dir():  # a model below results/ may not exist yet
        if model.startswith((".", "/", "~")) or not HUB_ID.fullmatch(model):
            raise UserError(f"method.model={model}: no such folder; give one that exists, or a hub id with its method.revision")
        if revision is None:
            raise UserError(f"method.revision: {model} is no folder here, and a hub id needs one: a commit of it, or main")


class _NoFit(Exception):
    """A value that is not of its key's type as it stands."""


def _fitted(hint: Any, value: Any) -> Any:
    """The plain ``value`` with the defaults of the type ``hint``, as OmegaConf has it; _NoFit where that refuses or converts a value."""
    if hint is Any:
        hint = dict[str, Any] if type(value) is dict else list[Any] if type(value) is list else type(value)
    of, parts = get_origin(hint), get_args(hint)
    if of is UnionType:  # with None, as every union of the schema
        return None if value is None else _fitted(parts[0], value)
    if is_dataclass(hint) and type(value) is dict and value.keys() <= (hints := _hints(cast(type, hint))).keys():
        return {each.name: _fitted(hints[each.name], value.get(each.name, default_of(each))) for each in fields(hint)}
    if of is dict and type(value) is dict and all(type(key) is str for key in value):
        return {key: _fitted(parts[1], inner) for key, inner in value.items()}
    if of is list and type(value) is list:
        return [_fitted(parts[0], inner) for inner in value]
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not hint or (hint is str and (value == MISSING or "${" in value)):
        raise _NoFit
    return value


_hints = cache(get_type_hints)


def default_of(each: Field[Any]) -> Any:
    """The value of a key that conf/ does not give."""
    if callable(each.default_factory):
        return {} if is_dataclass(each.default_factory) else each.default_factory()
    return each.default


def _merge(schema: type, given: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``given`` with the schema's defaults; UserError where it does not fit: OmegaConf says why, and takes long also where it does."""
    with suppress(_NoFit):
        return cast(dict[str, Any], _fitted(schema, given))
    try:
        return plain(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        where = prefix + (error.full_key or "")
        siblings = list(getattr(error.object_type, "__dataclass_fields__", ()))
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: {reason}{nearest(where.rpartition('.')[2], siblings) if 'not in' in reason else ''}") from None


def _resolved(config: DictConfig) -> dict[str, Any]:
    """``plain`` of what the user wrote. UserError if a value is missing, or names a key that does not exist."""
    try:
        return plain(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'conf/'}: {str(error).splitlines()[0]}") from None


def check_kind(where: str, value: Any, kind: Kind) -> Any:
    """``value`` if it is of ``kind``, else a UserError that names the key ``where``."""
    if not kind.holds(value):
        raise UserError(f"{where}={shown(value)}: expected {kind.expected}")
    return value


def kind_of(method: Mapping[Any, Any], key: str) -> Kind:
    """The kind of a key that a run of a validated ``method`` may vary. Without an annotation in objectives.py, it is the default's type."""
    if key == "seed":
        return Kind(int)
    if key in TRAINED:
        return TRAINED[key]
    kind = objective_kinds(method["objective"])[key]
    return kind if kind.type else Kind(type(method[key]))


def check_range(where: str, value: Any) -> Any:
    """``value``. UserError if it is a number that is not finite, or outside the range in RANGES of the key at the end of ``where``."""
    key = where.rpartition(".")[2].partition("[")[0]
    if isinstance(value, int | float) and not finite(value):
        raise UserError(f"{where}={value}: expected a finite number")
    if key in RANGES and isinstance(value, int | float) and not isinstance(value, bool) and not RANGES[key].holds(value):
        raise UserError(f"{where}={value}: expected {RANGES[key].expected}")
    return value
