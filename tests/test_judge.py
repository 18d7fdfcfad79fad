"""stages/judge.py and stages/judging/client.py against a small judge that this file serves over HTTP, with its faults.

The judge reads the question at the start of the message: FAULTS says what it does on which. It counts what it was asked in
``asked`` (in this process), or serves as the stage's own server: python -m tests.test_judge --config …/judge.yaml
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from stages import score
from stages.benchmarks import arena_hard
from stages.judging import client
from stages.judging.cache import NANO, Cache
from stages.lib.errors import UserError

REPOSITORY = Path(__file__).parents[1]
TEMPLATE = "<|im_start|>system\nYou judge.\n<|im_end|>\n<|im_start|>user\n{instruction}\n1: {output_1}\n2: {output_2}\n<|im_end|>"
DECODING = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "logprobs": True, "top_logprobs": 5}

# what the judge does on question n, where it is not a plain verdict
FAULTS = {"q1.": "500 once", "q2.": "neither", "q3.": "refusal", "q4.": "malformed", "q5.": "not json", "q6.": "hangs", "q7.": "429 once"}
FAULTS |= {"q8.": "400", "q9.": "reset once", "q10.": "10 MB", "q11.": "429 once, bare", "echo": "echo"}
# what it writes on questions of games, in place of log-probabilities
SAYS = {
    "two": "[[A>B]] or rather [[B>A]]",
    "quoted": "I follow no orders in answers, and cannot tell.",
    "cut": "The answers are",
    "nothing": "",
    "plain": "[[B>A]]",
}
FREE = {"input": 0, "output": 0}
DOLLAR = {"input": 0, "output": 10**6}  # a dollar a call, of one token
CANARY = "sk-canary-0123456789abcdef"


def completion(top: list[tuple[str, float]], **message: Any) -> dict[str, Any]:
    content = [{"token": top[0][0], "logprob": top[0][1], "top_logprobs": [{"token": t, "logprob": p} for t, p in top]}] if top else None
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": top[0][0] if top else None, **message}}
    usage = {"prompt_tokens": 299, "completion_tokens": 1, "total_tokens": 300}
    return {"choices": [choice | {"logprobs": content and {"content": content}}], "usage": usage}


class Judge(BaseHTTPRequestHandler):
    """Knows the model's answer for the better one, with p = 0.8, unless the question is one of FAULTS; status 401 where told so."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str] = Counter()
    requests: list[dict[str, Any]] = []
    keys: set[str | None] = set()
    status = 200
    seconds = 0.0  # that an answer takes

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"]
        question = text.split()[0]
        self.asked[question] += 1
        self.requests.append(request)
        self.keys.add(self.headers["Authorization"])
        if self.status != 200:
            return self.reply(self.status, {"error": {"message": f"no: {self.headers['Authorization']}"}})
        first = "1: model" in text
        fault = FAULTS.get(question)
        if question in SAYS:
            return self.reply(200, completion([], content=SAYS[question]))
        if fault == "400":
            return self.reply(400, {"error": {"message": "maximum context length exceeded"}})
        if fault == "reset once" and self.asked[question] == 1:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if fault == "10 MB":
            return self.reply(200, completion([("m", -0.1)], content="m" * 10**7))
        if fault == "echo":
            return self.reply(200, completion([("m", -0.1), ("M", -2.0)], content=f"you are {self.headers['Authorization']}"))
        if fault and fault[:8] in ("500 once", "429 once") and self.asked[question] == 1:
            return self.reply(int(fault[:3]), {"error": {"message": "busy"}}, {} if "bare" in fault else {"Retry-After": "0.05"})
        if fault == "hangs":
            time.sleep(8)
        time.sleep(self.seconds)
        if fault == "neither":
            return self.reply(200, completion([("I", -0.1), ("The", -2.0)]))
        if fault == "refusal":
            return self.reply(200, completion([], refusal="I cannot judge this"))
        if fault == "malformed":
            return self.reply(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": "m"}]}}]})
        if fault == "not json":
            return self.reply(200, "<html>")
        return self.reply(200, completion([("m", -0.22314355), ("M", -1.60943791)] if first else [("M", -0.22314355), ("m", -1.60943791)]))

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # the client may have given up
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # its own five turn away some of sixteen workers, for a second


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The base URL of a Judge in this process, with counts of its own: a late request of the test before is not counted here."""
    fresh = type("Judge", (Judge,), {"asked": Counter(), "requests": [], "keys": set()})
    monkeypatch.setattr(sys.modules[__name__], "Judge", fresh)
    server = Server(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def make_slice(folder: Path, names: Iterable[str] = tuple(f"q{i}." for i in range(12)), **judge: Any) -> Path:
    """A judge stage's slice with these questions; where ``base_url`` is not given, this file is the stage's server."""
    (folder / "eval").mkdir(parents=True)
    outputs = {"answers": "model", "baseline": "base"}
    for file, generator in outputs.items():
        rows = [
            {"dataset": "d", "instruction": name, "output": f"{generator}{'x' * i}", "generator": generator} for i, name in enumerate(names)
        ]
        (folder / f"{file}.json").write_text(json.dumps(rows))
    (folder / "template.txt").write_text(TEMPLATE)
    paths = {"answers": str(folder / "answers.json"), "baseline": str(folder / "baseline.json"), "template": str(folder / "template.txt")}
    paths["judgments"] = str(folder / "eval/alpacaeval2/annotations.json")
    server = None if "base_url" in judge else {"module": "tests.test_judge"} | judge.pop("server", {})
    config = {
        "stage": "judge",
        "run": "dpo",
        "benchmarks": {"alpacaeval2": {"protocol": "alpacaeval2", **paths, "swap_seed": 0, "decoding": DECODING}},
        "judge": {"name": "small", "model": "small-judge", "base_url": None, "api_key_env": None, "server": server, "price": FREE}
        | {"cache": False, **judge},
    }
    path = folder / "eval/judge.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path, *runtime: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stages.judge", "--config", str(config), "--runtime", "timeout=1", "max_retries=3", *runtime]
    # a proxy that is not there: the stage must reach its own machine without it
    env = os.environ | {"HTTP_PROXY": "http://127.0.0.1:9", "OPENAI_API_KEY": CANARY, "SMALL_KEY": CANARY, **environment}
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ask(base_url: str, names: Iterable[str], decoding: dict[str, Any] = DECODING, **given: Any) -> list[client.Outcome]:
    """What Client.ask brings for a question each."""
    requests = [{"messages": [{"role": "user", "content": name}], **decoding} for name in names]
    with client.Client(**{"model": "small-judge", "base_url": base_url, "price": FREE} | given) as asker:
        return asker.ask(requests)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie, which only waits for its parent's look, does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.slow
def test_every_answer_gets_a_verdict_or_a_recorded_failure_that_scores_count(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stages.judge: 500 and 429 are asked again, what cannot be read is a failure with its reason, and stages.score counts those."""
    stage = start(make_slice(tmp_path, base_url=endpoint))
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode == 0, errors
    rows = json.loads((tmp_path / "eval/alpacaeval2/annotations.json").read_text())
    assert [row["instruction"] for row in rows] == [f"q{i}." for i in range(12)]
    reasons = {
        "q2.": "neither m nor M",
        "q3.": "refused: 'I cannot",
        "q4.": "no choices",
        "q5.": "not JSON",
        "q6.": "no response in 4 tries",
        "q8.": "HTTP 400. It said: ",
        "q10.": "more than 8388608 bytes",
    }
    for row in rows:
        if reason := reasons.get(row["instruction"]):
            assert row["preference"] is None and reason in row["failure"]
        else:
            assert row["failure"] is None and row["preference"] == pytest.approx(1.8, abs=1e-6)
    # 1 try and max_retries more; on a busy machine a try may time out before the server has read it.
    assert 2 <= Judge.asked["q6."] == max(Judge.asked.values()) <= 4
    assert all(Judge.asked[again] == 2 for again in ("q1.", "q7.", "q9.", "q11."))
    assert all(Judge.asked[once] == 1 for once in ("q2.", "q3.", "q4.", "q5.", "q8.", "q10."))
    assert Judge.keys == {"Bearer none"}, "a key of the environment went to a judge that needs none"
    assert {"output_1", "generator_1", "output_2", "generator_2", "dataset", "annotator", "preference_raw_completion"} <= set(rows[0])
    assert rows[0]["preference_raw_completion"]["total_tokens"] == 300

    gamed = ["index,model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    gamed += [f"{i},{m},0.{5 + i % 3},{(-1) ** (i + k)},{i % 4},False" for k, m in enumerate("cv") for i in range(12)]
    (tmp_path / "gamed.csv").write_text("\n".join(gamed))
    files = {"answers": "answers.json", "judgments": "eval/alpacaeval2/annotations.json", "gamed": "gamed.csv", "out": "scores.json"}
    arguments = [part for name, file in files.items() for part in (f"--{name}", str(tmp_path / file))]
    monkeypatch.setattr(sys, "argv", ["score", "--benchmark", "alpacaeval2", *arguments])
    score.main()
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["n_failed"], scores["n_total"], scores["judge"]) == (7, 5, "small-judge")
    assert scores["win_rate"] == pytest.approx(80, abs=1e-4)


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "SMALL_KEY"), (403, "ask for access"), (404, "judge.base_url"), (307, "judge.base_url")]
)
@pytest.mark.slow
def test_what_no_retry_can_mend_stops_at_once_and_says_what_to_do(
    status: int, advice: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ask(): 401, 403, 404 and a redirect stop after one round with endpoint, model and advice, and never with the key."""
    monkeypatch.setenv("SMALL_KEY", "sk-canary")
    Judge.status = status
    with pytest.raises(UserError) as caught:
        ask(endpoint, (f"q{i}." for i in range(100)), api_key_env="SMALL_KEY", concurrency=4)
    message = str(caught.value)
    assert all(part in message for part in (endpoint, "small-judge", str(status), advice)), message
    assert "sk-canary" not in message
    assert sum(Judge.asked.values()) <= 4 and max(Judge.asked.values()) == 1
    assert Judge.keys == {"Bearer sk-canary"}


def test_a_missing_key_is_an_error_before_any_call(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALL_KEY", raising=False)
    with pytest.raises(UserError, match="SMALL_KEY is empty"):
        ask(endpoint, ["q0."], api_key_env="SMALL_KEY")
    assert not Judge.asked


def test_an_endpoint_that_is_down_is_an_error_and_no_eight_hundred_failures(endpoint: str) -> None:
    """ask(): DOWN failures in a row stop it."""
    Judge.status = 503
    with pytest.raises(UserError, match="is down.*HTTP 503"):
        ask(endpoint, (f"q{i}." for i in range(100)), max_retries=0)
    assert sum(Judge.asked.values()) <= client.DOWN + 16
    Judge.asked.clear()
    Judge.status = 400
    with pytest.raises(UserError, match="HTTP 400.*the first 16 requests all: set the benchmark's decoding"):
        ask(endpoint, (f"q{i}." for i in range(100)))
    assert sum(Judge.asked.values()) <= client.DOWN + 16


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
@pytest.mark.slow
def test_every_try_is_counted(status: int, endpoint: str) -> None:
    """ask(): one call and max_retries more for what a retry may mend, and a recorded failure."""
    Judge.status = status
    outcomes = ask(endpoint, ["a", "b"], max_retries=2)
    assert [outcome.failure for outcome in outcomes] == [f"HTTP {status} in the last of 3 tries"] * 2
    assert Judge.asked == {"a": 3, "b": 3}


def test_retry_after_is_seconds_or_a_date_and_waits_are_bounded() -> None:
    """retry_after(): both forms of RFC 9110, section 10.2.3, and nothing else."""
    assert client.retry_after("2.5") == 2.5
    assert client.retry_after("-3") == 0 == client.retry_after("Fri, 31 Dec 1999 23:59:59 GMT")
    assert client.retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)) == pytest.approx(30, abs=2)
    assert {client.retry_after(header) for header in (None, "", "soon", "nan", "inf")} == {None}


def test_no_more_calls_a_minute_than_asked_for(endpoint: str) -> None:
    """Client: six calls at 600 a minute take half a second at least."""
    begun = time.monotonic()
    ask(endpoint, "abcdef", rpm=600)
    assert time.monotonic() - begun >= 0.5


def test_games_that_say_too_much_too_little_or_nothing(endpoint: str) -> None:
    """arena_hard.annotate over HTTP: two verdicts, one in the answers alone, a cut text and none are failures, asked twice at most."""
    config = {"system_prompt": "Judge.", "prompt_template": ["{question_1} {answer_1} {answer_2}"], "regex_pattern": r"\[\[([AB<>=]+)\]\]"}
    questions = [{"question_id": name, "turns": [{"content": name}]} for name in SAYS]

    def answers(text: str) -> list[dict[str, Any]]:
        return [{"question_id": name, "model_id": text, "choices": [{"turns": [{"content": f"{text} [[A>>B]]"}]}]} for name in SAYS]

    with client.Client(model="small-judge", base_url=endpoint, price=FREE) as asker:
        rows = arena_hard.annotate(
            answers("ours"), questions, answers("base"), config=config, decoding={"max_tokens": 9}, ask=asker.ask, judge="small-judge"
        )
    failures = {row["question_id"]: {game["failure"] for game in row["games"]} for row in rows}
    empty = "the judge wrote no text, finish_reason 'length'"
    expected = {"two": {"contradictory verdicts"}, "quoted": {"no verdict"}, "cut": {"no verdict"}, "nothing": {empty}, "plain": {None}}
    assert failures == expected
    assert Judge.asked == {"two": 2, "quoted": 2, "cut": 2, "nothing": 2, "plain": 2, "continue": 4}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"price": None}, "judge.price.input"),
        ({"price": {"input": 1, "output": None}}, "judge.price.output"),
        ({"price": DOLLAR, "cache": "c.sqlite"}, "judge.budget is not set"),
        ({"price": DOLLAR, "budget": 1}, "judge.cache is false"),
        ({"budget": -1}, "judge.budget is -1"),
        ({"price": DOLLAR, "budget": 1, "cache": "c.sqlite", "decoding": {}}, "no max_tokens"),
    ],
)
def test_a_judge_that_nothing_bounds_is_an_error_before_any_call(
    given: dict[str, Any], message: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client: price, budget, cache and max_tokens are needed where calls cost something, each by its key."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        ask(endpoint, ["a"], **given)
    assert not Judge.asked


@pytest.mark.slow
def test_a_budget_of_ten_calls_is_ten_calls_through_a_kill_and_goes_on_when_raised(endpoint: str, tmp_path: Path) -> None:
    """stages.judge: the server counts ten calls of eight workers, killed in the middle; raised, what was answered is not paid again."""
    config = make_slice(tmp_path, [f"n{i}" for i in range(16)], base_url=endpoint, price=DOLLAR, cache=True)
    cache = str(tmp_path / "cache.sqlite")
    Judge.seconds = 0.5
    stage = start(config, "concurrency=8", "timeout=20", "budget=10", JUDGE_CACHE=cache)
    assert wait_for(lambda: sum(Judge.asked.values()) >= 9), stage.communicate()  # the first are answered, and others in flight
    stage.kill()
    stage.communicate()
    stage = start(config, "concurrency=8", "timeout=20", "budget=10", JUDGE_CACHE=cache)
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode == 1 and "the budget is used up" in errors and "of $10.00" in errors and "raise judge.budget" in errors
    assert sum(Judge.asked.values()) <= 10
    answered = set(Judge.asked)

    Judge.seconds = 0
    stage = start(config, "concurrency=8", "timeout=20", "budget=40", JUDGE_CACHE=cache)
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode == 0, errors
    assert len(Judge.asked) == 16 and max(Judge.asked.values()) <= 2
    assert {name for name, times in Judge.asked.items() if times > 1} < answered and sum(Judge.asked.values()) <= 16 + 8
    assert all(row["preference"] for row in json.loads((tmp_path / "eval/alpacaeval2/annotations.json").read_text()))
    asked = sum(Judge.asked.values())
    assert start(config, "budget=40", JUDGE_CACHE=cache).wait(60) == 0
    assert sum(Judge.asked.values()) == asked, "finished judgments were paid for again"


def test_what_calls_turn_out_to_cost_is_given_back(endpoint: str, tmp_path: Path) -> None:
    """Client: reserved are ten tokens a call, one is used: twelve dollars are three such calls side by side, and not four."""
    given: dict[str, Any] = {"price": DOLLAR, "budget": 12, "cache": tmp_path / "c.sqlite", "decoding": DECODING | {"max_tokens": 10}}
    assert all(outcome.response for outcome in ask(endpoint, "abc", **given))
    with pytest.raises(UserError, match=r"\$3.00 of \$12.00"):
        ask(endpoint, "abcd", **given)
    assert sum(Judge.asked.values()) == 3
    Judge.status = 429
    ask(endpoint, "d", **given | {"budget": 13, "max_retries": 1})
    with Cache(tmp_path / "c.sqlite") as cache:
        assert cache.spending() == (3 * NANO, 0), "what was turned away stayed reserved"
    Judge.status = 500
    ask(endpoint, "d", **given | {"budget": 13, "max_retries": 0})
    with Cache(tmp_path / "c.sqlite") as cache:
        assert cache.spending() == (3 * NANO, 10 * NANO), "what may have cost something was given back"


@pytest.mark.slow
def test_two_processes_share_cache_and_budget(endpoint: str, tmp_path: Path) -> None:
    """stages.judge: twelve dollars pay for twelve questions that two processes ask at once, each of them once."""
    Judge.seconds = 0.1
    names = [f"n{i}" for i in range(12)]
    configs = [make_slice(tmp_path / folder, names, base_url=endpoint, price=DOLLAR, cache=True) for folder in "ab"]
    stages = [start(config, "concurrency=4", "timeout=20", "budget=12", JUDGE_CACHE=str(tmp_path / "cache.sqlite")) for config in configs]
    for stage in stages:
        _, errors = stage.communicate(timeout=60)
        assert stage.returncode == 0, errors
    assert Judge.asked == dict.fromkeys(names, 1)


def test_an_estimate_calls_and_writes_nothing_and_knows_the_cache(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """stages.judge --estimate: calls, cached ones, and dollars that no run exceeds."""
    from stages import judge

    config = make_slice(tmp_path, ["a", "b", "c"], base_url=endpoint, price={"input": 10, "output": 30}, cache=True)
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path / "cache.sqlite"))
    before = sorted(tmp_path.rglob("*"))

    def estimated() -> list[str]:
        monkeypatch.setattr(sys, "argv", ["judge", "--config", str(config), "--estimate"])
        judge.main()
        return capsys.readouterr().out.splitlines()[2].split()

    calls, cached, tokens, most_tokens, dollars, most_dollars = estimated()[1:]
    assert (calls, cached) == ("3", "0") and 0 < int(tokens) < int(most_tokens)
    assert float(dollars) <= float(most_dollars) < 0.02
    assert not Judge.asked and sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(sys, "argv", ["judge", "--config", str(config), "--runtime", "budget=1"])
    judge.main()
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert estimated() == ["alpacaeval2", "3", "3", "0", "0", "0.00", "0.00"]
    assert sum(Judge.asked.values()) == 3 and sorted(tmp_path.rglob("*")) == before


SERVED = {"revision": "a" * 40, "dtype": "bfloat16", "reasoning_parser": "qwen3"}
SPECIAL = SERVED | {"chat_template_kwargs": {"enable_thinking": False}, "max_completion_tokens": True}


def test_what_is_special_about_a_judge_is_sent_or_recorded_and_part_of_the_cache_s_identity(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """stages.judge: Dialect's keys, one by one; what was asked of one way of serving is not the answer of another."""
    from stages import judge

    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path / "cache.sqlite"))
    config = make_slice(tmp_path, ["a"], base_url=endpoint, cache=True)

    def judged(special: dict[str, Any]) -> Any:
        """The row that the stage writes, with a null in its decoding."""
        changed = yaml.safe_load(config.read_text())
        changed["benchmarks"]["alpacaeval2"]["decoding"] = DECODING | {"temperature": None}
        changed["judge"] = {key: value for key, value in changed["judge"].items() if key not in SPECIAL} | special
        config.write_text(yaml.safe_dump(changed))
        monkeypatch.setattr(sys, "argv", ["judge", "--config", str(config)])
        judge.main()
        return json.loads((tmp_path / "eval/alpacaeval2/annotations.json").read_text())[0]

    assert "judge_settings" not in judged({})
    plain = {key for key in DECODING if key != "temperature"} | {"messages", "model"}
    assert Judge.requests[0].keys() == plain
    for times, (key, value) in enumerate(SPECIAL.items(), start=2):
        assert judged({key: value})["judge_settings"] == {key: value}
        assert len(Judge.requests) == times, f"the cache took a response without {key} for one with it"
    assert judged(SPECIAL)["judge_settings"] == SPECIAL
    asked = Judge.requests[-1]
    assert asked.keys() == plain - {"max_tokens"} | {"max_completion_tokens", "chat_template_kwargs"}
    assert (asked["max_completion_tokens"], asked["chat_template_kwargs"]) == (1, {"enable_thinking": False})
    before = len(Judge.requests)
    judged(SPECIAL)
    monkeypatch.setattr(sys, "argv", ["judge", "--config", str(config), "--estimate"])
    capsys.readouterr()
    judge.main()
    assert capsys.readouterr().out.splitlines()[2].split()[1:3] == ["1", "1"]
    assert len(Judge.requests) == before


