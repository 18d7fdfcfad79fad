"""A researcher's own benchmark: the module, the file and the two lines that the README shows are all it takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from checkout import copy_to
from test_readme import README, fenced

pytestmark = pytest.mark.slow

# In the tree: results of every run (tests/folder.py), then the new benchmark's, by its own functions, of AlpacaEval's answers.
MAKE = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
import folder, pandas as pd
from stages.benchmarks import BENCHMARKS
from stages.lib import files
from stages.plan import targets

plan, known = folder.make(Path("results"), "smoke"), BENCHMARKS["one_sentence"]
for row in targets.rows(plan):
    run = Path(f"results/{row.setting}/runs/{row.run}/eval")
    outputs = files.read_rows(run / "alpacaeval2/model_outputs.json")
    for number, output in enumerate(outputs):  # one in four is a sentence
        output["output"] = output["output"] if number % 4 else "One sentence."
    answers = run / "one_sentence" / known.format.file
    files.write_rows(answers, outputs)
    files.write_rows(run / "one_sentence" / known.judgments, known.judge({"answers": answers}, {}, None))
    texts = pd.read_parquet(run / "loglik.parquet")
    pd.concat([texts, texts[texts["benchmark"] == "alpacaeval2"].assign(benchmark="one_sentence")]).to_parquet(run / "loglik.parquet")
    print(row.setting, row.run)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh tree with what the README's section says, word for word."""
    tree = copy_to(tmp_path_factory.mktemp("benchmark"))
    module, conf = fenced("python", '"""One sentence'), fenced("yaml", "protocol: one_sentence")
    (tree / "stages/benchmarks/one_sentence.py").write_text(module)
    (tree / "conf/benchmark/one_sentence.yaml").write_text(conf)
    section = README[README.index("### Add a benchmark") :]
    line, default = re.findall(r"`(\"one_sentence\": \S+,)`|`(- /benchmark@benchmarks\.one_sentence: one_sentence)`", section)
    listed = tree / "stages/benchmarks/__init__.py"
    text = listed.read_text().replace('    "oracle":', f'    {line[0]}\n    "oracle":')
    listed.write_text(text.replace("arena_hard, mt_bench, oracle\n", "arena_hard, mt_bench, one_sentence, oracle\n"))
    scale = tree / "conf/scale/mini.yaml"
    scale.write_text(scale.read_text().replace("  - _self_\n", f"  {default[1]}\n  - _self_\n", 1))
    return tree


def python(tree: Path, *words: str) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readmes_benchmark_is_answered_scored_and_shown(tree: Path) -> None:
    """README.md, section "Add a benchmark": planned for every run, scored by the stage, in Tables 2 and 4, the picture and the page."""
    planned = python(tree, "-m", "snakemake", "-n", "--quiet", "rules", "--config", "scale=smoke")
    assert "error" not in planned.lower()
    for setting, run in map(str.split, python(tree, "-c", MAKE).splitlines()):
        assert "one_sentence" in (tree / f"results/{setting}/runs/{run}/eval/answer.yaml").read_text()
        where = f"results/{setting}/runs/{run}/eval/one_sentence"
        files = ["--answers", f"{where}/model_outputs.json", "--judgments", f"{where}/verdicts.jsonl", "--out", f"{where}/scores.json"]
        assert "25.0 % pass" in python(tree, "-m", "stages.score", "--benchmark", "one_sentence", *files)
    for script in ("tables.table2", "tables.table4", "figures.table4_picture", "answers.page", "scorecard"):
        python(tree, "-m", f"analysis.{script}", "--results", str(tree / "results"))
    table = pd.read_csv(tree / "results/table4.csv")
    assert table["one_sentence"].tolist() == [25.0] * len(table) and (table["one_sentence_standard_error"] > 0).all()
    row = pd.read_csv(tree / "results/table2.csv").set_index("benchmark").loc["One sentence"]
    assert (row["scoring"], row["version"]) == ("a rule, without a judge", "one sentence, 1")
    assert (tree / "results/figures/table4.png").stat().st_size > 10_000
    page = (tree / "results/answers.html").read_text()
    assert '"One sentence"' in page and 'id="one_sentence/smoke/simpo"' in page


def test_nothing_outside_its_folder_looks_a_benchmark_up() -> None:
    """No table by the benchmarks' names, and no comparison with one, stands outside stages/benchmarks."""
    import ast

    from checkout import ROOT

    names, found = {"alpacaeval2", "arena_hard", "mt_bench", "oracle"}, []
    for path in [*(ROOT / "stages").rglob("*.py"), *(ROOT / "analysis").rglob("*.py"), *(ROOT / "perf").rglob("*.py")]:
        if path.parent.name == "benchmarks":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                wrong = len(keys & names) > 1
            elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                wrong = any(isinstance(side, ast.Constant) and side.value in names for side in (node.left, *node.comparators))
            else:
                wrong = isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant) and node.value.value in names
            if wrong:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found
