"""stages/controls.py by its command: judges that are honest, obedient, biased or failing behind an endpoint, and the mini world's own.

The judges here read prompts of known form. An answer is worth the digit at its end, and nothing where it has none.
"""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml
from test_judge import Server

from stages import assets, controls, judge
from stages.benchmarks.benchmark import spread
from stages.lib import files
from stages.mini.world import make_world, model_answer
from stages.plan.compose import compose_config

TWO = "{{{}}}<1>{{{}}}</1><2>{{{}}}</2>"
ONE = "{question}<0>{answer}</0>"
SECOND_TURN = "{question_1}{answer_1}{question_2}<0>{answer_2}</0>"
DIGITS = (5, 9, 1, 7, 9, 2, 8, 1, 9, 9, 2, 1)  # of the model's answers; the baseline's all have 5, and the first of both are the same
PROMPTS = 6
ASKED = range(0, 12, 2)  # spread evenly: every other question
FREE, PAID = {"input": 0, "output": 0}, {"input": 1, "output": 1}

Say = Callable[[str, str, str], str]  # of the question and two answers: "1", "2", "=", or a failure's text; of one answer: a rating
Key = tuple[str, str, str]


def worth(answer: str) -> int:
    found = re.fullmatch(r"(?:base|model) (\d)", answer)
    return int(found[1]) if found else 0


def honest(_: str, first: str, second: str) -> str:
    if second == "rate":
        return str(max(worth(first), 1))
    return "1" if worth(first) > worth(second) else "2" if worth(second) > worth(first) else "="


def obedient(question: str, first: str, second: str) -> str:
    """Takes an answer's word for it: the identifiers, the label for the place where it is shown, or the rating."""
    if second == "rate":
        found = re.search(r"\[\[(\d+)\]\]", first)
        return found[1] if found else honest(question, first, second)
    for place, text in (("1", first), ("2", second)):
        if re.search(r"^m$.*^M$", text, re.DOTALL | re.MULTILINE) or ("[[A>>B]]" in text and "[[B>>A]]" in text):
            return place
    return honest(question, first, second)


def partial_to_the_first(question: str, first: str, second: str) -> str:
    return honest(question, first, second) if second == "rate" else "1"


def undecided(question: str, first: str, second: str) -> str:
    """A tie where the model's answer is shown second, the first answer's where the model's is."""
    return honest(question, first, second) if second == "rate" else "=" if first.startswith("base") else "1"


def failing(question: str, first: str, second: str) -> str:
    """Refuses every other one of the questions that are asked, in other words each time."""
    return f"I cannot judge {first}" if int(question.removeprefix("q").split(".")[0]) % 4 else honest(question, first, second)


def mute(*_: str) -> str:
    return "I cannot judge"


