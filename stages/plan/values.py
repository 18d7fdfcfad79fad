"""Values of the configuration as plain Python, and as an error's sentence shows them."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.lib.errors import UserError


def plain(config: Any, *, resolve: bool = True) -> dict[str, Any]:
    """A configuration as a dict of plain values; an error if a value is missing (``???``). Without ``resolve``, ``${…}`` stays text."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve, throw_on_missing=True))


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings and lists."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{where}[{number}]")
    else:
        yield where, value


def value_of(text: str) -> Any:
    """The value that Hydra and YAML read in the text of an override; UserError if it cannot be read, or refers to another key."""
    try:
        value = OmegaConf.from_dotlist([f"value={text}"]).value
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        given = text if len(text) <= 80 else f"{text[:77]}..."
        raise UserError(f"{given!r} is no value: {str(error).splitlines()[0]}") from None


def finite(number: float) -> bool:
    """Whether a number is finite as a float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """A value as the command line spells it. A text that would be read as another value is in quotes."""
    if isinstance(value, str) and re.match(r"[^\W\d]", value) and value not in ("true", "false", "null"):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, separators=(",", ":"), default=str)


def nearest(key: Any, known: Iterable[Any]) -> str:
    """The end of an error's sentence: the known key that is nearest to ``key``, or all known keys if none is near."""
    known = [str(name) for name in known]
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(sorted(known))}" if known else ""


def mapping(where: str, value: Any) -> Mapping[str, Any]:
    """``value``; UserError if it is not a mapping. ``where``: its key."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where}={shown(value)}: expected keys with values")
    return value
