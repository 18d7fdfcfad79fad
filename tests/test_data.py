"""Data as they really look, from the file to the tokens: stages/lib/records.py, pairs.py, sft.py, reward.py, generate.py, annotate.py,
pretrain.py and preference/data.py."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
import tiny
from omegaconf import OmegaConf

from stages import annotate, generate, loglik, pairs, pretrain, reference, reward, sft, train
from stages.lib import files, models
from stages.lib.errors import UserError
from stages.lib.records import messages_of, read_records
from stages.preference.data import question_tokens, render_pair, tokenize_rows

Row = dict[str, Any]
LENGTHS = {"max_length": 200, "max_prompt_length": 100, "empty_system": False}
# As Qwen3's and DeepSeek's templates treat an assistant's thoughts: the turn is what follows them.
WITHOUT_THOUGHTS = tiny.LLAMA3.replace("message['content'] | trim", "message['content'].split('</think>')[-1] | trim")
IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


def say(role: str, content: Any = "Q", **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def user(content: Any = "w1 w2") -> Row:
    return say("user", content)


def assistant(content: Any = "w3") -> Row:
    return say("assistant", content)


def preference(chosen: Any = "w3", rejected: Any = "w4", prompt: Any = None, scores: tuple[Any, Any] = (2.0, 1.0), **more: Any) -> Row:
    """A row of UltraFeedback binarized."""
    turns = [user()] if prompt is None else prompt
    sides = {"chosen": [*turns, assistant(chosen)], "rejected": [*turns, assistant(rejected)]}
    return {"prompt": "w1 w2", "prompt_id": "1", **sides, "score_chosen": scores[0], "score_rejected": scores[1], **more}


def scored(answers: Any = ("w3", "w4"), scores: Any = (1.0, 0.0), **more: Any) -> Row:
    answers, scores = (list(value) if isinstance(value, tuple) else value for value in (answers, scores))
    return {"prompt_id": "1", "prompt": "w1 w2", "all_generated_responses": answers, "all_rm_scores": scores, **more}


def pair(chosen: str = "w3", rejected: str = "w4", prompt: list[Row] | None = None) -> Row:
    """A row as stages/pairs.py writes it."""
    return {"prompt": prompt or [user()], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}


def data(path: str | Path, split: str | None = None) -> Any:
    return OmegaConf.create({"data": str(path), "revision": None, "split": split})


def stage(module: Any, monkeypatch: pytest.MonkeyPatch, folder: str | Path, runtime: str = "", **values: Any) -> dict[str, Any]:
    """Run a stage as its command line does; its manifest."""
    files.write_text(Path(folder) / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))
    monkeypatch.setattr("sys.argv", [module.__name__, "--config", f"{folder}/config.yaml", "--runtime", *runtime.split()])
    module.main()
    return files.read_manifest(folder)


@pytest.fixture
def make_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run stages.pairs on rows, or on a file's text, below the working directory; its manifest."""
    monkeypatch.chdir(tmp_path)

    def run(rows: list[Row], heldout: int | None = 1, split: str | None = None, path: str = "rows.jsonl") -> dict[str, Any]:
        if rows:
            files.write_jsonl(path, rows)
        values = {"seed": 42, "train": data(path, "train" if split else None), "heldout": heldout, "heldout_split": split}
        return stage(pairs, monkeypatch, "data", stage="pairs", **values)

    return run


def kept(split: str = "train") -> list[Row]:
    return files.read_rows(f"data/{split}.jsonl")


# -- messages -------------------------------------------------------------------------------------------------------------