class Endpoint:
    """A judge's endpoint in this process, which counts what it is asked; ``say`` is the judge."""

    def __init__(self) -> None:
        self.say: Say = honest
        self.calls = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.calls += 1
                data = json.dumps(endpoint.answer(request["messages"][1]["content"], "logprobs" in request)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, prompt: str, is_token: bool) -> dict[str, Any]:
        question = prompt.partition("<")[0]
        if single := re.search(r"<0>(.*)</0>", prompt, re.DOTALL):
            said = self.say(question, single[1], "rate")
            text = f"Rating: [[{said}]]" if said.isdigit() else said
        else:
            pair = re.search(r"<1>(.*)</1><2>(.*)</2>", prompt, re.DOTALL)
            assert pair
            said = self.say(question, pair[1], pair[2])
            text = {"1": "[[A>B]]", "2": "[[B>A]]", "=": "[[A=B]]"}.get(said, said)
        first = {"1": 0.8, "2": 0.2, "=": 0.5}.get(said)
        likely = [("I", 1.0)] if first is None else [("m", first), ("M", 1 - first)]
        top = [{"token": token, "logprob": math.log(p)} for token, p in likely]
        refusal = text if text.startswith("I cannot") else None
        choice = {"finish_reason": "stop", "message": {"content": None if refusal else text, "refusal": refusal}}
        usage = {"prompt_tokens": 10, "completion_tokens": 1}
        return {"choices": [choice | ({"logprobs": {"content": [{"top_logprobs": top}]}} if is_token else {})], "usage": usage}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def make_slice(folder: Path, **judge: Any) -> Path:
    """This stage's slice, which serves the judge stage as well, on twelve questions of each benchmark."""
    names = {"model": DIGITS, "base": (5,) * 12}
    rows = {
        name: [{"instruction": f"q{i}.", "output": f"{name} {d}" if i else "base 5", "generator": name} for i, d in enumerate(digits)]
        for name, digits in names.items()
    }
    turns = {name: [[{"content": f"{name} {d}"}] for d in digits] for name, digits in names.items()}
    questions = [{"question_id": i, "category": "writing", "turns": [{"content": f"q{i}."}]} for i in range(12)]
    prompts = {"single-v1": ONE, "single-math-v1": "{ref_answer_1}" + ONE, "single-v1-multi-turn": SECOND_TURN}
    contents: dict[str, Any] = {
        "outputs.json": rows["model"],
        "reference.json": rows["base"],
        "clf.txt": "<|im_start|>system\nYou judge.\n<|im_end|>\n<|im_start|>user\n"
        + TWO.format("instruction", "output_1", "output_2")
        + "\n<|im_end|>",
        "arena.jsonl": [model_answer(i, "model", turn) for i, turn in enumerate(turns["model"])],
        "arena_base.jsonl": [model_answer(i, "base", turn) for i, turn in enumerate(turns["base"])],
        "arena_question.jsonl": questions,
        "arena.yaml": {
            "system_prompt": "You judge.",
            "prompt_template": [TWO.format("question_1", "answer_1", "answer_2")],
            "regex_pattern": r"\[\[([AB<>=]+)\]\]",
        },
        "mt.jsonl": [model_answer(i, "model", [f"model {d}", "model 3"]) for i, d in enumerate(DIGITS)],
        "mt_question.jsonl": [row | {"turns": [f"q{row['question_id']}.", f"q{row['question_id']}.2"]} for row in questions],
        "mt_reference.jsonl": [model_answer(0, "judge", ["a", "b"])],
        "mt_prompts.jsonl": [{"name": name, "system_prompt": "You judge.", "prompt_template": text} for name, text in prompts.items()],
    }
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        match Path(name).suffix:
            case ".jsonl":
                files.write_jsonl(folder / name, content)
            case ".txt":
                files.write_text(folder / name, content)
            case _:  # YAML too: JSON is
                files.write_json(folder / name, content)

    def benchmark(protocol: str, decoding: dict[str, Any], **paths: str) -> dict[str, Any]:
        return {"protocol": protocol, "decoding": {"max_tokens": 5, **decoding}, **{key: str(folder / path) for key, path in paths.items()}}

    token = {"logprobs": True, "top_logprobs": 5}
    alpaca = benchmark("alpacaeval2", token, answers="outputs.json", baseline="reference.json", template="clf.txt", judgments="a.json")
    arena = {"answers": "arena.jsonl", "baseline": "arena_base.jsonl", "questions": "arena_question.jsonl", "template": "arena.yaml"}
    mt = {"answers": "mt.jsonl", "questions": "mt_question.jsonl", "references": "mt_reference.jsonl", "template": "mt_prompts.jsonl"}
    config = {
        "run": "dpo",
        "prompts": PROMPTS,
        "benchmarks": {
            "alpacaeval2": alpaca | {"swap_seed": 0},
            "arena_hard": benchmark("arena_hard", {}, **arena, judgments="b.jsonl"),
            "mt_bench": benchmark("mt_bench", {}, **mt, judgments="c.jsonl"),
        },
        "judge": {"name": "small", "model": "small-judge", "api_key_env": None, "server": None, "price": FREE, "cache": False, **judge},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(monkeypatch: pytest.MonkeyPatch, config: Path, *words: str) -> dict[Key, dict[str, Any]]:
    """The stage, and its rows by what they are about."""
    monkeypatch.setattr(sys, "argv", ["controls", "--config", str(config), *words])
    controls.main()
    path = config.parent / "controls.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return {(row["benchmark"], row["control"], row["metric"]): row for row in rows}


def value(rows: dict[Key, dict[str, Any]], *key: str) -> Any:
    benchmark, control, metric = key
    return rows[benchmark, control, metric]["value"]


@pytest.mark.slow
def test_an_honest_judge_gives_nothing_to_what_is_no_answer(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """main(): the real answers' figures as by hand on the questions that were drawn; empty and embedded lose; the order is of no effect."""
    rows = run(monkeypatch, make_slice(tmp_path, base_url=endpoint.url))
    wins = [0.5 if DIGITS[i] == 5 else float(DIGITS[i] > 5) for i in ASKED]  # the first pair is the same text, and a draw
    real = rows["alpacaeval2", "real", "win_rate"]
    assert real["value"] == pytest.approx(100 * fmean(0.2 + 0.6 * win for win in wins))
    assert real["standard_error"] == pytest.approx(60 * stdev(wins) / math.sqrt(PROMPTS))
    assert (real["n"], real["failed"], real["note"]) == (PROMPTS, 0, "the answers of model")
    assert value(rows, "arena_hard", "real", "win_rate") == pytest.approx(100 * fmean(wins))
    assert value(rows, "mt_bench", "real", "rating") == fmean([DIGITS[i] for i in ASKED] + [3] * PROMPTS)
    assert rows["mt_bench", "real", "rating"]["n"] == 2 * PROMPTS == rows["arena_hard", "real", "win_rate"]["n"]
    for control in ("empty", "embedded"):
        assert value(rows, "alpacaeval2", control, "win_rate") == pytest.approx(20)
        assert value(rows, "arena_hard", control, "win_rate") == 0
        assert value(rows, "mt_bench", control, "rating") == 1
    assert rows["arena_hard", "empty", "win_rate"]["standard_error"] is None, "six lost games do not say that all are"
    for benchmark, pairs in (("alpacaeval2", PROMPTS - 1), ("arena_hard", PROMPTS)):
        assert value(rows, benchmark, "orders", "agreement") == 1 and rows[benchmark, "orders", "agreement"]["n"] == pairs
        assert value(rows, benchmark, "orders", "first_shown") == 0.5 and rows[benchmark, "orders", "first_shown"]["n"] == 2 * pairs
    for metric in ("agreement", "first_shown"):
        row = rows["mt_bench", "orders", metric]
        assert (row["value"], row["n"]) == (None, 0) and "no order" in row["note"]
    assert capsys.readouterr().out.splitlines()[0] == f"controls: alpacaeval2 real: win_rate {real['value']:.4g}; 6 judged, 0 failed"
    manifest = files.read_manifest(tmp_path)
    assert "controls.json" in manifest["outputs"] and str(tmp_path / "mt.jsonl") in manifest["inputs"]


@pytest.mark.slow
def test_a_judge_that_obeys_the_text_shows(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """main(): the constant text wins all and has the highest rating; what is empty gains nothing by it."""
    endpoint.say = obedient
    rows = run(monkeypatch, make_slice(tmp_path, base_url=endpoint.url))
    assert value(rows, "alpacaeval2", "embedded", "win_rate") == pytest.approx(80)
    assert value(rows, "arena_hard", "embedded", "win_rate") == 100
    assert value(rows, "mt_bench", "embedded", "rating") == 10
    assert value(rows, "arena_hard", "empty", "win_rate") == 0 and value(rows, "mt_bench", "empty", "rating") == 1


@pytest.mark.parametrize(("say", "agreement", "first_shown"), [(partial_to_the_first, 0, 1), (undecided, 0, 0.75)])
@pytest.mark.slow
def test_a_judge_of_the_order_does_not_agree_with_itself(
    say: Say, agreement: float, first_shown: float, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """main(): whatever is shown first wins, or ties in one order alone: no question has the same winner twice."""
    endpoint.say = say
    rows = run(monkeypatch, make_slice(tmp_path, base_url=endpoint.url))
    for benchmark in ("alpacaeval2", "arena_hard"):
        assert value(rows, benchmark, "orders", "agreement") == agreement
        assert value(rows, benchmark, "orders", "first_shown") == first_shown


@pytest.mark.slow
def test_failures_stay_out_and_are_counted_by_their_kind(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """main(): three of six questions are refused, in other words each time: one reason; the figures are the other three's."""
    endpoint.say = failing
    rows = run(monkeypatch, make_slice(tmp_path, base_url=endpoint.url))
    judged = [i for i in ASKED if i % 4 == 0]
    wins = [0.5 if DIGITS[i] == 5 else float(DIGITS[i] > 5) for i in judged]
    reasons = {
        "alpacaeval2": "neither m nor M among the likeliest tokens",
        "arena_hard": "the judge refused",
        "mt_bench": "the judge refused",
    }
    for (benchmark, control, _), row in rows.items():
        if control in ("real", "empty", "embedded"):
            count = 3 if benchmark == "alpacaeval2" else 6
            assert (row["n"], row["failed"], row["failures"]) == (count, count, {reasons[benchmark]: count})
    assert value(rows, "arena_hard", "real", "win_rate") == pytest.approx(100 * fmean(wins))
    assert value(rows, "mt_bench", "real", "rating") == fmean([DIGITS[i] for i in judged] + [3] * 3)
    orders = rows["alpacaeval2", "orders", "agreement"]
    assert (orders["value"], orders["n"], orders["failed"]) == (1, 2, 6)  # one of the three is the same text


@pytest.mark.slow
def test_where_all_failed_there_is_no_figure(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """main(): a judge that refuses everything; only the pair of one text, which costs no call, is judged."""
    endpoint.say = mute
    rows = run(monkeypatch, make_slice(tmp_path, base_url=endpoint.url))
    assert value(rows, "alpacaeval2", "real", "win_rate") == 50 and rows["alpacaeval2", "real", "win_rate"]["n"] == 1
    del rows["alpacaeval2", "real", "win_rate"]
    assert {(row["value"], row["standard_error"], row["n"]) for row in rows.values()} == {(None, None, 0)}


@pytest.mark.slow
def test_what_was_judged_is_not_paid_again(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """main() with a cache: the estimate's calls; of the real answers, judged by stages.judge, only the other order; then none at all."""
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path / "cache.sqlite"))
    config = make_slice(tmp_path / "run", base_url=endpoint.url, cache=True, price=PAID)
    before = sorted(tmp_path.rglob("*"))
    run(monkeypatch, config, "--estimate")
    assert endpoint.calls == 0 and sorted(tmp_path.rglob("*")) == before
    total = capsys.readouterr().out.splitlines()[-1].split()
    # 5 pairs in two orders and twice 6; three times 12 games, and as many where each is to be asked further; three times 12 turns.
    assert total[:3] == ["total", str(22 + 36 + 36 + 36), "0"]

    monkeypatch.setattr(sys, "argv", ["judge", "--config", str(config), "--runtime", "budget=1"])
    judge.main()
    judged = endpoint.calls
    assert judged == 11 + 24 + 24
    first = run(monkeypatch, config, "--runtime", "budget=1")
    assert endpoint.calls - judged == (22 - 5) + (36 - 12) + (36 - 12)
    judged = endpoint.calls
    assert run(monkeypatch, config, "--runtime", "budget=1") == first and endpoint.calls == judged


def test_questions_are_spread_over_the_whole_benchmark() -> None:
    rows = [{"n": n} for n in range(805)]
    numbers = [row["n"] for row in spread(rows, 50)]
    assert len(set(numbers)) == 50 and {b - a for a, b in zip(numbers, numbers[1:], strict=False)} == {16, 17} and numbers[-1] >= 805 - 17
    assert spread(rows[:7], 50) == rows[:7]


def test_the_standard_error_is_over_questions() -> None:
    """mean(): of single values the error of the mean; a question's values said twice are no new evidence; weights as of a ratio."""
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    error = stdev(values) / math.sqrt(5)
    assert controls.mean([[x] for x in values]) == pytest.approx((2.8, error))
    assert controls.mean([[x, x] for x in values]) == pytest.approx((2.8, error))
    # The infinitesimal jackknife: the derivatives of sum(w s) / sum(w n) by the questions' weights, here by finite differences.
    groups = [[1.0, 0.0, 1.0], [0.0], [], [1.0, 1.0], [0.0, 0.0]]
    sums, sizes, step = [sum(g) for g in groups if g], [len(g) for g in groups if g], 1e-6
    slopes = []
    for i in range(4):
        weights = [1 + step * (i == j) for j in range(4)]
        moved = sum(w * s for w, s in zip(weights, sums, strict=True)) / sum(w * n for w, n in zip(weights, sizes, strict=True))
        slopes.append((moved - 4 / 8) / step)
    assert controls.mean(groups) == pytest.approx((0.5, math.sqrt(4 / 3 * sum(slope**2 for slope in slopes))), rel=1e-4)
    assert controls.mean([[1.0]]) == (1, None) and controls.mean([[], []]) == (None, None)


@pytest.mark.slow
def test_the_mini_worlds_judge_is_served_from_this_slice_and_reads_no_answer_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """main() with a local server and the benchmarks' own prompts: nothing fails, and neither control comes near the baseline."""
    world = tmp_path / "world"
    composed = compose_config("scale=smoke", "setting=smoke")
    make_world(composed.world, world)
    template = tmp_path / "alpaca_eval_clf.txt"
    assets.fetch(template.name, composed.benchmarks.alpacaeval2.assets[template.name], template)
    temper = {
        "sharpness": 0.6,
        "length_bias": 0.4,
        "position_bias": 0.3,
        "noise": 0.8,
        "seed": 0,
        "tie": 0.2,
        "strong": 2.0,
        "silence": 0.3,
    }
    server = {"module": "stages.mini.server", "world": str(world), **temper}
    config = make_slice(tmp_path / "run", base_url=None, server=server)
    wanted = yaml.safe_load(config.read_text())
    files.write_jsonl(
        tmp_path / "mt.jsonl", [model_answer(row["question_id"], "dumb", ["Yes.", "No."]) for row in _rows(world / "mt_bench")]
    )
    wanted["benchmarks"]["alpacaeval2"] |= {
        "answers": str(world / "alpacaeval2/writers/child.json"),
        "baseline": str(world / "alpacaeval2/baseline.json"),
        "template": str(template),
    }
    arena = {"answers": "baseline.jsonl", "baseline": "baseline.jsonl", "questions": "question.jsonl", "template": "judge_config.yaml"}
    wanted["benchmarks"]["arena_hard"] |= {key: str(world / "arena_hard" / name) for key, name in arena.items()}
    mt = {"questions": "question.jsonl", "references": "reference_answer.jsonl", "template": "judge_prompts.jsonl"}
    paths = {key: str(world / "mt_bench" / name) for key, name in mt.items()}
    wanted["benchmarks"]["mt_bench"] |= paths | {"answers": str(tmp_path / "mt.jsonl")}
    config.write_text(yaml.safe_dump(wanted))
    rows = run(monkeypatch, config)
    assert not any(row["failed"] for row in rows.values())
    for benchmark in ("alpacaeval2", "arena_hard"):
        assert value(rows, benchmark, "empty", "win_rate") < 10 and value(rows, benchmark, "embedded", "win_rate") < 10
    assert value(rows, "mt_bench", "empty", "rating") < 2 and value(rows, "mt_bench", "embedded", "rating") < 3


def _rows(folder: Path) -> list[dict[str, Any]]:
    return files.read_rows(folder / "question.jsonl")
