"""Judge one run's answers: every benchmark by its own protocol, in one job.

    python -m stages.judge --config results/mini_base/runs/dpo/eval/judge.yaml --runtime concurrency=16 timeout=60 max_retries=5
    python -m stages.judge --config results/llama3_base/runs/dpo/eval/judge.yaml --estimate     # what it would cost; nothing is called

In: the run's answers and what each benchmark compares them with (the slice's ``benchmarks``), and the judge: an endpoint
(``base_url``, ``api_key_env``), or a local ``server`` that lives as long as this stage. Out: each benchmark's ``judgments`` in its
own format (AlpacaEval's annotations.json, model_judgment.jsonl), each with a judgment or a recorded failure, written as soon as the
benchmark is done. ``--runtime``: what stages/judging/client.py takes, ``budget`` (dollars) among it. What an endpoint says is cached
in the file that the environment variable JUDGE_CACHE names, else in results/judgments.sqlite.

A local server is a module that takes this stage's ``--config``, prints ``listening on http://127.0.0.1:PORT/v1``, and ends on
SIGTERM and at the end of its standard input, so that it cannot outlive this stage even where this stage is killed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from omegaconf import OmegaConf

from stages import files
from stages.judging import alpacaeval2, arena_hard, client, mt_bench
from stages.judging.cache import stored
from stages.judging.client import Ask
from stages.judging.rows import Row, check_same, read_rows

ANSWER = ("instruction", "output", "generator")
MODEL_ANSWER = ("question_id", "model_id", "choices")
RUNTIME = ("concurrency", "timeout", "max_retries", "rpm", "budget")
START_SECONDS = 30
CACHE = "results/judgments.sqlite"
# Tokens that a judge writes on average: one by AlpacaEval's protocol, none by the oracle's; the others from published judgments' characters
# at four a token: 800 of GPT-4 on MT-Bench; on Arena-Hard 2,700 of a model that also writes an answer of its own first.
EXPECTED_WRITTEN = {"alpacaeval2": 1, "arena_hard": 700, "mt_bench": 200, "oracle": 0}


@contextmanager
def local_server(module: str, config: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """``python -m module --config config``, which is gone when the block ends, however it ends.

    Its base URL, and a check that it lives: ValueError with its last words where it does not.
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
                raise ValueError(f"the judge's server, {module}, ended in mid-work ({process.returncode}); it said:\n{''.join(last)}")

        try:
            address = _address(module, said, last)
            try:
                yield address, check
            except ValueError:
                check()  # then what went unanswered is the server's end, and no judge's failure
                raise
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(module: str, said: Queue[str], last: deque[str]) -> str:
    """The address that the server prints; ValueError where it ends first, or does not listen within 30 s."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            line = said.get(timeout=max(deadline - time.monotonic(), 0))
        except Empty:
            said_last = "".join(last) or "nothing at all"
            raise ValueError(f"the judge's server, {module}, did not listen within {START_SECONDS} s; it said:\n{said_last}") from None
        if not line:
            raise ValueError(f"the judge's server, {module}, ended before it listened; it said:\n{''.join(last)}")
        if found := re.match(r"listening on (http://\S+)", line):
            return found[1]


def judge_alpacaeval2(benchmark: dict[str, Any], judge: dict[str, Any], ask: Ask) -> list[Row]:
    answers = read_rows(benchmark["answers"], ANSWER)
    rows = alpacaeval2.annotate(
        answers,
        read_rows(benchmark["baseline"], ANSWER),
        template=Path(benchmark["template"]).read_text(encoding="utf-8"),
        swap_seed=benchmark["swap_seed"],
        decoding=benchmark["decoding"],
        ask=ask,
        annotator=judge["name"],
        judge=judge["model"],
    )
    return checked(answers, rows)


def judge_oracle(benchmark: dict[str, Any], judge: dict[str, Any], ask: Ask) -> list[Row]:
    from stages.mini import oracle

    answers = read_rows(benchmark["answers"], ANSWER)
    return checked(answers, oracle.annotate(answers, benchmark["world"]))


def checked(answers: list[Row], judgments: list[Row]) -> list[Row]:
    """``judgments``, one for each of ``answers`` in the same order; ValueError where one is left out."""
    check_same("the answers", [row["instruction"] for row in answers], "their judgments", [row["instruction"] for row in judgments])
    return judgments


def judge_arena_hard(benchmark: dict[str, Any], judge: dict[str, Any], ask: Ask) -> list[Row]:
    return arena_hard.annotate(
        read_rows(benchmark["answers"], MODEL_ANSWER),
        read_rows(benchmark["questions"], ("question_id", "turns")),
        read_rows(benchmark["baseline"], MODEL_ANSWER),
        config=arena_hard.read_config(benchmark["template"]),
        decoding=benchmark["decoding"],
        ask=ask,
        judge=judge["model"],
    )


def judge_mt_bench(benchmark: dict[str, Any], judge: dict[str, Any], ask: Ask) -> list[Row]:
    return mt_bench.annotate(
        read_rows(benchmark["answers"], MODEL_ANSWER),
        read_rows(benchmark["questions"], mt_bench.QUESTION),
        read_rows(benchmark["references"], MODEL_ANSWER),
        prompts=read_rows(benchmark["template"], mt_bench.PROMPT),
        decoding=benchmark["decoding"],
        ask=ask,
        judge=judge["model"],
    )


PROTOCOLS = {"alpacaeval2": judge_alpacaeval2, "arena_hard": judge_arena_hard, "mt_bench": judge_mt_bench, "oracle": judge_oracle}


def failures(rows: list[Row]) -> tuple[int, int]:
    """How many judgments there are in ``rows``, and how many of them failed; Arena-Hard's rows hold two."""
    judgments = [judgment for row in rows for judgment in row.get("games", [row])]
    return len(judgments), sum(bool(judgment.get("failure")) for judgment in judgments)


