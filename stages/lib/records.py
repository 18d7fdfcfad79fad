"""Rows of a data set, and the messages in them: a JSON file, or a Hugging Face data set by hub id or folder, with its revision and split.

Stages name their data as ``{data, revision, split}`` (stages/plan/schema.py:Data) and read it here, so that what the mini world writes and
what the paper downloads are one to them. A file is a JSON list or JSON lines, gzipped or not. A folder holds what the hub's data sets hold:
parquet or JSON files whose names say the split, such as ``data/train_prefs-00000-of-00001.parquet``.

Every stage that reads conversations reads them with ``messages_of``, and preferences with ``preference_of``. A mistake is a UserError
with file, line and key; ``where`` is the file and the line, counted in rows from 1.
"""

from __future__ import annotations

import json
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
MESSAGES = 'a list of messages {"role", "content"}'


def read_records(source: DictConfig, split: str | None = None) -> list[Row]:
    """The rows of ``source``, of its own split or of ``split``; UserError names what cannot be read and what to do."""
    name, split = source.data, split or source.split
    is_path = name.endswith(JSON) or name.startswith(("results/", "./", "/"))
    if is_path and not Path(name).exists():
        raise UserError(f"data {name} does not exist; {files.again(name)}")
    if name.endswith(JSON) and not Path(name).is_dir():
        return files.read_rows(name)
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
        raise UserError(f"{said}: {empty[0]} is empty; replace it by a whole file, or remove it")
    try:
        rows: list[Row] = load_dataset(name, revision=revision, split=split).to_list()
    except (OSError, ValueError, EOFError, StopIteration, zlib.error, DatasetsError, YAMLError) as error:
        if broken := _broken_file(name):
            raise UserError(f"{said}: {broken} (the datasets library: {_reason(error)}); mend or remove that file") from None
        raise UserError(
            f"{said}: {_reason(error)}; give a hub id that this machine reaches or has in its cache,"
            " a folder of parquet files, or a .jsonl file"
        ) from None
    return rows


def _reason(error: BaseException) -> str:
    """The library's reason in one line. It keeps the reason of a DatasetGenerationError in the error's cause."""
    from datasets.exceptions import DatasetGenerationError

    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    if isinstance(cause, StopIteration):
        return "no file of it holds a row"
    text = str(cause) if cause is not error else str(cause).partition("\n")[0]
    return " ".join(text.split())[:400].rstrip(".") or type(cause).__name__


def _data_files(name: str) -> list[Path]:
    """The files of rows below a folder; none of a hub id."""
    return [file for file in sorted(Path(name).rglob("*")) if file.is_file() and file.name.endswith((*JSON, ".parquet", ".csv"))]


def _broken_file(folder: str) -> str | None:
    """The first file of a folder that cannot be read, or that has other columns than the first file, and why."""
    first: tuple[Path, set[str]] | None = None
    for file in _data_files(folder):
        try:
            columns = _columns(file)
        except (UserError, ValueError, OSError) as error:
            reason = " ".join(str(error).partition("; ")[0].split())
            return reason if str(file) in reason else f"{file}: {reason}"
        if str(file) in files.replaced:
            return f"{file} holds half of a surrogate pair, which no UTF-8 file can; `data` may name a JSON file itself, read as U+FFFD"
        first = first or (file, columns)
        if columns != first[1]:
            other = ", ".join(sorted(columns ^ first[1]))
            return f"{file} has other columns than {first[0]}: only one of them has {other}"
    return None


def _columns(file: Path) -> set[str]:
    if file.suffix == ".csv":
        from pandas import read_csv

        return set(read_csv(file).columns)
    if file.suffix == ".parquet":
        from pyarrow.parquet import read_schema

        return set(read_schema(file).names)
    return {key for row in files.read_rows(file) for key in row}


def inputs_of(source: DictConfig) -> list[str]:
    """The files for a manifest's ``inputs``: none for a data set of the hub, whose revision says what it is."""
    path = Path(source.data)
    return [str(file) for file in [path, *sorted(path.rglob("*"))] if file.is_file()]


