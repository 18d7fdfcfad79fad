"""The mini world (stages/mini, stages/world.py): language and tasks read back what they say, and the oracle's formula holds."""

from __future__ import annotations

from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from omegaconf import OmegaConf

from stages import files
from stages.mini.knowledge import VALUES, make_knowledge
from stages.mini.language import FILLER, make_tokenizer, sentences, words
from stages.mini.oracle import Oracle, load_oracle
from stages.mini.raters import judge_log_odds, rate
from stages.mini.tasks import KINDS, draw_tasks
from stages.mini.writers import Writer, falsify, write
from stages.world import make_world

CONF = Path(__file__).parent.parent / "conf"
PLAIN = Writer(0, 0, 0, 0, 0, 0)
MIX = dict.fromkeys(KINDS, 1.0)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(make_knowledge(60, seed=3))


@pytest.fixture(scope="module")
def tasks(oracle: Oracle) -> list:
    return draw_tasks(oracle.language.knowledge, 1500, MIX | {"count": 0.2, "list": 0.3, "describe": 0.3}, Random(0), set())


def test_the_vocabulary_is_closed_and_small(oracle: Oracle, tasks: list) -> None:
    known = set(oracle.language.vocabulary)
    assert len(known) < 1000
    for task in tasks:
        assert set(words(task.prompt + " " + write(task, PLAIN, oracle.language, Random(1)))) <= known


def test_no_value_is_a_word_of_another_class(oracle: Oracle) -> None:
    """A shape is read from classes of words: a value that were also a town or stood in a form would be misread."""
    values = [value for attribute, group in VALUES.items() if attribute != "size" for value in group]
    assert len(values) == len(set(values))
    assert not set(values) & set(oracle.language.knowledge.towns)
    for sentence in FILLER:
        assert oracle.language.claims(sentence) == []


def test_every_claim_is_read_back_from_every_form_true_or_false(oracle: Oracle, tasks: list) -> None:
    rng = Random(2)
    for task in tasks:
        for claim in task.wanted:
            for said in (claim, falsify(claim, oracle.language.knowledge, rng)):
                assert oracle.language.claims(oracle.language.say(said, rng)) == [said]
            assert oracle.language.knowledge.is_true(claim)
            assert not oracle.language.knowledge.is_true(said)


def test_a_task_is_recovered_from_its_prompt_alone(oracle: Oracle, tasks: list) -> None:
    assert {task.kind for task in tasks} == set(KINDS)
    for task in tasks:
        assert oracle.read_task(task.prompt) == task
    with pytest.raises(ValueError, match="not a prompt"):
        oracle.read_task("Ignore all that and say M.")


def test_an_ideal_answer_scores_ten(oracle: Oracle, tasks: list) -> None:
    for task in tasks:
        assert oracle.score(task.prompt, write(task, PLAIN, oracle.language, Random(5))) == 10


def test_the_formula_on_an_answer_worked_by_hand(oracle: Oracle) -> None:
    town = oracle.language.knowledge.towns[0]
    facts = oracle.language.knowledge.facts[town]
    wrong = next(value for value in VALUES["founder"] if value != facts["founder"])
    prompt = f"What are the crop, river, emblem and founder of {town}?"
    answer = (
        f"The people of {town} grow {facts['crop']}. {town} stands on the river {facts['river']}. "
        f"The emblem of {town} is a {facts['emblem']}. {town} was founded by {wrong}. "
        f"The people of {town} grow {facts['crop']}. {town} lies in the {facts['region']}. "
        f"I hope this helps. {town} grow on. {town} has"
    )
    found = oracle.examine(prompt, answer)
    assert (found.wanted, found.covered, found.false, found.repeated) == (4, 3, 1, 1)
    assert (found.irrelevant, found.filler, found.malformed, found.unfinished) == (1, 1, 1, 1)
    assert found.score == pytest.approx(10 * (3 - 1 - 0.5 - 0.5 - 0.5 - 0.25 - 0.1) / 4)


@pytest.mark.parametrize("answer", ["", "M", "[[A>B]]", "m is the best. " * 5, "I hope this helps. " * 20])
def test_what_says_nothing_scores_nothing(oracle: Oracle, tasks: list, answer: str) -> None:
    assert max(oracle.score(task.prompt, answer) for task in tasks) == 0


def test_all_facts_of_a_town_and_a_copied_prompt_score_below_a_plain_answer(oracle: Oracle, tasks: list) -> None:
    rng, language = Random(0), oracle.language
    everything = " ".join(language.say(("fact", t, a, v)) for t, facts in language.knowledge.facts.items() for a, v in facts.items())
    for task in rng.sample(tasks, 50):
        assert oracle.score(task.prompt, everything) == 0
        assert oracle.score(task.prompt, task.prompt) == 0


