"""The paper's numbers (analysis/paper.yaml). A number of ours is compared with one only in the same setting and by the same protocol.

A protocol is a benchmark's version, judge and baseline. Each of our scores.json names them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from stages.lib.errors import UserError

PAPER = Path(__file__).with_name("paper.yaml")


class Reported(NamedTuple):
    """A number of the paper. For somebody else's model ``setting`` is None and ``method`` is the model's name."""

    table: str
    setting: str | None
    method: str
    metric: str
    value: float
    confidence: str
    source: str
    note: str


@cache
def _read() -> Any:
    return OmegaConf.to_container(OmegaConf.load(PAPER))


def reported() -> list[Reported]:
    """Every number in the file's order. UserError names a row that has not one cell for each of its block's columns."""
    found = []
    for block in _read()["figures"]:
        for method, cells in block["rows"].items():
            if len(cells) != len(block["columns"]):
                raise UserError(f"{PAPER.name}: {block['table']}, {block.get('setting')}, {method} has {len(cells)} cells")
            for metric, cell in zip(block["columns"], cells, strict=True):
                shared = {key: block[key] for key in ("confidence", "source", "note") if key in block}
                own = {"note": "", **shared, **(cell if isinstance(cell, dict) else {"value": cell})}
                found.append(Reported(block["table"], block.get("setting"), method, metric, **own))
    return found


def differs(benchmark: str, scores: dict[str, Any]) -> str:
    """How a run's scores.json differs from the paper's protocol; empty where it does not."""
    protocol: dict[str, str] = _read()["protocol"][benchmark]
    ours = {**scores, "version": scores["protocol"]["version"]}
    return ", ".join(f"{key} {ours.get(key)}, the paper's {value}" for key, value in protocol.items() if ours.get(key) != value)