NO_MESSAGES: dict[str, tuple[Any, str]] = {
    "content null": ([user(), assistant(None)], "message 1 .*its content is null"),
    "content missing": ([user(), {"role": "assistant"}], "message 1 .* has no 'content', it has role"),
    "content a number": ([user(), assistant(7)], "its content is 7; expected a text or a list"),
    "content an object": ([user(), assistant({"text": "a"})], r"its content is \{"),
    "an image": ([user([{"type": "text", "text": "a"}, IMAGE]), assistant()], "message 0 .*its content is .*image_url"),
    "no parts": ([user(), assistant([])], r"its content is \[\]"),
    "a part without text": ([user(), assistant([{"type": "text", "text": None}])], "its content is"),
    "role missing": ([{"content": "a"}, assistant()], "message 0 .* has no 'role', it has content"),
    "role unknown": ([say("human", "a"), assistant()], 'message 0 .*its role is "human"; expected one of system, .*assistant'),
    "role null": ([say(None, "a"), assistant()], "its role is null"),  # type: ignore[arg-type]
    "role a list": ([say(["user"], "a"), assistant()], "its role is"),  # type: ignore[arg-type]
    "a turn that is null": ([None, assistant()], "message 0 .* is null"),
    "a turn that is a text": (["Q", assistant()], 'message 0 .* is "Q"'),
    "no list": ("Q", "must be a list of messages"),
    "nothing": ([], "must be a list of messages"),
    "null": (None, "must be a list of messages"),
    "tool calls": ([user(), say("assistant", None, tool_calls=[{"id": "1"}]), say("tool", "21"), assistant()], "message 1 .*'tool_calls'"),
    "ShareGPT's": ([{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "has no 'role', it has from, value; rename"),
}


@pytest.mark.parametrize("kind", NO_MESSAGES)
def test_messages_that_are_none_are_named_by_every_stage(kind: str, make_pairs: Any) -> None:
    """records.messages_of, through each of the stages that read it: file, line and message, and no traceback."""
    messages, reason = NO_MESSAGES[kind]
    tokenizer, good = tiny.tokenizer(), preference()
    other = {key: value for key, value in good.items() if key not in ("chosen", "rejected")}
    turns = {"chosen": messages, "rejected": messages}
    with pytest.raises(UserError, match=f"^rows.jsonl, line 2: 'chosen'.*{reason}"):
        make_pairs([good, {**other, **turns}])
    with pytest.raises(UserError, match=f"^f, line 2: 'chosen'.*{reason}"):
        reward.conversations([good, {**other, **turns}], "f", tokenizer)
    with pytest.raises(UserError, match=f"^f, line 2: 'messages'.*{reason}"):
        sft.conversations([{"messages": [user(), assistant()]}, {"messages": messages}], "f", tokenizer)
    with pytest.raises(UserError, match="^f, line 2: "):
        generate.distinct_prompts([good, {**other, "prompt": messages if messages != "Q" else 7, "chosen": None}], "f")
    files.write_jsonl("generations.jsonl", [{"prompt_id": "1", "prompt": messages, "response": "w1"}])
    with pytest.raises(UserError, match=f"^generations.jsonl, line 1: 'prompt'.*{reason}"):
        annotate.read_answers("generations.jsonl")
    with pytest.raises(UserError, match=f"^f, line 1: 'prompt'.*{reason}"):
        tokenize_rows([{**pair(), "prompt": messages}], tokenizer, "f", **LENGTHS)


def test_parts_are_joined_and_other_keys_dropped(make_pairs: Any) -> None:
    """records.messages_of: a list of text parts is the text, in every turn; an id, or tool_calls that are null, are no part of it."""
    parts = [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}]
    assert messages_of([say("user", parts, id=1, tool_calls=None)], "f") == [say("user", "w1 w2")]
    rows = [preference([{"type": "text", "text": f"w{n}"}], "w9", [user(parts), assistant(f"w{n}"), user("w3")]) for n in range(3)]
    make_pairs(rows)
    row = kept()[0]
    assert row["prompt"][0] == user("w1 w2")
    assert row["chosen"][0]["content"] in ("w0", "w1", "w2")
    (answer,) = sft.conversations([{"messages": [user(parts), assistant(parts)]}], "f", tiny.tokenizer())
    assert answer["messages"] == [user("w1 w2"), assistant("w1 w2")]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("answer", [None, 3, ["w1"], [IMAGE], "missing"])
def test_an_answer_that_is_no_text_is_named(side: str, answer: Any, make_pairs: Any) -> None:
    row = preference()
    row[side][-1] = {"role": "assistant"} if answer == "missing" else assistant(answer)
    with pytest.raises(UserError, match=f"^rows.jsonl, line 3: '{side}', message 1 "):
        make_pairs([preference(), preference("w5"), row])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (scored(["w1", None]), r"'all_generated_responses'\[1\] is null"),
        (scored(["w1", 7]), r"'all_generated_responses'\[1\] is 7"),
        (scored(["w1", [IMAGE]]), r"'all_generated_responses'\[1\] is \["),
        (scored("ab"), "need as many"),
        (scored(None), "need as many"),
        (scored(scores=None), "'all_rm_scores', all numbers; it has None"),
        (scored(scores=["1", 0.0]), "'all_rm_scores', all numbers"),
        (scored(scores=[True, 0.0]), "'all_rm_scores', all numbers"),
        (scored(scores=[10**400, 0.0]), "'all_rm_scores', all numbers"),
        (scored(prompt=None), "'prompt' must be a text or a list of messages"),
        (scored(prompt=[user(None)]), "'prompt', message 0 .*its content is null"),
        (scored(messages=[{"content": "Q"}]), "'messages', message 0 .* has no 'role'"),
        (scored(messages="Q"), "'messages' must be a list of messages"),
        (preference(scores=(None, 1.0)), "'score_chosen' is null; expected a finite number"),
        (preference(scores=(2.0, float("nan"))), "'score_rejected' is NaN; expected a finite number"),
        (preference(scores=("n/a", 1.0)), "'score_chosen' is \"n/a\"; expected a finite number"),
        ({k: v for k, v in preference(all_rm_scores=[1.0, "x"]).items() if not k.startswith("score")}, "'all_rm_scores', all numbers"),
    ],
)
def test_a_value_of_another_type_is_named(row: Row, reason: str, make_pairs: Any) -> None:
    """stages.pairs: scores and answers that are none, with file, line and key."""
    with pytest.raises(UserError, match=f"^rows.jsonl, line 2: .*{reason}"):
        make_pairs([preference(), row])


