"""One client for every judge behind an OpenAI-compatible ``/chat/completions``: the paper's GPT-4 Turbo, a vLLM server, the mini judge.

``ask`` sends requests side by side over one pool of connections and gives back an outcome for each, in order: the raw response,
or the reason why there is none. Retries are the SDK's own (429, 5xx, time-outs, broken connections; with jitter and Retry-After).
What no retry can mend (400, 401, 403, 404) stops everything at once. The judge's text is data: it is parsed by the benchmark's
protocol and nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tqdm import tqdm

if TYPE_CHECKING:
    import openai

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DOWN = 16  # ours: so many requests in a row that fail after all their retries mean that the endpoint is down, not that prompts are odd


@dataclass(frozen=True)
class Outcome:
    """What became of one request: ``response``, the body as the endpoint sent it, or ``failure``, the reason why there is none."""

    response: dict[str, Any] | None = None
    failure: str | None = None


Ask = Callable[[list[dict[str, Any]]], list[Outcome]]  # ``ask`` with all but its requests given: what the protocols are handed


def ask(
    requests: list[dict[str, Any]],
    *,
    model: str,
    base_url: str,
    api_key_env: str | None = None,
    concurrency: int = 16,
    timeout: float = 60.0,
    max_retries: int = 5,
    label: str = "judge",
) -> list[Outcome]:
    """One outcome a request, in the order of ``requests``.

    requests: ``messages`` and the decoding's keys, as ``chat.completions.create`` takes them (others go into ``extra_body``).
    api_key_env: the environment variable that holds the key; None where the endpoint needs none.
    concurrency, timeout (seconds a try), max_retries: what changes the speed, or what is given up, and never a verdict.
    ValueError: a setting out of range, no key, a request that the endpoint will never take, an endpoint that is down.
    """
    for name, value, least in (("concurrency", concurrency, 1), ("timeout", timeout, 1e-3), ("max_retries", max_retries, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    key = os.environ.get(api_key_env, "") if api_key_env else "none"
    if not key:
        raise ValueError(f"the environment variable {api_key_env} is empty; put the key for {base_url} in it (judge.api_key_env names it)")
    import openai

    outcomes: list[Outcome | None] = [None] * len(requests)
    waiting = iter(enumerate(requests))
    failed_in_a_row = 0
    bar = tqdm(total=len(requests), desc=label, unit="call", mininterval=0.2 if sys.stderr.isatty() else 10, file=sys.stderr)

    async def work(client: openai.AsyncOpenAI) -> None:
        nonlocal failed_in_a_row
        for number, request in waiting:
            try:
                raw = await client.chat.completions.with_raw_response.create(model=model, **request)
                outcome = _read(raw.http_response)
                failed_in_a_row = 0
            except openai.APIStatusError as error:
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise ValueError(_refusal(error, model, base_url, key, api_key_env)) from None
                outcome = Outcome(failure=f"HTTP {error.status_code} in the last of {max_retries + 1} tries")
                failed_in_a_row += 1
            except openai.APIConnectionError as error:  # time-outs among them
                outcome = Outcome(failure=f"no response in {max_retries + 1} tries: {error.message}")
                failed_in_a_row += 1
            if failed_in_a_row >= DOWN:
                last = f"the last one with {outcome.failure!r}"
                raise ValueError(f"{base_url} is down: {DOWN} requests in a row failed, {last}; see that it runs, then try again")
            outcomes[number] = outcome
            bar.update()

    async def work_all() -> None:
        # A proxy from the environment must not come between us and a server on our own machine.
        http = openai.DefaultAsyncHttpxClient(trust_env=urlsplit(base_url).hostname not in LOOPBACK)
        endpoint = openai.AsyncOpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=max_retries, http_client=http)
        async with endpoint as client, asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(requests))):
                group.create_task(work(client))

    with bar:
        try:
            asyncio.run(work_all())
        except BaseExceptionGroup as group:  # the others were cancelled; the first reason is the reason
            raise group.exceptions[0] from None
    return [outcome for outcome in outcomes if outcome]


def content(outcome: Outcome) -> tuple[str, str | None]:
    """The text of the judge's message, or "" and the reason why there is none."""
    if outcome.response is None:
        return "", outcome.failure
    try:
        choice = outcome.response["choices"][0]
        text, refusal = choice["message"]["content"], choice["message"].get("refusal")
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return "", "the response has no choices[0].message.content"
    if isinstance(text, str) and text.strip():
        return text, None
    return "", f"the judge refused: {str(refusal)[:100]!r}" if refusal else f"the judge wrote no text, finish_reason {finish!r}"


def _read(response: Any) -> Outcome:
    try:
        body = response.json()
    except ValueError:
        return Outcome(failure=f"the response is not JSON: {response.text[:100]!r}")
    return Outcome(response=body) if isinstance(body, dict) else Outcome(failure=f"the response is no object: {str(body)[:100]!r}")


def _refusal(error: openai.APIStatusError, model: str, base_url: str, key: str, api_key_env: str | None) -> str:
    """What to tell the user of a status that no retry can mend. The endpoint's own words may quote the key; we do not."""
    advice = {
        401: f"put a valid key in the environment variable {api_key_env}" if api_key_env else "set judge.api_key_env to the key's variable",
        403: "the key may not use this model: ask for access, or set judge.model",
        404: "set judge.base_url (it ends in /v1) and judge.model to what the endpoint serves",
    }.get(error.status_code, "set the benchmark's decoding and prompt to what the endpoint takes")
    said = str(error.message).replace(key, "[key]") if api_key_env else str(error.message)
    return f"{base_url} refused model {model!r} with HTTP {error.status_code}; {advice}. It said: {said[:300]}"
