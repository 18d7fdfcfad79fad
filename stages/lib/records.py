"""Rows of a data set, and the messages in them: a JSON file, or a Hugging Face data set by hub id or folder, with its revision and split.

Stages name their data as ``{data, revision, split}`` (stages/plan/schema.py:Data) and read it here. The mini world's files and the paper's
downloads are read in the same way. A file is a JSON list or JSON lines, gzipped or not. A folder holds parquet or JSON files whose names
contain the split, as on the hub: ``data/train_prefs-00000-of-00001.parquet``.

Every stage reads conversations with ``messages_of`` and preferences with ``preference_of``. A mistake is a UserError with file, line and
key. ``where`` is the file and the line, counted in rows from 1.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from stages.lib import files
from stages.lib.errors import UserError

Row = dict[str, Any]
Message = dict[str, str]

JSON = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
ROLES = ("system", "developer", "user", "assistant", "tool")
PARTS = 'a text or a list of {"type": "text", "text": …}'
KINDS = {str: "texts", bool: "booleans", int: "numbers", float: "numbers", list: "lists", dict: "objects"}
MESSAGES = 'a list of messages {"role", "content"}'


def read_records(source: DictConfig, split: str | None = None) -> list[Row]:
    """The rows of ``source``, in its own split or in ``split``. UserError says what cannot be read and what to do."""
    name = source.data if isinstance(source, DictConfig) else source
    if not isinstance(name, str) or not name:
        raise UserError(f"data is {name!r} in the stage configuration; expected a file, a folder or the id of a data set on the hub")
    is_path = name.endswith(JSON) or name.startswith(("results/", "./", "/"))
    if is_path and not Path(name).exists():
        raise UserError(f"data {name} does not exist; {files.again(name)}")
    if name.endswith(JSON) and not Path(name).is_dir():
        if split is not None:
            raise UserError(
                f"data {name} is a file, which has no split {split!r}; give heldout, a number, or a folder or a data set of the hub"
            )
        return files.read_rows(name)
    split = source.split if split is None else split
    if split is None:
        raise UserError(f"data {name} is a Hugging Face data set: give its split beside it, such as split: train")
    return _load(name, source.revision, split)


def _load(name: str, revision: str | None, split: str) -> list[Row]:
    """The rows that the datasets library reads from a folder or from the hub."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from yaml import YAMLError

    at = f" at revision {revision}" if revision else ""
    said = f"data {name}{at}, split {split!r}, cannot be read"
    if empty := [file for file in _data_files(name) if not file.stat().st_size]:
        raise UserError(f"{said}: {empty[0]} is empty; replace it by a complete file, or remove it")
    if nulls := [null for file in sorted(Path(name).rglob("*")) if (null := _null_row(file))]:
        raise UserError(f"{said}: {nulls[0]} is null; expected an object; correct or remove it")
    try:
        rows: list[Row] = load_dataset(name, revision=revision, split=split).to_list()
    except Exception as error:  # a folder's files make the library raise nearly everything
        known = isinstance(error, (OSError, ValueError, EOFError, StopIteration, zlib.error, DatasetsError, YAMLError))
        if not (known or Path(name).is_dir()):
            raise
        reason = _reason(error) if known else f"{type(error).__name__}: {_reason(error)}"
        if broken := _broken_file(name):
            raise UserError(f"{said}: {broken} (the datasets library: {reason}); correct or remove that file") from None
        sources = "a hub id that this machine reaches or has in its cache, a folder of parquet files, or a .jsonl file"
        raise UserError(f"{said}: {reason}; give {sources}") from None
    return rows


def _reason(error: BaseException) -> str:
    """The library's reason in one line. For a DatasetGenerationError it is in the error's cause."""
    from datasets.exceptions import DatasetGenerationError

    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    if isinstance(cause, StopIteration):
        return "none of its files has a row"
    text = str(cause) if cause is not error else str(cause).partition("\n")[0]
    return " ".join(text.split())[:400].rstrip(".") or type(cause).__name__


def _data_files(name: str) -> list[Path]:
    """The files with rows below a folder; none for a hub id."""
    return [file for file in sorted(Path(name).rglob("*")) if file.is_file() and file.name.endswith((*JSON, ".parquet", ".csv"))]