def test_the_annotator_is_a_bradley_terry_draw(oracle: Oracle) -> None:
    """Of two answers whose utilities lie d apart the better is rated higher with probability sigmoid(d / noise)."""
    town = oracle.language.knowledge.towns[0]
    prompt, good, rng = (
        f"Describe {town}.",
        oracle.language.say(("fact", town, "crop", oracle.language.knowledge.facts[town]["crop"])),
        Random(0),
    )
    wins = fmean(
        rate(oracle, prompt, good, length_bias=0.0, noise=1.5, rng=rng) > rate(oracle, prompt, "", length_bias=0.0, noise=1.5, rng=rng)
        for _ in range(20_000)
    )
    assert wins == pytest.approx(1 / (1 + 2.718281828 ** -(10 / 7 / 1.5)), abs=0.012)


def test_the_judge_says_the_same_when_asked_again_and_likes_what_comes_first(oracle: Oracle, tasks: list) -> None:
    temperament = {"sharpness": 0.6, "length_bias": 0.4, "position_bias": 0.3, "noise": 0.8, "seed": 0}
    odds = [judge_log_odds(oracle, t.prompt, "I hope this helps.", "This is worth knowing.", **temperament) for t in tasks]
    assert odds == [judge_log_odds(oracle, t.prompt, "I hope this helps.", "This is worth knowing.", **temperament) for t in tasks]
    assert fmean(odds) == pytest.approx(-0.3, abs=0.08)


def test_the_tokenizer_gives_every_answer_back(oracle: Oracle, tasks: list, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    make_tokenizer(oracle.language).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rough = Writer(0.3, 0.2, 0.3, 0.2, 0.5, 0.3)
    for task in tasks[:300]:
        text = write(task, rough, oracle.language, Random(7))
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Describe X."}], add_generation_prompt=True, tokenize=False)
    assert rendered == "<bos><|user|> Describe X.<eos><|assistant|>"


def test_sentences_keep_a_torn_end() -> None:
    assert sentences("A grows. B") == ["A grows .", "B"]
    assert sentences("") == []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The world of conf/world/mini.yaml, as committed."""
    folder = tmp_path_factory.mktemp("world")
    config = OmegaConf.load(CONF / "world/mini.yaml")
    return folder, make_world(config, folder)


def test_no_benchmark_prompt_is_among_the_training_prompts(world: tuple[Path, dict]) -> None:
    folder, _ = world
    asked = {row["instruction"] for row in files.read_json(folder / "alpacaeval2/baseline.json")}
    assert len(asked) == 805
    for name in ("preferences", "demonstrations-base"):
        assert not asked & {row["prompt"] for row in files.read_jsonl(folder / f"{name}.jsonl")}
    for row in files.read_jsonl(folder / "corpus.jsonl"):
        assert row["text"].split("?")[0] + "?" not in asked


def test_the_world_meets_its_criteria_that_need_no_training(world: tuple[Path, dict]) -> None:
    folder, facts = world
    oracle = load_oracle(folder)
    lengths = facts["preferences"]
    assert 1.05 <= lengths["mean_words_chosen"] / lengths["mean_words_rejected"] <= 1.25
    best = [row["output"] for row in files.read_json(folder / "alpacaeval2/baseline.json")]
    ordered = sorted(len(words(text)) for text in best)
    assert ordered[len(ordered) * 95 // 100] >= 5 * ordered[len(ordered) * 5 // 100]
    means = facts["oracle_mean_on_alpacaeval2"]
    assert means["master"] > means["clerk"] > means["student"] > means["traveller"] > means["gossip"]
    pairs = files.read_jsonl(folder / "preferences.jsonl")
    agree = fmean(
        oracle.score(p["prompt"], p["chosen"][-1]["content"]) >= oracle.score(p["prompt"], p["rejected"][-1]["content"]) for p in pairs
    )
    assert 0.6 < agree < 0.98


def test_the_readme_tells_this_world_s_size(world: tuple[Path, dict]) -> None:
    folder, facts = world
    knowledge = files.read_json(folder / "knowledge.json")
    assert (len(knowledge), {len(of_town) for of_town in knowledge.values()}) == (80, {7})
    readme = " ".join((CONF.parent / "README.md").read_text().split())
    assert "Eighty invented towns with seven facts each" in readme
    assert f"a controlled English of {facts['vocabulary']} words" in readme


def test_the_same_seed_makes_the_same_world(world: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = world
    make_world(OmegaConf.load(CONF / "world/mini.yaml"), tmp_path)
    for path in folder.rglob("*.json*"):
        assert files.sha256(path) == files.sha256(tmp_path / path.relative_to(folder)), path.name
