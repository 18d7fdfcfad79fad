"""A judge at work, as the configuration names it: its server if it has one, the client, the cache; and an estimate of the cost.

In: a stage configuration with ``judge`` and ``benchmarks`` (stages/judge.py, controls.py, develop.py). A local server is a module. It takes
the stage's ``--config``, and prints ``listening on http://127.0.0.1:PORT/v1``. It ends on SIGTERM and at the end of its standard input, so
it cannot outlive a stage that is killed. An endpoint's responses are cached in the file that the environment variable JUDGE_CACHE names, or
in results/judgments.sqlite.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import Work
from stages.benchmarks.rows import Row, read_rows
from stages.judging import client
from stages.judging.cache import stored
from stages.lib.errors import UserError
from stages.plan.knobs import check_knobs

START_SECONDS = 30
SILENT = client.Outcome(response={"choices": [{"message": {"role": "assistant", "content": "-"}}]})  # a text without a verdict
CACHE = "results/judgments.sqlite"


@contextmanager
def local_server(module: str, config: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Run ``python -m module --config config`` for the block. The process is gone when the block ends, however it ends.

    Gives its base URL, and a check that it lives: a UserError with its last words if it does not.
    """
    command = [sys.executable, "-u", "-m", module, "--config", str(config)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with NamedTemporaryFile() as log, subprocess.Popen(command, stdout=log, **pipes) as process:

        def said() -> str:
            return "".join(Path(log.name).read_text(errors="replace").splitlines(keepends=True)[-20:]) or "nothing at all"

        def check() -> None:
            if process.poll() is not None:
                raise UserError(f"the judge's server, {module}, ended in mid-work ({process.returncode}); it said:\n{said()}")

        try:
            deadline = time.monotonic() + START_SECONDS
            while not (found := re.search(r"^listening on (http://\S+)\n", said(), re.MULTILINE)):
                if process.poll() is not None:
                    raise UserError(f"the judge's server, {module}, ended before it listened; it said:\n{said()}")
                if time.monotonic() > deadline:
                    raise UserError(f"the judge's server, {module}, did not listen within {START_SECONDS} s; it said:\n{said()}")
                time.sleep(0.02)
            try:
                yield found[1], check
            except UserError:
                check()  # if the server has ended, that is why it did not answer
                raise
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def estimate(works: Mapping[str, tuple[int, Work]], judge: dict[str, Any], cache: str | None) -> str:
    """A table of the calls, tokens and dollars of each work, from the requests that would be sent. Nothing is called or written.

    A token of English is taken for four bytes. A protocol that may ask further gets a text without a verdict, so that its further requests
    are counted too, in a row "up to".

    works: by name, the tokens that a judge writes in a call on average (0: no judge is asked), and the work
    judge: the judge's part of the stage configuration
    cache: the file of its cache, or None
    """
    price, dialect = client.checked_price(judge["price"]), client.Dialect.of(judge)
    lines = [f"{'benchmark':<36}{'calls':>8}{'cached':>8}{'tokens':>12}{'at most':>12}{'dollars':>10}{'at most':>10}"]
    total = [0.0] * 6

    def row(name: str, figures: list[float]) -> str:
        calls, cached, tokens, most_tokens, dollars, most_dollars = figures
        return f"{name:<36}{calls:>8.0f}{cached:>8.0f}{tokens:>12.0f}{most_tokens:>12.0f}{dollars:>10.2f}{most_dollars:>10.2f}"

    def count(calls: list[tuple[int, int]]) -> float:
        return sum(map(sum, calls))

    def cost(calls: list[tuple[int, int]]) -> float:
        return sum(read * price["input"] + written * price["output"] for read, written in calls) / 1e6

    def asked(rounds: list[list[float]], expected: int, requests: list[dict[str, Any]]) -> list[client.Outcome]:
        """In place of ``Client.ask``: the requests' figures go into ``rounds``. No further round is expected."""
        requests = dialect.requests(requests)
        keys = client.request_keys(judge["base_url"] or "", judge["model"], requests, dialect.served)
        bodies = stored(cache, keys) if cache else [None] * len(keys)
        known = [client.cached(body, request) for body, request in zip(bodies, requests, strict=True)]
        most = [client.worst_tokens(request) for request, outcome in zip(requests, known, strict=True) if outcome is None]
        if rounds:
            most = [(read + written, written) for read, written in most]  # the judge also reads its first judgment, not SILENT's "-"
        likely = [] if rounds else [(read // 4, min(written, expected)) for read, written in most]
        rounds.append([len(requests), len(requests) - len(most), count(likely), count(most), cost(likely), cost(most)])
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
    """The stage configuration as plain values, and the file of its judge's cache (None: no cache). UserError names what is wrong."""
    wanted: Any = OmegaConf.to_container(config)
    judge, benchmarks = wanted["judge"], wanted["benchmarks"]
    check_knobs("judge", wanted["runtime"])
    if bool(judge["base_url"]) == bool(judge["server"]):
        raise UserError("set either judge.base_url (an endpoint) or judge.server (a local server's module), and null for the other")
    if judge["server"] and judge["cache"]:
        raise UserError("judge.cache must be false for a judge.server: its answers depend on more than the request, and cost nothing")
    if unknown := {benchmark["protocol"] for benchmark in benchmarks.values()} - set(BENCHMARKS):
        raise UserError(f"benchmarks: unknown protocol {min(unknown)!r}; known are {', '.join(BENCHMARKS)}")
    for answers in (benchmark["answers"] for benchmark in benchmarks.values() if "answers" in benchmark):
        read_rows(answers, ())
    return wanted, os.environ.get("JUDGE_CACHE", CACHE) if judge["cache"] else None


def judgments(
    works: Mapping[str, tuple[int, Work]], wanted: dict[str, Any], cache: str | None, config: Path, label: str
) -> Iterator[tuple[str, list[Row]]]:
    """The judgments of each work, as soon as it is done, with its name. ``judge_settings`` of each row is what is special about the judge.

    First every request is made and none is sent: a request that cannot be made stops the stage before anything is paid for.

    works: see ``estimate``
    wanted, cache: of ``read_stage_config``
    config: the file of the stage configuration, for the judge's server
    label: begins the label of each work's progress bar
    """
    for tokens, work in works.values():
        if tokens:
            work(ask=lambda requests: [SILENT] * len(requests))
    judge, dialect = wanted["judge"], client.Dialect.of(wanted["judge"])
    start: Any = nullcontext((judge["base_url"], lambda: None))
    server = local_server(judge["server"]["module"], config) if judge["server"] else start
    given = {key: judge[key] for key in ("model", "price", "api_key_env")} | {"dialect": dialect}
    with server as (base_url, check), client.Client(**given, base_url=base_url, cache=cache, **wanted["runtime"]) as asker:
        for name, (tokens, work) in works.items():
            rows = work(ask=partial(asker.ask, label=f"{label} {name}"))
            check()  # if the server has died, its silence is not a failure of the judge
            yield name, [row | {"judge_settings": dialect.given} for row in rows] if tokens and dialect.given else rows
