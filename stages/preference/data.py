"""Preference pairs as token ids: what an answer is, and how it is cut. As in princeton-nlp/SimPO, scripts/run_simpo.py
(``apply_chat_template``) and scripts/simpo_trainer.py (``tokenize_row``).

The prompt is the chat template over all turns but the last, without generation prompt. The answer is what the template adds for the
last turn: |y| and all averages include the assistant's header and the end-of-turn token. Prompt and answer are tokenised together;
BOS goes in front and EOS at the end where they are missing.

In: rows of stages/pairs.py. Out: rows {"prompt": [ids], "chosen": [ids], "rejected": [ids]}, the prompt shared by both answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from omegaconf import DictConfig

from stages import files
from stages.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
Pair = dict[str, list[int]]


def read_splits(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Pair]]:
    """The tokenised pairs of train.jsonl and heldout.jsonl in ``config.pairs``, cut to the lengths in ``config``; under the names
    ``mismatched train`` and ``mismatched heldout`` their prompts with other rows' answers."""
    limits = {key: config[key] for key in ("max_length", "max_prompt_length", "empty_system")}
    paths = {split: f"{config.pairs}/{split}.jsonl" for split in ("train", "heldout")}
    splits = {split: tokenize_pairs(files.read_rows(path), tokenizer, path, **limits) for split, path in paths.items()}
    lengths = {"max_length": config.max_length, "max_prompt_length": config.max_prompt_length}
    return splits | {f"mismatched {split}": mismatched(pairs, **lengths) for split, pairs in splits.items()}


def tokenize_pairs(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, path: str, *, max_length: int, max_prompt_length: int, empty_system: bool
) -> list[Pair]:
    """The tokenised pairs of the file ``path``; UserError names the line that cannot be trained on."""
    limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    numbered = enumerate(rows, start=1)
    return [tokenize_pair(row, tokenizer, f"{path}, line {n}", empty_system=empty_system, **limits) for n, row in numbered]


def tokenize_pair(
    row: Row, tokenizer: PreTrainedTokenizerBase, where: str, *, max_length: int, max_prompt_length: int, empty_system: bool
) -> Pair:
    """Token ids of the prompt and of both answers, cut as the authors cut them.

    A tokenizer may merge the prompt's last token with the answer's first. The prompt is then the tokens that the prompt alone and both
    conversations share, so that it is the same for both answers; the rest belongs to the answer.
    """
    before, *after = render_pair(row, tokenizer, where, empty_system=empty_system)
    alone, chosen, rejected = tokenizer([before, *(before + text for text in after)], add_special_tokens=False)["input_ids"]
    shared = 0
    for tokens in zip(alone, chosen, rejected, strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    prompt, answers = chosen[:shared], [chosen[shared:], rejected[shared:]]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise UserError("the tokenizer has no EOS token, with which every answer ends; set eos_token in its tokenizer_config.json")
    if bos is not None and prompt[:1] != [bos]:
        prompt = [bos, *prompt]
    answers = [answer if answer[-1:] == [eos] else [*answer, eos] for answer in answers]
    prompt, *answers = truncate(prompt, *answers, max_length=max_length, max_prompt_length=max_prompt_length)
    if not all(answers):
        raise UserError(
            f"{where}: nothing is left of the answers after truncation, which leaves them max_length - max_prompt_length ="
            f" {max_length} - {max_prompt_length} tokens; lower max_prompt_length or raise max_length"
        )
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


def render_pair(row: Row, tokenizer: PreTrainedTokenizerBase, where: str, *, empty_system: bool) -> tuple[str, str, str]:
    """The texts of prompt, chosen and rejected answer under the tokenizer's chat template.

    The authors render the last turn by itself. Many templates refuse that, or put a default system turn in front of it; the difference of
    the renderings with and without the turn is the same text wherever theirs works. ``empty_system``: the authors'
    ``auto_insert_empty_system_msg``.
    """
    prompt = with_system(row["prompt"], tokenizer) if empty_system else row["prompt"]
    for side in ("chosen", "rejected"):
        if not row[side] or not row[side][-1]["content"].strip():
            raise UserError(f"{where}: {side!r} is an empty answer; remove the row")
    try:
        before = tokenizer.apply_chat_template(prompt, tokenize=False)
        after = [tokenizer.apply_chat_template(prompt + answer, tokenize=False) for answer in (row["chosen"], row["rejected"])]
    except TemplateError as error:
        hint = "; where it knows no system turn set pairs.empty_system=false" if empty_system else ""
        raise UserError(f"{where}: the model's chat template refuses this conversation: {error}{hint}") from None
    if not all(text.startswith(before) for text in after):
        raise UserError(f"{where}: the model's chat template renders the prompt differently once an answer follows; change the template")
    return before, after[0][len(before) :], after[1][len(before) :]


def with_system(messages: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """The authors' ``auto_insert_empty_system_msg``: an empty system turn in front, if there is none and the template mentions such."""
    template = str(tokenizer.chat_template)
    if messages[0]["role"] == "system" or not ("system" in template or "<|im_start|>" in template):
        return messages
    return [{"role": "system", "content": ""}, *messages]


def question_tokens(messages: list[Row], tokenizer: PreTrainedTokenizerBase, *, empty_system: bool) -> list[int]:
    """Token ids of a conversation that the model shall answer, as ``tokenize_pair`` opens it: BOS in front where the template has none."""
    asked = with_system(messages, tokenizer) if empty_system else messages
    tokens: list[int] = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    bos = tokenizer.bos_token_id
    return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]


def truncate(
    prompt: list[int], chosen: list[int], rejected: list[int], *, max_length: int, max_prompt_length: int
) -> tuple[list[int], list[int], list[int]]:
    """The authors' rule, whose traps are part of the replication: one long answer cuts both sides, and may cut BOS and EOS.

    If the prompt and the longer answer exceed ``max_length`` the prompt keeps its last ``max_prompt_length`` tokens. If they still do, each
    answer keeps its first ``max_length - max_prompt_length``, even where a shorter prompt would leave room for more.
    """
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer > max_length:
        prompt = prompt[-max_prompt_length:]
    if len(prompt) + longer > max_length:
        left = max(0, max_length - max_prompt_length)
        chosen, rejected = chosen[:left], rejected[:left]
    return prompt, chosen, rejected


def mismatched(pairs: Sequence[Pair], *, max_length: int, max_prompt_length: int) -> list[Pair]:
    """Each row's prompt with the next row's answers, the last with the first's, cut as pairs are but to a token at least: for KTO's KL.

    KTO's authors and TRL draw them from the micro-batch; fixed by the row of the data, the reference's sums of them can be computed once.
    """
    limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    rows = []
    for number, pair in enumerate(pairs):
        other = pairs[(number + 1) % len(pairs)]
        prompt, chosen, rejected = truncate(pair["prompt"], other["chosen"], other["rejected"], **limits)
        rows.append({"prompt": prompt, "chosen": chosen or other["chosen"][:1], "rejected": rejected or other["rejected"][:1]})
    return rows


def tokens_sha256(rows: Iterable[Pair]) -> str:
    """The sha256 of all token ids in order: what the reference's log-probabilities belong to."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row["prompt"], row["chosen"], row["rejected"])).encode())
    return digest.hexdigest()
