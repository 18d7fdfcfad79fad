"""A stage's VERSION rises when a change of the code changes its numbers: without that, Snakemake keeps the stale results.

tests/versions.yaml records each stage's VERSION and a hash of each module that makes numbers: the stage's own module, and every module
of this project that it imports. Formatting, comments, docstrings and the words of errors are not in the hash. When a hash differs,
the test names the stages, and whoever made the change says which of the two it is:

    the numbers of a stage change: raise its VERSION, then    python -m tests.test_versions --record
    no numbers change:             python -m tests.test_versions --record "why not"
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests/versions.yaml"
# They make no numbers. What planning decides stands in a stage's configuration, whose change makes the stage run again by itself.
LEFT_OUT = {"stages.lib.errors", "stages.plan"}
# The server of the mini world's judge: conf/judge/mini.yaml names it, and no module imports it.
STARTED = dict.fromkeys(("calibrate", "judge", "controls", "develop"), "stages.mini.server")
PLACE = next(path for path in (ROOT / "stages/plan").glob("*.py") if re.search(r"^VERSIONS\b", path.read_text(), re.MULTILINE))
AGAIN = "python -m tests.test_versions --record"


def file_of(module: str) -> Path | None:
    """The file of a module of this project; None where there is none."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def normalised(source: str) -> ast.Module:
    """The code without formatting, comments, docstrings and the words of errors."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = []
    return tree


@cache
def read(module: str) -> tuple[str, frozenset[str]]:
    """A module's hash, and the modules of this project that it imports, in its functions too, with the packages around them."""
    file = file_of(module)
    assert file is not None
    tree = normalised(file.read_text(encoding="utf-8"))
    named = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            assert not getattr(node, "level", 0), f"{module}: a relative import; write the package's name"
            named |= {base + alias.name for alias in node.names}
    paths = [name.split(".") for name in named]
    around = {".".join(path[:n]) for path in paths for n in range(1, len(path) + 1)} - LEFT_OUT
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], frozenset(filter(file_of, around))


@cache
def modules_of(stage: str) -> frozenset[str]:
    """The modules that make a stage's numbers."""
    left = [name for name in (f"stages.{stage}", f"stages.mini.{stage}") if file_of(name)][:1]
    assert left, f"{stage} has a VERSION in {PLACE.relative_to(ROOT)} and no module in stages/ or stages/mini/"
    left += [STARTED[stage]] if stage in STARTED else []
    found = set[str]()
    while left:
        if (module := left.pop()) not in found and not module.startswith("stages.plan."):
            found.add(module)
            left += read(module)[1]
    return frozenset(found)


def state() -> dict[str, Any]:
    """VERSIONS and hashes as they are now."""
    (text,) = re.findall(r"^VERSIONS\b.*?= (\{.*?^\})", PLACE.read_text(), re.MULTILINE | re.DOTALL)
    versions = ast.literal_eval(text)
    return {"versions": versions, "modules": {name: read(name)[0] for name in sorted(set().union(*map(modules_of, versions)))}}


def unanswered(recorded: dict[str, Any], found: dict[str, Any]) -> dict[str, list[str]]:
    """The stages whose VERSION is the recorded one, each with its modules that are not."""
    other = {name for name, value in found["modules"].items() if recorded["modules"].get(name) != value}
    same = [stage for stage, version in found["versions"].items() if recorded["versions"].get(stage) == version]
    return {stage: sorted(modules_of(stage) & other) for stage in same if modules_of(stage) & other}


def test_a_stage_s_version_rises_with_its_numbers() -> None:
    recorded, found = yaml.safe_load(RECORD.read_text()), state()
    if stages := unanswered(recorded, found):
        listed = "".join(f"\n  {stage}: {', '.join(modules)}" for stage, modules in stages.items())
        pytest.fail(
            f"The code of these stages has changed, and their VERSION has not:{listed}\n"
            f"Where the numbers change, raise the stage's VERSION in {PLACE.relative_to(ROOT)}, then run\n  {AGAIN}\n"
            f'Where they stay, say why:\n  {AGAIN} "why no numbers change"',
            pytrace=False,
        )
    assert found == {key: recorded[key] for key in found}, f"the record is of other versions or modules; run: {AGAIN}"


def test_prose_needs_no_version_and_code_does() -> None:
    before = 'def f(x):\n    """A."""\n    if x:\n        raise ValueError("no")\n    return x + 1  # one\n'
    prose = 'def f(x):\n    """B."""\n    if x:\n        raise ValueError(f"not {x}")\n    return (x\n            + 1)\n'
    assert ast.dump(normalised(prose)) == ast.dump(normalised(before)) != ast.dump(normalised(before.replace("+ 1", "+ 2")))
    found = state()
    recorded = {"versions": {**found["versions"], "train": 0}, "modules": {**found["modules"], "stages.preference.trainer": "another"}}
    assert unanswered(found, found) == unanswered(recorded, found) == {}
    assert unanswered({**recorded, "versions": found["versions"]}, found) == {"train": ["stages.preference.trainer"]}
    judges = "".join(path.read_text() for path in (ROOT / "conf/judge").glob("*.yaml"))
    assert set(re.findall(r"module: (\S+)", judges)) == set(STARTED.values())
    assert {"stages.mini.server", "stages.mini.oracle", "stages.judging"} <= modules_of("judge") and not LEFT_OUT & modules_of("judge")


def record(reason: str) -> None:
    found, recorded = state(), yaml.safe_load(RECORD.read_text())
    if (stages := ", ".join(unanswered(recorded, found))) and not reason:
        sys.exit(f'{stages}: raise the VERSION in {PLACE.relative_to(ROOT)}, or give the reason: {AGAIN} "why no numbers change"')
    said = [*recorded["no_numbers_changed"], *([f"{stages}: {reason}"] if stages else [])]
    text = yaml.safe_dump({**found, "no_numbers_changed": said}, sort_keys=False, width=1000, allow_unicode=True)
    RECORD.write_text(f"# Written by `{AGAIN}`: see tests/test_versions.py.\n{text}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="record the VERSIONS and the hashes of the modules as they are")
    parser.add_argument("--record", nargs="?", const="", required=True, metavar="REASON", help="why the numbers stay, where a VERSION does")
    record(parser.parse_args().record)
