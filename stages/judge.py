"""Judge one run's answers: every benchmark by its own protocol, in one job.

    python -m stages.judge --config results/mini_base/runs/dpo/eval/judge.yaml --runtime concurrency=16 timeout=60 max_retries=5

In: the run's answers and what each benchmark compares them with (the slice's ``benchmarks``), and the judge: an endpoint
(``base_url``, ``api_key_env``), or a local ``server`` that lives as long as this stage. Out: each benchmark's ``judgments`` in its
own format (AlpacaEval's annotations.json, model_judgment.jsonl), each with a judgment or a recorded failure.

A local server is a module that takes this stage's ``--config``, prints ``listening on http://127.0.0.1:PORT/v1``, and ends on
SIGTERM and at the end of its standard input, so that it cannot outlive this stage even where this stage is killed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from omegaconf import OmegaConf

from stages import files
from stages.judging import alpacaeval2, arena_hard, client, mt_bench
from stages.judging.client import Ask
from stages.judging.rows import Row, check_same, read_rows

ANSWER = ("instruction", "output", "generator")
MODEL_ANSWER = ("question_id", "model_id", "choices")
RUNTIME = ("concurrency", "timeout", "max_retries")
START_SECONDS = 30


@contextmanager
def local_server(module: str, config: Path) -> Iterator[str]:
    """The base URL of ``python -m module --config config``, which is gone when the block ends, however it ends."""
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
        try:
            address = _address(module, said, last)
            trouble = None
            try:
                yield address
            except ValueError as error:
                trouble = error
            if process.poll() is not None:  # then what went unanswered is the server's end, and no judge's failure
                listener.join(1)
                raise ValueError(f"the judge's server, {module}, ended in mid-work ({process.returncode}); it said:\n{''.join(last)}")
            if trouble:
                raise trouble
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


def main() -> None:
    config, folder = files.stage_config(__doc__)
    runtime: dict[str, Any] = dict(config.runtime)
    if unknown := set(runtime) - set(RUNTIME):
        raise ValueError(f"unknown --runtime key {min(unknown)!r}; known are {', '.join(RUNTIME)}")
    wanted: Any = OmegaConf.to_container(config)
    judge, benchmarks = wanted["judge"], wanted["benchmarks"]
    if bool(judge["base_url"]) == bool(judge["server"]):
        raise ValueError("set either judge.base_url (an endpoint) or judge.server (a local server's module), and null for the other")
    if unknown := {benchmark["protocol"] for benchmark in benchmarks.values()} - set(PROTOCOLS):
        raise ValueError(f"benchmarks: unknown protocol {min(unknown)!r}; known are {', '.join(PROTOCOLS)}")
    for benchmark in benchmarks.values():  # before the first call is paid for
        read_rows(benchmark["answers"], ())

    server = local_server(judge["server"]["module"], folder / "judge.yaml") if judge["server"] else nullcontext(judge["base_url"])
    judgments: dict[str, list[Row]] = {}
    with server as base_url:
        for name, benchmark in benchmarks.items():
            label = f"{wanted['run']} {name}"
            ask = partial(client.ask, model=judge["model"], base_url=base_url, api_key_env=judge["api_key_env"], label=label, **runtime)
            judgments[name] = PROTOCOLS[benchmark["protocol"]](benchmark, judge, ask)
    # Written only now that the server is known to have lived to the end: its death would else pass for failed judgments.
    for name, rows in judgments.items():
        path = benchmarks[name]["judgments"]
        (files.write_jsonl if path.endswith(".jsonl") else files.write_json)(path, rows)
        print("judge: {} {}: {} judgments, {} failed".format(wanted["run"], name, *failures(rows)))


if __name__ == "__main__":
    files.run(main)
