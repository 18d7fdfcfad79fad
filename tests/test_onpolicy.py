"""stages/generate.py, reward.py, annotate.py, pairs.py: the authors' on-policy pairs, from the prompts to the rows that training reads."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForSequenceClassification, LlamaConfig

from stages import annotate, generate, pairs, reward
from stages.lib import engine, files, models
from stages.lib.errors import UserError
from stages.mini.knowledge import make_knowledge
from stages.mini.oracle import Oracle

USER = [{"role": "user", "content": "Q"}]
TURNS = [*USER, {"role": "assistant", "content": "A"}, {"role": "user", "content": "And then?"}]


def stage(module: Any, monkeypatch: pytest.MonkeyPatch, folder: str, runtime: str = "", **values: Any) -> dict[str, Any]:
    """Run a stage as its command line does, on a slice in ``folder``; its manifest."""
    files.write_text(f"{folder}/config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))
    monkeypatch.setattr("sys.argv", [module.__name__, "--config", f"{folder}/config.yaml", "--runtime", *runtime.split()])
    module.main()
    return files.read_manifest(folder)


def data(path: str | Path) -> dict[str, str | None]:
    return {"data": str(path), "revision": None, "split": None}


def scored(answers: list[str], scores: list[float], **more: Any) -> dict[str, Any]:
    return {"prompt_id": "1", "prompt": "Q", "all_generated_responses": answers, "all_rm_scores": scores, **more}


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# -- pairs ---------------------------------------------------------------------------------------------------------------


def test_the_best_answer_is_chosen_and_the_worst_rejected() -> None:
    """pairs.read_pair: argmax and argmin of the scores, the first of equals, as the authors' numpy calls; earlier turns are kept."""
    pair = pairs.read_pair(scored(["a", "b", "c", "d", "e"], [0.5, 2.0, -1.0, 2.0, -1.0], messages=TURNS), "f, line 1")
    assert pair == {
        "prompt_id": "1",
        "score_chosen": 2.0,
        "score_rejected": -1.0,
        "prompt": TURNS,
        "chosen": turn("b"),
        "rejected": turn("c"),
    }
    assert pairs.read_pair(scored(["a", "b"], [1, 0]), "f, line 1")["prompt"] == USER


def test_pairs_of_a_released_on_policy_set_are_taken_as_given() -> None:
    """pairs.read_pair: princeton-nlp's sets have no score_chosen; it is the highest of all_rm_scores. One that is there stays."""
    sides = {"chosen": [*USER, *turn("b")], "rejected": [*USER, *turn("a")]}
    row = scored(["a", "b"], [0.25, 0.75], **sides)
    expected = {"prompt_id": "1", "score_chosen": 0.75, "score_rejected": 0.25, "prompt": USER, "chosen": turn("b"), "rejected": turn("a")}
    assert pairs.read_pair(row, "f, line 1") == expected
    given = pairs.read_pair({**row, "score_chosen": 9.0, "score_rejected": 8.0}, "f, line 1")
    assert (given["score_chosen"], given["score_rejected"]) == (9.0, 8.0)


