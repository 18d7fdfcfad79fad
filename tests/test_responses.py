"""stages/judging/client.py: what a response with HTTP 200 is worth. Errors in disguise, torn texts, parts, thoughts, and nothing to use."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks import mt_bench
from stages.judging import client
from stages.lib.errors import UserError

FREE = {"input": 0, "output": 0}
DOLLAR = {"input": 0, "output": 10**6}  # a dollar a token written
LOGPROBS = {"logprobs": True, "top_logprobs": 5}
HTML = "<!doctype html><title>Sign in</title>"
STREAM = 'data: {"choices": [{"delta": {"content": "Rating"}}]}\n\ndata: [DONE]\n'

Say = Callable[[int], Any]


def said(content: Any, finish: Any = "stop", **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}, **choice}]}


class Endpoint:
    """A judge whose answer to its n-th call, from 0, is ``say(n)``: an object, or a text as it is."""

    def __init__(self) -> None:
        self.calls = 0
        self.say: Say = lambda _: said("[[5]]")
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    number, outer.calls = outer.calls, outer.calls + 1
                body = outer.say(number)
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def ask(self, n: int = 1, retries: int = 1, decoding: dict[str, Any] | None = None, **given: Any) -> list[client.Outcome]:
        requests = [
            {"messages": [{"role": "user", "content": f"q{i}"}], "max_tokens": 1, "temperature": 0, **(decoding or {})} for i in range(n)
        ]
        settings = {"model": "judge", "base_url": f"http://127.0.0.1:{self.server.server_port}/v1", "price": FREE, "max_retries": retries}
        with client.Client(**settings | given) as asker:
            return asker.ask(requests)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


TORN = [
    said("By criterion [1], the answer", "error"),
    said("By criterion [1], the answer", "network_error"),
    said("By criterion [1], the answer", "insufficient_system_resource"),
    said("By criterion [1], the answer", "abort"),
    said("By criterion [1], the answer", "stop", error={"message": "upstream closed", "code": 502}),
    said("By criterion [1], the answer", None, error={"message": "upstream closed", "code": "server_error"}),
    said("By criterion [1], the answer", "stop", error={"message": "upstream closed"}),
    said("By criterion [1], the answer", "stop", error="upstream closed"),
    said("By criterion [1], the answer", "stop", error={}),
    said("By criterion [1], the answer", None) | {"error": {"message": "upstream closed", "code": 502}},
    said("By criterion [1], the answer", 0),
    said("By criterion [1], the answer", None, native_finish_reason="network_error"),
    said("By criterion [1], the answer", None, stop_reason="abort"),
    said("", "stop", message={"content": "By criterion [1], the answer", "error": {"message": "upstream closed"}}),
]


@pytest.mark.parametrize("torn", TORN)
@pytest.mark.slow
def test_a_torn_text_is_asked_again_and_never_cached(torn: dict[str, Any], endpoint: Endpoint, tmp_path: Path) -> None:
    """F1: tried again like a 5xx; then a failure with the reason, which a later run calls for again."""
    cache = tmp_path / "cache.sqlite"
    endpoint.say = lambda n: torn if n == 0 else said("[[7]]")
    assert client.content(endpoint.ask(cache=cache)[0]) == ("[[7]]", None)
    assert endpoint.calls == 2
    endpoint.calls, endpoint.say = 0, lambda _: torn
    cache.unlink()
    failure = endpoint.ask(cache=cache)[0].failure
    assert failure is not None
    assert "in the last of 2 tries" in failure
    assert any(words in failure for words in ("finish_reason", "it ended with", "upstream closed", "{}"))
    assert endpoint.calls == 2
    endpoint.say = lambda _: said("[[7]]")
    assert client.content(endpoint.ask(cache=cache)[0]) == ("[[7]]", None)


@pytest.mark.parametrize("finish", ["stop", "length", "content_filter", None, "eos", "end_turn", "STOP", "max_tokens"])
@pytest.mark.slow
def test_a_whole_text_is_taken_and_cached(finish: str | None, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.say = lambda _: said("[[7]]", finish)
    for _ in range(2):
        assert client.content(endpoint.ask(cache=tmp_path / "cache.sqlite")[0]) == ("[[7]]", None)
    assert endpoint.calls == 1


def test_what_an_earlier_version_cached_of_a_torn_text_is_asked_for_again(endpoint: Endpoint, tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    endpoint.ask(cache=cache)
    with sqlite3.connect(cache) as database:
        import hashlib

        body = json.dumps(TORN[0]).encode()
        database.execute("UPDATE responses SET body = ?, sha256 = ?", (body, hashlib.sha256(body).hexdigest()))
    endpoint.say = lambda _: said("[[7]]")
    assert client.content(endpoint.ask(cache=cache)[0]) == ("[[7]]", None)
    assert endpoint.calls == 2
    assert endpoint.ask(cache=cache)
    assert endpoint.calls == 2


@pytest.mark.parametrize(
    ("body", "again", "words"),
    [
        ({"error": {"message": "Provider returned error", "code": 429}}, True, "code 429"),
        ({"error": {"message": "Provider returned error", "code": "503"}}, True, "code 503"),
        ({"error": {"message": "Provider returned error", "type": "overloaded_error"}}, True, "code overloaded_error"),
        ({"error": {"message": "Provider returned error", "code": 400}}, False, "code 400"),
        ({"error": "Provider returned error"}, False, "Provider returned error"),
        ({"object": "error", "message": "Provider returned error", "code": 500}, True, "code 500"),
        ({"choices": [], "error": {"message": "Provider returned error", "code": 502}}, True, "code 502"),
        ({"error": {"message": "Provider returned error", "code": 429.0}}, True, "code 429"),
        ({"error": {"message": "Provider returned error", "code": "429 Too Many Requests"}}, True, "code 429"),
        ({"error": {"message": "Provider returned error", "code": "Throttling.RateQuota"}}, True, "code Throttling"),
        ({"error": {"message": "Provider returned error", "status_code": 429}}, True, "code 429"),
        ({"error": {"message": "Provider returned error", "metadata": {"http_status": 429}}}, True, "code 429"),
        ({"error": {"error": {"message": "Provider returned error", "code": 429}}}, True, "code 429"),
        ({"errors": [{"message": "Provider returned error", "code": 429}]}, True, "code 429"),
        ([{"error": {"message": "Provider returned error", "code": 429}}], True, "code 429"),
        ({"code": 429, "message": "Provider returned error"}, True, "code 429"),
        ({"error": "Provider returned error: rate limit exceeded"}, True, "rate limit"),
        ({"detail": "Provider returned error"}, False, "Provider returned error"),
    ],
)
@pytest.mark.slow
def test_an_error_inside_a_200_counts_like_its_status(body: Any, again: bool, words: str, endpoint: Endpoint, tmp_path: Path) -> None:
    """F13: tried again where the code is one of those; the failure has the code and the endpoint's first words."""
    cache = tmp_path / "cache.sqlite"
    endpoint.say = lambda n: body if n == 0 else said("[[7]]")
    outcome = endpoint.ask(cache=cache)[0]
    assert (outcome.failure is None) == again
    assert endpoint.calls == (2 if again else 1)
    endpoint.say = lambda _: body
    failure = endpoint.ask(decoding={"seed": 1}, cache=cache)[0].failure or ""
    assert words in failure
    assert "Provider returned error" in failure
    assert "Provider" not in client.kind(failure)


