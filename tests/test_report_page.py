"""The page of `snakemake --report`: made and opened without a network, whole, each number a few clicks from its run's configuration."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from checkout import ROOT, copy_to

from stages.lib import files
from stages.plan import Plan, targets
from stages.plan.stage_configs import stage_of
from tests import chromium, folder

pytestmark = pytest.mark.slow

SCALE = ("--config", "scale=smoke")
FIGURE, ANSWERS = "results/figures/fig1_scores.png", "results/answers.html"
TARGETS = ("results/table1.csv", "results/table6.csv", FIGURE, ANSWERS)
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")  # where nothing listens


def make_page(tree: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    """report.html in a finished tree, with nothing to reach a network by; stderr is in stdout."""
    command = [sys.executable, "-m", "snakemake", "--report", "report.html", *targets, *SCALE]
    environment = {key: value for key, value in os.environ.items() if key.lower() != "no_proxy"} | OFFLINE
    return subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def check_report(tree: Path, *targets: str) -> None:
    """Make the page of ``targets``, finished in a tree of the smoke scale, and hold that

    nothing is missing, downloaded or ill-formed; it opens from disk without an error or a request; the tree's files are in it to the
    byte, the targets among them, and pictures can be seen; beside a table or figure stands its caption; no link leads out of the page.
    """
    done = make_page(tree, *targets)
    assert done.returncode == 0, done.stdout[-3000:]
    assert not re.search(r"downloading|\((ERROR|WARNING)/", done.stdout), done.stdout[-3000:]
    url = (tree / "report.html").as_uri()
    with chromium.page(url, width=1400) as page:
        page.wait("document.querySelector('#app .prose')")
        first = page.evaluate("document.querySelector('#app .prose').textContent")
        assert "scale smoke" in first and "smoke_on_policy" in first and "mini-judge" in first
        for deviation in re.findall(r"^\*\*(.+?)\*\*", (tree / "DEVIATIONS.md").read_text(encoding="utf-8"), re.MULTILINE):
            assert deviation in first
        results = page.evaluate("results")
        assert set(targets) <= results.keys()
        for path, result in results.items():
            assert base64.b64decode(result["data_uri"].split(",", 1)[1]) == (tree / path).read_bytes()
            assert set(re.findall(r"showResultInfo\('(.+?)'\)", result["caption"])) <= results.keys(), path
            page.evaluate(f"app.showResultInfo({json.dumps(path)})")
            page.wait(f"document.querySelector('nav').innerText.includes({json.dumps(path)})")
            caption = (tree / path).with_suffix(".txt")
            if caption.is_file():
                assert caption.read_text(encoding="utf-8").strip() in page.evaluate("document.querySelector('nav').textContent")
            if result["mime_type"] == "image/png":
                page.evaluate(f"app.setView({{content: 'img', contentPath: results[{json.dumps(path)}].data_uri}})")
                page.wait("[...document.querySelectorAll('#app img')].some(image => image.naturalWidth > 500)")
        assert page.errors == []
        assert [request for request in page.requests if not request.startswith("data:")] == [url]


def manifests(plan: Plan, stage: str, **where: str) -> Iterator[str]:
    """Those of all stages before a stage."""
    for path in plan.upstream_manifests(stage, **where):
        before, place = stage_of(path)
        yield path
        yield from manifests(plan, before, **place)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``TARGETS``, made from the results of tests/folder.py instead of runs; the stages before those are a manifest each."""
    tree = copy_to(tmp_path_factory.mktemp("report"))
    plan = folder.make(tree / "results", "smoke")
    for row, stage in product(targets.rows(plan), ("answer", "judge", "loglik", "score")):
        for path in manifests(plan, stage, setting=row.setting, run=row.run):
            if not (tree / path).exists():
                files.write_json(tree / path, {"config": {"stage": path}, "inputs": {}, "outputs": {}})
    for target in TARGETS:
        name = Path(target).stem
        (module,) = (ROOT / "analysis").rglob(f"{'page' if name == 'answers' else name}.py")
        command = [sys.executable, "-m", ".".join(module.relative_to(ROOT).with_suffix("").parts)]
        subprocess.run(command, cwd=tree, stdout=subprocess.DEVNULL, check=True)
    return tree