def test_prompts_that_say_nothing_are_dropped_for_one_reason_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.pairs: equal scores of different texts are a tie, whichever come first; read is the sum of all counts."""
    rows = [
        scored(["a", "b", "c"], [1.0, 2.0, 0.0]),
        scored(["a", "b", "c"], [3.0, 2.0, 1.0]),
        scored(["a", "a", "a"], [1.0, 1.0, 1.0]),  # identical
        scored(["a", "a"], [1.0, 0.5]),  # identical, whatever another scorer says
        scored(["a", "a", "b"], [1.0, 1.0, 1.0]),  # tied
        scored(["a", " ", "b"], [1.0, 2.0, 0.0]),  # the best is empty
        scored(["a", "", "b"], [1.0, -2.0, 0.0]),  # the worst is empty
        scored(["a", "", "b"], [1.0, 0.5, 0.0]),  # an empty one in between does no harm
    ]
    files.write_jsonl(tmp_path / "scored.jsonl", [row | {"prompt": f"Q{number}"} for number, row in enumerate(rows)])
    made = stage(
        pairs,
        monkeypatch,
        str(tmp_path / "data"),
        stage="pairs",
        seed=1,
        train=data(tmp_path / "scored.jsonl"),
        heldout=1,
        heldout_split=None,
    )
    counts = {"read": 8, "dropped_empty": 2, "dropped_identical": 2, "dropped_tied": 1, "train": 2, "heldout": 1}
    assert made["pairs"] == counts
    kept = [row for split in ("train", "heldout") for row in files.read_rows(tmp_path / f"data/{split}.jsonl")]
    assert sorted(row["chosen"][0]["content"] + row["rejected"][0]["content"] for row in kept) == ["ab", "ac", "bc"]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt_id": "1", "prompt": "Q"}, r"neither 'chosen' and 'rejected' .* nor .*'all_rm_scores'.*; the row has prompt, prompt_id"),
        (scored(["a", "b"], [1.0]), "2 'all_generated_responses' need as many 'all_rm_scores'"),
        (scored([], []), "0 'all_generated_responses' need as many"),
        (scored(["a", "b"], [1.0, math.nan]), "all numbers; it has .*nan"),
        ({"prompt_id": "1", "prompt": "Q", "all_rm_scores": [1.0]}, "'all_generated_responses' is missing"),
        (scored(["a", "b"], [1.0, 0.0], messages=[*USER, *turn("a")]), "'messages' must hold the prompt's messages alone"),
        ({"prompt_id": "1", "chosen": [*USER, *turn("a")], "rejected": [*USER, *turn("b")]}, "'score_chosen' is missing"),
    ],
)  # fmt: skip
def test_a_row_of_neither_schema_is_named(row: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.pairs: the error names file, line and what is missing."""
    path = tmp_path / "rows.jsonl"
    files.write_jsonl(path, [scored(["a", "b"], [1.0, 0.0]), row])
    with pytest.raises(UserError, match=f"^{path}, line 2: .*{message}"):
        stage(pairs, monkeypatch, str(tmp_path / "data"), stage="pairs", seed=1, train=data(path), heldout=1, heldout_split=None)


# -- prompts and seeds ---------------------------------------------------------------------------------------------------


def test_each_prompt_is_sampled_once_with_its_earlier_turns() -> None:
    """generate.distinct_prompts: 'chosen' without its last turn where a row has it, else 'prompt'; order of first appearance."""
    rows = [
        {"prompt_id": "2", "prompt": "And then?", "chosen": [*TURNS, *turn("B")]},
        {"prompt_id": "1", "prompt": "Q"},
        {"prompt_id": "1", "prompt": "Q", "chosen": [*USER, *turn("A")]},
        {"prompt_id": "3", "prompt": "And then?"},  # by itself another prompt than with its earlier turns
    ]
    prompts = list(generate.distinct_prompts(rows, "f").values())
    assert prompts == [
        {"prompt_id": "2", "prompt": TURNS},
        {"prompt_id": "1", "prompt": USER},
        {"prompt_id": "3", "prompt": [{"role": "user", "content": "And then?"}]},
    ]
    for row in ({"prompt_id": "1"}, {"prompt": "Q"}, {"prompt_id": "1", "chosen": []}):
        with pytest.raises(UserError, match="^f, line 2: a prompt needs 'prompt_id' and either"):
            generate.distinct_prompts([rows[1], row], "f")


def test_no_two_prompts_share_a_sample_s_seed() -> None:
    """generate.base_seed: multiples of n, so that the ranges base … base + n - 1 of different prompts do not overlap."""
    seeds = {generate.base_seed([{"role": "user", "content": str(number)}], 42, 5) for number in range(2000)}
    assert len(seeds) == 2000
    assert all(seed % 5 == 0 and 0 <= seed < 2**31 for seed in seeds)
    assert generate.base_seed(USER, 42, 5) != generate.base_seed(USER, 43, 5)


# -- the stages, on a tiny random Llama ----------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working directory with a start model of a size that vLLM takes."""
    monkeypatch.chdir(tmp_path)
    models.save_model(Path("results/tiny/sft"), tiny.llama(head_dim=32), tiny.tokenizer())
    files.write_manifest(Path("results/tiny/sft"), OmegaConf.create({"stage": "sft"}))
    return "results/tiny/sft/model"


@pytest.fixture(scope="module")
def one_engine() -> Callable[..., Any]:
    """start_engine that starts once: the start takes most of a generation's time."""
    started: list[Any] = []

    def engine(*arguments: Any) -> Any:
        if not started:
            started.append(start_engine(*arguments))
        return started[0]

    start_engine = generate.start_engine
    return engine