def test_scored_answers_may_be_parts_and_their_prompt_messages() -> None:
    row = scored([[{"type": "text", "text": "w3"}], "w4"], prompt=[say("system", "w0"), user()])
    assert pairs.read_pair(row, "f, line 1")["chosen"] == [assistant("w3")]
    assert pairs.read_pair(row, "f, line 1")["prompt"] == [say("system", "w0"), user()]


def test_answers_may_stand_apart_from_a_prompt_of_messages() -> None:
    """records.preference_of: TRL's conversational format, for pairs, reward and generate; what is no such row is told the truth."""
    row = {"prompt_id": "1", "prompt": [user()], "chosen": [assistant("w3")], "rejected": [assistant("w4")], "score_chosen": 2}
    whole = preference(scores=(2, 1.0))
    read = pairs.split_turns({**row, "score_rejected": 1.0}, "f, line 1")
    assert read == pairs.split_turns(whole, "f, line 1")
    assert reward.conversations([row], "f", tiny.tokenizer()) == reward.conversations([whole], "f", tiny.tokenizer())
    assert generate.distinct_prompts([row], "f") == generate.distinct_prompts([whole], "f")
    for change, reason in (
        ({"prompt": "w1"}, "'chosen' has the answer alone: .* in 'prompt', which is \"w1\""),
        ({"prompt": []}, r"'prompt' must be a list of messages .*; it is \[\]"),
        ({"chosen": [assistant(), user(), assistant()]}, "'chosen' goes on after 'prompt' with 3 messages"),
        ({"chosen": [user()]}, "'chosen' must be a list of messages that ends with the assistant's; it ends with 'user'"),
        ({"rejected": None}, "'rejected' must be a list"),
    ):
        with pytest.raises(UserError, match=f"^f, line 1: {reason}"):
            pairs.split_turns({**row, "score_rejected": 1.0, **change}, "f, line 1")


def test_demonstrations_and_texts_of_another_schema_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.sft, stages.pretrain: the sentence says what the row has and what it needs, before a model is loaded."""
    monkeypatch.chdir(tmp_path)
    tiny.tokenizer().save_pretrained("model")
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("loaded"))
    shared = {"stage": "sft", "seed": 1, "model": "./model", "revision": None, "data": data("rows.jsonl")}
    for row, reason in (
        ({"conversations": [{"from": "human", "value": "Q"}]}, "'messages', .* is missing; the row has conversations; ShareGPT's"),
        ({"prompt": "Q", "completion": "A"}, "'messages', .* is missing; the row has completion, prompt"),
        ({"messages": [user(), assistant(None)]}, "'messages', message 1 .*its content is null"),
    ):
        files.write_jsonl("rows.jsonl", [{"messages": [user(), assistant()]}, row])
        with pytest.raises(UserError, match=f"^rows.jsonl, line 2: {reason}"):
            stage(sft, monkeypatch, "sft", "micro_batch=4", **shared)
    for row, reason in (({"content": "w1"}, "'text' is missing; the row has content"), ({"text": None}, "'text' is null")):
        with pytest.raises(UserError, match=f"^f, line 2: {reason}"):
            pretrain.texts([{"text": "w1"}, row], "f")


# -- what the chat template makes of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["21", "w1"])  # the second stands in another turn
def test_a_turn_that_the_template_leaves_out_is_refused(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """preference/data.py:check_turns, by every stage that renders a conversation: Zephyr's template has no tool's turn, Llama 3's has."""
    monkeypatch.chdir(tmp_path)
    turns = [user("w1 w2"), assistant("w5"), say("tool", said), assistant("w6"), user("w7")]
    zephyr, llama3 = tiny.tokenizer(tiny.ZEPHYR), tiny.tokenizer()
    gone = f"line 1: the model's chat template leaves out the text of turn 2 .*the tool's '{said}'"
    with pytest.raises(UserError, match=f"^f, {gone}"):
        tokenize_rows([pair(prompt=turns)], zephyr, "f", **LENGTHS)
    with pytest.raises(UserError, match=f"^f, {gone}"):
        sft.conversations([{"messages": [*turns, assistant()]}], "f", zephyr)
    with pytest.raises(UserError, match=f"^f, {gone}"):
        reward.conversations([preference(prompt=turns)], "f", zephyr)
    with pytest.raises(UserError, match=f"^f, {gone}"):
        question_tokens(turns, zephyr, empty_system=False, where="f, line 1")
    zephyr.save_pretrained("model")
    row = {"prompt_id": "1", "prompt": turns, "response": "w3"}
    files.write_jsonl("rows.jsonl", [row])
    monkeypatch.setattr(annotate, "load_reward_model", lambda *_: tiny.llama())
    shared = {"stage": "annotate", "model": "./model", "revision": None, "max_length": 64}
    with pytest.raises(UserError, match=f"^rows.jsonl, {gone}"):
        stage(annotate, monkeypatch, "annotate", generations="rows.jsonl", rater=None, **shared)
    files.write_jsonl("rows.jsonl", [{"prompt_id": "1", "prompt": turns}])
    monkeypatch.setattr(generate, "start_engine", lambda *_: pytest.fail("started"))
    with pytest.raises(UserError, match=f"^rows.jsonl, {gone}"):
        stage(generate, monkeypatch, "generate", prompts=data("rows.jsonl"), n=1, max_tokens=2, seed=1, **shared)

    assert tokenize_rows([pair(prompt=turns)], llama3, "f", **LENGTHS).pairs
    assert sft.conversations([{"messages": [*turns, assistant()]}], "f", llama3)


