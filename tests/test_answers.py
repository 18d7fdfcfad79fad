"""analysis/answers/page.py: the page holds what the files hold. In Chromium it marks what differs, and runs nothing that a model wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.answers import page as answers
from analysis.study import Study
from stages.benchmarks.arena_hard import GAMES
from stages.lib import files
from stages.lib.errors import UserError
from tests import chromium, folder

A, B = "smoke/sft", "smoke/simpo"  # the two runs that the page opens with
HOSTILE = (
    "<script>window.struck = 1</script> </script><script>window.struck = 2</script> <img src=x onerror='window.struck = 3'>"
    " <!-- <svg onload=window.struck=4> --> <b>bold</b> &lt;i&gt; ]]> \u2028 {{7*7}} $script ${window.struck=5} javascript:alert(1) \"'`"
)


def eval_of(results: Path, run: str) -> Path:
    setting, name = run.split("/")
    return results / setting / "runs" / name / "eval"


def read(path: Path) -> Any:
    """JSON, or JSON lines: str.splitlines would split at U+2028 too."""
    return files.read_json(path) if path.suffix == ".json" else [json.loads(line) for line in path.read_bytes().splitlines()]


def edit(path: Path, *changes: tuple[int, dict[str, Any]]) -> None:
    """Change keys of some rows of a JSON or JSON-lines file."""
    rows = read(path)
    for number, values in changes:
        rows[number] |= values
    (files.write_json if path.suffix == ".json" else files.write_jsonl)(path, rows)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight runs; A and B on AlpacaEval 2: one word apart, hostile, the same text of which B's was cut, not judged, A blank, B a draw; of
    A's answer to number 5 the start model's likelihood is not known."""
    results = tmp_path_factory.mktemp("answers") / "results"
    folder.make(results, "smoke")
    a, b = eval_of(results, A), eval_of(results, B)
    said = "The people of Solstad grow\n  {} plums, don't they?"
    hostile, same, blank = {"output": HOSTILE}, {"output": "The same text."}, {"output": " "}
    edit(a / "alpacaeval2/model_outputs.json", (0, {"output": said.format("fine")}), (1, hostile), (2, same), (4, blank))
    edit(b / "alpacaeval2/model_outputs.json", (0, {"output": said.format("ripe")}), (2, same | {"finish_reason": "length"}))
    raw = {"preference_raw_completion": {"message": {"content": HOSTILE}}}
    edit(a / "alpacaeval2/annotations.json", (1, raw), (3, {"failure": HOSTILE}))
    edit(b / "alpacaeval2/annotations.json", (5, {"preference": 0}))
    config = Study(results).config
    edit(Study(results).path(config["questions"]["alpacaeval2"]), (1, {"dataset": HOSTILE, "output": HOSTILE}))
    edit(Study(results).path(config["questions"]["arena_hard"]), (0, {"turns": [{"content": HOSTILE}]}))
    games = [{"user_prompt": "", "judgment": HOSTILE, "score": label, "failure": None} for label in ("A>>B", "A=B")]
    edit(a / "arena_hard/model_judgment.jsonl", (0, {"games": games}))
    frame = pd.read_parquet(a / "loglik.parquet")
    frame.loc[(frame["benchmark"] == "alpacaeval2") & (frame["id"] == "5"), "reference_logp"] = np.nan
    frame[(frame["benchmark"] != "alpacaeval2") | (frame["id"] != "4")].to_parquet(a / "loglik.parquet", index=False)
    return results