@pytest.mark.parametrize(
    ("layers", "width", "length", "conversations"),
    [(2, 256, 512, 64), (16, 2048, 1024, 4), (32, 4096, 4096, 2)],
)
def test_a_cpu_s_cache_holds_64_conversations_within_a_gib_but_always_two(layers: int, width: int, length: int, conversations: int) -> None:
    """engine.cache_bytes: keys and values, in fp32, of every token of that many conversations; ``width`` of each, in every layer."""
    shape = LlamaConfig(num_hidden_layers=layers, hidden_size=width)
    assert engine.cache_bytes(shape, length) == conversations * length * (2 * layers * width) * 4


def preferences(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of UltraFeedback binarized in which the chosen answer ends in one half of the words and the rejected in the other."""
    draw = random.Random(seed)
    rows = []
    for number in range(n):
        user = {"role": "user", "content": " ".join(draw.choices(tiny.WORDS, k=draw.randrange(2, 8)))}
        good, bad = (" ".join(draw.choices(half, k=draw.randrange(1, 8))) for half in (tiny.WORDS[:20], tiny.WORDS[20:]))
        rows.append({"prompt": user["content"], "prompt_id": str(number), "chosen": [user, *turn(good)], "rejected": [user, *turn(bad)]})
    return rows


def train_reward(monkeypatch: pytest.MonkeyPatch, model: str, **changes: Any) -> dict[str, Any]:
    training = {"learning_rate": 3e-3, "epochs": 3, "batch_size": 8, "max_length": 64, "scheduler": "cosine", "warmup_ratio": 0.1}
    training |= {"weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "fp32"}
    values = {"stage": "reward", "version": 1, "seed": 3, "model": model, "revision": None, "heldout": 60}
    values["data"] = data("preferences.jsonl")
    return stage(reward, monkeypatch, "results/tiny/reward", "micro_batch=4", **(values | {"training": training} | changes))


@pytest.mark.slow
def test_from_prompts_to_pairs(start: str, one_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """generate, reward, annotate, pairs: each reads what the one before wrote.

    The same seed gives the same answers whatever the order of the prompts and what else is in the batch; a prompt's answers differ among
    themselves. The reward model learns a preference that can be learnt, its scores put annotate's best above its worst, and the pairs
    are the best and the worst by those scores.
    """
    rows = preferences(240)
    files.write_jsonl("preferences.jsonl", rows)
    files.write_jsonl("prompts.jsonl", [*rows[:12], {"prompt_id": "many", "chosen": [*TURNS, *turn("w1")]}, rows[0]])
    monkeypatch.setattr(generate, "start_engine", one_engine)
    sampled = {"stage": "generate", "version": 1, "setting": "tiny", "model": start, "revision": None, "prompts": data("prompts.jsonl")}
    sampled |= {"n": 3, "temperature": 1.0, "top_p": 0.95, "max_tokens": 10, "seed": 42}
    made = stage(generate, monkeypatch, "results/tiny/generate", **sampled)
    generations = files.read_rows("results/tiny/generate/generations.jsonl")
    assert (made["read"], made["prompts"], made["generations"]) == (14, 13, 39)
    assert [row["sample"] for row in generations] == [0, 1, 2] * 13
    assert [row["prompt_id"] for row in generations[::3]] == [*(row["prompt_id"] for row in rows[:12]), "many"]
    assert generations[-1]["prompt"] == TURNS
    assert all(0 < row["tokens"] <= 10 and row["finish_reason"] in ("stop", "length") for row in generations)
    assert made["mean_tokens"] == pytest.approx(sum(row["tokens"] for row in generations) / 39)
    answers = [[row["response"] for row in generations[at : at + 3]] for at in range(0, 39, 3)]
    assert sum(len(set(some)) == 3 for some in answers) > 9

    files.write_jsonl("prompts.jsonl", rows[11:2:-1])
    stage(generate, monkeypatch, "results/tiny/other", **sampled)
    assert files.read_rows("results/tiny/other/generations.jsonl") == [
        row for at in range(11, 2, -1) for row in generations[3 * at : 3 * at + 3]
    ]
    files.write_jsonl("prompts.jsonl", rows[:12])
    stage(generate, monkeypatch, "results/tiny/other", **(sampled | {"seed": 43}))
    assert [row["response"] for row in files.read_rows("results/tiny/other/generations.jsonl")] != [
        row["response"] for row in generations[:36]
    ]

    made = train_reward(monkeypatch, start)
    assert made["heldout_accuracy"] > 0.9
    assert made["last_loss"] < 0.5 * made["first_loss"]
    assert made["pairs"] == {"train": 180, "heldout": 60, "dropped_long": 0}

    slice_ = {
        "stage": "annotate",
        "version": 1,
        "setting": "tiny",
        "model": "results/tiny/reward/model",
        "revision": None,
        "max_length": 64,
        "rater": None,
    }
    made = stage(annotate, monkeypatch, "results/tiny/annotate", **slice_, generations="results/tiny/generate/generations.jsonl")
    marked = files.read_rows("results/tiny/annotate/scored.jsonl")
    assert [row["all_generated_responses"] for row in marked] == answers
    assert set(marked[0]) == {"prompt_id", "prompt", "messages", "all_generated_responses", "all_rm_scores"}
    assert (marked[-1]["prompt"], marked[-1]["messages"]) == ("And then?", TURNS)
    assert made["mean_score"] == pytest.approx(sum(score for row in marked for score in row["all_rm_scores"]) / 39)

    source = data("results/tiny/annotate/scored.jsonl")
    made = stage(pairs, monkeypatch, "results/tiny/data", stage="pairs", seed=1, train=source, heldout=2, heldout_split=None)
    assert sum(count for key, count in made["pairs"].items() if key != "read") == made["pairs"]["read"] == 13
    by_id = {row["prompt_id"]: row for row in marked}
    for pair in files.read_rows("results/tiny/data/train.jsonl"):
        row = by_id[pair["prompt_id"]]
        score_of = dict(zip(row["all_generated_responses"], row["all_rm_scores"], strict=True))
        assert score_of[pair["chosen"][0]["content"]] == max(row["all_rm_scores"]) == pair["score_chosen"]
        assert score_of[pair["rejected"][0]["content"]] == min(row["all_rm_scores"]) == pair["score_rejected"]


@pytest.fixture
def reward_model(start: str) -> str:
    """A reward model with a random head; its pad token is the EOS token, as RewardTrainer sets it where there is none."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = 2
    torch.nn.init.normal_(model.score.weight)
    models.save_model(Path("results/tiny/reward"), model, tiny.tokenizer())
    files.write_manifest(Path("results/tiny/reward"), OmegaConf.create({"stage": "reward"}))
    return "results/tiny/reward/model"


@pytest.mark.slow
def test_a_score_depends_on_the_conversation_alone(reward_model: str) -> None:
    """annotate.score: in every batch, in float64 to 1e-9 and in float32 to 1e-5 of the scores' spread, what the conversation's last hidden
    state says by itself; so too for a model without a pad token."""
    model = annotate.load_reward_model(reward_model, None).double().eval()
    draw = random.Random(0)
    conversations = [(1, *(draw.randrange(3, 60) for _ in range(draw.randrange(2, 100)))) for _ in range(30)]
    with torch.no_grad():
        last = [model.model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1] for tokens in conversations]
        expected = [model.score(hidden).item() for hidden in last]

    def same(batch_tokens: int, tolerance: float, first: int = 0) -> bool:
        scores = annotate.score(model, conversations[first:], batch_tokens)
        return [scores[tokens] for tokens in conversations[first:]] == pytest.approx(expected[first:], abs=tolerance)

    assert all(same(batch_tokens, 1e-9) for batch_tokens in (1, 150, 10_000))
    assert same(150, 1e-9, first=9)
    model.config.pad_token_id = None
    assert same(150, 1e-9)
    model.config.pad_token_id = 2
    model.float()
    assert all(same(batch_tokens, 1e-5 * (max(expected) - min(expected))) for batch_tokens in (1, 150, 10_000))