def _null_row(file: Path) -> str | None:
    """The place of a null among the rows of a JSON file, which can end the datasets library with a segmentation fault; None without one."""
    if not re.search(r"\.(jsonl?|ndjson)(\.(gz|bz2|xz))?$", file.name) or not file.is_file():
        return None
    packed: Any = {".bz2": bz2.open, ".xz": lzma.open}.get(file.suffix, gzip.open if _is_gzipped(file) else open)
    try:
        with packed(file, "rb") as lines:
            head = lines.read(1 << 16)
            if re.match(rb"(\xef\xbb\xbf)?\s*\[?\s*null\b", head):
                return f"the first row of {file}"
            lines.seek(0)
            bare = () if head.lstrip().startswith(b"[") else lines
            return next((f"{file}, line {number}," for number, line in enumerate(bare, start=1) if line.rstrip() == b"null"), None)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return None  # the library says why


def _is_gzipped(file: Path) -> bool:
    with file.open("rb") as raw:
        return raw.read(2) == files.GZIP


def _broken_file(folder: str) -> str | None:
    """Why a folder cannot be read: the first file that is broken, has other columns than the first file, or has no rows."""
    from pyarrow.parquet import read_metadata

    first: tuple[Path, dict[str, str]] | None = None
    without_rows = None
    for file in _data_files(folder):
        try:
            columns = _columns(file)
        except Exception as error:
            reason = " ".join(str(error).partition("; ")[0].split())
            return reason if str(file) in reason else f"{file}: {reason}"
        if str(file) in files.replaced:
            return f"{file} holds half of a surrogate pair, which UTF-8 cannot encode; name the file itself in `data` to read it as U+FFFD"
        if file.name == "dataset_infos.json":
            continue
        first = first or (file, columns)
        if other := ", ".join(sorted(columns.keys() ^ first[1].keys())):
            return f"{file} has other columns than {first[0]}: only one of them has {other}"
        for key, kind in columns.items():
            if kind != first[1][key] and kind and first[1][key]:
                return f"{file} has {kind} in column {key!r}, and {first[0]} has {first[1][key]}"
        if file.suffix == ".parquet" and not read_metadata(file).num_rows:
            without_rows = without_rows or f"{file} holds no rows"
    return without_rows


def _columns(file: Path) -> dict[str, str]:
    """A file's columns and the kinds of values in each; UserError if its encoding or compression is not what its name says."""
    if file.suffix == ".csv":
        from pandas import read_csv

        return {str(key): str(kind) for key, kind in read_csv(file).dtypes.items()}
    if file.suffix == ".parquet":
        from pyarrow.parquet import read_schema

        schema = read_schema(file)
        return dict(zip(schema.names, map(str, schema.types), strict=True))
    if file.suffix == ".gz" and not _is_gzipped(file):
        raise UserError(f"{file} is not gzipped; gzip or rename it")
    rows = files.read_rows(file)
    with gzip.open(file) if _is_gzipped(file) else file.open("rb") as raw:
        if (encoding := json.detect_encoding(raw.read(4))).startswith(("utf-16", "utf-32")):
            raise UserError(f"{file} is {encoding.upper()}, not UTF-8; write it as UTF-8")
    kinds: dict[str, set[str]] = {key: set() for row in rows for key in row}
    for row in rows:
        for key, value in row.items():
            kinds[key] |= {KINDS.get(type(value), "")} - {""}
    return {key: " and ".join(sorted(kind)) for key, kind in kinds.items()}


def inputs_of(source: DictConfig) -> list[str]:
    """The files for a manifest's ``inputs``; none for a data set of the hub, which its revision identifies."""
    path = Path(source.data)
    return [str(file) for file in [path, *sorted(path.rglob("*"))] if file.is_file()]


def numbered(rows: list[Row], path: str) -> Iterator[tuple[str, Row]]:
    """Each row with the file and the line that an error about it names."""
    return ((f"{path}, line {number}", row) for number, row in enumerate(rows, start=1))