@pytest.fixture(scope="module")
def html(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page with a space")
    answers.write(Study(results), out)
    return out / "answers.html"


# -- what is in the file ---------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(("", {}, []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.found if name == tag]


def blocks(html: Path) -> dict[str, Any]:
    """The page's data, unpacked: the index, the questions by benchmark, the rows by benchmark and run."""
    found = {}
    for attributes, text in Elements(html.read_text(encoding="utf-8")).all("script"):
        match attributes.get("type"):
            case "application/json":
                found[str(attributes["id"])] = json.loads(text)
            case "text/plain":
                found[str(attributes["id"])] = json.loads(zlib.decompress(base64.b64decode(text)))
    return found


@pytest.mark.parametrize("text", [HOSTILE, "]]></SCRIPT\n>", "<!--<script", "\u2028\u2029\x00\ud800 é 😀", "\\u003c \\"])
def test_embedded_json_holds_no_markup_and_reads_back_the_same(text: str) -> None:
    found = answers.embedded({text: [text, 1.5, None]})
    assert json.loads(found) == {text: [text, 1.5, None]}
    assert found.isascii() and not re.search("[<>&\x00-\x1f]", found)


@pytest.mark.slow
def test_the_policy_allows_the_one_style_and_the_one_script_alone(html: Path) -> None:
    """Their hashes are computed from the file as a browser sees it; nothing has a handler or an address in an attribute."""
    elements = Elements(html.read_text(encoding="utf-8"))
    policy = next(
        attributes["content"] for attributes, _ in elements.all("meta") if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    scripts = [text for attributes, text in elements.all("script") if "type" not in attributes]
    (style,) = [text for _, text in elements.all("style")]
    (script,) = scripts
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    wanted = f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
    assert policy == wanted
    names = {name for _, attributes, _ in elements.found for name in attributes}
    assert not names & {"src", "href", "style", "srcset", "action"} and not [name for name in names if name.startswith("on")]


def arena_hard(results: Path, run: str) -> float:
    """A run's win rate in percent, from the labels: its points over all battles."""
    worth = {"A>>B": (0, 3), "A>B": (0, 1), "A=B": (0.5, 1), "B>A": (1, 1), "B>>A": (3, 3)}  # Assistant B's points, and battles
    won = battles = 0.0
    for row in read(eval_of(results, run) / "arena_hard/model_judgment.jsonl"):
        first, second = (worth[game["score"]] for game in row["games"])
        won += first[0] + second[1] - second[0]
        battles += first[1] + second[1]
    return 100 * won / battles


@pytest.mark.slow
def test_its_figures_over_all_questions_are_those_of_scores_json(results: Path, html: Path) -> None:
    """AlpacaEval's win_rate and MT-Bench's mean; Arena-Hard's from the labels: the share of points over battles, a strong one thrice."""
    found = blocks(html)
    for run in (one["key"] for one in found["index"]["runs"]):
        means = {}
        for benchmark in ("alpacaeval2", "arena_hard", "mt_bench"):
            rows = [row for row in found[f"{benchmark}/{run}"] if row["value"] is not None]
            means[benchmark] = np.average([row["value"] for row in rows], weights=[row["weight"] for row in rows])
        folder_of = eval_of(results, run)
        if run != B:  # whose draw was written after its score
            assert means["alpacaeval2"] == pytest.approx(files.read_json(folder_of / "alpacaeval2/scores.json")["win_rate"], abs=1e-3)
        assert means["mt_bench"] == pytest.approx(files.read_json(folder_of / "mt_bench/scores.json")["mean"], abs=1e-3)
        assert means["arena_hard"] == pytest.approx(arena_hard(results, run), abs=1e-3)


@pytest.mark.slow
def test_rows_hold_the_files_texts_judgments_and_likelihoods(results: Path, html: Path) -> None:
    found, path = blocks(html), eval_of(results, B)
    outputs = files.read_json(path / "alpacaeval2/model_outputs.json")
    annotations, oracle = (files.read_json(path / f"{name}/annotations.json") for name in ("alpacaeval2", "oracle"))
    frame = pd.read_parquet(path / "loglik.parquet").query("split == 'answers'").set_index(["benchmark", "id", "turn"])
    rows = found[f"alpacaeval2/{B}"]
    assert [row["turns"][0]["text"] for row in rows] == [row["output"] for row in outputs]
    assert rows[2]["turns"][0]["finish_reason"] == "length" and rows[5]["value"] == 50.0
    assert rows[3]["value"] is None and rows[3]["turns"][0]["judgments"][0]["failure"] == "the judge refused"
    for i in (0, 7, 30):
        assert rows[i]["value"] == pytest.approx(100 * (annotations[i]["preference"] - 1), abs=5e-4)
        assert (
            rows[i]["oracle"]["score"] == pytest.approx(oracle[i]["score"], abs=5e-4) and rows[i]["oracle"]["false"] == oracle[i]["false"]
        )
        known = frame.loc[("alpacaeval2", str(i), 1)]
        assert rows[i]["turns"][0]["length"] == known["length"]
        assert [rows[i]["turns"][0][key] for key in ("logp", "reference_logp")] == pytest.approx(
            known[["logp", "reference_logp"]], abs=5e-4
        )
    assert "logp" not in found[f"alpacaeval2/{A}"][4]["turns"][0]
    turns = found[f"mt_bench/{B}"][0]["turns"]
    assert [turn["logp"] for turn in turns] == pytest.approx([frame.loc[("mt_bench", "81", turn), "logp"] for turn in (1, 2)], abs=5e-4)
    assert [judgment["verdict"] for judgment in found[f"arena_hard/{A}"][0]["turns"][0]["judgments"]] == [
        "much worse (A>>B)",
        "as good (A=B)",
    ]


@pytest.mark.slow
def test_the_second_game_is_read_the_other_way_round(results: Path) -> None:
    """Arena-Hard shows the run as A there: A>>B in game 1 is a defeat, in game 2 a victory."""
    assert GAMES[0]["A>>B"] == GAMES[1]["B>>A"] == "much worse"
    assert GAMES[0]["A=B"] == GAMES[1]["A=B"] == "as good"


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(results: Path, html: Path) -> None:
    assert answers.page(Study(results)) == html.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("broken", "change", "message"),
    [
        ("loglik.parquet", Path.unlink, r"loglik.parquet does not exist; make it with: snakemake"),
        ("mt_bench/model_answer.jsonl", Path.unlink, r"model_answer.jsonl does not exist"),
        (
            "alpacaeval2/annotations.json",
            lambda path: edit(path, (2, {"instruction": "another"})),
            r"annotations.json and the questions differ in row 2",
        ),
        (
            "arena_hard/model_judgment.jsonl",
            lambda path: edit(path, (2, {"question_id": 7})),
            r"model_judgment.jsonl has no row for question '83'",
        ),
        ("mt_bench/model_judgment.jsonl", lambda path: edit(path, (2, {"turn": 2})), r"no judgment of turn 1 of question '83'"),
        (
            "alpacaeval2/model_outputs.json",
            lambda path: edit(path, (4, {"output": "not blank"})),
            r"no answer to alpacaeval2's question 4, turn 1",
        ),
    ],
)
@pytest.mark.slow
def test_what_is_missing_is_an_error_that_names_the_file(results: Path, tmp_path: Path, broken: str, change: Any, message: str) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    change(eval_of(copy, A) / broken)
    with pytest.raises(UserError, match=message):
        answers.page(Study(copy))


# -- what a reader sees ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(html: Path) -> Iterator[chromium.Page]:
    with chromium.page(html.as_uri(), width=1200) as page:
        yield page


@pytest.fixture
def page(browser: chromium.Page, html: Path) -> chromium.Page:
    return look(browser, html)


def look(page: chromium.Page, html: Path, view: str = "") -> chromium.Page:
    page.go(html.as_uri() + view)
    page.wait("document.querySelector('#detail h2')")
    return page


def numbers(page: chromium.Page) -> list[int]:
    """Of the questions in the list, in its order."""
    found: list[int] = page.evaluate("[...document.querySelectorAll('#list .count')].map((node) => Number(node.textContent))")
    return found


def select(page: chromium.Page, control: str, value: str) -> None:
    """As a reader does who chooses an option, or types into the search."""
    event = "input" if control == "search" else "change"
    page.evaluate(f"(byId({control!r}).value = {json.dumps(value)}, byId({control!r}).dispatchEvent(new Event({event!r})))")


def texts(page: chromium.Page, selector: str) -> list[str]:
    found: list[str] = page.evaluate(f"[...document.querySelectorAll({selector!r})].map((node) => node.textContent)")
    return found


def pairs(results: Path) -> list[dict[str, Any]]:
    """A's and B's AlpacaEval answers and preferences, read by themselves."""
    made = []
    given = [read(eval_of(results, run) / f"alpacaeval2/{name}.json") for run in (A, B) for name in ("model_outputs", "annotations")]
    for i, (a, judged_a, b, judged_b) in enumerate(zip(*given, strict=True), start=1):
        wins = [None if (p := row["preference"]) is None else 50.0 if p == 0 else 100 * (p - 1) for row in (judged_a, judged_b)]
        made.append({"number": i, "a": a["output"], "b": b["output"], "wins": wins, "gap": None if None in wins else wins[1] - wins[0]})
    return made


@chromium.needed
def test_it_opens_from_disk_without_an_error_and_asks_for_nothing_else(page: chromium.Page, html: Path) -> None:
    assert page.errors == [] and page.requests == [html.as_uri()]
    assert page.evaluate("[byId('a').value, byId('b').value, byId('benchmark').value]") == [A, B, "alpacaeval2"]


@chromium.needed
def test_what_a_model_or_judge_wrote_is_text_and_runs_nothing(browser: chromium.Page, html: Path) -> None:
    """In answers, prompts, categories, judgments, failures and the baseline: each is shown as it is, and makes no element."""
    for view, selectors in {
        "#question=1&judge=1&baseline=1": [".side.a > .text", ".judgments .text", ".baseline .text", ".head .soft"],
        "#benchmark=arena_hard&judge=1": [".prompt .text", ".judgments .text", "#list .asked"],
    }.items():
        page = look(browser, html, view)
        for selector in selectors:
            seen = texts(page, selector)
            assert any(HOSTILE[:200] in text for text in seen), selector
        assert page.evaluate("document.querySelectorAll('#panes script, img, svg, b, i').length") == 0
        assert page.evaluate("typeof window.struck") == "undefined"
        assert page.errors == [] and page.requests == [html.as_uri()]
    page = look(browser, html, "#question=3")
    assert any(f"failed: {HOSTILE}" == text for text in texts(page, "td"))


@chromium.needed
def test_the_policy_stops_a_script_that_got_in_all_the_same(page: chromium.Page) -> None:
    page.evaluate("byId('detail').append(Object.assign(document.createElement('script'), {textContent: 'window.struck = 1'}))")
    page.evaluate("byId('detail').insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.struck = 2\">')")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert page.evaluate("typeof window.struck") == "undefined" and any("Content Security Policy" in error for error in page.errors)


@chromium.needed
def test_the_word_that_differs_is_marked_and_no_other(page: chromium.Page) -> None:
    assert texts(page, ".side.a mark") == ["fine"] and texts(page, ".side.b mark") == ["ripe"]
    assert texts(page, ".side > .text") == [
        "The people of Solstad grow\n  fine plums, don't they?",
        "The people of Solstad grow\n  ripe plums, don't they?",
    ]
    page.press("j", "j")
    assert texts(page, "mark") == [] and "both gave the same text" in texts(page, ".head .soft")


@chromium.needed
def test_what_is_not_marked_is_a_longest_common_subsequence(page: chromium.Page) -> None:
    """Of random texts: what stays unmarked of both is the same, and as long as a table of our own says."""
    draws = np.random.default_rng(0)
    for _ in range(30):
        a, b = (list(draws.choice(list("abcd"), draws.integers(0, 14))) for _ in range(2))
        marks = page.evaluate(f"differing({json.dumps(a)}, {json.dumps(b)}).map((side) => [...side])")
        kept = [[word for word, mark in zip(side, of_side, strict=True) if not mark] for side, of_side in zip((a, b), marks, strict=True)]
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
        assert kept[0] == kept[1] and len(kept[0]) == table[-1, -1]


@chromium.needed
def test_the_numbers_shown_are_those_of_the_files(results: Path, browser: chromium.Page, html: Path) -> None:
    page = look(browser, html, "#question=7")
    rows = page.evaluate(
        "[...document.querySelectorAll('table tr')].slice(1).map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    shown = {
        (name, i): float(value.replace("−", "-").removesuffix(" %"))
        for i, (name, *_) in enumerate(rows)
        for value in [rows[i][2]]
        if name != "Ended"
    }
    pair, path = pairs(results)[7], eval_of(results, B)
    known = pd.read_parquet(path / "loglik.parquet").query("benchmark == 'alpacaeval2' and id == '7'").iloc[0]
    logp, reference, length = known["logp"], known["reference_logp"], known["length"]
    oracle = files.read_json(path / "oracle/annotations.json")[7]
    expected = [
        pair["wins"][1],
        len(pair["b"]),
        length,
        logp,
        logp / length,
        reference,
        reference / length,
        logp - reference,
        oracle["score"],
    ]
    tolerances = [0.051, 0, 0, 0.0051, 0.00051, 0.0051, 0.00051, 0.0051, 0.0051]
    for value, wanted, tolerance in zip(shown.values(), expected, tolerances, strict=False):
        assert value == pytest.approx(wanted, abs=tolerance)
    assert {name.removeprefix("… "): value for (name, _), value in shown.items()}["wanted"] == oracle["wanted"]
    wins = [[pair["wins"][side] for pair in pairs(results) if pair["wins"][side] is not None] for side in (0, 1)]
    gaps = [pair["gap"] for pair in pairs(results)]
    summary = page.evaluate("byId('summary').textContent")
    assert f"A {np.mean(wins[0]):.2f} %" in summary and f"B {np.mean(wins[1]):.2f} %" in summary
    better = [sum(gap is not None and sign * gap >= 0.05 for gap in gaps) for sign in (-1, 1)]
    same = len(gaps) - sum(better) - gaps.count(None)
    assert f"A better {better[0]}, B better {better[1]}, the same {same}, not judged 1" in summary


@chromium.needed
def test_a_likelihood_that_is_not_known_is_a_dash(browser: chromium.Page, html: Path) -> None:
    page = look(browser, html, "#question=5")
    cells = "[...row.children].map((cell) => cell.textContent)"
    rows = page.evaluate(f"[...document.querySelectorAll('table tr')].slice(1).map((row) => {cells})")
    names = [name for name, *_ in rows]
    start = names.index("Start model’s log-likelihood")
    for name, a, b, difference in rows[start : start + 3]:
        assert (a, difference) == ("–", "–") and re.fullmatch(r"[+−]?\d+\.\d+", b), name
    assert names[start + 2] == "Log-ratio to the start model"
    assert blocks(html)[f"alpacaeval2/{A}"][5]["turns"][0]["reference_logp"] is None
    assert "–" not in rows[names.index("Log-likelihood")]


@chromium.needed
def test_a_mean_shown_weighs_a_question_by_its_battles(results: Path, browser: chromium.Page, html: Path) -> None:
    summary = look(browser, html, "#benchmark=arena_hard").evaluate("byId('summary').textContent")
    assert f"A {arena_hard(results, A):.2f} %" in summary and f"B {arena_hard(results, B):.2f} %" in summary


@chromium.needed
def test_filters_and_search_narrow_the_list_and_orders_sort_it(results: Path, page: chromium.Page) -> None:
    every = pairs(results)
    assert numbers(page) == [pair["number"] for pair in every]
    select(page, "outcome", "b")
    assert numbers(page) == [pair["number"] for pair in every if pair["gap"] is not None and pair["gap"] >= 0.05]
    select(page, "outcome", "failed")
    assert numbers(page) == [4]
    select(page, "outcome", "")
    select(page, "texts", "equal")
    assert numbers(page) == [pair["number"] for pair in every if pair["a"] == pair["b"]] and 3 in numbers(page)
    select(page, "texts", "")
    select(page, "ended", "b")
    assert numbers(page) == [3] and texts(page, "#active") == ["(1 active)"]
    select(page, "ended", "")
    select(page, "category", HOSTILE)
    assert numbers(page) == [2]
    page.evaluate("byId('clear').click()")
    select(page, "search", "RIPE PLUMS, don")
    assert numbers(page) == [1]
    select(page, "search", "no such words")
    assert numbers(page) == [] and "No question passes the filters." in texts(page, "#detail .notice")
    page.evaluate("byId('clear').click()")
    select(page, "sort", "b-value")
    gaps = {pair["number"]: pair["gap"] for pair in every}
    order = [gaps[number] for number in numbers(page)]
    assert order[-1] is None and order[:-1] == sorted(order[:-1], reverse=True)
    select(page, "sort", "a-length")
    lengths = {pair["number"]: len(pair["a"]) - len(pair["b"]) for pair in every}
    order = [lengths[number] for number in numbers(page)]
    assert order == sorted(order, reverse=True)


@chromium.needed
def test_it_is_read_with_the_keyboard_alone(page: chromium.Page) -> None:
    """Next and previous, a number, the search and out of it, the toggles, the list's own arrows, help and back."""
    at = "document.querySelector('#detail h2').textContent"
    page.press("j", "ArrowRight", "k", "j", "ArrowLeft")
    assert page.evaluate(at) == "Question 2"
    assert (
        page.evaluate("document.querySelector('[aria-selected=true]').id")
        == "item-2"
        == page.evaluate("byId('list').getAttribute('aria-activedescendant')")
    )
    page.press("1", "2", "Enter", "j")
    assert page.evaluate(at) == "Question 13"
    page.press("/", "j", "s", "Enter")
    assert page.evaluate("[byId('search').value, byId('a').value, document.activeElement.id]") == ["js", A, ""] and numbers(page) == []
    page.press("/", "Escape")
    assert page.evaluate("[byId('search').value, document.activeElement.id]") == ["", ""] and len(numbers(page)) == 60
    page.press("t", "b")
    assert page.evaluate("[byId('judge').checked, byId('baseline').checked, document.querySelectorAll('.judgments').length]") == [
        True,
        True,
        2,
    ]
    page.evaluate("byId('list').focus()")
    before = page.evaluate(at)
    page.press("ArrowDown")
    assert page.evaluate(at) != before
    page.press("s")
    page.wait(f"byId('a').value === {B!r} && byId('b').value === {A!r}")
    page.press("?")
    assert page.evaluate("byId('help').open")
    page.press("Escape")
    assert not page.evaluate("byId('help').open")


@chromium.needed
def test_the_address_holds_the_view_and_brings_it_back(browser: chromium.Page, html: Path) -> None:
    page = look(browser, html, "#benchmark=mt_bench&a=smoke_on_policy/simpo&search=plums&sort=a-value&judge=1")
    page.press("j")
    state = "[location.hash, byId('detail').textContent, byId('list').textContent, byId('summary').textContent]"
    before = page.evaluate(state)
    assert numbers(look(browser, html, before[0])) and page.evaluate(state) == before
    assert "mt_bench" in before[0] and "question=" in before[0] and "SimPO · Smoke-On-Policy" in before[1]
    assert texts(page, ".prompt h3") == ["Prompt, turn 1", "Prompt, turn 2"] and page.evaluate("byId('baseline').disabled")


@chromium.needed
def test_an_address_that_names_what_is_not_there_says_so_and_shows_the_rest(browser: chromium.Page, html: Path) -> None:
    page = look(browser, html, "#a=smoke/nonesuch&category=mice&question=999&benchmark=arena_hard&colour=red")
    notice = page.evaluate("byId('notice').hidden ? '' : byId('notice').textContent")
    assert all(name in notice for name in ("a=smoke/nonesuch", "category=mice", "question=999", "colour=red"))
    assert page.evaluate("[byId('benchmark').value, byId('a').value]") == ["arena_hard", A] and numbers(page)
    page.press("9", "9", "9", "Enter")
    assert page.evaluate("byId('notice').textContent") == "There is no question 999; Arena-Hard has 1 to 24."


@chromium.needed
def test_a_block_that_cannot_be_unpacked_is_said(page: chromium.Page) -> None:
    page.evaluate("byId('arena_hard').textContent = 'AAAA'")
    select(page, "benchmark", "arena_hard")
    page.wait("!byId('notice').hidden && byId('notice').textContent.startsWith('The answers cannot be unpacked')")


@chromium.needed
@pytest.mark.parametrize("width", [360, 1000, 1600])
def test_nothing_is_wider_than_the_window(browser: chromium.Page, html: Path, width: int) -> None:
    browser.resize(width, 800)
    for view in ("#question=1&judge=1&baseline=1", "#benchmark=arena_hard&judge=1", "#benchmark=mt_bench"):
        page = look(browser, html, view)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), view
    browser.resize(1200, 800)