def numbered(rows: list[Row], path: str) -> Iterator[tuple[str, Row]]:
    """Each row with the file and the line that an error about it names."""
    return ((f"{path}, line {number}", row) for number, row in enumerate(rows, start=1))


def value_of(row: Row, key: str, where: str) -> Any:
    if key not in row:
        raise UserError(f"{where}: {key!r} is missing; the row has {_keys(row)}")
    return row[key]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def number_of(value: Any, where: str) -> float:
    """A finite number as it stands; UserError for null, NaN, a text and everything else."""
    if not is_number(value):
        raise UserError(f"{where} is {_shown(value)}; expected a finite number; mend or remove the row")
    return value


def text_of(content: Any, where: str) -> str:
    """The text of a message: the content itself, or the texts of its parts joined; UserError where the content is anything else."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    if parts and all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    raise UserError(f"{where} is {_shown(content)}; expected {PARTS}; mend or remove the row")


def messages_of(value: Any, where: str) -> list[Message]:
    """Messages of role and content alone, the contents as texts; UserError names the message that is none.

    Keys beside role and content (an id, a time) are dropped, but tool calls are not: they are part of what the assistant said, and
    nothing here trains on them.
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
            raise UserError(f"{where} has no {key!r}, it has {_keys(message)}{hint}")
    if message["role"] not in ROLES:
        raise UserError(f"{where}: its role is {_shown(message['role'])}; expected one of {', '.join(ROLES)}")
    if calls := [key for key in ("tool_calls", "function_call") if message.get(key)]:
        raise UserError(f"{where} has {calls[0]!r}, which no stage trains on; remove the row")
    return {"role": message["role"], "content": text_of(message["content"], f"{where}: its content")}


def preference_of(row: Row, where: str) -> tuple[list[Message], Message, Message]:
    """Prompt, chosen and rejected answer of a preference.

    ``chosen`` and ``rejected`` are whole conversations, as in UltraFeedback binarized; or one answer each, the conversation before them
    being the list ``prompt``, as in TRL's conversational format.
    """
    (prompt, chosen), (other, rejected) = (_side(row, side, where) for side in ("chosen", "rejected"))
    if prompt != other:
        raise UserError(f"{where}: 'chosen' and 'rejected' answer different prompts")
    return prompt, chosen, rejected


def _side(row: Row, side: str, where: str) -> tuple[list[Message], Message]:
    """One side's prompt and answer."""
    if not isinstance(row.get(side), list) or not row[side]:
        raise UserError(
            f"{where}: {side!r} must be a list of messages that ends with the assistant's; see UltraFeedback binarized;"
            f" it is {_shown(row[side]) if side in row else 'missing'}"
        )
    turns = messages_of(row[side], f"{where}: {side!r}")
    if turns[-1]["role"] != "assistant":
        raise UserError(f"{where}: {side!r} must be a list of messages that ends with the assistant's; it ends with {turns[-1]['role']!r}")
    is_answer_alone = turns[0]["role"] == "assistant"
    if is_answer_alone and isinstance(row.get("prompt"), list):
        if len(turns) > 1:
            raise UserError(f"{where}: {side!r} goes on after 'prompt' with {len(turns)} messages; expected one, the assistant's answer")
        return messages_of(row["prompt"], f"{where}: 'prompt'"), turns[0]
    if len(turns) < 2:
        raise UserError(
            f"{where}: {side!r} has the answer alone: give the conversation before it there too, as UltraFeedback binarized does,"
            f" or as a list of messages in 'prompt', which is {_shown(row['prompt']) if 'prompt' in row else 'missing'}"
        )
    return turns[:-1], turns[-1]


def prompt_key(prompt: list[Message]) -> tuple[tuple[str, str], ...]:
    """What tells prompts apart: roles and contents."""
    return tuple((message["role"], message["content"]) for message in prompt)


def _keys(row: Row) -> str:
    return ", ".join(sorted(map(str, row))) or "no keys"


def _shown(value: Any) -> str:
    """A value as JSON writes it, cut to a line's length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:79]}…"
