"""stages/preference/data.py: what an answer is, and how it is cut, as in the authors' run_simpo.py and tokenize_row."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
from jinja2 import TemplateError

from stages.lib.errors import UserError
from stages.preference.data import mismatched, render_pair, tokenize_rows, tokens_sha256, truncate, whole_pair
from stages.preference.packing import collate

Q, A, B = "w1 w2", "w3 w4 w5", "w6"
ROW = {
    "prompt": [{"role": "user", "content": Q}],
    "chosen": [{"role": "assistant", "content": A}],
    "rejected": [{"role": "assistant", "content": B}],
}
LONG = {"max_length": 200, "max_prompt_length": 100}
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"

# Template, EOS, the prompt's text and the chosen answer's tokens as the authors count them, EOS included where it had to be added.
STYLES: dict[str, tuple[str, str, str, str]] = {
    "llama3": (tiny.LLAMA3, "<|eot_id|>", f"<s>{HEADER.format('user')}{Q}<|eot_id|>", f"{HEADER.format('assistant')}{A}<|eot_id|>"),
    "llama3, another eos": (
        tiny.LLAMA3,
        "</s>",
        f"<s>{HEADER.format('user')}{Q}<|eot_id|>",
        f"{HEADER.format('assistant')}{A}<|eot_id|></s>",
    ),
    "zephyr": (tiny.ZEPHYR, "</s>", f"<|system|>\n</s>\n<|user|>\n{Q}</s>\n", f"<|assistant|>\n{A}</s>\n</s>"),
    "mistral": (tiny.MISTRAL, "</s>", f"[INST] {Q} [/INST]", f" {A} </s>"),
    "gemma": (tiny.GEMMA, "</s>", f"<s><start_of_turn>user\n{Q}<end_of_turn>\n", f"<start_of_turn>model\n{A}<end_of_turn>\n</s>"),
}


@pytest.mark.parametrize("style", STYLES)
def test_prompt_and_answer_are_the_authors(style: str) -> None:
    """render_pair, whole_pair: header and end-of-turn belong to the answer; BOS in front and EOS at the end, neither of them twice."""
    template, eos, prompt, answer = STYLES[style]
    tokenizer = tiny.tokenizer(template, eos=eos)
    before, chosen, _ = render_pair(ROW, tokenizer, "row 1", empty_system=style == "zephyr")
    assert before == prompt
    assert answer.removesuffix(eos) in (chosen, chosen.removesuffix(eos))
    tokens = whole_pair(ROW, tokenizer, "row 1", empty_system=style == "zephyr")
    ids = tokenizer(prompt.removeprefix("<s>"), add_special_tokens=False)["input_ids"]
    assert tokens["prompt"] == [tokenizer.bos_token_id, *ids]
    assert tokens["chosen"] == tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in tokens["prompt"] + tokens["chosen"] + tokens["rejected"]


@pytest.mark.parametrize("style", ["llama3", "zephyr", "mistral"])
def test_the_difference_of_renderings_is_the_authors_lone_turn(style: str) -> None:
    """render_pair: where the template takes an assistant's turn by itself, its text without BOS is ours."""
    tokenizer = tiny.tokenizer(STYLES[style][0], eos=STYLES[style][1])
    alone = tokenizer.apply_chat_template(ROW["chosen"], tokenize=False).removeprefix(tokenizer.bos_token)
    assert render_pair(ROW, tokenizer, "row 1", empty_system=False)[1] == alone


def test_templates_that_refuse_or_pad_a_lone_turn_are_no_obstacle() -> None:
    """render_pair: a template that refuses a lone answer, or opens it with a default system turn, gives the same answer as any other."""
    gemma = tiny.tokenizer(tiny.GEMMA)
    with pytest.raises(TemplateError):
        gemma.apply_chat_template(ROW["chosen"], tokenize=False)
    assert render_pair(ROW, gemma, "row 1", empty_system=False)[1] == f"<start_of_turn>model\n{A}<end_of_turn>\n"
    default = "{% if messages[0]['role'] != 'system' %}{{ '<|system|>w9' + eos_token }}{% endif %}" + tiny.ZEPHYR
    assert render_pair(ROW, tiny.tokenizer(default), "row 1", empty_system=False)[1] == f"<|assistant|>\n{A}</s>\n"