def test_a_refused_key_inside_a_200_stops_everything(endpoint: Endpoint) -> None:
    endpoint.say = lambda _: {"error": {"message": "no such key", "code": 401}}
    with pytest.raises(UserError, match="refused model 'judge'.*code 401.*no such key"):
        endpoint.ask(40)
    assert endpoint.calls <= client.DOWN


def test_a_torn_text_costs_what_its_usage_says(endpoint: Endpoint, tmp_path: Path) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 1}
    endpoint.say = lambda n: (TORN[0] if n == 0 else said("[[7]]")) | {"usage": usage}
    assert endpoint.ask(price=DOLLAR, budget=2, cache=tmp_path / "cache.sqlite")[0].failure is None
    with pytest.raises(UserError, match=r"\$2\.00 of \$2\.00 are spent"):
        endpoint.ask(decoding={"seed": 2}, price=DOLLAR, budget=2, cache=tmp_path / "cache.sqlite")


@pytest.mark.parametrize(
    ("body", "decoding", "needs"),
    [
        (said("m"), LOGPROBS, "logprobs"),
        (said("m", logprobs=None), LOGPROBS, "logprobs"),
        (said("m", logprobs={"content": []}), LOGPROBS, "logprobs"),
        (said("m", logprobs={"content": [{"top_logprobs": {"m": -0.2}}]}), LOGPROBS, "logprobs"),
        (said("m", logprobs={"content": [{"top_logprobs": [{"token": "m"}]}]}), LOGPROBS, "logprobs"),
        (said("m", logprobs={"content": [{"top_logprobs": [["m", -0.1]]}]}), LOGPROBS, "logprobs"),
        (said(" \n"), {}, "wrote no text"),
        (HTML, {}, "one JSON object"),
        (STREAM, {}, "one JSON object"),
        ({"choices": []}, {}, "message"),
        ({"detail": "Not Found"}, {}, "Not Found"),
        (said(None, "length"), {}, "wrote no text"),
        (said("<think>is it [[3]]", "length"), {}, "wrote no text"),
    ],
)
@pytest.mark.slow
def test_an_endpoint_that_never_gives_what_is_needed_is_asked_sixteen_times(
    body: Any, decoding: dict[str, Any], needs: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    """F14: forty requests, whatever the concurrency; nothing is cached, so that the same command goes on with a better endpoint."""
    endpoint.say = lambda _: body
    for concurrency in (3, 40):
        endpoint.calls = 0
        with pytest.raises(UserError, match=f"16 responses in a row without what the protocol needs.*{needs}"):
            endpoint.ask(40, decoding=decoding, concurrency=concurrency, cache=tmp_path / "cache.sqlite")
        assert endpoint.calls == 16 if concurrency > 16 else endpoint.calls <= 16 + concurrency
    top = [{"token": "m", "logprob": -0.1, "top_logprobs": [{"token": "m", "logprob": -0.1}]}]
    endpoint.calls, endpoint.say = 0, lambda _: said("m", logprobs={"content": top})
    assert all(outcome.response for outcome in endpoint.ask(40, decoding=decoding, cache=tmp_path / "cache.sqlite"))
    assert endpoint.calls == 40


def test_some_responses_without_it_are_failures_and_no_reason_to_stop(endpoint: Endpoint) -> None:
    endpoint.say = lambda n: said(None) if n % 2 else said("[[4]]")
    outcomes = endpoint.ask(40)
    assert sum(client.content(outcome)[1] is None for outcome in outcomes) == 20


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "thinking", "thinking": "perhaps [[3]]"}, {"type": "text", "text": "Rating: [[7]]"}], "Rating: [[7]]"),
        ([{"type": "text", "text": "Rating: "}, {"type": "text", "text": "[[7]]"}], "Rating: [[7]]"),
        ([{"type": "output_text", "text": "Rating: [[7]]"}], "Rating: [[7]]"),
        (["Rating: [[7]]"], "Rating: [[7]]"),
        ("<think>perhaps [[3]] or [[9]]</think>\nRating: [[7]]", "Rating: [[7]]"),
        ("\n<thinking>[[3]]</thinking>\n\nRating: [[7]]", "Rating: [[7]]"),
        ("[THINK]perhaps [[3]][/THINK]Rating: [[7]]", "Rating: [[7]]"),
        ("perhaps [[3]] or [[9]]\n</think>\n\nRating: [[7]]", "Rating: [[7]]"),  # the template has opened them
        ("perhaps [[3]]\r\n</think>\r\nRating: [[7]]", "Rating: [[7]]"),
        ("perhaps [[3]]</think>Rating: [[7]]", "Rating: [[7]]"),
        ("perhaps [[3]]\n[/THINK]\nRating: [[7]]", "Rating: [[7]]"),
        ("<think effort=low>[[3]]</THINK>Rating: [[7]]", "Rating: [[7]]"),
        ("\ufeff<think>[[3]]</think>Rating: [[7]]", "Rating: [[7]]"),
        ("<think>a <think>[[3]]</think> [[4]]</think>Rating: [[7]]", "Rating: [[7]]"),
        ("<reasoning>good. Rating: [[7]]", "<reasoning>good. Rating: [[7]]"),
        ("Rating: [[7]], for it closes </think> twice", "Rating: [[7]], for it closes </think> twice"),
        ("Rating: [[7]]\n<think>no [[2]]</think>", "Rating: [[7]]\n<think>no [[2]]</think>"),
    ],
)
def test_parts_are_one_text_and_thoughts_are_no_verdict(content: Any, text: str) -> None:
    """F12 and F15, down to the rating that MT-Bench reads."""
    outcome = client.Outcome({"choices": [{"message": {"content": content, "reasoning_content": "[[1]]"}, "finish_reason": "stop"}]})
    assert client.content(outcome) == (text, None)
    assert mt_bench.rating(text) == 7