@chromium.needed
def test_every_control_has_a_name(page: chromium.Page) -> None:
    """A button its text or label, a field its label: what a screen reader says."""
    label = "node.getAttribute('aria-label') || (node.matches('button') ? node : node.labels[0])?.textContent.trim()"
    unnamed = f"[...document.querySelectorAll('button, input, select')].filter((node) => !({label})).map((node) => node.id)"
    assert page.evaluate(unnamed) == []


@chromium.needed
@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_told_from_its_ground(page: chromium.Page, dark: bool) -> None:
    """At least 4.5 to 1, as WCAG 2.2, 1.4.3, asks and defines it."""
    page.resize(1200, 800, dark=dark)
    grounds = {
        "text": "ground raised a-mark b-mark chosen warn",
        "soft": "ground raised chosen",
        "a": "ground chosen",
        "b": "ground chosen",
    }
    for ink, names in grounds.items():
        for ground in names.split():
            bright, dim = sorted((_luminance(page, ink), _luminance(page, ground)), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, ground)
    page.resize(1200, 800)


def _luminance(page: chromium.Page, name: str) -> float:
    """Of a colour that answers.css names, in [0, 1]."""
    text = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim().slice(1)")
    levels = np.array([int(part * (6 // len(text)), 16) / 255 for part in re.findall("." * (len(text) // 3), text)])
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