def test_an_empty_system_turn_is_a_parameter() -> None:
    """render_pair: inserted where the template mentions system turns and the prompt has none; a refusal says what to set."""
    zephyr, llama3 = tiny.tokenizer(tiny.ZEPHYR), tiny.tokenizer(tiny.LLAMA3)
    assert render_pair(ROW, zephyr, "row 1", empty_system=True)[0].startswith("<|system|>\n</s>")
    assert render_pair(ROW, zephyr, "row 1", empty_system=False)[0].startswith("<|user|>")
    assert "system" not in render_pair(ROW, llama3, "row 1", empty_system=True)[0]
    spoken = ROW | {"prompt": [{"role": "system", "content": "w7"}, *ROW["prompt"]]}
    assert render_pair(spoken, zephyr, "row 1", empty_system=True)[0].startswith("<|system|>\nw7</s>\n<|user|>")
    with pytest.raises(UserError, match=r"data, line 4: .*System role not supported.*pairs.empty_system=false"):
        render_pair(ROW, tiny.tokenizer(tiny.GEMMA), "data, line 4", empty_system=True)


def test_a_template_that_rewrites_the_prompt_is_an_error() -> None:
    """render_pair: no answer can be told apart where the prompt's text changes once it has one."""
    closing = tiny.tokenizer(tiny.LLAMA3 + "{{ eos_token }}")
    with pytest.raises(UserError, match="row 1: the model's chat template renders the prompt differently"):
        render_pair(ROW, closing, "row 1", empty_system=False)


class Merging:
    """A tokenizer that merges the prompt's last letter with the answer's first where both are "a", as byte pairs may."""

    bos_token_id, eos_token_id, chat_template = 1, 2, ""

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool) -> str:
        return "".join(message["content"] for message in messages)

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[{"A": 300}.get(letter, ord(letter)) for letter in text.replace("aa", "A")] for text in texts]}


def test_the_prompt_is_the_same_in_both_branches() -> None:
    """whole_pair: a token merged across the border belongs to the answer, in the other branch too."""
    row = {"prompt": [{"role": "user", "content": "xya"}], "chosen": [{"role": "assistant", "content": "ab"}]}
    row["rejected"] = [{"role": "assistant", "content": "cd"}]
    tokens = whole_pair(row, Merging(), "row 1", empty_system=False)  # type: ignore[arg-type]
    x, y, a, b, c, d = (ord(letter) for letter in "xyabcd")
    assert tokens == {"prompt": [1, x, y], "chosen": [300, b, 2], "rejected": [a, c, d, 2]}


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "max_length", "max_prompt", "trained", "ends", "keeps_bos"),
    [
        (100, 600, 2000, 2048, 1800, (248, 248), (False, False), True),
        (100, 1500, 2000, 2048, 1800, (248, 248), (False, False), True),
        (100, 400, 1000, 1024, 512, (401, 512), (True, False), True),
        (1900, 300, 300, 2048, 1800, (248, 248), (False, False), False),
        (100, 300, 1300, 1024, 1024, (0, 0), (False, False), True),
        (1900, 100, 200, 2048, 1800, (101, 201), (True, True), False),
        (100, 300, 1300, 2048, 1800, (301, 1301), (True, True), True),
    ],
)
def test_truncation_is_the_authors(
    prompt: int, chosen: int, rejected: int, max_length: int, max_prompt: int, trained: tuple[int, int], ends: Any, keeps_bos: bool
) -> None:
    """truncate: the cases that were run through the authors' tokenize_row; lengths without BOS (1) and EOS (2)."""
    sides = [1, *[7] * prompt], [*[8] * chosen, 2], [*[9] * rejected, 2]
    cut, *answers = truncate(*sides, max_length=max_length, max_prompt_length=max_prompt)
    assert tuple(map(len, answers)) == trained
    assert tuple(answer[-1:] == [2] for answer in answers) == ends
    assert (cut[0] == 1) == keeps_bos and cut[-1] == 7
    assert len(cut) == (1 + prompt if keeps_bos else max_prompt)


