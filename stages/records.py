"""Rows of a data set: a JSON-lines file, or a Hugging Face data set by hub id or folder, with its revision and split.

Stages name their data as ``{data, revision, split}`` (stages/schema.py:Data) and read it here, so that what the mini world writes and
what the paper downloads are one to them. A folder holds what the hub's data sets hold: parquet or JSON files whose names say the split,
such as ``data/train_prefs-00000-of-00001.parquet``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from stages import files
from stages.errors import UserError


def read_records(source: DictConfig, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of ``source``, of its own split or of ``split``; UserError names what cannot be read and what to do."""
    name, split = source.data, split or source.split
    is_path = name.endswith(".jsonl") or name.startswith(("results/", "./", "/"))
    if is_path and not Path(name).exists():
        raise UserError(f"data {name} does not exist; {files.again(name)}")
    if name.endswith(".jsonl"):
        return files.read_rows(name)
    if split is None:
        raise UserError(f"data {name} is a Hugging Face data set: give its split beside it, such as split: train")
    from datasets import load_dataset

    try:
        rows: list[dict[str, Any]] = load_dataset(name, revision=source.revision, split=split).to_list()
    except (OSError, ValueError) as error:
        at = f" at revision {source.revision}" if source.revision else ""
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"data {name}{at}, split {split!r}, cannot be read: {reason}; give a hub id that this machine reaches or has in its cache,"
            " a folder of parquet files, or a .jsonl file"
        ) from None
    return rows


def inputs_of(source: DictConfig) -> list[str]:
    """The files for a manifest's ``inputs``: none for a data set of the hub, whose revision says what it is."""
    path = Path(source.data)
    return [str(file) for file in [path, *sorted(path.rglob("*"))] if file.is_file()]
