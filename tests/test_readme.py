"""README.md, CONTRIBUTING.md and docs/: every command in them works, every path exists or is shown, every link leads somewhere."""

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

from analysis import readme
from analysis.study import Study
from stages.lib import files
from stages.plan import Plan, compose, targets
from stages.plan.stage_configs import CONTROL_PROMPTS

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
NAMES = ["README.md", "CONTRIBUTING.md", "DEVIATIONS.md", "SECURITY.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
BIN = Path(sys.executable).parent


def fenced(language: str, first: str = "", text: str = README) -> str:
    """The fenced blocks of a language in ``text``, one below the other, that begin with ``first``."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return "".join(block for named, block in blocks if named == language and block.startswith(first))


def commands() -> list[str]:
    """Each command of the fenced blocks, and those in the text that start with a program of ours; comments cut."""
    found = []
    for name, text in DOCUMENTS.items():
        if name != "SECURITY.md":  # its commands are pip's
            found += [re.split(" +# ", line)[0].strip() for line in fenced("bash", text=text).splitlines() if line.strip()]
            found += re.findall(r"`((?:snakemake|python -m|make|source|\.venv/bin/python) [^`]+)`", text.replace("\n", " "))
    return list(dict.fromkeys(found))


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


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_every_command_plans(command: str, tree: Path, results: Path) -> None:
    """Each command, dry: what it would do is planned by the real program, in a fresh tree. tests/test_pipeline.py runs the path itself.

    A script of analysis/ has no dry run, and runs, on a results folder of the tests. A report is planned without its page, which
    tests/test_report_page.py makes. A stage's own command must know the options that are shown.
    """
    words = shlex.split(command)
    if words[:2] == ["python", "-m"] and words[2].startswith(("stages.", "tests.")) and words[2] != "stages.run":
        done = subprocess.run([sys.executable, *words[1:3], "--help"], cwd=tree, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert all(word in done.stdout for word in words[3:] if word.startswith("--"))
        return
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
        words = [str(results) if Path(word).name == "results" and not word.startswith("--") else word for word in words]
    done = subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if words[0] != "make" and "--unlock" not in words and str(results) not in words:
        assert "This was a dry-run" in done.stdout + done.stderr


def shown_files(text: str) -> set[str]:
    """The files whose content a document shows: the last one that is named before the block."""
    befores = re.findall(r"(.*?)^```(?:yaml|python)\n.*?^```$", text, re.DOTALL | re.MULTILINE)
    return {re.findall(r"`([\w./]+\.(?:yaml|py))`", before)[-1] for before in befores}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_exists_or_is_shown(name: str) -> None:
    """The files that the text names, and README's tree of "What is where"."""
    text = DOCUMENTS[name]
    named = set(re.findall(r"`((?:conf|stages|analysis|envs|tests|docs|report)/[\w./-]*)`", text))
    named |= set(re.findall(r"`([A-Z]+\.(?:md|cff))`", text))
    folder = ""
    for line in fenced("", "Snakefile", text).splitlines():
        names = re.match(r" *((?:[\w./]+/|[\w.]+\.(?:py|yaml)|Snakefile)(?:  (?=\w+/)[\w./]+/)*)", line)
        assert names, line
        for path in names[1].split():
            folder, path = (path, path) if not line.startswith(" ") else (folder, folder + path)
            named.add(path)
    missing = sorted(path for path in named - shown_files(text) if not (ROOT / path).exists())
    assert not missing
    for target, heading in re.findall(r"\]\((?!http)([\w./]*)#?([\w-]*)\)", text):
        headings = [line.lstrip("# ").lower().replace(" ", "-") for line in DOCUMENTS[target].splitlines() if line.startswith("#")]
        assert not heading or heading in headings, f"{target}#{heading}"


def test_the_readme_is_short() -> None:
    """At most 200 lines, without those that `make readme` writes."""
    assert len(re.sub(r"<!-- from results/.*?<!-- until here -->", "", README, flags=re.DOTALL).splitlines()) <= 200


def test_what_runs_again_is_what_planning_says() -> None:
    """docs/architecture.md: each row's stages against TABLE, which tests/test_config.py holds against every leaf of conf/."""
    from test_config import TABLE

    rows = re.findall(r"^\| (`.*?`) \| .*? \| (.*?) \|$", DOCUMENTS["docs/architecture.md"], re.MULTILINE)
    assert len(rows) > 20
    for keys, stages in rows:
        for key in re.findall(r"`([^`]+)`", keys):
            wanted = next(stages for pattern, stages in TABLE if re.match(pattern, key.replace("*", "some")))
            assert set(re.findall(r"`(\w+)`", stages)) == wanted, key


def test_the_numbers_between_the_marks_are_the_results_own(tree: Path, results: Path) -> None:
    """analysis/readme.py: from table4.csv and scorecard.csv; a wrong number is written anew; git has the mini scale's."""

    def script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"analysis.{name}", "--results", str(results), *words]
        return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)

    for name in ("tables.table4", "scorecard"):
        done = script(name, "--out", str(results))
        assert done.returncode == 0, done.stderr
    kept = {file: file.read_text() for file in (tree / "README.md", tree / "docs/results.md")}
    try:
        assert script("readme").returncode == 0
        assert all(file.read_text() != text for file, text in kept.items())  # which are of the mini scale, and not of this folder
        table, card = pd.read_csv(results / "table4.csv"), pd.read_csv(results / "scorecard.csv")
        simpo = table[table["method"] == "simpo"]
        cells = [
            f"{row[key]:.{digits}f}" for _, row in simpo.iterrows() for key, digits in (("lc_win_rate", 1), ("win_rate", 1), ("oracle", 2))
        ]
        for file in kept:
            text = file.read_text()
            (line,) = re.findall(r"^\| SimPO \| (.*) \|$", text, re.MULTILINE)
            assert line.replace("*", "").split(" | ") == cells
            is_doc = file.name == "results.md"
            assert all((f"| {verdict}: {count} | " in text) is is_doc for verdict, count in card["verdict"].value_counts().items())
            file.write_text(text.replace(f"| {cells[0]} |", "| 99.9 |", 1).replace(f"**{cells[0]}**", "**99.9**", 1))
            assert script("readme").returncode == 0 and file.read_text() == text
            file.write_text(kept[file].replace("<!-- until here -->", ""))
            assert f"{file.relative_to(tree)} must have the marks" in script("readme").stderr
            file.write_text(text)
    finally:
        for file, text in kept.items():
            file.write_text(text)
    for text in kept.values():
        assert len(re.findall(r"^\| [A-Z][\w-]*(?: w/o LN|, γ = 0)? \|", text, re.MULTILINE)) == 12
    verdicts = re.findall(r"^\| [a-z ]+: (\d+) \|", kept[tree / "docs/results.md"], re.MULTILINE)
    assert f"Of {sum(map(int, verdicts))} verdicts" in kept[tree / "docs/results.md"]


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_no_number_between_the_marks_was_changed_by_hand(name: str) -> None:
    """The block ends with the sha256 of its lines, and names what made it; both documents show the same table."""
    (block,) = re.findall(r"<!-- from results/.*?-->\n(.*?)<!-- until here -->", DOCUMENTS[name], re.DOTALL)
    written = block.rstrip("\n").rpartition("\n")[0]
    assert readme.sealed(written) + "\n" == block, f"{name}: the numbers are not those that make readme wrote; run it again"
    assert readme.sealed(written.replace("4", "5", 1)) + "\n" != block
    assert re.search(
        r"^Measured on .+ kernels.*, torch [\d.]+.*, commit [0-9a-f]{12}.*table4\.csv` is `[0-9a-f]{64}`\.$", written, re.MULTILINE
    )
    assert written.split("\n\nOf ")[0] in DOCUMENTS["README.md"]