@chromium.needed
def test_the_page_is_made_and_opens_offline_whole_and_with_captions(tree: Path) -> None:
    check_report(tree, *TARGETS)


@chromium.needed
def test_clicks_lead_from_a_table_s_number_to_its_run_s_scores_judge_configuration_and_manifest(tree: Path) -> None:
    """Tables, Table 1, the scores of its best run, the manifest of that run's training, the manifest of its pairs."""
    done = make_page(tree, *TARGETS)
    assert done.returncode == 0, done.stdout[-3000:]
    table = pd.read_csv(tree / "results/table1.csv")
    best = table[(table["source"] == "ours") & (table["method"] != "sft")].iloc[0]
    run = f"results/{best['setting']}/runs/{best['method']}"
    scores = files.read_json(tree / f"{run}/eval/alpacaeval2/scores.json")
    assert scores["length_controlled_winrate"] == pytest.approx(best["lc_win_rate"])
    link = "[...document.querySelectorAll('nav a')].find(a => a.innerText.trim() === {})"
    button = "[...document.querySelectorAll('nav tr')].find(tr => tr.innerText.includes('Table 1'))?.querySelectorAll('a')[{}]"
    with chromium.page((tree / "report.html").as_uri(), width=1400) as page:

        def click(element: str) -> None:
            page.wait(element)
            page.evaluate(f"{element}.click()")

        def reads(text: str) -> None:
            page.wait(f"document.querySelector('nav').textContent.includes({json.dumps(text.strip())})")

        click(link.format("'Tables'"))
        click(button.format(0))
        page.wait("document.querySelector('iframe')")
        shown = page.evaluate("fetch(document.querySelector('iframe').src).then(file => file.text())")
        assert f"<td>{best['lc_win_rate']:.4g}</td>" in shown
        click(button.format(1))
        click(link.format(f"'{run}/eval/alpacaeval2/scores.json'"))
        for path in ("alpacaeval2/scores.json", "score.yaml", "judge.yaml", "answer.yaml"):
            reads((tree / run / "eval" / path).read_text(encoding="utf-8"))
        click(link.format(f"'{run}/manifest.json'"))
        for path in ("manifest.json", "config.yaml"):
            reads((tree / run / path).read_text(encoding="utf-8"))
        click(link.format(f"'results/{best['setting']}/data/manifest.json'"))
        reads(json.dumps({"stage": f"results/{best['setting']}/data/manifest.json"}, indent=2).strip("{}"))
        assert page.errors == []


@chromium.needed
def test_answers_too_large_for_the_eye_open_from_their_description(tree: Path) -> None:
    """Chromium leaves a frame blank, without a word, whose address is a data URI of more than 2 MiB."""
    path = tree / ANSWERS
    whole = path.read_bytes()
    try:
        path.write_bytes(whole + b"<!--" + b"x" * 2_000_000 + b"-->")
        done = make_page(tree, ANSWERS)
        assert done.returncode == 0, done.stdout[-3000:]
        with chromium.page((tree / "report.html").as_uri(), width=1400) as page:
            page.wait("document.querySelector('nav')")
            page.evaluate(f"app.showResultInfo('{ANSWERS}')")
            page.wait("[...document.querySelectorAll('nav a')].some(a => a.innerText === 'Open the answers')")
            page.evaluate("[...document.querySelectorAll('nav a')].find(a => a.innerText === 'Open the answers').click()")
            page.wait("document.querySelector('iframe')?.src.startsWith('blob:')")
            size = page.evaluate("fetch(document.querySelector('iframe').src).then(file => file.blob()).then(file => file.size)")
            assert size == path.stat().st_size
            assert page.errors == []
    finally:
        path.write_bytes(whole)


def test_a_result_that_is_missing_is_named_and_no_page_is_made(tree: Path) -> None:
    picture = tree / FIGURE
    whole = picture.read_bytes()
    (tree / "report.html").unlink(missing_ok=True)
    try:
        picture.unlink()
        done = make_page(tree, FIGURE)
    finally:
        picture.write_bytes(whole)
    assert done.returncode != 0
    assert f"{FIGURE} marked for report but does not exist" in done.stdout
    assert not (tree / "report.html").exists()