def test_templates_may_strip_merge_and_drop_thoughts() -> None:
    """check_turns: a blank turn, a stripped one, a system turn in the user's, a tool's turn as JSON, what precedes </think>, and the
    authors' empty system turn are no loss."""
    padded = pair(" w3\n", "w4 ", [say("system", " w0 "), user("\n w1"), assistant("<think>w8</think>\nw5"), user("w2")])
    for template in (tiny.LLAMA3, tiny.ZEPHYR, tiny.MISTRAL, WITHOUT_THOUGHTS):
        assert render_pair(padded, tiny.tokenizer(template), "f, line 1", empty_system=False)
    assert render_pair(pair(prompt=[say("system", ""), user()]), tiny.tokenizer(), "f, line 1", empty_system=False)
    as_json = tiny.LLAMA3.replace("message['content'] | trim", "(message['content'] | tojson)")
    assert render_pair(pair(prompt=[user(), say("tool", 'w1\n"w2"')]), tiny.tokenizer(as_json), "f, line 1", empty_system=False)
    without_system = tiny.ZEPHYR.replace("{{ '<|system|>\n' + message['content'] + eos_token }}", "")
    assert render_pair(pair(), tiny.tokenizer(without_system), "f, line 1", empty_system=True)
    with pytest.raises(UserError, match="leaves out the text of turn 0 .*the system's 'w0'"):
        render_pair(padded, tiny.tokenizer(without_system), "f, line 1", empty_system=True)
    shortened = tiny.LLAMA3.replace("message['content'] | trim", "message['content'][:30]")
    with pytest.raises(UserError, match="f, line 1: .* leaves out the text of turn 1 .*the assistant's"):
        render_pair(pair("w3 " * 20), tiny.tokenizer(shortened), "f, line 1", empty_system=False)


# -- pairs that say nothing ---------------------------------------------------------------------------------------------------


def test_answers_that_differ_in_other_keys_alone_are_identical(make_pairs: Any) -> None:
    """stages.pairs: messages are compared by role and content, those of the prompts too."""
    same = preference()
    for side, number in (("chosen", 1), ("rejected", 2)):
        same[side] = [say("user", "w1 w2", id=number), say("assistant", "w3", id=number)]
    other = preference("w5", "w6", [user("w7")])
    other["chosen"][0] = say("user", "w7", created="today")
    made = make_pairs([same, other, preference("w8", "w9")])
    assert made["pairs"] == {"read": 3, "dropped_identical": 1, "dropped_tied": 0, "dropped_empty": 0, "train": 1, "heldout": 1}
    assert all(set(message) == {"role", "content"} for row in kept() + kept("heldout") for message in row["prompt"] + row["chosen"])


ROWS = [
    pair("w1", "w2"),
    pair("<think>w1</think>w2", "<think>w3</think>w2"),  # identical after the template
    pair("w1  other", "w1  another"),  # after the tokenizer, which knows neither word
    pair("w1 " * 150 + "w2", "w1 " * 150 + "w3"),  # after truncation
    pair("<think>w1</think>", "w2"),  # empty after the template
    pair("w5", "<think>w1</think> \n"),
    pair("w3", "w4", [user("w9")]),
]


def test_answers_that_differ_in_the_data_and_not_in_their_tokens_are_counted() -> None:
    """preference/data.py:tokenize_rows: identical or empty after template, tokenizer or truncation."""
    found = tokenize_rows(ROWS, tiny.tokenizer(WITHOUT_THOUGHTS), "f", **LENGTHS)
    assert found.rows == [0, 6]
    assert found.dropped == {"empty": 2, "identical": 2, "identical_when_cut": 1}
    assert found.pairs == tokenize_rows([ROWS[0], ROWS[6]], tiny.tokenizer(), "f", **LENGTHS).pairs
    whole = tokenize_rows(ROWS, tiny.tokenizer(), "f", **LENGTHS)  # this template keeps the thoughts, which the tokenizer does not know
    assert whole.rows == [0, 4, 5, 6]