def test_equal_answers_get_equal_scores_and_long_ones_are_cut_and_counted(reward_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.annotate: so that pairs.py sees a tie as a tie; empty answers are scored as well."""
    texts = ["w1 w2", "w3", "w1 w2", "", "w5 " * 40 + "w6", "w5 " * 40 + "w7"]
    rows = [{"prompt_id": "1", "prompt": USER, "response": text, "sample": number} for number, text in enumerate(texts)]
    files.write_jsonl("generations.jsonl", rows)
    values = {
        "stage": "annotate",
        "version": 1,
        "setting": "tiny",
        "model": reward_model,
        "revision": None,
        "max_length": 40,
        "rater": None,
    }
    made = stage(annotate, monkeypatch, "results/tiny/annotate", generations="generations.jsonl", **values)
    (row,) = files.read_rows("results/tiny/annotate/scored.jsonl")
    scores = row["all_rm_scores"]
    assert scores[0] == scores[2] != scores[1]
    assert scores[4] == scores[5]  # they differ only where they are cut
    assert (made["prompts"], made["responses"], made["cut"]) == (1, 6, 2)


def test_a_rater_s_scores_are_written_as_a_reward_model_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.annotate with a rater: no model is loaded; its ratings in the authors' schema, equal for equal answers."""
    monkeypatch.chdir(tmp_path)
    oracle = Oracle(make_knowledge(12, seed=3))
    language, town = oracle.language, oracle.language.knowledge.towns[0]
    files.write_json("world/knowledge.json", language.knowledge.facts)
    fact = language.say(("fact", town, "crop", language.knowledge.facts[town]["crop"]))
    prompts = [
        [{"role": "user", "content": f"What do the people of {town} grow?"}],
        [{"role": "user", "content": f"Where does {town} lie?"}, *turn("Good question."), {"role": "user", "content": "And its crop?"}],
    ]
    texts = [fact, "I hope this helps.", fact, "", f"{fact} I hope this helps."]
    rows = [
        {"prompt_id": str(at), "prompt": prompt, "response": text, "sample": sample}
        for at, prompt in enumerate(prompts)
        for sample, text in enumerate(texts)
    ]
    files.write_jsonl("generations.jsonl", rows)
    monkeypatch.setattr(annotate, "load_reward_model", lambda *_: pytest.fail("loaded"))
    rater = {"world": "world", "length_bias": 0.0, "noise": 0.01, "seed": 0}
    values = {"stage": "annotate", "version": 2, "setting": "tiny", "model": None, "revision": None, "max_length": None}
    made = stage(annotate, monkeypatch, "results/tiny/annotate", generations="generations.jsonl", **values, rater=rater)
    first, second = files.read_rows("results/tiny/annotate/scored.jsonl")
    assert list(first) == ["prompt_id", "prompt", "messages", "all_generated_responses", "all_rm_scores"]
    assert (first["prompt"], first["messages"], first["all_generated_responses"]) == (prompts[0][0]["content"], prompts[0], texts)
    assert (second["prompt"], second["messages"]) == ("And its crop?", prompts[1])
    for row in (first, second):
        assert row["all_rm_scores"] == pytest.approx([10, 0, 10, 0, 7.5], abs=0.2)
        assert row["all_rm_scores"][0] == row["all_rm_scores"][2]
    assert first["all_rm_scores"] != second["all_rm_scores"]  # the error is of the conversation
    assert (made["prompts"], made["responses"], made["cut"]) == (2, 10, 0)


def test_a_model_without_a_reward_head_is_refused(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """annotate.load_reward_model: a causal model would get a random head, and scores that look like scores."""
    with pytest.raises(UserError, match=r"results/tiny/sft/model is no reward model with one score: .* lacks score.weight"):
        annotate.load_reward_model(start, None)
    with pytest.raises(UserError, match=r"model results/tiny/reward/model does not exist; make it again with: snakemake"):
        annotate.load_reward_model("results/tiny/reward/model", None)


def test_reward_names_what_it_cannot_train_on(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.reward: a row that is no pair, a hold-out of everything, lengths that leave nothing, a micro-batch that does not fit."""
    rows = preferences(3)
    files.write_jsonl("preferences.jsonl", [*rows, {"chosen": "text"}])
    with pytest.raises(UserError, match="preferences.jsonl, line 4: 'chosen' must be a list of messages"):
        train_reward(monkeypatch, start)
    files.write_jsonl("preferences.jsonl", [*rows, {**rows[0], "rejected": rows[0]["chosen"]}])
    with pytest.raises(UserError, match="reward.heldout=3: the 3 pairs of preferences.jsonl"):
        train_reward(monkeypatch, start, heldout=3)
    with pytest.raises(UserError, match="batch_size=6 is not a multiple of the runtime's micro_batch=4"):
        train_reward(monkeypatch, start, training={"batch_size": 6})
    training = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "max_length": 3, "scheduler": "cosine", "warmup_ratio": 0.1}
    training |= {"weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "fp32"}
    with pytest.raises(UserError, match=r"max_length=3 leaves \{'train': 0, 'heldout': 0\} of the 3 pairs; raise it"):
        train_reward(monkeypatch, start, heldout=1, training=training)


def test_a_bar_that_is_switched_off_is_not_asked_for() -> None:
    """engine.generate: with TQDM_DISABLE vLLM would divide by the time that its bar shows, which is 0."""
    code = "from stages.lib.engine import generate\nclass E:\n def generate(self, *_, use_tqdm): print(use_tqdm); return []\n"
    code += "generate(E(), [], [])"
    for value, shown in (("1", "False"), (None, "True")):
        env = {key: text for key, text in os.environ.items() if key != "TQDM_DISABLE"} | ({"TQDM_DISABLE": value} if value else {})
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == shown