def estimate(wanted: dict[str, Any], base_url: str, cache: str | None) -> str:
    """Calls, tokens and dollars of each benchmark, from the very requests that would be sent; nothing is called, and nothing written.

    What a judge will write is not known: EXPECTED_WRITTEN tokens a call, and a token of English is four bytes. A protocol that may ask
    further is answered with a text without a verdict, so that all that it may ask is counted, under "up to".
    """
    judge = wanted["judge"]
    price = client.checked_price(judge["price"])
    silent = client.Outcome(response={"choices": [{"message": {"role": "assistant", "content": "-"}}]})
    lines = [f"{'benchmark':<24}{'calls':>8}{'cached':>8}{'tokens':>12}{'at most':>12}{'dollars':>10}{'at most':>10}"]
    total = [0.0] * 6

    def row(name: str, figures: list[float]) -> str:
        calls, cached, tokens, most_tokens, dollars, most_dollars = figures
        return f"{name:<24}{calls:>8.0f}{cached:>8.0f}{tokens:>12.0f}{most_tokens:>12.0f}{dollars:>10.2f}{most_dollars:>10.2f}"

    def asked(rounds: list[list[float]], expected: int, requests: list[dict[str, Any]]) -> list[client.Outcome]:
        """In place of ``Client.ask``: the requests' figures go into ``rounds``; of a further round nothing is expected."""
        keys = client.request_keys(base_url, judge["model"], requests)
        known = stored(cache, keys) if cache else [None] * len(keys)
        tokens, most_tokens, dollars, most_dollars = 0.0, 0.0, 0.0, 0.0
        for request, body in zip(requests, known, strict=True):
            if body is None:
                read, written = client.worst_tokens(request)
                read += written if rounds else 0  # what was said before, in place of "-"
                most_tokens += read + written
                most_dollars += (read * price["input"] + written * price["output"]) / 1e6
                if not rounds:
                    read, written = read // 4, min(written, expected)
                    tokens += read + written
                    dollars += (read * price["input"] + written * price["output"]) / 1e6
        cached = sum(body is not None for body in known)
        rounds.append([len(requests), cached, tokens, most_tokens, dollars, most_dollars])
        return [client.Outcome(response=json.loads(body)) if body is not None else silent for body in known]

    for name, benchmark in wanted["benchmarks"].items():
        rounds: list[list[float]] = []
        PROTOCOLS[benchmark["protocol"]](benchmark, judge, partial(asked, rounds, EXPECTED_WRITTEN[benchmark["protocol"]]))
        for number, figures in enumerate(rounds):
            lines.append(row(f"{name}, further, up to" if number else name, figures))
            total = [a + b for a, b in zip(total, figures, strict=True)]
    lines.append(row("total", total))
    return "\n".join(lines)


def main() -> None:
    config, folder = files.stage_config(__doc__, dry="estimate")
    runtime: dict[str, Any] = dict(config.runtime)
    if unknown := set(runtime) - set(RUNTIME):
        raise ValueError(f"unknown --runtime key {min(unknown)!r}; known are {', '.join(RUNTIME)}")
    wanted: Any = OmegaConf.to_container(config)
    judge, benchmarks = wanted["judge"], wanted["benchmarks"]
    if bool(judge["base_url"]) == bool(judge["server"]):
        raise ValueError("set either judge.base_url (an endpoint) or judge.server (a local server's module), and null for the other")
    if judge["server"] and judge["cache"]:
        raise ValueError("judge.cache must be false for a judge.server: what it says depends on more than the request, and costs nothing")
    if unknown := {benchmark["protocol"] for benchmark in benchmarks.values()} - set(PROTOCOLS):
        raise ValueError(f"benchmarks: unknown protocol {min(unknown)!r}; known are {', '.join(PROTOCOLS)}")
    for benchmark in benchmarks.values():  # before the first call is paid for
        read_rows(benchmark["answers"], ())

    cache = os.environ.get("JUDGE_CACHE", CACHE) if judge["cache"] else None
    if config.dry:
        print(f"estimate: {wanted['run']}, by {judge['model']}\n{estimate(wanted, judge['base_url'] or '', cache)}")
        return
    start: Any = nullcontext((judge["base_url"], lambda: None))
    server = local_server(judge["server"]["module"], folder / "judge.yaml") if judge["server"] else start
    given = {key: judge[key] for key in ("model", "price", "api_key_env")}
    with server as (base_url, check), client.Client(**given, base_url=base_url, cache=cache, **runtime) as asker:
        for name, benchmark in benchmarks.items():
            ask = partial(asker.ask, label=f"{wanted['run']} {name}")
            rows = PROTOCOLS[benchmark["protocol"]](benchmark, judge, ask)
            check()  # a server's death would else pass for failed judgments
            path = benchmark["judgments"]
            (files.write_jsonl if path.endswith(".jsonl") else files.write_json)(path, rows)
            print("judge: {} {}: {} judgments, {} failed".format(wanted["run"], name, *failures(rows)))


if __name__ == "__main__":
    files.run(main)
