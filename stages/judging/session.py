"""A judge as the configuration names it, open for a block: its server where it has one, the client, the cache; and what it would cost.

In: a stage configuration with ``judge`` and ``benchmarks`` (stages/judge.py, stages/controls.py). A local server is a module that takes
the stage's ``--config``, prints ``listening on http://127.0.0.1:PORT/v1``, and ends on SIGTERM and at the end of its standard input: it
cannot outlive a stage that is killed. What an endpoint says is cached in the file that the environment variable JUDGE_CACHE names, else in
results/judgments.sqlite.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import Work
from stages.benchmarks.rows import read_rows
from stages.judging import client
from stages.judging.cache import stored
from stages.lib.errors import UserError
from stages.plan.knobs import check_knobs

START_SECONDS = 30
SILENT = client.Outcome(response={"choices": [{"message": {"role": "assistant", "content": "-"}}]})  # a text without a verdict
CACHE = "results/judgments.sqlite"


@contextmanager
def local_server(module: str, config: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """``python -m module --config config``, which is gone when the block ends, however it ends.

    Its base URL, and a check that it lives: UserError with its last words where it does not.
    """
    command = [sys.executable, "-u", "-m", module, "--config", str(config)]
    last: deque[str] = deque(maxlen=20)
    said: Queue[str] = Queue()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def listen() -> None:  # reads on to the end, so that a talkative server never stops at a full pipe
            for line in process.stdout or ():
                last.append(line)
                said.put(line)
            said.put("")

        listener = Thread(target=listen, daemon=True)
        listener.start()

        def check() -> None:
            if process.poll() is not None:
                listener.join(1)
                raise UserError(f"the judge's server, {module}, ended in mid-work ({process.returncode}); it said:\n{''.join(last)}")

        try:
            address = _address(module, said, last)
            try:
                yield address, check
            except UserError:
                check()  # then what went unanswered is the server's end, and no judge's failure
                raise
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(module: str, said: Queue[str], last: deque[str]) -> str:
    """The address that the server prints; UserError where it ends first, or does not listen within 30 s."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            line = said.get(timeout=max(deadline - time.monotonic(), 0))
        except Empty:
            said_last = "".join(last) or "nothing at all"
            raise UserError(f"the judge's server, {module}, did not listen within {START_SECONDS} s; it said:\n{said_last}") from None
        if not line:
            raise UserError(f"the judge's server, {module}, ended before it listened; it said:\n{''.join(last)}")
        if found := re.match(r"listening on (http://\S+)", line):
            return found[1]


def rehearse(works: Iterable[Work]) -> None:
    """Make every request of ``works``, and send none: what cannot be asked stops before anything is paid for."""
    for work in works:
        work(ask=lambda requests: [SILENT] * len(requests))


def estimate(works: Mapping[str, tuple[int, Work]], judge: dict[str, Any], cache: str | None) -> str:
    """Calls, tokens and dollars of each work, from the very requests that would be sent; nothing is called, and nothing written.

    works: by name, the tokens that a judge writes in a call on average, and what asks. A token of English is taken for four bytes. A
    protocol that may ask further is answered with a text without a verdict, so that all that it may ask is counted, under "up to".
    """
    price = client.checked_price(judge["price"])
    lines = [f"{'benchmark':<36}{'calls':>8}{'cached':>8}{'tokens':>12}{'at most':>12}{'dollars':>10}{'at most':>10}"]
    total = [0.0] * 6

    def row(name: str, figures: list[float]) -> str:
        calls, cached, tokens, most_tokens, dollars, most_dollars = figures
        return f"{name:<36}{calls:>8.0f}{cached:>8.0f}{tokens:>12.0f}{most_tokens:>12.0f}{dollars:>10.2f}{most_dollars:>10.2f}"

    def asked(rounds: list[list[float]], expected: int, requests: list[dict[str, Any]]) -> list[client.Outcome]:
        """In place of ``Client.ask``: the requests' figures go into ``rounds``; of a further round nothing is expected."""
        keys = client.request_keys(judge["base_url"] or "", judge["model"], requests)
        bodies = stored(cache, keys) if cache else [None] * len(keys)
        known = [client.cached(body, request) for body, request in zip(bodies, requests, strict=True)]
        tokens, most_tokens, dollars, most_dollars = 0.0, 0.0, 0.0, 0.0
        for request, outcome in zip(requests, known, strict=True):
            if outcome is None:
                read, written = client.worst_tokens(request)
                read += written if rounds else 0  # what was said before, in place of "-"
                most_tokens += read + written
                most_dollars += (read * price["input"] + written * price["output"]) / 1e6
                if not rounds:
                    read, written = read // 4, min(written, expected)
                    tokens += read + written
                    dollars += (read * price["input"] + written * price["output"]) / 1e6
        cached = sum(outcome is not None for outcome in known)
        rounds.append([len(requests), cached, tokens, most_tokens, dollars, most_dollars])
        return [outcome or SILENT for outcome in known]

    for name, (tokens, work) in works.items():
        rounds: list[list[float]] = []
        work(ask=partial(asked, rounds, tokens))
        for number, figures in enumerate(rounds):
            lines.append(row(f"{name}, further, up to" if number else name, figures))
            total = [a + b for a, b in zip(total, figures, strict=True)]
    lines.append(row("total", total))
    return "\n".join(lines)


def read_stage_config(config: DictConfig) -> tuple[dict[str, Any], str | None]:
    """The stage configuration as plain values, and the file of its judge's cache (None: no cache). Errors come before any call."""
    wanted: Any = OmegaConf.to_container(config)
    judge, benchmarks = wanted["judge"], wanted["benchmarks"]
    check_knobs("judge", wanted["runtime"])
    if bool(judge["base_url"]) == bool(judge["server"]):
        raise UserError("set either judge.base_url (an endpoint) or judge.server (a local server's module), and null for the other")
    if judge["server"] and judge["cache"]:
        raise UserError("judge.cache must be false for a judge.server: what it says depends on more than the request, and costs nothing")
    if unknown := {benchmark["protocol"] for benchmark in benchmarks.values()} - set(BENCHMARKS):
        raise UserError(f"benchmarks: unknown protocol {min(unknown)!r}; known are {', '.join(BENCHMARKS)}")
    for benchmark in benchmarks.values():
        read_rows(benchmark["answers"], ())
    return wanted, os.environ.get("JUDGE_CACHE", CACHE) if judge["cache"] else None


@contextmanager
def open_judge(wanted: dict[str, Any], cache: str | None, config: Path) -> Iterator[tuple[client.Client, Callable[[], None]]]:
    """The client of the judge in the stage configuration at ``config``, open for the block, and a check that its server lives."""
    judge = wanted["judge"]
    start: Any = nullcontext((judge["base_url"], lambda: None))
    server = local_server(judge["server"]["module"], config) if judge["server"] else start
    given = {key: judge[key] for key in ("model", "price", "api_key_env")}
    with server as (base_url, check), client.Client(**given, base_url=base_url, cache=cache, **wanted["runtime"]) as asker:
        yield asker, check