@pytest.mark.slow
def test_reference_train_and_loglik_leave_out_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three stages say in manifest and log what they left out; loglik's ids are the rows of the file."""
    monkeypatch.chdir(tmp_path)
    tiny.llama().save_pretrained("results/tiny/sft/model")
    tiny.tokenizer(WITHOUT_THOUGHTS).save_pretrained("results/tiny/sft/model")
    files.write_jsonl("results/tiny/data/train.jsonl", ROWS)
    files.write_jsonl("results/tiny/data/heldout.jsonl", tiny.pairs(3))
    for folder in ("sft", "data"):
        files.write_manifest(Path("results/tiny") / folder, OmegaConf.create({"stage": folder}))
    counts = {
        "train": {"empty": 2, "identical": 2, "identical_when_cut": 1},
        "heldout": {"empty": 0, "identical": 0, "identical_when_cut": 0},
    }
    start = {"model": "results/tiny/sft/model", "revision": None, "chat_template": None}
    shared = {"setting": "tiny", "pairs": "results/tiny/data", **start, **LENGTHS, "precision": "fp32", "run": "dpo", "seed": 1}
    made = stage(reference, monkeypatch, "results/tiny/reference", "token_budget=60", stage="reference", **shared)
    assert made["dropped"] == counts
    assert (
        "reference: tiny: pairs left out because their answers are the same or empty as tokens: {'train': {'empty': 2"
        in capsys.readouterr().out
    )
    method = {"name": "dpo", "objective": "dpo", "mismatched": False, "learning_rate": 1e-3, "epochs": 1, "batch_size": 8}
    method |= {"scheduler": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0, "adam_beta1": 0.9}
    method |= {"adam_beta2": 0.999, "adam_epsilon": 1e-8, "hyperparameters": {"beta": 0.1, "label_smoothing": 0.0}}
    shared["reference"] = "results/tiny/reference"
    made = stage(train, monkeypatch, "results/tiny/runs/dpo", "token_budget=60", stage="train", method=method, **shared)
    assert made["dropped"] == counts
    assert made["heldout_pairs"] == 3
    shared |= {"model": "results/tiny/runs/dpo/model", "start": start, "benchmarks": {}}
    files.write_text("results/tiny/runs/dpo/eval/loglik.yaml", OmegaConf.to_yaml(OmegaConf.create(shared)))
    monkeypatch.setattr("sys.argv", ["loglik", "--config", "results/tiny/runs/dpo/eval/loglik.yaml", "--runtime", "token_budget=60"])
    loglik.main()
    table = pd.read_parquet("results/tiny/runs/dpo/eval/loglik.parquet")
    assert table[table["split"] == "train"]["id"].tolist() == ["0", "0", "6", "6"]
    assert table["reference_logp"].notna().all()


def test_data_of_which_nothing_is_left_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.tokenizer(WITHOUT_THOUGHTS).save_pretrained("model")
    tiny.llama().save_pretrained("model")
    files.write_jsonl("data/train.jsonl", ROWS[1:3])
    files.write_jsonl("data/heldout.jsonl", tiny.pairs(3))
    values = {"setting": "tiny", "model": "./model", "revision": None, "pairs": "data", "precision": "fp32", **LENGTHS}
    with pytest.raises(UserError, match="data/train.jsonl: the answers of every pair are the same or empty once they are tokens"):
        stage(reference, monkeypatch, "reference", "token_budget=60", **values)


def test_reward_leaves_out_pairs_of_the_same_tokens() -> None:
    rows = [preference(), preference("<think>w1</think>w2", "<think>w3</think>w2"), preference("w5", "w5")]
    found, counts = reward.conversations(rows, "f", tiny.tokenizer(WITHOUT_THOUGHTS))
    assert [row["chosen"] for row in found] == [[user(), assistant("w3")]]
    assert counts == {"dropped_empty": 0, "dropped_identical": 2, "dropped_tied": 0, "chosen_scored_lower": 0}


