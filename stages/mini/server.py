"""The mini world's judge, behind the endpoint of a real one: POST /v1/chat/completions, log-probabilities included.

    python -m stages.mini.server --config results/mini_base/runs/simpo/eval/judge.yaml

In: the judge's stage configuration (``judge.server``: world and temperament; ``benchmarks``: the prompts that it will be sent).
It prints ``listening on http://127.0.0.1:PORT/v1``, a free loopback port, and serves until it is terminated or its input ends. It reads
the texts in a prompt, asks the oracle, and answers in the benchmark's form: the log-probabilities of two identifiers (AlpacaEval), a
verdict (Arena-Hard), a rating (MT-Bench). It answers a text of no known form with "?", which the client records as a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import socket
import sys
import threading
from collections.abc import Callable
from random import Random
from typing import Any

from omegaconf import DictConfig

from stages.benchmarks import BENCHMARKS
from stages.lib import files
from stages.lib.errors import UserError
from stages.mini import raters
from stages.mini.oracle import Oracle, load_oracle
from stages.plan.values import plain

FIRST, SECOND = "m", "M"  # the identifiers in AlpacaEval's prompt
CANNOT_TELL = {"?": 0.0}

Texts = dict[str, str]  # what stands in a prompt's gaps
Reader = Callable[[str], Texts | None]
Logprobs = dict[str, float]  # of the answer's likeliest texts; the first is the answer
Answer = Callable[[Oracle, Texts, dict[str, Any], bool], Logprobs]


def template_reader(template: str) -> Reader:
    """A function that reads the texts in the ``{gaps}`` of a filled template.

    A gap ends at the next literal part of the template. The function returns None if the text does not have the template's form. It also
    does if a literal part occurs more often than in the template: then an answer contains the template's own words, and no reading is safe.
    """
    parts = re.split(r"\{(\w+)\}", template.strip())
    literals, names = parts[::2], parts[1::2]
    expected = [sum(other.count(literal.strip()) for other in literals) for literal in literals]

    def read(text: str) -> Texts | None:
        found: Texts = {}
        at = 0
        for number, literal in enumerate(literals):
            end = text.find(literal, at) if literal else len(text)
            if end < 0 or (literal.strip() and text.count(literal.strip()) != expected[number]):
                return None
            if number and found.setdefault(names[number - 1], text[at:end]) != text[at:end]:
                return None
            at = end + len(literal)
        return found

    return read


def preference(oracle: Oracle, texts: Texts, temper: dict[str, Any], _: bool) -> Logprobs:
    """AlpacaEval: the log-probabilities of the two identifiers."""
    odds = raters.judge_log_odds(oracle, (texts["instruction"], texts["output_1"], texts["output_2"]), **temper)
    said = {FIRST: -math.log1p(math.exp(odds)), SECOND: -math.log1p(math.exp(-odds))}
    return dict(sorted(said.items(), key=lambda item: -item[1]))


def comparison(oracle: Oracle, texts: Texts, temper: dict[str, Any], insisted: bool) -> Logprobs:
    """Arena-Hard: a verdict. Sometimes there is none until the judge is asked again."""
    shown = (texts["question_1"], texts["answer_1"], texts["answer_2"])
    if not insisted and Random("\0".join([f"silent-{temper['seed']}", *shown])).random() < temper["silence"]:
        return {"Both answers have something to say for themselves.": 0.0}
    verdict = raters.label(raters.judge_log_odds(oracle, shown, **temper), tie=temper["tie"], strong=temper["strong"])
    return {f"I have read both answers against the facts. My verdict is [[{verdict}]].": 0.0}


def rating(oracle: Oracle, texts: Texts, temper: dict[str, Any], _: bool) -> Logprobs:
    """MT-Bench: a rating of the only answer, or of the second of two."""
    first = "question" in texts
    turns = (texts["question"],) if first else (texts["question_1"], texts["answer_1"], texts["question_2"])
    points = raters.judge_rating(oracle, turns, texts["answer" if first else "answer_2"], **temper)
    return {f"I have read the answer against the facts. Rating: [[{points}]]": 0.0}


def readers(benchmarks: DictConfig) -> list[tuple[Reader, Answer]]:
    """For each prompt that the benchmarks' protocols send, what finds its texts, and what answers it, as its gaps ask for."""
    found: list[tuple[Reader, Answer]] = []
    for benchmark in benchmarks.values():
        for prompt in BENCHMARKS[benchmark.protocol].prompts(benchmark):
            compares = "{answer_2}" in prompt and "{question_2}" not in prompt
            answer = preference if "{output_1}" in prompt else comparison if compares else rating
            found.append((template_reader(prompt), answer))
    return found


def completion(model: str, logprobs: Logprobs, words_read: int) -> dict[str, Any]:
    """An OpenAI chat completion. The whole answer counts as one token, as AlpacaEval's answer is."""
    top = [{"token": text, "logprob": logprob, "bytes": list(text.encode())} for text, logprob in logprobs.items()]
    said = next(iter(logprobs))
    words_said = len(said.split())
    return {
        "id": "mini",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": said},
                "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": words_read, "completion_tokens": words_said, "total_tokens": words_read + words_said},
    }


def answer_to(chat: list[dict[str, str]], oracle: Oracle, temper: dict[str, Any], known: list[tuple[Reader, Answer]]) -> Logprobs:
    """The judge's answer to a chat. The first user turn has the texts; a second one asks again for a verdict."""
    asked = [message["content"] for message in chat if message["role"] == "user"]
    for read, answer in known:
        if (texts := read(asked[0])) is not None:
            try:
                return answer(oracle, texts, temper, len(asked) > 1)
            except UserError:  # not a prompt of this world
                break
    return CANNOT_TELL


def application(config: DictConfig) -> Any:
    """The ASGI application of a judge."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    temper = plain(config.judge.server)
    oracle = load_oracle(temper["world"])
    known = readers(config.benchmarks)

    async def answer(request: Request) -> JSONResponse:
        try:
            body = await request.json()
            model, chat = body["model"], [{"role": str(m["role"]), "content": str(m["content"])} for m in body["messages"]]
            if not any(message["role"] == "user" for message in chat):
                raise ValueError
        except (ValueError, KeyError, IndexError, TypeError):
            return JSONResponse({"error": {"message": "expected a JSON object with model and messages"}}, status_code=400)
        if model != config.judge.model:
            return JSONResponse({"error": {"message": f"no such model: {model}; this is {config.judge.model}"}}, status_code=404)
        words_read = sum(len(message["content"].split()) for message in chat)
        return JSONResponse(completion(model, answer_to(chat, oracle, temper, known), words_read))

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


async def serve(app: Any) -> None:
    """Serve on a free loopback port until terminated, or until standard input ends, so that it ends with the stage that started it."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))

    def end_with_input() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=end_with_input, daemon=True).start()
    task = asyncio.create_task(server.serve([listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    await task


def main() -> None:
    config, _ = files.stage_config(__doc__, writes=False)
    app = application(config)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(app))


if __name__ == "__main__":
    main()
