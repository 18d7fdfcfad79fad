"""The paper's figures, analysis/paper.yaml, and when a figure of ours may stand beside one: in the same setting, by the same protocol.

A protocol is a benchmark's version, its judge and its baseline, as every scores.json of ours names them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from stages.lib.errors import UserError

PAPER = Path(__file__).with_name("paper.yaml")


class Reported(NamedTuple):
    """A number of the paper; ``method`` is a model's name, and ``setting`` None, where it is a model of others."""

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
    """Every number, in the file's order; UserError names a row that has not as many cells as its block has columns."""
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
    """In what a run's scores.json is not of the paper's protocol; empty where it is."""
    protocol: dict[str, str] = _read()["protocol"][benchmark]
    ours = {**scores, "version": scores["protocol"]["version"]}
    return ", ".join(f"{key} {ours.get(key)}, the paper's {value}" for key, value in protocol.items() if ours.get(key) != value)