def test_the_block_shows_intervals_where_table_4_has_them_and_what_made_it(tmp_path: Path) -> None:
    """analysis/readme.py: a column ``expected`` after each column with …_low and …_high; machines and commits, each once."""
    row = {"setting": "mini_base", "method": "simpo", "lc_win_rate": 19.24, "lc_win_rate_low": 17.06, "lc_win_rate_high": 21, "oracle": 4.5}
    assert readme.models(pd.DataFrame([row]), ["mini_base"]) == [
        "| | Mini-Base LC | expected | Mini-Base oracle |",
        "|---|--:|--:|--:|",
        "| SimPO | **19.2** | 17.1 to 21.0 | **4.50** |",
    ]
    files.write_text(tmp_path / "tables.yaml", "name: mini\nsettings: [mini_base]\n")
    for place, kernels, commit in (("sft", "AVX512", "a" * 40), ("runs/dpo", "AVX2", "b" * 40), ("runs/simpo", "AVX2", "b" * 40)):
        machine = {"processor": "Some (A 1)", "kernels": kernels, "switches": {"MKL_CBWR": "AVX2"} if kernels == "AVX2" else {}}
        manifest = {"machine": machine, "packages": {"torch": "2.13.0", "numpy": "2"}, "git_commit": commit}
        files.write_json(tmp_path / "mini_base" / place / "manifest.json", manifest)
    assert readme.made_by(Study(tmp_path)) == (
        "Measured on Some (A 1), AVX2 and AVX512 kernels (MKL_CBWR=AVX2), torch 2.13.0, commit bbbbbbbbbbbb and aaaaaaaaaaaa."
    )


def test_the_other_numbers_are_the_configuration_s() -> None:
    """The models of make demo; docs/judges.md's budget, calls and prompts of the controls; tests/test_mini.py has the world's."""
    text, judges = (re.sub(r"\s+", " ", DOCUMENTS[name]) for name in ("README.md", "docs/judges.md"))
    assert f"trains and evaluates {len(targets.runs(Plan('mini')))} models" in text
    assert f"`conf/judge/gpt41.yaml` is {compose.part_of_conf('judge', 'gpt41').budget:g} dollars" in judges
    assert (
        "about 2,000 calls" in judges and 1900 < 805 + 2 * 500 + 2 * 80 < 2100
    )  # AlpacaEval 2, Arena-Hard's two games, MT-Bench's two turns
    assert "on fifty questions of each benchmark" in judges and CONTROL_PROMPTS == 50
