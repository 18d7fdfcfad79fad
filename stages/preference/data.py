"""Preference pairs as token ids: what belongs to an answer, and how a pair is cut. As in princeton-nlp/SimPO, scripts/run_simpo.py
(``apply_chat_template``) and scripts/simpo_trainer.py (``tokenize_row``).

The prompt is the chat template over all turns but the last, without generation prompt. The answer is what the template adds for the
last turn: |y| and all averages include the assistant's header and the end-of-turn token. Prompt and answer are tokenised together.
Missing BOS and EOS tokens are added.

In: rows of stages/pairs.py. Out: rows {"prompt": [ids], "chosen": [ids], "rejected": [ids]}; both answers share the prompt.
Two kinds of pairs are left out and counted: pairs whose answers have the same tokens, and pairs with an answer that has no tokens of its
own. A turn whose text the template leaves out is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError
from omegaconf import DictConfig

from stages.lib import files
from stages.lib.errors import UserError
from stages.lib.records import Message, messages_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
Pair = dict[str, list[int]]

TEMPLATE_TOKENS = 64  # more than a chat template writes around an answer


class Tokenized(NamedTuple):
    """The pairs of a file that can be trained on."""

    pairs: list[Pair]
    rows: list[int]  # each pair's row in the file, from 0
    dropped: dict[str, int]  # how many pairs were left out, by reason


def read_splits(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tokenized]:
    """The tokenised pairs of train.jsonl and heldout.jsonl in ``config.pairs``; UserError where none is left."""
    limits = {key: config[key] for key in ("max_length", "max_prompt_length", "empty_system")}
    splits = {}
    for split in ("train", "heldout"):
        path = f"{config.pairs}/{split}.jsonl"
        splits[split] = tokenize_rows(files.read_rows(path), tokenizer, path, **limits)
        if not splits[split].pairs:
            raise UserError(
                f"{path}: the answers of every pair are the same or empty once they are tokens ({splits[split].dropped});"
                " check the model's chat template, or raise max_length"
            )
    return splits


def dropped(splits: Mapping[str, Tokenized], label: str) -> dict[str, dict[str, int]]:
    """How many pairs were left out of each split, for the manifest. Prints a line if there are any."""
    counts = {split: part.dropped for split, part in splits.items()}
    if any(any(count.values()) for count in counts.values()) and files.first_process():
        print(f"{label}: pairs left out because their answers are the same or empty as tokens: {counts}", flush=True)
    return counts


def with_mismatched(splits: Mapping[str, Tokenized], config: DictConfig) -> dict[str, list[Pair]]:
    """The pairs of each split, and under ``mismatched train`` and ``mismatched heldout`` the prompts with other rows' answers."""
    pairs = {split: part.pairs for split, part in splits.items()}
    limits = {"max_length": config.max_length, "max_prompt_length": config.max_prompt_length}
    return pairs | {f"mismatched {split}": mismatched(part, **limits) for split, part in pairs.items()}


def tokenize_rows(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, path: str, *, empty_system: bool, **limits: int) -> Tokenized:
    """The tokenised pairs of the file ``path``; UserError names the line that cannot be trained on.

    rows: of stages/pairs.py
    path: their file, for errors
    empty_system: whether to apply ``with_system``
    limits: ``max_length`` and ``max_prompt_length``, see ``truncate``
    """
    kept = Tokenized([], [], {"empty": 0, "identical": 0, "identical_when_cut": 0})
    for number, row in enumerate(rows):
        where = f"{path}, line {number + 1}"
        whole = whole_pair(row, tokenizer, where, empty_system=empty_system)
        if whole["chosen"] == whole["rejected"]:
            kept.dropped["identical"] += 1
        elif has_empty_answer(whole, row, tokenizer, empty_system=empty_system):
            kept.dropped["empty"] += 1
        elif (pair := cut_pair(whole, where, **limits))["chosen"] == pair["rejected"]:
            kept.dropped["identical_when_cut"] += 1
        else:
            kept.pairs.append(pair)
            kept.rows.append(number)
    return kept


