"""One client for every judge behind an OpenAI-compatible ``/chat/completions``: the paper's GPT-4 Turbo, a vLLM server, the mini judge.

``Client.ask`` sends requests concurrently over one pool of connections. It returns an outcome for each, in order: the raw response, or the
reason why there is none.

    408, 409, 429, 5xx, time-outs, broken connections   tried again, at most ``max_retries`` times. The wait is random below a bound that
                                                        doubles, plus what Retry-After says
    HTTP 200 with an error, or with a ``finish_reason`` that says the text is incomplete
                                                        handled like the status of the error's code, or tried again; never cached
    401, 403, 404                                       no retry helps: everything stops after the calls in flight
    400, or a response without what was asked for       one failure. If the first or the last sixteen are all like that, everything stops

Responses are cached, and their cost is bounded (stages/judging/cache.py). The judge's text is data, and only the benchmark's protocol
parses it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from tqdm import tqdm

from stages.judging.cache import NANO, Cache, OverBudget
from stages.lib.errors import UserError
from stages.lib.files import whole_characters

if TYPE_CHECKING:
    import openai

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DOWN = 16  # ours: if this many requests in a row fail or bring nothing usable, the cause is the endpoint and not the prompts
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # ours, seconds: the longest wait before the first retry, and before any
MANY = 10**9  # ours, tokens: a count above it is none
MAX_BYTES = 8 * 2**20  # ours: a hundred times the longest judgment with its log-probabilities
GRACE = 5.0  # ours, seconds that a try may take beyond its time-out
ODD_PROMPT = (400, 413, 422)  # an endpoint's statuses for a single prompt, mostly one that is too long
RETRIED = (408, 409, 429)
# The words that providers send as codes for the statuses above.
RETRIED_WORDS = re.compile(
    r"rate.?limit|too.?many|throttl|overload|(?:server|upstream|network).?error|internal|unavailable|time.?out|busy|capacity|exhausted",
    re.IGNORECASE,
)
# Where an error of a provider's stands, and its code in it.
ERRORS, CODES = ("error", "errors", "base_resp", "detail"), ("code", "status_code", "http_status", "status", "type")
BROKEN = re.compile(r"error|abort|cancel|time.?out|fail|interrupt|resource", re.IGNORECASE)  # in a provider's own reason of the end
# The ``finish_reason`` of a text that a retry would not complete: OpenAI's words, then those of TGI, Together, Anthropic, Mistral, Google
# and Zhipu. Any other (error, abort, network_error, insufficient_system_resource) means that the text was cut off.
ENDED = {"stop", "length", "content_filter", "tool_calls", "function_call", "eos", "eos_token", "end_turn", "stop_sequence", "max_tokens"}
ENDED |= {"model_length", "complete", "safety", "recitation", "sensitive", "refusal", "model_context_window_exceeded"}
FILTERED = {"content_filter", "safety", "recitation", "sensitive", "refusal"}
# A judge's thoughts in front of its text. A tag is missing where the chat template has opened them, or where the text ends in them.
THOUGHTS = re.compile(
    r"[\s\ufeff\u200b]*(?:<(thought|reasoning)\b[^>]*>.*?</\1>|<(think(?:ing)?)\b[^>]*>.*?(?:</\2>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z))",
    re.DOTALL | re.IGNORECASE,
)
TEXT_PARTS = ("text", "output_text")
CLOSED = re.compile(r"</think(?:ing)?>|\[/THINK\]", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """The result of a request: ``response``, the body as the endpoint sent it; or ``failure``, the reason why there is none."""

    response: dict[str, Any] | None = None
    failure: str | None = None


Ask = Callable[[list[dict[str, Any]]], list[Outcome]]  # ``Client.ask`` with its label bound, as the protocols get it


@dataclass(frozen=True)
class Dialect:
    """What is special about a judge's endpoint: keys of conf/judge (schema.py). Without any it takes requests as they are."""

    revision: str | None = None
    dtype: str | None = None
    reasoning_parser: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_completion_tokens: bool = False

    @classmethod
    def of(cls, judge: Mapping[str, Any]) -> Dialect:
        """That of a judge, from its part of the stage configuration, which has the keys that are not the default."""
        return cls(**{each.name: judge[each.name] for each in fields(cls) if each.name in judge})

    @property
    def given(self) -> dict[str, Any]:
        """The keys that are not the default; every judgment carries them."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name))}

    @property
    def served(self) -> dict[str, str]:
        """How the model is served. No request says it, but the answer depends on it."""
        return {key: self.given[key] for key in ("revision", "dtype", "reasoning_parser") if key in self.given}

    def requests(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The requests as the endpoint takes them. A key that is null is left out."""
        made = []
        for request in requests:
            asked = {key: value for key, value in request.items() if value is not None}
            if self.max_completion_tokens and "max_tokens" in asked:
                asked["max_completion_tokens"] = asked.pop("max_tokens")
            if self.chat_template_kwargs:
                asked["extra_body"] = {**asked.get("extra_body", {}), "chat_template_kwargs": self.chat_template_kwargs}
            made.append(asked)
        return made


