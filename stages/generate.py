"""Sample the start model's own answers to the preference data's prompts: SimPO section 3, the Instruct settings.

    python -m stages.generate --config results/mini_instruct/generate/config.yaml

In: a model (folder or hub id), and ``prompts``, rows in the schema of UltraFeedback binarized. Out: generations.jsonl, ``n`` rows a
prompt, in the order in which the prompts first appear,

    {"prompt_id", "prompt": [messages], "response", "sample": 0 … n-1, "finish_reason", "tokens"}

The authors call vLLM once for each of five seeds. Here one call samples all n. vLLM gives sample i of a request the request's seed + i, so
the requests' seeds are multiples of n. They are hashes of the prompts' texts: an answer depends neither on the order of the prompts nor on
the rest of the batch, and two samples share a seed only if hashes collide.
"""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from stages.lib import files, models
from stages.lib.engine import generate, seed_of, start_engine
from stages.lib.errors import UserError
from stages.lib.records import Message, inputs_of, keys_of, messages_of, numbered, read_records, side_of
from stages.preference.data import question_tokens

Row = dict[str, Any]


def distinct_prompts(rows: list[Row], path: str) -> dict[str, Row]:
    """``{"prompt_id", "prompt": [messages]}`` of each different prompt, by file and line of its first appearance."""
    prompts: dict[str, tuple[str, Row]] = {}
    for where, row in numbered(rows, path):
        messages = prompt_of(row, where)
        prompts.setdefault(json.dumps(messages), (where, {"prompt_id": row["prompt_id"], "prompt": messages}))
    return dict(prompts.values())


def prompt_of(row: Row, where: str) -> list[Message]:
    """The messages that the model shall answer: the turns of ``chosen`` before the last one.

    Without ``chosen`` it is ``prompt``, a list of messages or the text of one user turn. UserError names the row without a prompt.
    """
    chosen, prompt = row.get("chosen"), row.get("prompt")
    turns: list[Message] = []
    if isinstance(chosen, list) and chosen:
        turns, _ = side_of(row, "chosen", where)
    elif isinstance(prompt, list):
        turns = messages_of(prompt, f"{where}: 'prompt'")
    elif not isinstance(chosen, list) and isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}]
    if not turns or "prompt_id" not in row:
        raise UserError(
            f"{where}: a prompt needs 'prompt_id' and either 'chosen', a list of messages, or 'prompt', a text or a list of messages;"
            f" see UltraFeedback binarized; the row has {keys_of(row)}, and 'prompt' is {prompt!r:.80}"
        )
    if turns[-1]["role"] in ("assistant", "system", "developer"):
        raise UserError(f"{where}: the prompt must end with the user's turn; it ends with {turns[-1]['role']!r}; correct or remove the row")
    return turns


def base_seed(messages: list[dict[str, str]], seed: int, n: int) -> int:
    """The seed of a prompt's sample 0, in [0, 2**31). It is a multiple of ``n``: seed + i belongs to this prompt alone."""
    return seed_of("\n".join(message["content"] for message in messages), seed) // n * n


def main() -> None:
    config, folder = files.stage_config(__doc__)
    rows = read_records(config.prompts)
    lines = distinct_prompts(rows, config.prompts.data)
    prompts = list(lines.values())
    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    # No empty system turn: the authors' decode.py inserts none.
    asked = [question_tokens(row["prompt"], tokenizer, empty_system=False, where=where) for where, row in lines.items()]
    engine = start_engine(config, max(map(len, asked)) + config.max_tokens)
    from vllm import SamplingParams

    print(f"generate: {config.model}, {len(prompts):,} prompts, {config.n} samples each", flush=True)
    shared = {"n": config.n, "temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_tokens}
    sampling = [SamplingParams(seed=base_seed(row["prompt"], config.seed, config.n), **shared) for row in prompts]
    outputs = generate(engine, [{"prompt_token_ids": tokens} for tokens in asked], sampling)

    generations = [
        {
            **row,
            "response": tokenizer.decode(sample.token_ids, skip_special_tokens=True).strip(),
            "sample": sample.index,
            "finish_reason": sample.finish_reason,
            "tokens": len(sample.token_ids),
        }
        for row, output in zip(prompts, outputs, strict=True)
        for sample in output.outputs
    ]
    files.write_jsonl(folder / "generations.jsonl", generations)
    facts = {
        "read": len(rows),
        "prompts": len(prompts),
        "generations": len(generations),
        "ended_by_themselves": fmean(row["finish_reason"] == "stop" for row in generations),
        "mean_tokens": fmean(row["tokens"] for row in generations),
    }
    files.write_manifest(folder, config, inputs=inputs_of(config.prompts), **facts)
    ended, tokens = facts["ended_by_themselves"], facts["mean_tokens"]
    print(f"generate: {len(generations):,} answers of {tokens:.1f} tokens, {ended:.1%} ended by themselves")


if __name__ == "__main__":
    files.run(main)