def test_pairs_whose_chosen_answer_scores_lower_are_kept_and_counted(make_pairs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [preference("w5", "w6", [user(f"w{n}")], scores) for n, scores in enumerate([(2, 1), (1, 2), (-1.0, 0.5)])]
    made = make_pairs(rows)
    assert made["chosen_scored_lower"] == 2
    assert made["pairs"]["train"] + made["pairs"]["heldout"] == 3
    assert "pairs: 2 pairs have a chosen answer with a lower score" in capsys.readouterr().out


# -- held-out prompts ---------------------------------------------------------------------------------------------------------


def prompts(rows: list[Row]) -> set[str]:
    return {json.dumps(row["prompt"]) for row in rows}


def test_a_held_out_prompt_is_not_trained_on(make_pairs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """pairs.hold_out: prompts are held out whole, whatever keys and parts their messages are written with, and both numbers are said."""
    rows = []
    for number in range(20):
        text = f"w{number % 5}"
        turn = say("user", [{"type": "text", "text": text}] if number > 9 else text, id=number)
        rows.append(preference(f"w{number}", "w30", [turn]) | {"prompt_id": str(number)})
    made = make_pairs(rows, heldout=5)
    train, heldout = kept(), kept("heldout")
    assert not prompts(train) & prompts(heldout)
    assert (len(train), len(heldout)) == (12, 8)  # two prompts, as one has but four pairs
    assert made["prompts"] == {"train": 3, "heldout": 2, "in_both": 0}
    assert "8 pairs are held out instead of 5" in capsys.readouterr().out
    with pytest.raises(UserError, match="pairs.heldout=17: the 20 pairs of rows.jsonl answer 5 prompts, .* leaves none to train on"):
        make_pairs(rows, heldout=17)


def test_distinct_prompts_are_held_out_as_ever(make_pairs: Any) -> None:
    """pairs.hold_out: the first of the shuffled rows, in their order."""
    rows = [preference(f"w{n}", "w30", [user(f"w{n} w{n}")]) for n in range(20)]
    make_pairs(rows, heldout=7)
    Random("heldout-42").shuffle(rows)
    assert [row["chosen"][0] for row in kept("heldout")] == [row["chosen"][-1] for row in rows[:7]]
    assert [row["chosen"][0] for row in kept()] == [row["chosen"][-1] for row in rows[7:]]


def test_an_overlap_with_a_given_split_is_counted_and_said(
    make_pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [preference(f"w{n}", "w30", [user(f"w{n}")]) for n in range(6)]
    files.write_jsonl("set/train.jsonl", rows[:5])
    files.write_jsonl("set/test.jsonl", rows[3:])
    made = make_pairs([], heldout=None, split="test", path="./set")
    assert made["prompts"] == {"train": 5, "heldout": 3, "in_both": 2}
    assert "pairs: 2 prompts of test are in train too" in capsys.readouterr().out


def test_the_reward_model_s_held_out_prompts_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.reward: the same split; the trainer's two data sets share no prompt."""
    import trl

    monkeypatch.chdir(tmp_path)
    tiny.llama().save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    given: dict[str, Any] = {}

    class Trained(Exception):
        pass

    def trainer(**values: Any) -> None:
        given.update(values)
        raise Trained

    monkeypatch.setattr(trl, "RewardTrainer", trainer)
    files.write_jsonl("rows.jsonl", [preference(f"w{n}", "w30", [user(f"w{n % 5}")]) for n in range(20)])
    training = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "max_length": 64, "scheduler": "cosine", "warmup_ratio": 0.1}
    training |= {"weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "fp32"}
    values = {"stage": "reward", "seed": 3, "model": "./model", "revision": None, "data": data("rows.jsonl"), "training": training}
    with pytest.raises(Trained):
        stage(reward, monkeypatch, "reward", "micro_batch=4", heldout=5, **values)
    sides = [{row["chosen"][0]["content"] for row in given[name]} for name in ("train_dataset", "eval_dataset")]
    assert (len(sides[0]), len(sides[1]), sides[0] & sides[1]) == (3, 2, set())
    with pytest.raises(UserError, match="reward.heldout=17: the 20 pairs of rows.jsonl answer 5 prompts"):
        stage(reward, monkeypatch, "reward", "micro_batch=4", heldout=17, **values)


# -- files ----------------------------------------------------------------------------------------------------------------

THREE = [preference(f"w{n}", "w30", [user(f"w{n}")]) for n in range(3)]
LINES = "\n".join(map(json.dumps, THREE))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", json.dumps(THREE, indent=1).encode()),
        ("rows.json", LINES.encode()),
        ("rows.jsonl", json.dumps(THREE).encode()),
        ("rows.jsonl.gz", gzip.compress(LINES.encode())),
        ("rows.json.gz", gzip.compress(json.dumps(THREE).encode())),
        ("rows.jsonl", gzip.compress(LINES.encode())),
        ("./rows.json", b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode()),
    ],
)
def test_a_file_is_read_by_what_it_holds(name: str, content: bytes, make_pairs: Any) -> None:
    """read_records, through stages.pairs: a list or lines, gzipped or not, whatever the name says."""
    Path(name).write_bytes(content)
    made = make_pairs([], path=name)
    assert (made["pairs"]["read"], list(made["inputs"])) == (3, [str(Path(name))])
    assert read_records(data(name)) == THREE


def test_a_cut_file_and_a_missing_one_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.json", "rows.jsonl.gz", "rows.json.gz"):
        with pytest.raises(UserError, match=f"data {name} does not exist"):
            read_records(data(name))
        whole = gzip.compress(LINES.encode()) if name.endswith("gz") else LINES.encode()
        Path(name).write_bytes(whole[:-20])
        with pytest.raises(UserError, match=f"{name} is cut off"):
            read_records(data(name))


def test_half_a_surrogate_pair_is_read_as_u_fffd(make_pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """files.read_rows, through pairs, sft, generate and annotate: written as UTF-8, and counted in the manifest."""
    monkeypatch.setattr(files, "replaced", {})
    broken = LINES.replace("w30", "a \\ud83d b")
    Path("rows.jsonl").write_text(broken)
    made = make_pairs([])
    assert made["replaced_surrogates"] == {"rows.jsonl": 3}
    assert {row["rejected"][0]["content"] for row in kept()} == {"a \ufffd b"}
    text = json.dumps({"prompt_id": "1", "prompt": [user("a \ud83d b")], "response": "\ud83d", "messages": [user("\udc00"), assistant()]})
    Path("other.jsonl").write_text(text)
    assert annotate.read_answers("other.jsonl")[0]["response"] == "\ufffd"
    (row,) = sft.conversations(read_records(data("other.jsonl")), "other.jsonl", tiny.tokenizer())
    assert row["messages"][0]["content"] == "\ufffd"
    (row,) = generate.distinct_prompts(read_records(data("other.jsonl")), "other.jsonl").values()
    assert row["prompt"] == [user("a \ufffd b")]


GOOD = '{"a": 1, "b": "x"}\n'


def parquet(values: list[int]) -> bytes:
    return pd.DataFrame({"a": pd.Series(values, dtype="int64")}).to_parquet()


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ({"train.jsonl": GOOD + '{"a":'}, r"set/train.jsonl is cut off: its last line, 2, is not whole JSON .*\(the datasets library: "),
        ({"data/train-0.jsonl": GOOD, "data/train-1.jsonl": '{"a":\n' + GOOD}, "set/data/train-1.jsonl, line 1, is not whole JSON"),
        (
            {"data/train-0.jsonl": GOOD, "data/train-1.jsonl": '{"c": 1}\n'},
            r"train-1.jsonl has other columns than .*train-0.jsonl: only one of them has a, b, c \(.*Couldn't cast",
        ),
        ({"train.jsonl": ""}, "set/train.jsonl is empty; replace it"),
        ({"data/train-0.jsonl": GOOD, "data/train-1.jsonl": ""}, "set/data/train-1.jsonl is empty; replace it"),
        ({"train.jsonl": "\n\n"}, "set/train.jsonl is empty"),
        ({"train.json": "[]"}, "set/train.json holds no rows"),
        ({"data/train-0.parquet": "PAR1abc"}, "set/data/train-0.parquet: Parquet file size is 7 bytes"),
        ({"train.jsonl.gz": "not gzip"}, "set/train.jsonl.gz.*datasets library: Not a gzipped file"),
        ({"train.csv": "a,b\n1,2\n1,2,3\n"}, "set/train.csv: .*Expected 2 fields in line 3, saw 3"),
        ({"train.csv": ""}, "set/train.csv is empty"),
        ({"train.jsonl": '{"a": "x \\ud83d b"}\n'}, "set/train.jsonl holds half of a surrogate pair"),
        ({"train.jsonl": b'{"a": "x \xff b"}\n'}, "set/train.jsonl is cut off or not a text file"),
        ({"train.jsonl": GOOD, "README.md": "---\nconfigs: [\n---\n"}, "while parsing a flow node"),
        ({}, "doesn't contain any data files"),
        ({"train.jsonl": "null\n"}, "the first row of set/train.jsonl is null; expected an object"),
        ({"train.jsonl": GOOD, "test.json": "[null, {}]"}, "the first row of set/test.json is null"),
        ({"train.jsonl": GOOD + "null\n"}, "set/train.jsonl, line 2, is null"),
        ({"train.jsonl.gz": gzip.compress(b"\nnull\n")}, "the first row of set/train.jsonl.gz is null"),
        ({"train.ndjson": "null\n"}, "the first row of set/train.ndjson is null"),
        ({"train.jsonl.bz2": bz2.compress(b"null\n")}, "the first row of set/train.jsonl.bz2 is null"),
        ({"train.jsonl.xz": lzma.compress(b"null\n")}, "the first row of set/train.jsonl.xz is null"),
        ({"train.tar": "abc" * 300}, "ReadError: "),
        ({"metadata.csv": "file_name,a\n", "a.png": "abc"}, "IndexError: "),
        ({"set.py": ""}, "RuntimeError: Dataset scripts are no longer supported"),
        ({"train.jsonl": GOOD, "README.md": "---\nconfigs: [5]\n---\n"}, "Error: .*; give a hub id"),
        ({"train.jsonl": GOOD, "dataset_infos.json": "[]"}, "set/dataset_infos.json holds no rows .*: AttributeError: "),
        ({"train.zip": "PK\x03\x04abc"}, "BadZipFile: "),
        ({"train.h5": "abc"}, "ModuleNotFoundError: "),
        ({"train.jsonl": '{"a": ' * 3000 + "1" + "}" * 3000}, "set/train.jsonl.*recursion"),
        (
            {"data/train-0.jsonl": GOOD, "data/train-1.jsonl": '{"a": [1], "b": "x"}'},
            "train-1.jsonl has lists in column 'a', and .*numbers",
        ),
        ({"train.jsonl.gz": GOOD}, "set/train.jsonl.gz is not gzipped"),
        ({"train.jsonl": GOOD.encode("utf-16")}, "set/train.jsonl is UTF-16, not UTF-8"),
        ({"train.parquet": parquet([])}, "set/train.parquet holds no rows"),
    ],
)
def test_a_folder_with_a_broken_file_is_one_sentence(
    folder: dict[str, str | bytes], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """read_records: folder, file and the library's reason."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "replaced", {})
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Path("set").mkdir()
    for name, content in folder.items():
        path = Path("set") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^data ./set, split 'train', cannot be read: .*{reason}") as error:
        read_records(data("./set", "train"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [None, 5, ""])
def test_data_that_are_no_name_are_refused(name: Any) -> None:
    for source in (name, OmegaConf.create({"data": name, "revision": None, "split": None})):
        with pytest.raises(UserError, match=r"^data is .* in the stage configuration; expected a file, a folder or the id"):
            read_records(source)


@pytest.mark.parametrize("value", ["2", 0, -5, 2.5, True])
def test_a_number_held_out_is_a_whole_one(value: Any, make_pairs: Any) -> None:
    with pytest.raises(UserError, match=f"^pairs.heldout={value!r} must be a whole number of pairs, at least 1"):
        make_pairs([preference(), preference("w5")], heldout=value)


def test_a_split_is_held_out_of_a_data_set_alone(make_pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.pairs: a file has no splits, and a split without pairs is no data."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match="^data rows.jsonl is a file, which has no split 'test'; give heldout"):
        make_pairs([preference()], heldout=None, split="test")
    good, tied = preference(), preference(scores=(1.0, 1.0))
    for train_rows, test_rows, empty in (([tied], [good], "train"), ([good], [tied], "test")):
        files.write_jsonl(f"{empty}/train.jsonl", train_rows)
        files.write_jsonl(f"{empty}/test.jsonl", test_rows)
        with pytest.raises(UserError, match=f"^no pair is left of split {empty} of ./{empty} .*dropped_tied': 1"):
            make_pairs([], heldout=None, split="test", path=f"./{empty}")
        assert not Path("data/train.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"chosen": [user(), assistant(), user()]},
            "'chosen' must be a list of messages that ends with the assistant's; it ends with 'user'",
        ),
        ({"chosen": [say("system"), user()]}, "'chosen' must be a list of messages that ends with the assistant's"),
        ({"prompt": [user()], "chosen": [assistant(), user(), assistant()]}, "'chosen' goes on after 'prompt' with 3 messages"),
        ({"prompt": [user(), assistant()]}, "the prompt must end with the user's turn; it ends with 'assistant'"),
        ({"chosen": [say("system"), assistant()]}, "the prompt must end with the user's turn; it ends with 'system'"),
    ],
)
def test_generate_asks_no_other_prompt_than_the_row_s(row: Row, reason: str) -> None:
    with pytest.raises(UserError, match=f"^f, line 1: {reason}"):
        generate.distinct_prompts([{"prompt_id": "1", **row}], "f")


def test_reward_counts_and_refuses_scores_as_pairs_do() -> None:
    rows = [preference("w5", scores=(1.0, 2.0)), preference(scores=(1.0, 1.0)), preference(rejected=" "), preference("w6")]
    found, counts = reward.conversations(rows, "f", tiny.tokenizer())
    assert [row["chosen"][-1]["content"] for row in found] == ["w5", "w6"]
    assert counts == {"dropped_empty": 1, "dropped_identical": 0, "dropped_tied": 1, "chosen_scored_lower": 1}
    for score, shown in ((None, "null"), (float("nan"), "NaN"), ("n/a", '"n/a"')):
        with pytest.raises(UserError, match=f"^f, line 2: 'score_rejected' is {shown}; expected a finite number"):
            reward.conversations([preference(), preference(scores=(1.0, score))], "f", tiny.tokenizer())


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1/0 }}", "fails on this conversation: ZeroDivisionError"),
        ("{% for message in messages %}{{ 1 + message.content }}{% endfor %}", "fails on this conversation: TypeError"),
        (5, "must be a text; it is 5"),
        (["x"], r"must be a text; it is \['x'\]"),
    ],
)
def test_a_template_that_fails_is_named(template: Any, reason: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    for where, run in (
        ("f, line 1", lambda: render_pair(pair(), tokenizer, "f, line 1", empty_system=False)),
        ("a prompt", lambda: question_tokens([user()], tokenizer, empty_system=False)),
    ):
        with pytest.raises(UserError, match=f"^{where}: the model's chat template {reason}.*; correct the template"):
            run()