@pytest.mark.parametrize("content", [[{"type": "thinking", "thinking": "[[3]]"}], "<think>is it [[3]]", [], 42, None, {"text": "[[3]]"}])
def test_thoughts_alone_are_no_text(content: Any) -> None:
    text, failure = client.content(client.Outcome({"choices": [{"message": {"content": content}, "finish_reason": "length"}]}))
    assert (text, failure) == ("", "the judge wrote no text, finish_reason 'length'")


def test_the_arguments_of_a_function_call_are_the_text(endpoint: Endpoint, tmp_path: Path) -> None:
    """As alpaca_eval reads them; a call without arguments, and without a text, is nothing."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    endpoint.say = lambda _: said(None, "tool_calls", message=message)
    for _ in range(2):
        (outcome,) = endpoint.ask(decoding={"tools": [{"type": "function", "function": {"name": "f"}}]}, cache=tmp_path / "cache.sqlite")
        assert client.content(outcome) == ('{"a": 1}', None)
    assert endpoint.calls == 1
    assert client.content(client.Outcome(said(None, message={"content": None, "tool_calls": [{"function": {}}]})))[0] == ""


def test_half_a_surrogate_pair_of_the_judges_is_read_as_a_replacement_character(endpoint: Endpoint) -> None:
    """F10: JSON can hold it and no file of ours could."""
    endpoint.say = lambda _: json.dumps(said("a \ud83d b [[7]]"))
    assert client.content(endpoint.ask()[0]) == ("a � b [[7]]", None)


def test_half_a_surrogate_pair_in_a_refusal_loses_nothing(endpoint: Endpoint) -> None:
    """F10: the words of an HTTP 400 stand in a judgment's failure, and so in a file."""
    failure = client.Client(model="j", base_url="http://127.0.0.1:9/v1", price=FREE)._why(
        type("Refusal", (), {"status_code": 400, "message": "too long: a \ud83d b"})()
    )
    assert failure.endswith("too long: a \ufffd b")


@pytest.mark.parametrize("usage", [{"prompt_tokens": 10**20, "completion_tokens": 1}, {"prompt_tokens": 10**400, "completion_tokens": 1}])
def test_a_count_of_tokens_that_cannot_be_is_none(usage: dict[str, int], endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.say = lambda _: said("[[7]]") | {"usage": usage}
    assert endpoint.ask(price=DOLLAR, budget=2, cache=tmp_path / "cache.sqlite")[0].failure is None