def test_an_empty_answer_names_its_row() -> None:
    """tokenize_rows: answers that truncation leaves empty (the authors' NaN), and blank ones, are errors with file and line."""
    tokenizer = tiny.tokenizer()
    # The short pair's 13 tokens fit; the longer one is cut, and the two limits leave its answers no room.
    short = {side: [{"role": ROW[side][0]["role"], "content": "w1"}] for side in ROW}
    with pytest.raises(UserError, match=r"train.jsonl, line 2: nothing is left of the answers.*16 - 16 tokens"):
        tokenize_rows([short, ROW], tokenizer, "train.jsonl", max_length=16, max_prompt_length=16, empty_system=False)
    blank = ROW | {"rejected": [{"role": "assistant", "content": " \n"}]}
    with pytest.raises(UserError, match="train.jsonl, line 2: 'rejected' is an empty answer"):
        tokenize_rows([ROW, blank], tokenizer, "train.jsonl", empty_system=False, **LONG)


def test_a_batch_trains_the_answers_and_nothing_else() -> None:
    """packing.collate: targets are the answers' tokens in order, each predicted from the position before it, which for the first of both
    answers is the prompt's last; a rejected answer goes on where the prompt ends, and reads nothing of the chosen one."""
    rows = [
        {"prompt": [1, 10, 11], "chosen": [12, 13, 2], "rejected": [14, 2]},
        {"prompt": [1, 20], "chosen": [21, 2], "rejected": [22, 23, 24, 2]},
    ]
    batch = collate(rows, "shared")
    assert batch["input_ids"].tolist() == [[1, 10, 11, 12, 13, 14, 1, 20, 21, 22, 23, 24]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 2, 3, 4]]
    assert batch["source"].tolist() == [2, 3, 4, 7, 8, 2, 5, 7, 9, 10, 11]
    plan = batch["shared_prompt"]
    assert [part.tolist() for part in plan["keys"].tensor_split(plan["key_ends"][1:-1].long())] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 5],
        [6, 7, 8],
        [6, 7, 9, 10, 11],
    ]
    assert plan["query_ends"].tolist() == [0, 5, 6, 9, 12]
    assert batch["target"].tolist() == [12, 13, 2, 21, 2, 14, 2, 22, 23, 24, 2]
    assert batch["sequence"].tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert batch["length"].tolist() == [3, 2, 2, 4]


def test_the_token_hash_sees_every_border() -> None:
    """tokens_sha256: the same ids with another border between prompt and answer, or in another order of rows, hash differently."""
    one, two = {"prompt": [1, 2], "chosen": [3], "rejected": [4]}, {"prompt": [1], "chosen": [2, 3], "rejected": [4]}
    assert len({tokens_sha256(rows) for rows in ([one], [two], [one, two], [two, one])}) == 4
    assert tokens_sha256([dict(one)]) == tokens_sha256([one])


def test_mismatched_pairs_are_each_prompt_with_the_next_rows_answers() -> None:
    """data.mismatched: the last row with the first's; cut where they are too long, an answer to its first token at least."""
    rows = [{"prompt": [n] * 4, "chosen": [10 + n] * (n + 1), "rejected": [20 + n] * 2} for n in range(3)]
    others = mismatched(rows, max_length=100, max_prompt_length=100)
    assert [row["prompt"] for row in others] == [row["prompt"] for row in rows]
    assert [(row["chosen"], row["rejected"]) for row in others] == [(rows[n]["chosen"], rows[n]["rejected"]) for n in (1, 2, 0)]
    cut = mismatched(rows, max_length=5, max_prompt_length=3)
    assert [len(cut[1][side]) for side in ("prompt", "chosen", "rejected")] == [3, 2, 2]
    assert [cut[1][side] for side in ("chosen", "rejected")] == [[12, 12], [22, 22]]
    nothing_left = mismatched(rows, max_length=4, max_prompt_length=4)
    assert [row["chosen"] for row in nothing_left] == [[11], [12], [10]]