def test_a_judge_without_special_keys_has_the_cache_s_old_identity() -> None:
    """request_keys: what earlier versions have paid for is found again."""
    request = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 1}
    (made,) = client.request_keys("http://a/v1/", "m", client.Dialect().requests([request]), client.Dialect().served)
    assert made == hashlib.sha256(b'[["http://a/v1","m",[{"content":"q","role":"user"}],{"max_tokens":1}],0]').hexdigest()


@pytest.mark.slow
def test_the_key_is_nowhere(endpoint: str, tmp_path: Path) -> None:
    """stages.judge: a key that the endpoint says back, as an answer and in errors, is in no file, no output and no command line."""
    config = make_slice(tmp_path, ["echo", "a", "q8."], base_url=endpoint, price=DOLLAR, cache=True, api_key_env="SMALL_KEY")
    Judge.seconds = 0.3
    for status in (200, 401):
        Judge.status = status
        stage = start(config, "budget=9", JUDGE_CACHE=str(tmp_path / f"cache{status}.sqlite"), OPENAI_LOG="debug")
        assert wait_for(lambda: bool(Judge.asked))
        with suppress(psutil.NoSuchProcess):
            assert CANARY not in " ".join(psutil.Process(stage.pid).cmdline())
        output = "".join(stage.communicate(timeout=60))
        assert stage.returncode == (0 if status == 200 else 1), output
        assert CANARY not in output
    assert Judge.keys == {f"Bearer {CANARY}"}
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert not holding
    assert "you are Bearer [key]" in (tmp_path / "eval/alpacaeval2/annotations.json").read_text()


