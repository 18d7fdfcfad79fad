"""Score every sampled answer (the authors' on_policy_data_gen/reward_model_annotate.py).

    python -m stages.annotate --config results/mini_instruct/annotate/config.yaml

In: stages/generate.py's generations.jsonl, and a reward model with one score (``model``: folder or hub id) or the mini world's rater
(``rater``: stages/mini/raters.py). Out: scored.jsonl in the authors' schema, one row a prompt, with the prompt's messages besides,

    {"prompt_id", "prompt": text of the last user turn, "messages": [messages], "all_generated_responses": [n], "all_rm_scores": [n]}

The reward model reads the chat template over prompt and answer. Equal texts get equal scores: each text is scored once. A conversation of
more than ``max_length`` tokens is cut at its end, and the manifest counts it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from stages.lib import files, models
from stages.lib.errors import UserError
from stages.lib.records import Message, messages_of, numbered, text_of, value_of
from stages.mini.raters import rate_all
from stages.preference.data import check_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = tuple[int, ...]

BATCH = 2**14  # ours, tokens in a batch: four conversations of 4,096 tokens, or several hundred of the mini world


def load_reward_model(name: str, revision: str | None) -> PreTrainedModel:
    """A sequence classifier with one label, weights in fp32. UserError if its file lacks the head, which would then be random."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        models.checked_model(name), revision=revision, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if loaded["missing_keys"] or model.config.num_labels != 1:
        raise UserError(
            f"model {name} is no reward model with one score: it has {model.config.num_labels} labels, and its file lacks"
            f" {', '.join(sorted(loaded['missing_keys'])) or 'nothing'}; name one that stages.reward, or TRL's RewardTrainer, trained"
        )
    reward_model: PreTrainedModel = model
    return reward_model


def score(model: PreTrainedModel, conversations: Iterable[Tokens], batch_tokens: int = BATCH) -> dict[Tokens, float]:
    """The score of each distinct conversation, which is a tuple of token ids.

    The longest conversations come first, so that a batch that does not fit into memory fails at once. The model takes the score at the last
    token that is not its pad token. A model without a pad token scores one conversation at a time.

    batch_tokens: tokens of a batch at most, with padding; a longer conversation has a batch of its own
    """
    import torch

    pad = model.config.get_text_config().pad_token_id
    ordered = sorted(set(conversations), key=lambda tokens: (-len(tokens), tokens))
    scores: dict[Tokens, float] = {}
    told = 0
    while len(scores) < len(ordered):
        width = len(ordered[len(scores)])
        rows = 1 if pad is None else max(1, batch_tokens // width)
        batch = ordered[len(scores) : len(scores) + rows]
        padding = [width - len(tokens) for tokens in batch]
        input_ids = torch.tensor([[*tokens, *[pad] * more] for tokens, more in zip(batch, padding, strict=True)], device=model.device)
        mask = torch.tensor([[1] * (width - more) + [0] * more for more in padding], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        scores |= zip(batch, logits[:, 0].tolist(), strict=True)
        if len(scores) * 10 // len(ordered) > told:
            told = len(scores) * 10 // len(ordered)
            print(f"annotate: {len(scores):,} of {len(ordered):,} different answers", flush=True)
    return scores


def read_answers(path: str) -> list[dict[str, Any]]:
    """The rows of generations.jsonl; UserError names the line if its prompt or response is not a text."""
    rows = []
    for where, row in numbered(files.read_rows(path), path):
        prompt_id, prompt, response = (value_of(row, key, where) for key in ("prompt_id", "prompt", "response"))
        prompt = messages_of(prompt, f"{where}: 'prompt'")
        rows.append({"prompt_id": prompt_id, "prompt": prompt, "response": text_of(response, f"{where}: 'response'")})
    return rows


def by_model(rows: list[dict[str, Any]], config: DictConfig) -> tuple[list[float], int]:
    """The reward model's score of each row of ``read_answers``, and how many conversations were cut."""
    tokenizer = models.load_tokenizer(config.model, config.revision)
    model = load_reward_model(config.model, config.revision).to(models.device()).eval()
    chats: list[list[Message]] = [[*row["prompt"], {"role": "assistant", "content": row["response"]}] for row in rows]
    for number, chat in enumerate(chats, start=1):
        check_conversation(chat, tokenizer, f"{config.generations}, line {number}")
    whole = [tuple(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]) for chat in chats]
    conversations = [tokens[: config.max_length] for tokens in whole]
    score_of = score(model, conversations)
    return [score_of[tokens] for tokens in conversations], sum(len(tokens) > config.max_length for tokens in whole)


def main() -> None:
    config, folder = files.stage_config(__doc__)
    rows = read_answers(config.generations)
    scores, cut = (rate_all(rows, **config.rater), 0) if config.rater else by_model(rows, config)

    scored: list[dict[str, Any]] = []
    together = zip(rows, (round(score, 6) for score in scores), strict=True)
    for (prompt_id, messages), group in groupby(together, key=lambda pair: (pair[0]["prompt_id"], pair[0]["prompt"])):
        samples = list(group)
        prompt = next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")
        row = {"prompt_id": prompt_id, "prompt": prompt, "messages": messages}
        row |= {"all_generated_responses": [sample["response"] for sample, _ in samples], "all_rm_scores": [score for _, score in samples]}
        scored.append(row)
    files.write_jsonl(folder / "scored.jsonl", scored)
    facts = {
        "prompts": len(scored),
        "responses": len(rows),
        "cut": cut,
        "mean_score": fmean(score for row in scored for score in row["all_rm_scores"]),
        "mean_best_score": fmean(max(row["all_rm_scores"]) for row in scored),
    }
    files.write_manifest(folder, config, inputs=[config.generations], **facts)
    print(f"annotate: {len(rows):,} answers, mean score {facts['mean_score']:.3f}, of the best {facts['mean_best_score']:.3f}")


if __name__ == "__main__":
    files.run(main)