@dataclass(frozen=True)
class Try:
    """One call and what follows from it."""

    body: bytes | None = None  # of a response with HTTP 200
    response: dict[str, Any] | None = None  # the body, parsed
    failure: str = ""
    free: bool = False  # it certainly cost nothing
    again: bool = False  # another try may succeed
    wait: float | None = None  # seconds that the endpoint asks to wait before it
    stop: bool = False  # no other request can succeed
    lacks: str = ""  # what the response lacks of what was asked for

    @property
    def is_kept(self) -> bool:
        """Whether the response belongs into the cache."""
        return self.response is not None and not (self.failure or self.lacks)


class Round:
    """The state that the workers of one ``ask`` share: whether to stop, and why."""

    def __init__(self) -> None:
        self.halt = asyncio.Event()
        self.reason = ""
        self.failed_in_a_row = 0
        self.lacking_in_a_row = 0
        self.refused: int | None = 0  # the number of 400s; None after anything else
        self.begun = 0  # requests
        self.known = asyncio.Event()  # set when a request has been answered as asked, or DOWN requests have ended in any way
        self.done = 0

    def stop(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.halt.set()

    async def pause(self, seconds: float) -> None:
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.halt.wait(), seconds)


class Client:
    """A judge at an endpoint, for as long as the block lasts.

    UserError if price, budget or cache is missing or out of range, or if there is no key.

    model: the model, as the endpoint calls it
    base_url: the endpoint's address
    price: ``input`` and ``output``, dollars a million tokens; both are 0 for a free judge
    budget: dollars that all calls in the file ``cache`` may cost together, earlier ones included; a judge with a price needs it
    cache: the file of the cache; a judge with a price needs it
    api_key_env: the environment variable with the key; None if the endpoint needs no key
    dialect: what is special about the endpoint
    concurrency, timeout, max_retries, rpm: calls at a time, seconds a try, further tries, calls a minute (0 for no limit); they change
        the speed and the number of failures, and never a verdict
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str,
        price: dict[str, float] | None,
        budget: float | None = None,
        cache: str | Path | None = None,
        api_key_env: str | None = None,
        dialect: Dialect = Dialect(),
        concurrency: int = 16,
        timeout: float = 60.0,
        max_retries: int = 5,
        rpm: int = 0,
    ) -> None:
        if not 0 <= (budget or 0) < math.inf:
            raise UserError(f"judge.budget is {budget}; it must be at least 0")
        self.price = checked_price(price)
        self.is_paid = any(self.price.values())
        if self.is_paid and (budget is None or cache is None):
            missing = (
                "judge.budget is not set: say how many dollars" if budget is None else "judge.cache is false: only its file bounds what"
            )
            raise UserError(f"{missing} the judge {model} may cost (conf/judge, or --runtime budget=DOLLARS)")
        self.key = os.environ.get(api_key_env, "") if api_key_env else "none"
        if not self.key:
            raise UserError(
                f"the environment variable {api_key_env} is empty; put the key for {base_url} in it (judge.api_key_env names it)"
            )
        self.model, self.base_url, self.api_key_env, self.dialect = model, base_url, api_key_env, dialect
        self.concurrency, self.timeout, self.max_retries, self.rpm = concurrency, timeout, max_retries, rpm
        self.cap = None if budget is None else int(budget * NANO)
        self.cache = Cache(cache, durable=self.is_paid) if cache is not None else None
        self.cost = 0  # nanodollars of this client's responses
        self._next = 0.0  # the time of the next call by rpm

    def __enter__(self) -> Self:
        import openai

        # No proxy for a server on this machine, and no redirect, which could send the texts elsewhere.
        http = openai.DefaultAsyncHttpxClient(trust_env=urlsplit(self.base_url).hostname not in LOOPBACK, follow_redirects=False)
        endpoint = {"base_url": self.base_url, "api_key": self.key, "timeout": self.timeout, "max_retries": 0}
        self._sdk = openai.AsyncOpenAI(**endpoint, http_client=http)  # type: ignore[arg-type]
        self._runner = asyncio.Runner()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._runner.run(self._sdk.close())
        self._runner.close()
        if self.cache:
            self.cache.__exit__()

    def ask(self, requests: list[dict[str, Any]], label: str = "judge") -> list[Outcome]:
        """One outcome a request, in the order of ``requests``.

        UserError: the endpoint refuses all requests, it is down, or the budget is used up. Earlier answers are then in the cache.

        requests: ``messages`` and the decoding's keys, as ``chat.completions.create`` takes them (others go into ``extra_body``)
        label: of the progress bar
        """
        requests = self.dialect.requests(requests)
        keys = request_keys(self.base_url, self.model, requests, self.dialect.served)
        if self.is_paid:
            for request in requests:
                worst_tokens(request)
        outcomes = [self._known(key, request) for key, request in zip(keys, requests, strict=True)]
        count = sum(outcome is not None for outcome in outcomes)
        often = 0.2 if sys.stderr.isatty() else 10
        with tqdm(total=len(requests), initial=count, desc=label, unit="call", mininterval=often, file=sys.stderr) as bar:
            return self._runner.run(self._ask(requests, keys, outcomes, bar))

    def _known(self, key: str, request: dict[str, Any]) -> Outcome | None:
        """The cache's outcome of a request. A response that this version would not have kept is removed."""
        body = self.cache.get(key) if self.cache else None
        outcome = cached(body, request)
        if self.cache and body is not None and outcome is None:
            self.cache.remove(key)
        return outcome

    async def _ask(self, requests: list[dict[str, Any]], keys: list[str], outcomes: list[Outcome | None], bar: tqdm[Any]) -> list[Outcome]:
        waiting = iter([number for number, outcome in enumerate(outcomes) if outcome is None])
        round_ = Round()

        async def work() -> None:
            for number in waiting:
                round_.begun += 1
                if round_.begun > DOWN:  # pay for no more before the endpoint has given what is asked for
                    await round_.known.wait()
                outcomes[number] = outcome = await self._outcome(requests[number], keys[number], round_)
                round_.done += 1
                if round_.done >= DOWN or round_.halt.is_set():
                    round_.known.set()
                if outcome is None:
                    return
                if self.is_paid:
                    bar.set_postfix_str(f"${self.cost / NANO:.2f}", refresh=False)
                bar.update()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(requests))):
                    group.create_task(work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        if round_.reason:
            raise UserError(round_.reason)
        return [outcome for outcome in outcomes if outcome]

    async def _outcome(self, request: dict[str, Any], key: str, round_: Round) -> Outcome | None:
        """The outcome of one request after its retries; None if everything was stopped before."""
        worst = self._nanodollars(*worst_tokens(request)) if self.is_paid else 0
        failure, wait = "", 0.0
        for attempt in range(self.max_retries + 1):
            await round_.pause(wait + self._turn())
            number = None
            while self.cache and number is None and not round_.halt.is_set():
                try:
                    number = self.cache.reserve(key, worst, self.cap, self.timeout + GRACE)
                except OverBudget as error:
                    round_.stop(str(error))
                if number is None:
                    if (outcome := self._known(key, request)) is not None:  # another process has asked
                        return outcome
                    await round_.pause(random.uniform(0.05, 0.15))
            if round_.halt.is_set():
                return None
            tried = await self._try(request)
            self._book(number, key, tried, worst)
            if tried.stop:
                round_.stop(tried.failure)
                return None
            if not tried.again:
                self._count(round_, tried)
                return Outcome(failure=tried.failure) if tried.failure else Outcome(tried.response)
            failure = tried.failure
            # Add jitter to the endpoint's own wait, too: otherwise all refused requests would return at once.
            wait = min(tried.wait or 0, LONGEST_WAIT) + random.uniform(0, min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
        failure = failure.replace("{tries}", str(self.max_retries + 1))
        round_.failed_in_a_row += 1
        if round_.failed_in_a_row >= DOWN:
            last = f"the last one with {failure!r}"
            round_.stop(f"{self.base_url} is down: {DOWN} requests in a row failed, {last}; check that it runs, then try again")
        return Outcome(failure=failure)

    def _count(self, round_: Round, tried: Try) -> None:
        """Stop everything if the first DOWN requests all got a 400, or if DOWN responses in a row lack what was asked for.

        In the first case the request itself is wrong, in the second the endpoint cannot do what the protocol needs.
        """
        round_.failed_in_a_row = 0
        refused = bool(tried.failure and tried.free)
        round_.refused = round_.refused + 1 if refused and round_.refused is not None else None
        round_.lacking_in_a_row = round_.lacking_in_a_row + 1 if tried.lacks else round_.lacking_in_a_row if refused else 0
        if not (refused or tried.lacks):
            round_.known.set()
        if round_.refused == DOWN:
            round_.stop(
                f"{tried.failure}; it refused the first {DOWN} requests all: set the benchmark's decoding and prompt to what the endpoint"
                " accepts"
            )
        if round_.lacking_in_a_row == DOWN:
            round_.stop(
                f"{self.base_url} gave {DOWN} responses in a row without what the protocol needs. The last: {tried.lacks}. Set"
                " judge.base_url and judge.model to a judge that gives it. None of these was cached; the same command continues"
            )

    async def _try(self, request: dict[str, Any]) -> Try:
        import openai

        try:
            # The SDK limits each read alone, and a server may send a byte a minute.
            async with (
                asyncio.timeout(self.timeout),
                self._sdk.chat.completions.with_streaming_response.create(model=self.model, **request) as response,
            ):
                tried = await _body(response)
                return self._read(self._without_key(tried.body), request) if tried.body is not None else tried
        except openai.APIStatusError as error:
            return self._refused(error)
        except TimeoutError:
            return Try(failure="no response in {tries} tries: Request timed out.", again=True)
        except (openai.APIConnectionError, ConnectionError) as error:
            never_arrived = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
            return Try(failure=f"no response in {{tries}} tries: {error}", again=True, free=never_arrived)

    def _read(self, body: bytes, request: dict[str, Any]) -> Try:
        """Read a response with HTTP 200: the answer to ``request``, an error, an incomplete text, or nothing usable."""
        outcome = _read(body)
        if outcome.response is None:
            failure = outcome.failure or ""
            return Try(body, failure=failure, lacks=f"{failure}; it must be one JSON object of a chat completion, no stream and no page")
        tried = Try(body, outcome.response)
        if (error := _error(outcome.response)) is not None:
            code, words = error
            words = words.replace(self.key, "[key]") if self.api_key_env else words
            number = re.match(r"\s*([1-5]\d\d)(?!\d)", code)
            status = int(number[1]) if number else 0
            is_torn = not status and bool(_choice(outcome.response))  # beside a text: it broke off
            again = status in RETRIED or status >= 500 or is_torn or bool(not status and RETRIED_WORDS.search(code or words))
            again = again and code != "insufficient_quota"
            free = 300 <= status < 500 and status != 408
            stop = 400 < status < 500 and not again and status not in ODD_PROMPT
            after = " in the last of {tries} tries" if again else ""
            failure = f"an error inside HTTP 200{f', code {code}' if code else ''}{after}. It said: {words[:200]}"
            if stop:
                failure = f"{self.base_url} refused model {self.model!r} with {failure}"
            return replace(tried, failure=failure, again=again, free=free, stop=stop, lacks="" if again else failure)
        if (reason := _torn(outcome.response)) is not None:
            return replace(tried, failure=f"the text is not whole in the last of {{tries}} tries: {reason}", again=True)
        return replace(tried, lacks=_lack(outcome.response, request) or "")

    def _refused(self, error: openai.APIStatusError) -> Try:
        status, headers = error.status_code, error.response.headers
        free = 300 <= status < 500 and status != 408  # behind a 5xx or a 408 a model may have been at work
        if (status in RETRIED or status >= 500) and getattr(error, "code", None) != "insufficient_quota":
            wait = retry_after(headers.get("retry-after"))
            return Try(failure=f"HTTP {status} in the last of {{tries}} tries", again=True, free=free, wait=wait)
        return Try(failure=self._why(error), free=free, stop=status not in ODD_PROMPT)

    def _why(self, error: openai.APIStatusError) -> str:
        """The message for a status that no retry can change. The endpoint's words may contain the key, which is replaced."""
        variable = self.api_key_env
        advice = {
            401: f"put a valid key in the environment variable {variable}" if variable else "set judge.api_key_env to the key's variable",
            403: "the key may not use this model: ask for access, or set judge.model",
            404: "set judge.base_url (it ends in /v1) and judge.model to what the endpoint serves",
            429: "the account has no credit left",
        }.get(error.status_code, "" if error.status_code in ODD_PROMPT else "set judge.base_url to what the endpoint serves")
        said = whole_characters(str(error.message).replace(self.key, "[key]") if variable else str(error.message))
        refusal = f"{self.base_url} refused model {self.model!r} with HTTP {error.status_code}"
        return f"{refusal}{advice and f'; {advice}'}. It said: {said[:300]}"

    def _book(self, number: int | None, key: str, tried: Try, worst: int) -> None:
        """Record what a try brought and cost. If the endpoint does not say its tokens, the cost is ``worst``."""
        used = _usage(tried.response)
        if used or (tried.body is not None and not tried.again and not tried.free):
            cost = self._nanodollars(*used) if used else worst
            self.cost += cost
            if self.cache and number is not None:
                self.cache.settle(number, cost, key, tried.body if tried.is_kept else None)
        elif self.cache and number is not None:
            (self.cache.release if tried.free else self.cache.keep)(number)

    def _without_key(self, body: bytes) -> bytes:
        """The body without our key, which must not get into a file. A value shorter than a key may be a word, and stays."""
        return body.replace(self.key.encode(), b"[key]") if self.api_key_env and len(self.key) >= 16 else body

    def _nanodollars(self, read: int, written: int) -> int:
        return math.ceil((read * self.price["input"] + written * self.price["output"]) * (NANO // 10**6))

    def _turn(self) -> float:
        """Seconds until ``rpm`` allows this call of this process."""
        if not self.rpm:
            return 0
        now = time.monotonic()
        turn = max(self._next, now)
        self._next = turn + 60 / self.rpm
        return turn - now


def checked_price(price: dict[str, float] | None) -> dict[str, float]:
    """``price``; UserError names a number that is missing or out of range."""
    for name in ("input", "output"):
        value = (price or {}).get(name)
        if value is None or not 0 <= value < math.inf:
            raise UserError(
                f"judge.price.{name} is {value}; give it in conf/judge, in dollars a million tokens: 0 where the judge costs nothing"
            )
    assert price is not None
    return price


def request_keys(base_url: str, model: str, requests: list[dict[str, Any]], served: dict[str, str] | None = None) -> list[str]:
    """The sha256 of endpoint, model, messages, decoding and sample of each request. Identical requests are samples 0, 1, …

    served: ``Dialect.served``, a part of the identity unless it is empty
    """
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        decoding = {name: value for name, value in request.items() if name != "messages"}
        identity = [base_url.rstrip("/"), model, request.get("messages"), decoding, *([served] if served else [])]
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        keys.append(hashlib.sha256(f"[{text},{seen[text]}]".encode()).hexdigest())
        seen[text] += 1
    return keys


def worst_tokens(request: dict[str, Any]) -> tuple[int, int]:
    """The most tokens that a request can read and write: a token has at least a byte, and a message's frame at most 16 tokens."""
    given = request.get("max_tokens") or request.get("max_completion_tokens")
    if not given:
        raise UserError("the benchmark's decoding has no max_tokens, so the cost of a call has no bound; set it")
    texts = [json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") for message in request["messages"]]
    return sum(map(len, texts)) + 16 * (len(texts) + 1), int(given) * int(request.get("n") or 1)


def retry_after(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks to wait, from a number or an HTTP date; None where it is neither."""
    try:
        seconds = float(header or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header or "").timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def kind(reason: str) -> str:
    """The kind of a ``failure``: its sentence without the words of the judge or the endpoint, which differ each time."""
    return re.split(r"(?:\. It said)?: ", str(reason), maxsplit=1)[0]


def content(outcome: Outcome) -> tuple[str, str | None]:
    """The text of the judge's message without its thoughts, and None; or "" and the reason why there is no text.

    If the judge called a function, the text is the call's arguments, as in alpaca_eval.
    """
    if outcome.response is None:
        return "", outcome.failure
    try:
        choice = outcome.response["choices"][0]
        text, refusal = _arguments(choice["message"]) or _text(choice["message"]["content"]), choice["message"].get("refusal")
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return "", "the response has no choices[0].message.content"
    if text.strip():
        return text, None
    return "", f"the judge refused: {str(refusal)[:100]!r}" if refusal else f"the judge wrote no text, finish_reason {finish!r}"


def _text(said: Any) -> str:
    """A message's content (a text or a list of parts) as one text without the thoughts in front; "" where there is no text."""
    if isinstance(said, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") in TEXT_PARTS else part for part in said]
        said = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(said, str):
        return ""
    while found := THOUGHTS.match(said):
        said = said[found.end() :].lstrip()
    # The chat template may have opened the thoughts. A text that has its verdict in front of the tag only speaks of the tag.
    ends = [found.end() for found in CLOSED.finditer(said)]
    if ends and ("[[" in said[ends[-1] :] or "[[" not in said[: ends[-1]]):
        said = said[ends[-1] :].lstrip()
    return said


def _arguments(message: dict[str, Any]) -> str:
    """The arguments of the message's first function call; "" where there is none."""
    try:
        arguments = message["tool_calls"][0]["function"]["arguments"]
    except (KeyError, IndexError, TypeError):
        return ""
    return arguments if isinstance(arguments, str) else ""


async def _body(response: Any) -> Try:
    """The response's body; a failure if it is longer than MAX_BYTES."""
    body = bytearray()
    try:
        async for part in response.iter_bytes():
            body += part
            if len(body) > MAX_BYTES:
                return Try(failure=f"the response has more than {MAX_BYTES} bytes")
    except Exception as error:  # the SDK passes on whatever its transport raises here
        raise ConnectionError(f"the connection broke in mid-response ({type(error).__name__})") from None
    return Try(body=bytes(body))


def cached(body: bytes | None, request: dict[str, Any]) -> Outcome | None:
    """The outcome of a cached body; None where there is none, or where it would not be kept today."""
    outcome = _read(body) if body is not None else None
    if outcome is None or outcome.response is None:
        return None
    is_good = _error(outcome.response) is None and _torn(outcome.response) is None and _lack(outcome.response, request) is None
    return outcome if is_good else None


def _read(body: bytes) -> Outcome:
    try:
        read = whole_characters(json.loads(body))
    except ValueError:
        return Outcome(failure=f"the response is not JSON: {body[:100].decode(errors='replace')!r}")
    except RecursionError:
        return Outcome(failure="the response is JSON too deep to read")
    if isinstance(read, list) and len(read) == 1 and isinstance(read[0], dict):  # Google's errors
        read = read[0]
    return Outcome(response=read) if isinstance(read, dict) else Outcome(failure=f"the response is no object: {str(read)[:100]!r}")


def _choice(response: dict[str, Any]) -> dict[str, Any]:
    choices = response.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _error(response: dict[str, Any]) -> tuple[str, str] | None:
    """Code ("" where there is none) and words of the error in a response, in place of an answer or beside an incomplete one."""
    choice = _choice(response)
    message = choice.get("message")
    errors = [part.get("error") for part in (choice, message, response) if isinstance(part, dict)]
    said = next((error for error in errors if error or isinstance(error, dict)), None)
    if said is None and not choice:
        said = next((response[key] for key in ERRORS if response.get(key)), None)
        if said is None and any(response.get(key) for key in ("code", "message", "error_msg")):
            said = response
    if said is None:
        return None
    while isinstance(said, list | dict) and said:
        inner = said[0] if isinstance(said, list) else said.get("error")
        if not isinstance(inner, list | dict):
            break
        said = inner
    if not isinstance(said, dict):
        return "", str(said)
    parts = [part for part in (said, said.get("metadata")) if isinstance(part, dict)]
    code = next((str(part[key]) for part in parts for key in CODES if part.get(key) not in (None, "", "error")), "")
    return code, str(said.get("message") or said)


def _torn(response: dict[str, Any]) -> str | None:
    """Why the answer is incomplete, if its ``finish_reason`` says so."""
    choice = _choice(response)
    finish = choice.get("finish_reason")
    if finish is None or finish == "":
        own = choice.get("native_finish_reason") or choice.get("stop_reason")
        return f"it ended with {own!r}" if isinstance(own, str) and BROKEN.search(own) else None
    return None if str(finish).lower() in ENDED else f"finish_reason {finish!r}"


def _lack(response: dict[str, Any], request: dict[str, Any]) -> str | None:
    """What the response lacks of what ``request`` asked for (a message, log-probabilities, a text); None also if the judge refused."""
    choice = _choice(response)
    message = choice.get("message")
    if not isinstance(message, dict):
        return "the response has no choices[0].message"
    if message.get("refusal") or str(choice.get("finish_reason")).lower() in FILTERED:
        return None
    if request.get("logprobs"):
        try:
            top = choice["logprobs"]["content"][0]["top_logprobs"]
            has = isinstance(top, list) and bool(top) and all(_is_token(entry) for entry in top)
        except (KeyError, IndexError, TypeError):
            has = False
        return None if has else "the response has no choices[0].logprobs.content[0].top_logprobs, which the benchmark's decoding asks for"
    is_said = (_arguments(message) or _text(message.get("content"))).strip()
    return None if is_said else f"the judge wrote no text, finish_reason {choice.get('finish_reason')!r}"


def _is_token(entry: Any) -> bool:
    """Whether ``entry`` is a token with its log-probability, which -Infinity may be."""
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        return False
    logprob = entry.get("logprob")
    return isinstance(logprob, int | float) and not isinstance(logprob, bool) and not math.isnan(logprob)


def _usage(response: dict[str, Any] | None) -> tuple[int, int] | None:
    """Tokens read and written by the endpoint's count; None where it gives none."""
    usage = (response or {}).get("usage")
    read, written = (usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens"))
    return (read, written) if type(read) is int and type(written) is int and 0 <= read < MANY and 0 <= written < MANY else None
