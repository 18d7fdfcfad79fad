"""README.md: every command in it is one that works, every path in it one that exists or that a stage makes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT, copy_to

README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def fenced(language: str, first: str = "") -> str:
    """The fenced blocks of a language, one below the other, that begin with ``first``."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return "".join(text for named, text in blocks if named == language and text.startswith(first))


def commands() -> list[str]:
    """Each command of the fenced blocks, and those in the text that start with a program of ours; comments cut."""
    found = [line.partition("  #")[0].strip() for line in fenced("bash").splitlines() if line.strip()]
    inline = re.findall(r"`((?:snakemake|python -m|make|source|\.venv/bin/python) [^`]+)`", README.replace("\n", " "))
    return list(dict.fromkeys([*found, *inline]))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would take, as a newcomer has it."""
    return copy_to(tmp_path_factory.mktemp("tree"))


def test_the_readme_has_commands() -> None:
    programs = {shlex.split(command)[0] for command in commands()}
    assert programs == {"make", "snakemake", "python", "source"}


@pytest.mark.parametrize("command", commands())
def test_every_command_plans(command: str, tree: Path) -> None:
    """Each command, dry: what it would do is planned by the real program, in a fresh tree. tests/test_pipeline.py runs the path itself."""
    words = shlex.split(command)
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "SNAKEMAKE_ARGS": "--dry-run"}
    env = {key: value for key, value in env.items() if not key.startswith("MAKE")}
    if words[0] == "source":
        assert words[1:] == [".venv/bin/activate"]
        return
    if words[0] == "snakemake" and not {"-n", "--unlock"} & set(words):
        words.insert(1, "--dry-run")
    if words[0] == "make":
        words.insert(1, "--dry-run")
    if words[:2] == ["python", "-m"] and words[2].startswith("perf."):
        words.append("--dry-run")
    done = subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if words[0] != "make" and "--unlock" not in words:
        assert "This was a dry-run" in done.stdout + done.stderr


def test_every_path_in_the_readme_exists_or_is_made() -> None:
    """The tree of "What is where", and the files that the text names."""
    named = set(re.findall(r"`((?:conf|stages|analysis|envs|tests)/[\w./-]*)`", README))
    folder = ""
    for line in fenced("", "Snakefile").splitlines():
        names = re.match(r" *((?:[\w./]+/|[\w.]+\.(?:py|yaml)|Snakefile)(?:  (?=\w+/)[\w./]+/)*)", line)
        assert names, line
        for name in names[1].split():
            folder, path = (name, name) if not line.startswith(" ") else (folder, folder + name)
            named.add(path)
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing
