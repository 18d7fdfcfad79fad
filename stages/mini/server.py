"""The mini world's judge, behind the endpoint of a real one: POST /v1/chat/completions, log-probabilities included.

    python -m stages.mini.server --config results/mini_base/runs/simpo/eval/judge.yaml

In: the judge stage's slice (``judge.server``: world and temperament; ``benchmarks``: the prompt templates that it will be sent).
It prints ``listening on http://127.0.0.1:PORT/v1``, a free loopback port, and serves until it is terminated or its input ends. It
reads the prompt as a model would, asks the oracle, and answers with the log-probabilities of the two identifiers. What stands in
the prompt is data: a text that the template does not describe is answered with neither identifier, a failure that the client records.
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
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from stages import files
from stages.mini.oracle import Oracle, load_oracle
from stages.mini.raters import judge_log_odds
from stages.schema import plain

FIRST, SECOND = "m", "M"  # the identifiers in AlpacaEval's prompt


def template_reader(template: str) -> Callable[[str], tuple[str, ...] | None]:
    """A function that finds what stands in ``{instruction}``, ``{output_1}`` and ``{output_2}`` of a filled template.

    Each gap is read up to the next literal part of the template; None where the text is not of that form, or where a literal part stands
    in it more than once: then somebody has written the template's own words into an answer, and no reading of it is safe.
    """
    literals = [part.strip() for part in re.split(r"\{(?:instruction|output_1|output_2)\}", template)]

    def read(text: str) -> tuple[str, ...] | None:
        at, gaps = 0, []
        for number, literal in enumerate(literals):
            found = text.find(literal, at)
            if found < 0 or text.count(literal) != literals.count(literal):
                return None
            if number:
                gaps.append(text[at:found])
            at = found + len(literal)
        return tuple(gaps)

    return read


def verdict(oracle: Oracle, texts: tuple[str, ...] | None, temperament: dict[str, Any]) -> dict[str, float]:
    """The log-probabilities of the judge's one token; of an unreadable prompt it says that it cannot tell."""
    if texts is None:
        return {"?": 0.0}
    try:
        odds = judge_log_odds(oracle, *texts, **temperament)
    except ValueError:  # not a prompt of this world
        return {"?": 0.0}
    return {FIRST: -math.log1p(math.exp(odds)), SECOND: -math.log1p(math.exp(-odds))}


def completion(model: str, logprobs: dict[str, float], words_read: int) -> dict[str, Any]:
    """An OpenAI chat completion of one token."""
    ranked = sorted(logprobs.items(), key=lambda item: -item[1])
    token = ranked[0][0]
    top = [{"token": token, "logprob": logprob, "bytes": list(token.encode())} for token, logprob in ranked]
    return {
        "id": "mini",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": token},
                "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": words_read, "completion_tokens": 1, "total_tokens": words_read + 1},
    }


def application(config: DictConfig) -> Any:
    """The ASGI application of a judge."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from stages.judging.alpacaeval2 import messages

    server = plain(config.judge.server)
    oracle = load_oracle(server["world"])
    temperament = {key: server[key] for key in ("sharpness", "length_bias", "position_bias", "noise", "seed")}
    templates = [Path(b.template).read_text(encoding="utf-8") for b in config.benchmarks.values() if b.get("template")]
    readers = [template_reader(messages(t, "{instruction}", "{output_1}", "{output_2}")[-1]["content"]) for t in templates]

    async def answer(request: Request) -> JSONResponse:
        try:
            body = await request.json()
            model, text = body["model"], str(body["messages"][-1]["content"])
        except (ValueError, KeyError, IndexError, TypeError):
            return JSONResponse({"error": {"message": "expected a JSON object with model and messages"}}, status_code=400)
        if model != config.judge.model:
            return JSONResponse({"error": {"message": f"no such model: {model}; this is {config.judge.model}"}}, status_code=404)
        texts = next((found for reader in readers if (found := reader(text)) is not None), None)
        return JSONResponse(completion(model, verdict(oracle, texts, temperament), len(text.split())))

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


async def serve(app: Any) -> None:
    """Serve on a free loopback port until terminated, or until standard input ends: it never outlives the stage that started it."""
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
    config, _ = files.stage_config(__doc__)
    app = application(config)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(app))


if __name__ == "__main__":
    main()