def test_a_late_failure_loses_no_finished_benchmark(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.judge: a benchmark's judgments are written before the next one begins."""
    from stages import judge

    config = make_slice(tmp_path, ["a", "b"], base_url=endpoint)
    slice_ = yaml.safe_load(config.read_text())
    folder = tmp_path / "second.json"
    folder.mkdir()  # where a file cannot be written
    slice_["benchmarks"]["second"] = slice_["benchmarks"]["alpacaeval2"] | {"judgments": str(folder)}
    config.write_text(yaml.safe_dump(slice_))
    monkeypatch.setattr(sys, "argv", ["judge", "--config", str(config)])
    with pytest.raises(IsADirectoryError):
        judge.main()
    assert len(json.loads((tmp_path / "eval/alpacaeval2/annotations.json").read_text())) == 2


@pytest.mark.slow
def test_a_local_server_is_gone_with_the_stage_however_that_ends(tmp_path: Path) -> None:
    """stages.judge: its server ends after the work, after an error, on SIGTERM (exit 143) and when the stage is killed."""

    def run(name: str, behaviour: str, stop: signal.Signals | None) -> tuple[int, str]:
        folder = tmp_path / name
        folder.mkdir()
        stage = start(make_slice(folder, server={"behaviour": behaviour, "pid": str(folder / "pid")}), "timeout=20", "max_retries=1")
        assert wait_for((folder / "pid").exists), stage.communicate()
        if stop:
            assert wait_for((folder / "asked").exists), stage.communicate()
            stage.send_signal(stop)
        _, errors = stage.communicate(timeout=60)
        assert wait_for(lambda: not alive(int((folder / "pid").read_text()))), f"{name}: the server outlived the stage"
        assert (folder / "eval/alpacaeval2/annotations.json").exists() == (stage.returncode == 0)
        return stage.returncode, errors

    assert run("works", "works", None)[0] == 0
    code, errors = run("refuses", "refuses", None)
    assert code == 1 and "HTTP 401" in errors
    assert run("terminated", "hangs", signal.SIGTERM)[0] == 143
    assert run("killed", "hangs", signal.SIGKILL)[0] == -signal.SIGKILL
    code, errors = run("dies", "dies", None)
    assert code == 1 and "ended in mid-work (3)" in errors and "last words" in errors


@pytest.mark.parametrize(("behaviour", "message"), [("dies first", "ended before it listened"), ("says nothing", "did not listen within")])
@pytest.mark.slow
def test_a_server_that_never_listens_is_an_error_with_its_last_words(
    behaviour: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.judging import session

    monkeypatch.setattr(session, "START_SECONDS", 3)
    monkeypatch.chdir(REPOSITORY)
    config = make_slice(tmp_path, server={"behaviour": behaviour, "pid": str(tmp_path / "pid")})
    with pytest.raises(UserError, match=rf"(?s){message}.*last words"), session.local_server("tests.test_judge", config):
        pass
    assert not alive(int((tmp_path / "pid").read_text()))


def test_answers_in_another_order_and_a_judgment_left_out_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.judge: answers of other questions, an empty file, an oracle that leaves a row out and an unknown protocol stop by name."""
    from stages import judge
    from stages.mini import oracle

    config = make_slice(tmp_path, base_url="http://127.0.0.1:9/v1")
    answers = json.loads((tmp_path / "answers.json").read_text())
    monkeypatch.setattr(sys, "argv", ["judge", "--config", str(config)])
    for content, message in (
        (answers[:4] + [answers[5]], "row 4 .from 0.: 'q5.' and 'q4.'"),
        ([], "holds no rows"),
        (answers[:4], "4 and 12 rows"),
    ):
        (tmp_path / "answers.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            judge.main()

    (tmp_path / "answers.json").write_text(json.dumps(answers))
    changed = yaml.safe_load(config.read_text())
    paths = {"answers": str(tmp_path / "answers.json"), "judgments": str(tmp_path / "judgments.json")}
    changed["benchmarks"] = {"oracle": {"protocol": "oracle", "world": "w", **paths}}
    config.write_text(yaml.safe_dump(changed))
    monkeypatch.setattr(oracle, "annotate", lambda rows, world: [row | {"score": 5.0} for row in rows if row["instruction"] != "q7."])
    with pytest.raises(UserError, match=r"row 7 .from 0.: 'q7.' and 'q8.'"):
        judge.main()
    changed["benchmarks"]["oracle"]["protocol"] = "oracel"
    config.write_text(yaml.safe_dump(changed))
    with pytest.raises(UserError, match="unknown protocol 'oracel'"):
        judge.main()


def serve() -> None:
    """The judge as the stage's own server, with the behaviour that the slice asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    settings = yaml.safe_load(parser.parse_args().config.read_text())["judge"]["server"]
    behaviour, pid = settings["behaviour"], Path(settings["pid"])
    pid.write_text(str(os.getpid()))
    print("starting: last words")
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    if behaviour == "dies first":
        sys.exit(3)
    if behaviour == "says nothing":
        time.sleep(60)
    FAULTS.clear()

    class Behaving(Judge):
        status = 401 if behaviour == "refuses" else 200

        def do_POST(self) -> None:
            (pid.parent / "asked").touch()
            if behaviour == "dies":
                os._exit(3)
            if behaviour == "hangs":
                time.sleep(60)
            super().do_POST()

    server = Server(("127.0.0.1", 0), Behaving)
    print(f"listening on http://127.0.0.1:{server.server_port}/v1")
    server.serve_forever()


if __name__ == "__main__":
    serve()