def whole_pair(row: Row, tokenizer: PreTrainedTokenizerBase, where: str, *, empty_system: bool) -> Pair:
    """Token ids of the prompt and of both answers, uncut.

    A tokenizer may merge the prompt's last token with the answer's first. The prompt is then the tokens that the prompt alone and both
    conversations share. The rest belongs to the answers.
    """
    before, *after = render_pair(row, tokenizer, where, empty_system=empty_system)
    alone, chosen, rejected = tokenizer([before, *(before + text for text in after)], add_special_tokens=False)["input_ids"]
    shared = 0
    for tokens in zip(alone, chosen, rejected, strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, and every answer must end with one; set eos_token in its tokenizer_config.json")
    chosen, rejected = (_ended(answer[shared:], tokenizer) for answer in (chosen, rejected))
    return {"prompt": _begun(alone[:shared], tokenizer), "chosen": chosen, "rejected": rejected}


def _begun(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens with BOS in front, if the tokenizer has one."""
    bos = tokenizer.bos_token_id
    return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]


def _ended(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens with EOS at the end."""
    return tokens if tokens[-1:] == [tokenizer.eos_token_id] else [*tokens, tokenizer.eos_token_id]


def cut_pair(pair: Pair, where: str, *, max_length: int, max_prompt_length: int) -> Pair:
    """The pair cut by ``truncate``; UserError if an answer has no tokens then."""
    sides = pair["prompt"], pair["chosen"], pair["rejected"]
    prompt, chosen, rejected = truncate(*sides, max_length=max_length, max_prompt_length=max_prompt_length)
    if not (chosen and rejected):
        raise UserError(
            f"{where}: nothing is left of the answers: they are cut to max_length - max_prompt_length = {max_length} - {max_prompt_length}"
            " tokens; lower max_prompt_length or raise max_length"
        )
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def has_empty_answer(pair: Pair, row: Row, tokenizer: PreTrainedTokenizerBase, *, empty_system: bool) -> bool:
    """Whether an answer has the tokens of an answer without text. Longer answers than a template's own text are not tried."""
    short = [side for side in ("chosen", "rejected") if len(pair[side]) <= TEMPLATE_TOKENS]
    if not short:
        return False
    prompt = opened(row, tokenizer, empty_system=empty_system)
    try:
        text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": ""}], tokenize=False)
    except Exception:  # the template refuses an empty answer, so it renders none
        return False
    (tokens,) = tokenizer([text], add_special_tokens=False)["input_ids"]
    empty = _ended(_begun(tokens, tokenizer), tokenizer)
    return any(pair["prompt"] + pair[side] == empty for side in short)


def render_pair(row: Row, tokenizer: PreTrainedTokenizerBase, where: str, *, empty_system: bool) -> tuple[str, str, str]:
    """The texts of prompt, chosen and rejected answer under the tokenizer's chat template.

    The authors render the last turn alone. Many templates refuse that, or put a default system turn in front of it. We take the difference
    of the renderings with and without the turn: it is the same text wherever the authors' way works.
    """
    prompt = opened(row, tokenizer, where, empty_system=empty_system)
    answers = [_answer(row, side, where) for side in ("chosen", "rejected")]
    hint = "; set pairs.empty_system=false if it knows no system turn" if empty_system else ""
    before, *after = (render(turns, tokenizer, where, hint) for turns in (prompt, *([*prompt, answer] for answer in answers)))
    if not all(text.startswith(before) for text in after):
        raise UserError(f"{where}: the model's chat template renders the prompt differently once an answer follows; change the template")
    for text, answer in zip(after, answers, strict=True):
        check_turns([*prompt, answer], text, tokenizer, where)
    return before, after[0][len(before) :], after[1][len(before) :]


def opened(row: Row, tokenizer: PreTrainedTokenizerBase, where: str = "", *, empty_system: bool) -> list[Message]:
    """The prompt's messages, through ``with_system`` if ``empty_system``."""
    prompt = messages_of(row["prompt"], f"{where}: 'prompt'")
    return with_system(prompt, tokenizer) if empty_system else prompt


def _answer(row: Row, side: str, where: str) -> Message:
    answers = messages_of(row[side], f"{where}: {side!r}") if row[side] else []
    if not answers or not answers[-1]["content"].strip():
        raise UserError(f"{where}: {side!r} is an empty answer; remove the row")
    if len(answers) > 1:
        raise UserError(f"{where}: {side!r} has {len(answers)} messages; expected the answer alone, as stages.pairs writes it")
    return answers[0]


def render(messages: list[Message], tokenizer: PreTrainedTokenizerBase, where: str, hint: str = "") -> str:
    """The text of a conversation under the tokenizer's chat template; UserError where the template refuses it."""
    return str(_applied(messages, tokenizer, where, hint, tokenize=False))


def _applied(messages: list[Message], tokenizer: PreTrainedTokenizerBase, where: str, hint: str = "", **options: bool) -> Any:
    """The chat template applied to a conversation. The template is the user's, so every exception in it becomes a UserError."""
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        raise UserError(f"{where}: the model's chat template refuses this conversation: {error}{hint}") from None
    except Exception as error:
        template = tokenizer.chat_template
        reason = f"fails on this conversation: {type(error).__name__}: {error}"
        if not isinstance(template, str | dict):
            reason = f"must be a text; it is {template!r:.80}"
        raise UserError(f"{where}: the model's chat template {reason}; correct the template") from None


def check_conversation(messages: list[Message], tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """UserError if the chat template refuses a conversation or leaves out one of its turns."""
    check_turns(messages, render(messages, tokenizer, where), tokenizer, where)


def check_turns(messages: list[Message], text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """UserError where ``text``, the rendering of ``messages``, lacks a turn.

    Templates strip turns. Some drop an assistant's thoughts, so only what follows ``</think>`` is required.
    """
    gone = left_out(tokenizer, str(tokenizer.chat_template), tuple(message["role"] for message in messages))
    for number, message in enumerate(messages):
        said = message["content"].rpartition("</think>")[2] if message["role"] == "assistant" else message["content"]
        if said.strip() and (number in gone or not _holds(text, said.strip())):
            raise UserError(
                f"{where}: the model's chat template leaves out the text of turn {number} (from 0), the {message['role']}'s"
                f" {said.strip()[:40]!r}; change the template, or remove the row"
            )


@lru_cache(maxsize=256)
def left_out(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...]) -> frozenset[int]:
    """The turns (from 0) that the chat template leaves out of every conversation with these roles.

    Each turn gets a different text here, because a row's short text could also stand in another turn.

    template: the tokenizer's template, as a key of the cache
    """
    texts = [f"(the text of turn {number})" for number in range(len(roles))]
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template that reads the texts
        return frozenset()
    return frozenset(number for number, text in enumerate(texts) if text not in rendered)


def _holds(rendered: str, text: str) -> bool:
    """Whether a text stands in a rendering: as it is, or as JSON (Llama 3.1 renders a tool's text so)."""
    return text in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered


def with_system(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> list[Message]:
    """The messages, with an empty system turn in front if they have none and the template knows system turns.

    As the authors' ``auto_insert_empty_system_msg``.
    """
    template = str(tokenizer.chat_template)
    if messages[0]["role"] == "system" or not ("system" in template or "<|im_start|>" in template):
        return messages
    return [{"role": "system", "content": ""}, *messages]


def question_tokens(
    messages: list[Message], tokenizer: PreTrainedTokenizerBase, *, empty_system: bool, where: str | None = None
) -> list[int]:
    """Token ids of a conversation that the model shall answer; BOS in front, as in ``whole_pair``.

    where: the row of a data set; if it is given, a turn that the template leaves out is a UserError
    """
    asked = with_system(messages, tokenizer) if empty_system else messages
    if where is not None:
        check_conversation(asked, tokenizer, where)
    encoded = _applied(asked, tokenizer, where or "a prompt", add_generation_prompt=True, return_dict=True)
    return _begun(encoded["input_ids"], tokenizer)


def truncate(
    prompt: list[int], chosen: list[int], rejected: list[int], *, max_length: int, max_prompt_length: int
) -> tuple[list[int], list[int], list[int]]:
    """The authors' rule, with its traps: one long answer cuts both sides, and BOS and EOS may be cut.

    If the prompt and the longer answer exceed ``max_length``, the prompt keeps its last ``max_prompt_length`` tokens. If they still do,
    each answer keeps its first ``max_length - max_prompt_length`` tokens, even where a shorter prompt would leave room for more.
    """
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer > max_length:
        prompt = prompt[-max_prompt_length:]
    if len(prompt) + longer > max_length:
        left = max(0, max_length - max_prompt_length)
        chosen, rejected = chosen[:left], rejected[:left]
    return prompt, chosen, rejected


def mismatched(pairs: Sequence[Pair], *, max_length: int, max_prompt_length: int) -> list[Pair]:
    """Each row's prompt with the next row's answers (the last row's with the first's), for KTO's KL. Cut as pairs are, never to nothing.

    KTO's authors and TRL draw other answers from the micro-batch. Here they depend on the row alone, so that the reference's sums are
    computed once.
    """
    rows = []
    for pair, other in zip(pairs, [*pairs[1:], *pairs[:1]], strict=True):
        sides = pair["prompt"], other["chosen"], other["rejected"]
        prompt, chosen, rejected = truncate(*sides, max_length=max_length, max_prompt_length=max_prompt_length)
        rows.append({"prompt": prompt, "chosen": chosen or other["chosen"][:1], "rejected": rejected or other["rejected"][:1]})
    return rows


def tokens_sha256(rows: Iterable[Pair]) -> str:
    """The sha256 of all token ids in order. It identifies the pairs to which the reference's log-probabilities belong."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row["prompt"], row["chosen"], row["rejected"])).encode())
    return digest.hexdigest()