def value_of(row: Row, key: str, where: str) -> Any:
    """The row's value for ``key``; UserError if it has none."""
    if key not in row:
        raise UserError(f"{where}: {key!r} is missing; the row has {keys_of(row)}")
    return row[key]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number. True and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def number_of(value: Any, where: str) -> float:
    """The value if it is a finite number; UserError for anything else."""
    if not is_number(value):
        raise UserError(f"{where} is {_shown(value)}; expected a finite number; correct or remove the row")
    return value


def text_of(content: Any, where: str) -> str:
    """The text of a message: its content, or the joined texts of its content's parts. UserError if it is neither."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    if parts and all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    raise UserError(f"{where} is {_shown(content)}; expected {PARTS}; correct or remove the row")


def messages_of(value: Any, where: str) -> list[Message]:
    """Messages with a role and a text as content; UserError names the message that is wrong.

    Other keys (an id, a time) are dropped. Tool calls are an error: they are part of what the assistant said, and nothing here trains
    on them.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must be {MESSAGES}; it is {_shown(value)}")
    return [_message(message, f"{where}, message {number} (from 0)") for number, message in enumerate(value)]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise UserError(f'{where} is {_shown(message)}; expected {{"role", "content"}}')
    for key in ("role", "content"):
        if key not in message:
            hint = "; rename ShareGPT's 'from' and 'value', and human and gpt to user and assistant" if "from" in message else ""
            raise UserError(f"{where} has no {key!r}, it has {keys_of(message)}{hint}")
    if message["role"] not in ROLES:
        raise UserError(f"{where}: its role is {_shown(message['role'])}; expected one of {', '.join(ROLES)}")
    if calls := [key for key in ("tool_calls", "function_call") if message.get(key)]:
        raise UserError(f"{where} has {calls[0]!r}, which no stage trains on; remove the row")
    return {"role": message["role"], "content": text_of(message["content"], f"{where}: its content")}


def preference_of(row: Row, where: str) -> tuple[list[Message], Message, Message]:
    """Prompt, chosen and rejected answer of a preference.

    ``chosen`` and ``rejected`` are whole conversations, as in UltraFeedback binarized; or they are one answer each, and the list ``prompt``
    is the conversation before them, as in TRL's conversational format.
    """
    (prompt, chosen), (other, rejected) = (side_of(row, side, where) for side in ("chosen", "rejected"))
    if prompt != other:
        raise UserError(f"{where}: 'chosen' and 'rejected' answer different prompts")
    return prompt, chosen, rejected


def side_of(row: Row, side: str, where: str) -> tuple[list[Message], Message]:
    """One side's prompt and answer."""
    here = f"{where}: {side!r}"
    wanted = f"{here} must be a list of messages that ends with the assistant's"
    if not isinstance(row.get(side), list) or not row[side]:
        raise UserError(f"{wanted}; see UltraFeedback binarized; it is {_shown(row[side]) if side in row else 'missing'}")
    turns = messages_of(row[side], here)
    if turns[-1]["role"] != "assistant":
        raise UserError(f"{wanted}; it ends with {turns[-1]['role']!r}")
    if turns[0]["role"] == "assistant" and isinstance(row.get("prompt"), list):
        if len(turns) > 1:
            raise UserError(f"{here} goes on after 'prompt' with {len(turns)} messages; expected one, the assistant's answer")
        return messages_of(row["prompt"], f"{where}: 'prompt'"), turns[0]
    if len(turns) < 2:
        prompt = _shown(row["prompt"]) if "prompt" in row else "missing"
        raise UserError(
            f"{here} has the answer alone: put the conversation before it there too, as UltraFeedback binarized does,"
            f" or as a list of messages in 'prompt', which is {prompt}"
        )
    return turns[:-1], turns[-1]


def prompt_key(prompt: list[Message]) -> tuple[tuple[str, str], ...]:
    """Roles and contents: two prompts are the same if these are."""
    return tuple((message["role"], message["content"]) for message in prompt)


def keys_of(row: Row) -> str:
    """A row's keys, for an error's sentence."""
    return ", ".join(sorted(map(str, row))) or "no keys"


def _shown(value: Any) -> str:
    """A value as JSON writes it, cut to a line's length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:79]}…"
