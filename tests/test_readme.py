"""README.md: every command in it is one that works, every path in it one that exists or that a stage makes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import folder
import pandas as pd
import pytest
from checkout import ROOT, copy_to

from stages.plan import Plan
from stages.plan.stage_configs import CONTROL_PROMPTS

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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the scripts of analysis/ read, with two sweeps that differ in one key."""
    finished = tmp_path_factory.mktemp("finished") / "results"
    folder.make(finished, "smoke")
    return finished


@pytest.mark.parametrize("command", commands())
def test_every_command_plans(command: str, tree: Path, results: Path) -> None:
    """Each command, dry: what it would do is planned by the real program, in a fresh tree. tests/test_pipeline.py runs the path itself.

    A script of analysis/ has no dry run, and runs, on a results folder of the tests. A report is planned without its page, which
    tests/test_report_page.py makes.
    """
    words = shlex.split(command)
    if "--report" in words:
        at = words.index("--report")
        words = words[:at] + words[at + 2 :]
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
    if words[:2] == ["python", "-m"] and words[2].startswith("analysis."):
        words[words.index("--results") + 1] = str(results)
    done = subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if words[0] != "make" and "--unlock" not in words and str(results) not in words:
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


def test_the_numbers_between_the_marks_are_the_results_own(tree: Path, results: Path) -> None:
    """analysis/readme.py: from table4.csv and scorecard.csv; --check tells a number that is not; the README in git was so written."""

    def script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"analysis.{name}", "--results", str(results), *words]
        return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)

    for name in ("tables.table4", "scorecard"):
        done = script(name, "--out", str(results))
        assert done.returncode == 0, done.stderr
    kept = (tree / "README.md").read_text()
    try:
        assert script("readme", "--check").returncode == 1  # of the mini scale, and not of this folder
        assert script("readme").returncode == 0
        assert script("readme", "--check").returncode == 0
        text = (tree / "README.md").read_text()
        table, card = pd.read_csv(results / "table4.csv"), pd.read_csv(results / "scorecard.csv")
        simpo = table[table["method"] == "simpo"]
        cells = [
            f"{row[key]:.{digits}f}" for _, row in simpo.iterrows() for key, digits in (("lc_win_rate", 1), ("win_rate", 1), ("oracle", 2))
        ]
        (line,) = re.findall(r"^\| SimPO \| (.*) \|$", text, re.MULTILINE)
        assert line.replace("*", "").split(" | ") == cells
        for verdict, count in card["verdict"].value_counts().items():
            assert f"| {verdict}: {count} | " in text
        (tree / "README.md").write_text(text.replace(f"| {cells[0]} |", "| 99.9 |", 1).replace(f"**{cells[0]}**", "**99.9**", 1))
        assert script("readme", "--check").returncode == 1
        (tree / "README.md").write_text(kept.replace("<!-- until here -->", ""))
        assert "must have the marks" in script("readme").stderr
    finally:
        (tree / "README.md").write_text(kept)
    methods, verdicts = (
        re.findall(r"^\| [A-Z][\w-]*(?: w/o LN|, γ = 0)? \|", kept, re.MULTILINE),
        re.findall(r"^\| [a-z ]+: (\d+) \|", kept, re.MULTILINE),
    )
    assert len(methods) == 12
    assert f"Of {sum(map(int, verdicts))} verdicts" in kept


def test_the_readme_s_other_numbers_are_the_configuration_s() -> None:
    """The models of make demo, the judge's budget and calls, the prompts of its controls; tests/test_mini.py has the world's."""
    text = re.sub(r"\s+", " ", README)
    assert f"trains and evaluates {len(Plan('mini').runs())} models" in text
    assert f"is {Plan('paper').base.judge.budget:g} dollars" in text
    assert (
        "about 2,000 calls" in text and 1900 < 805 + 2 * 500 + 2 * 80 < 2100
    )  # AlpacaEval 2, Arena-Hard's two games, MT-Bench's two turns
    assert "on fifty questions of each benchmark" in text and CONTROL_PROMPTS == 50
