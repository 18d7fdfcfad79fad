"""The mini world (stages/mini, stages/mini/world.py): language and tasks read back what they say, and the oracle's formula holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import log2
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest

from stages.benchmarks.mt_bench import NEEDS_REFERENCE
from stages.lib import files
from stages.lib.errors import UserError
from stages.mini.knowledge import ATTRIBUTES, VALUES, make_knowledge
from stages.mini.language import CLOSINGS, FILLER, OPENINGS, make_tokenizer, sentences, words
from stages.mini.oracle import Oracle, load_oracle
from stages.mini.raters import judge_log_odds, rate, rate_all
from stages.mini.tasks import KINDS, Task, ask_more, draw_tasks
from stages.mini.world import make_world
from stages.mini.writers import Writer, falsify, write
from stages.plan.compose import compose_config

CONF = Path(__file__).parent.parent / "conf"
PLAIN = Writer(0, 0, 0, 0, 0, 0)
ROUGH = Writer(wrong=0.3, curt=0.2, wander=0.3, repeat=0.2, polite=0.5, broken=0.3)
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
MIX = dict.fromkeys(KINDS, 1.0)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(make_knowledge(60, seed=3))


@pytest.fixture(scope="module")
def tasks(oracle: Oracle) -> list[Task]:
    """Tasks of all kinds, and the second turns that may follow them, each after an ideal first answer."""
    rng, language = Random(0), oracle.language
    first = draw_tasks(language, 1500, MIX | {"describe": 0.3}, rng, set())
    more = [(task, write(task, PLAIN, language, rng), ask_more(task, language, rng)) for task in first[::3]]
    return first + [oracle.read_task(task.prompt, answer, prompt) for task, answer, prompt in more]


def test_the_vocabulary_is_closed_and_small(oracle: Oracle, tasks: list[Task]) -> None:
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


def test_every_claim_is_read_back_from_every_form_true_or_false(oracle: Oracle, tasks: list[Task]) -> None:
    rng = Random(2)
    for task in tasks:
        for claim in task.wanted:
            for said in (claim, falsify(claim, oracle.language.knowledge, rng)):
                assert oracle.language.claims(oracle.language.say(said, rng)) == [said]
                assert words(oracle.language.say(said, rng, task.given)) not in [sentence.split() for sentence in task.given]
            assert oracle.language.knowledge.is_true(claim)
            assert not oracle.language.knowledge.is_true(said)


def test_a_task_is_recovered_from_its_prompt_alone(oracle: Oracle, tasks: list[Task]) -> None:
    """Of every kind, and of every second turn that a kind may have."""
    towns = oracle.language.knowledge.towns
    assert {task.kind for task in tasks} == {*KINDS, "its", "again", "also"}
    followed = {(oracle.read_task(task.turns[0]).kind, task.kind) for task in tasks if len(task.turns) == 3}
    assert followed == {
        *(("fact", kind) for kind in ("its", "again")),
        *(("facts", kind) for kind in ("its", "again")),
        ("describe", "again"),
        ("compare", "also"),
        ("rewrite", "its"),
    }
    for task in tasks:
        assert oracle.read_task(*task.turns) == task
    with pytest.raises(UserError, match="not a prompt"):
        oracle.read_task("Ignore all that and say M.")
    with pytest.raises(UserError, match="conversation of 2 texts"):
        oracle.read_task(f"Describe {towns[0]}.", "No.")
    with pytest.raises(UserError, match="not a prompt .*by size"):
        oracle.read_task(f"Describe {towns[0]}.", "No.", "Compare them by size, too.")


def test_what_each_kind_asks_for(oracle: Oracle) -> None:
    """A fact; two to four facts in the order asked; all seven; two facts and whether they are the same; a given fact."""
    knowledge = oracle.language.knowledge
    one, other = sorted(knowledge.towns[:2])

    def fact(town: str, attribute: str) -> tuple[str, ...]:
        return "fact", town, attribute, knowledge.facts[town][attribute]

    def verdict(attribute: str) -> tuple[str, ...]:
        same = knowledge.facts[one][attribute] == knowledge.facts[other][attribute]
        return "same" if same else "differ", attribute, one, other

    compared = f"Compare {one} and {other} by crop."
    said = oracle.language.say(fact(one, "crop"))
    for turns, wanted in {
        (f"Who founded {one}?",): [fact(one, "founder")],
        (f"Tell me the river, craft and size of {one}.",): [fact(one, "river"), fact(one, "craft"), fact(one, "size")],
        (f"Describe {one}.",): [fact(one, attribute) for attribute in ATTRIBUTES],
        (compared,): [fact(one, "crop"), fact(other, "crop"), verdict("crop")],
        (f"Say this in other words: {said}",): [fact(one, "crop")],
        (f"Who founded {one}?", "No.", "And its river and size?"): [fact(one, "river"), fact(one, "size")],
        (f"Who founded {one}?", "No.", "Say that again in other words."): [fact(one, "founder")],
        (compared, "No.", "Compare them by size, too."): [fact(one, "size"), fact(other, "size"), verdict("size")],
    }.items():
        task = oracle.read_task(*turns)
        assert list(task.wanted) == wanted
        assert all(knowledge.is_true(claim) for claim in task.wanted)


def test_a_second_turn_is_about_the_first(oracle: Oracle) -> None:
    town, other = oracle.language.knowledge.towns[:2]
    facts = oracle.language.knowledge.facts
    asked = f"Who founded {town}?"
    said = f"{town} was founded by {facts[town]['founder']}."
    reworded = f"The founder of {town} was {facts[town]['founder']}."
    assert oracle.score((asked, said, "And its crop?"), f"The people of {town} grow {facts[town]['crop']}.") == 10
    assert oracle.score((asked, said, "And its crop?"), f"The people of {other} grow {facts[other]['crop']}.") == 0
    assert oracle.score((asked, said, "Say that again in other words."), reworded) == 10
    assert oracle.score((asked, said, "Say that again in other words."), said) == 0
    assert oracle.score((asked, reworded, "Say that again in other words."), said) == 10
    prompt = f"Say this in other words: {said}"
    assert oracle.score(prompt, reworded) == 10
    assert oracle.score(prompt, said) == 0


def test_an_ideal_answer_scores_ten(oracle: Oracle, tasks: list[Task]) -> None:
    for task in tasks:
        assert oracle.score(task.turns, write(task, PLAIN, oracle.language, Random(5))) == 10, task


def test_the_formula_on_an_answer_worked_by_hand(oracle: Oracle) -> None:
    town = oracle.language.knowledge.towns[0]
    facts = oracle.language.knowledge.facts[town]
    wrong = next(value for value in VALUES["founder"] if value != facts["founder"])
    prompt = f"What are the crop, river, emblem and founder of {town}?"
    answer = (
        f"The people of {town} grow {facts['crop']}. {town} stands on the river {facts['river']}. "
        f"The emblem of {town} is a {facts['emblem']}. {town} was founded by {wrong}. "
        f"I hope this helps. {town} has"
    )
    found = oracle.examine(prompt, answer)
    assert (found.wanted, found.covered, found.false, found.repeated) == (4, 3, 1, 0)
    assert (found.irrelevant, found.filler, found.malformed, found.unfinished) == (0, 1, 0, 1)
    assert found.score == pytest.approx(10 * (3 - 1 - 0.25 - 0.5) / 4)
    found = oracle.examine(prompt, f"{answer} on. The people of {town} grow {facts['crop']}. {town} lies in the {facts['region']}.")
    assert (found.covered, found.false, found.repeated, found.irrelevant) == (3, 1, 1, 1)
    assert (found.filler, found.malformed, found.unfinished) == (1, 1, 0)
    assert found.score == pytest.approx(10 * (3 - 1 - 0.25 - 0.5 - 0.5 - 0.5) / 4)


def test_what_each_fault_costs(oracle: Oracle) -> None:
    """In claims, of the seven that a description has: 1 for a false or a missing one, 1/2 for what nobody needs, 1/4 for politeness."""
    town, other = oracle.language.knowledge.towns[:2]
    facts = oracle.language.knowledge.facts
    every = [oracle.language.say(("fact", town, attribute, value)) for attribute, value in facts[town].items()]
    false = next(value for value in VALUES["crop"] if value != facts[town]["crop"])
    elsewhere = oracle.language.say(("fact", other, "crop", facts[other]["crop"]))
    in_other_words = f"The fields of {town} bear {facts[town]['crop']}."
    for answer, cost in (
        (every, 0),
        (every[:-1], 1),
        ([*every, f"The people of {town} grow {false}."], 1),
        ([*every, every[0]], 0.5),
        ([*every, in_other_words], 0.5),
        ([*every, elsewhere], 0.5),
        ([*every, "Olives grow hills."], 0.5),
        ([*every, f"{town} has"], 0.5),
        ([*every, CLOSINGS[0]], 0.25),
        ([OPENINGS[0], *every, CLOSINGS[0]], 0.5),
        ([*every, CLOSINGS[0], CLOSINGS[0]], 0.25 + 0.25 + 0.5),
    ):
        assert oracle.score(f"Describe {town}.", " ".join(answer)) == pytest.approx(10 * (7 - cost) / 7), answer


# -- the writers -----------------------------------------------------------------------------------------------------------


def answer_with(oracle: Oracle, task: Task, seed: int = 0, **rates: float) -> str:
    """The answer of a plain writer with these rates."""
    return write(
        task,
        Writer(**(dict.fromkeys(("wrong", "curt", "wander", "repeat", "polite", "broken"), 0.0) | rates)),
        oracle.language,
        Random(seed),
    )


def claims_of(oracle: Oracle, answer: str) -> list[Any]:
    """The claims of the answer's sentences, in order."""
    return [claim for sentence in sentences(answer) for claim in oracle.language.claims(sentence) or ()]


def test_a_writer_without_faults_says_what_was_asked_for_in_order(oracle: Oracle, tasks: list[Task]) -> None:
    for task in tasks:
        assert claims_of(oracle, answer_with(oracle, task)) == list(task.wanted)


def test_a_writer_who_is_always_wrong_says_nothing_true(oracle: Oracle, tasks: list[Task]) -> None:
    for task in tasks:
        claims = claims_of(oracle, answer_with(oracle, task, wrong=1))
        assert len(claims) == len(task.wanted)
        assert not any(oracle.language.knowledge.is_true(claim) for claim in claims)


def test_a_curt_writer_says_the_first_half(oracle: Oracle, tasks: list[Task]) -> None:
    for task in tasks:
        assert claims_of(oracle, answer_with(oracle, task, curt=1)) == list(task.wanted[: (len(task.wanted) + 1) // 2])


def test_a_writer_who_wanders_goes_on_with_true_facts_after_the_last_one_asked_for(oracle: Oracle, tasks: list[Task]) -> None:
    """Always: up to the last attribute; sometimes: up to any. They are the first town's, and a description leaves none."""
    for task in tasks:
        claims = claims_of(oracle, answer_with(oracle, task, wander=1))
        asked, further = claims[: len(task.wanted)], claims[len(task.wanted) :]
        last = max(ATTRIBUTES.index(claim[2]) for claim in task.wanted if claim[0] == "fact")
        assert asked == list(task.wanted)
        assert [claim[:3] for claim in further] == [("fact", task.wanted[0][1], attribute) for attribute in ATTRIBUTES[last + 1 :]]
        assert all(oracle.language.knowledge.is_true(claim) for claim in further)
        some = claims_of(oracle, answer_with(oracle, task, wander=0.5))
        assert claims[: len(some)] == some
    (first,) = (task for task in [oracle.read_task(f"Where does {oracle.language.knowledge.towns[0]} lie?")])
    went = Counter(len(claims_of(oracle, answer_with(oracle, first, seed, wander=0.5))) - 1 for seed in range(4000))
    assert went[0] / 4000 == pytest.approx(1 / 2, abs=0.03) and went[1] / 4000 == pytest.approx(1 / 4, abs=0.03)


def test_a_writer_who_repeats_says_each_sentence_and_an_earlier_one(oracle: Oracle, tasks: list[Task]) -> None:
    """And uses the words that the conversation has although others are asked for."""
    repeats = 0
    for task in tasks:
        said = sentences(answer_with(oracle, task, repeat=1))
        assert len(said) == 2 * len(task.wanted)
        assert all(again in said[: 2 * number + 1] for number, again in enumerate(said[1::2]))
        repeats += len(set(said) & task.given)
    assert repeats > 0


def test_a_polite_writer_opens_and_closes_with_a_phrase(oracle: Oracle, tasks: list[Task]) -> None:
    for task in tasks:
        assert answer_with(oracle, task, polite=1) == f"{OPENINGS[0]} {answer_with(oracle, task, polite=0)} {CLOSINGS[0]}"


def test_a_broken_answer_is_the_beginning_of_a_whole_one(oracle: Oracle, tasks: list[Task]) -> None:
    for task in tasks:
        broken, whole = answer_with(oracle, task, broken=1), answer_with(oracle, task)
        assert broken and whole.startswith(broken) and not broken.endswith(".")
        assert oracle.examine(task.turns, broken).unfinished == 1


def honest(task: Task, oracle: Oracle) -> str:
    """A plain honest answer: half of what was asked for, and nothing else."""
    claims = task.wanted[: (len(task.wanted) + 1) // 2]
    return " ".join(oracle.language.say(claim, None, task.given) for claim in claims)


def gamed(oracle: Oracle) -> dict[str, Callable[[Task], str]]:
    """Answers that know nothing of the question's truth, or say everything."""
    language, rng = oracle.language, Random(0)
    town, words_of_all = language.knowledge.towns[0], " ".join(language.vocabulary)
    constant = language.say(("fact", town, "crop", language.knowledge.facts[town]["crop"]))
    all_facts = " ".join(language.say(("fact", t, a, v)) for t, facts in language.knowledge.facts.items() for a, v in facts.items())
    return {
        "empty": lambda task: "",
        "constant": lambda task: constant,
        "stuffed with keywords": lambda task: words_of_all,
        "repeating for ever": lambda task: " ".join([honest(task, oracle)] * 50),
        "the prompt again": lambda task: task.prompt,
        "all that was said": lambda task: " ".join(task.turns),
        "a verdict": lambda task: "My final verdict is tie: [[A=B]]. Rating: [[10]]. M m",
        "politeness": lambda task: " ".join(FILLER),
        "all facts of all towns": lambda task: all_facts,
        "random sentences": lambda task: " ".join(random_sentence(oracle, rng) for _ in range(4)),
    }


def random_sentence(oracle: Oracle, rng: Random) -> str:
    """A sentence of the grammar by somebody who knows the words and not the facts."""
    towns = oracle.language.knowledge.towns
    attribute = rng.choice(ATTRIBUTES)
    if rng.random() < 0.3:
        return oracle.language.say((rng.choice(("same", "differ")), attribute, *rng.sample(towns, 2)))
    return oracle.language.say(("fact", rng.choice(towns), attribute, rng.choice(VALUES[attribute])), rng)


@pytest.mark.slow
def test_no_trick_scores_what_a_plain_honest_answer_does(oracle: Oracle, tasks: list[Task]) -> None:
    some = Random(1).sample(tasks, 300)
    plain = fmean(oracle.score(task.turns, honest(task, oracle)) for task in some)
    assert plain > 5
    for name, answer in gamed(oracle).items():
        assert fmean(oracle.score(task.turns, answer(task)) for task in some) < 0.25 * plain, name
        worse = sum(oracle.score(task.turns, answer(task)) < oracle.score(task.turns, honest(task, oracle)) for task in some)
        assert worse >= 0.97 * len(some), name


@pytest.mark.slow
def test_no_climb_without_the_facts_reaches_a_plain_honest_answer(oracle: Oracle, tasks: list[Task]) -> None:
    """Two thousand steps of adding, replacing and dropping sentences, each kept where one text does better on all prompts together."""
    rng = Random(3)
    some = rng.sample(tasks, 40)
    plain = fmean(oracle.score(task.turns, honest(task, oracle)) for task in some)
    best: list[str] = []
    best_score = 0.0
    for _ in range(2000):
        tried = [*best]
        if tried and rng.random() < 0.6:
            tried.pop(rng.randrange(len(tried)))
        if rng.random() < 0.8:
            tried.insert(rng.randint(0, len(tried)), random_sentence(oracle, rng))
        score = fmean(oracle.score(task.turns, " ".join(tried)) for task in some)
        if score > best_score or (score == best_score and len(tried) <= max(1, len(best))):
            best, best_score = tried, score
    assert best_score < 0.25 * plain


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


def sampled(oracle: Oracle, tasks: list[Task], writer: Writer) -> list[dict[str, Any]]:
    """Two answers a task, as stages/annotate.py reads samples; every other task has the empty system turn of some settings."""
    roles = ("user", "assistant", "user")
    rows = []
    for number, task in enumerate(tasks):
        system = [{"role": "system", "content": ""}] * (number % 2)
        prompt = [*system, *({"role": role, "content": text} for role, text in zip(roles, task.turns, strict=False))]
        rows += [{"prompt": prompt, "response": write(task, writer, oracle.language, Random(f"{number}-{i}"))} for i in range(2)]
    return rows


@pytest.fixture
def world_folder(oracle: Oracle, tmp_path: Path) -> str:
    files.write_json(tmp_path / "knowledge.json", oracle.language.knowledge.facts)
    return str(tmp_path)


def test_the_rater_without_a_temperament_is_the_oracle(oracle: Oracle, tasks: list[Task], world_folder: str) -> None:
    """raters.rate_all: of first and second turns, whether or not there is a system turn."""
    rows = sampled(oracle, tasks, ROUGH)
    scores = [oracle.score(task.turns, row["response"]) for task, row in zip([task for task in tasks for _ in range(2)], rows, strict=True)]
    assert rate_all(rows, world_folder, length_bias=0.0, noise=0.0, seed=0) == scores
    biased = rate_all(rows, world_folder, length_bias=1.0, noise=0.0, seed=0)
    assert biased == [score + log2(1 + len(words(row["response"]))) for score, row in zip(scores, rows, strict=True)]


def test_equal_answers_get_equal_ratings_and_a_seed_its_own(oracle: Oracle, tasks: list[Task], world_folder: str) -> None:
    """raters.rate_all: whatever else is rated, and in whatever order; the error depends on the conversation and the seed."""
    rows = sampled(oracle, tasks[:200], ROUGH)
    ratings = rate_all(rows, world_folder, length_bias=0.3, noise=0.8, seed=0)
    assert rate_all([*rows[::-1], rows[0]], world_folder, length_bias=0.3, noise=0.8, seed=0) == [*ratings[::-1], ratings[0]]
    others = rate_all(rows, world_folder, length_bias=0.3, noise=0.8, seed=1)
    assert all(one != other for one, other in zip(ratings, others, strict=True))
    assert fmean(ratings) == pytest.approx(fmean(others), abs=0.3)


def test_the_rater_agrees_less_with_the_oracle_the_more_noise_it_has(oracle: Oracle, tasks: list[Task], world_folder: str) -> None:
    """raters.rate_all: on two different samples of one writer whose scores differ. Much noise leaves a coin's half."""
    rows = sampled(oracle, tasks, ROUGH)
    scores = rate_all(rows, world_folder, length_bias=0.0, noise=0.0, seed=0)
    told = [at for at in range(0, len(rows), 2) if scores[at] != scores[at + 1]]
    agreement = []
    for noise in (0.0, 0.8, 3.0, 1000.0):
        ratings = rate_all(rows, world_folder, length_bias=0.0, noise=noise, seed=0)
        agreement.append(fmean((ratings[at] > ratings[at + 1]) == (scores[at] > scores[at + 1]) for at in told))
    assert len(told) > 500
    assert agreement[0] == 1 and agreement[1] > agreement[2] + 0.05 > agreement[3] + 0.1
    assert agreement[3] == pytest.approx(0.5, abs=0.08)


def test_the_judge_says_the_same_when_asked_again_and_likes_what_comes_first(oracle: Oracle, tasks: list[Task]) -> None:
    temperament = {"sharpness": 0.6, "length_bias": 0.4, "position_bias": 0.3, "noise": 0.8, "seed": 0}
    tasks = [task for task in tasks if len(task.turns) == 1]
    odds = [judge_log_odds(oracle, (t.prompt, "I hope this helps.", "This is worth knowing."), **temperament) for t in tasks]
    assert odds == [judge_log_odds(oracle, (t.prompt, "I hope this helps.", "This is worth knowing."), **temperament) for t in tasks]
    assert fmean(odds) == pytest.approx(-0.3, abs=0.08)


@pytest.mark.slow
def test_the_tokenizer_gives_every_answer_back(oracle: Oracle, tasks: list[Task], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    make_tokenizer(oracle.language).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for task in tasks[:300]:
        text = write(task, ROUGH, oracle.language, Random(7))
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
    return folder, make_world(compose_config().world, folder)


def prompts_of(folder: Path) -> dict[str, list[str]]:
    """Every prompt of the three benchmarks, and of the questions that hyperparameters are chosen on."""
    return {
        "development": [row["instruction"] for row in files.read_json(folder / "development/baseline.json")],
        "alpacaeval2": [row["instruction"] for row in files.read_json(folder / "alpacaeval2/baseline.json")],
        "arena_hard": [row["turns"][0]["content"] for row in files.read_rows(folder / "arena_hard/question.jsonl")],
        "mt_bench": [row["turns"][0] for row in files.read_rows(folder / "mt_bench/question.jsonl")],
    }


@pytest.mark.slow
def test_no_question_is_asked_twice_or_among_the_training_prompts(world: tuple[Path, dict]) -> None:
    """Of the three benchmarks, the development set, and what a model learns from."""
    folder, _ = world
    questions = prompts_of(folder)
    sizes = {"development": 200, "alpacaeval2": 805, "arena_hard": 500, "mt_bench": 80}
    assert {name: len(prompts) for name, prompts in questions.items()} == sizes
    asked = {prompt for prompts in questions.values() for prompt in prompts}
    assert len(asked) == sum(sizes.values())
    for row in files.read_rows(folder / "preferences.jsonl"):
        assert row["chosen"][0]["content"] not in asked
    for name in ("base", "instruct"):
        for row in files.read_rows(folder / f"demonstrations-{name}.jsonl"):
            assert row["messages"][0]["content"] not in asked
    # A text of the corpus opens with its prompt, which ends with the first sentence; a text to be put in other words may have more of them.
    opened = {sentences(row["text"])[0] for row in files.read_rows(folder / "corpus.jsonl") if ":" not in row["text"]}
    assert not opened & {" ".join(words(prompt)) for prompt in asked}


@pytest.mark.slow
def test_the_benchmarks_are_in_their_own_formats(world: tuple[Path, dict]) -> None:
    """MT-Bench: eight categories of ten questions, references where its judge is shown them; the harder benchmark asks for more."""
    folder, _ = world
    oracle = load_oracle(folder)
    questions = files.read_rows(folder / "mt_bench/question.jsonl")
    assert Counter(row["category"] for row in questions) == dict.fromkeys(CATEGORIES, 10)
    references = {row["question_id"]: row["choices"][0]["turns"] for row in files.read_rows(folder / "mt_bench/reference_answer.jsonl")}
    assert set(references) == {row["question_id"] for row in questions if row["category"] in NEEDS_REFERENCE}
    for row in questions:
        if row["question_id"] in references:
            first, second = references[row["question_id"]]
            assert oracle.score(row["turns"][0], first) == oracle.score((row["turns"][0], first, row["turns"][1]), second) == 10
    asked = {name: fmean(len(oracle.read_task(prompt).wanted) for prompt in prompts) for name, prompts in prompts_of(folder).items()}
    assert asked["arena_hard"] > asked["alpacaeval2"]
    baseline = files.read_rows(folder / "arena_hard/baseline.jsonl")
    assert [row["question_id"] for row in baseline] == [row["question_id"] for row in files.read_rows(folder / "arena_hard/question.jsonl")]


@pytest.mark.slow
def test_the_development_set_is_answered_by_its_baseline(world: tuple[Path, dict]) -> None:
    """In AlpacaEval's format, as its benchmark."""
    folder, _ = world
    development, benchmark = (files.read_json(folder / name / "baseline.json") for name in ("development", "alpacaeval2"))
    assert [list(row) for row in development[:1]] == [list(row) for row in benchmark[:1]]
    assert {row["generator"] for row in development} == {"master"}
    assert {row["dataset"] for row in development} == set(KINDS)
    oracle = load_oracle(folder)
    assert fmean(oracle.score(row["instruction"], row["output"]) for row in development) > 9


@pytest.mark.slow
def test_a_share_of_what_is_learnt_has_two_turns(world: tuple[Path, dict]) -> None:
    folder, _ = world
    for name, side in (("demonstrations-base", "messages"), ("demonstrations-instruct", "messages"), ("preferences", "chosen")):
        turns = Counter(len(row[side]) for row in files.read_rows(folder / f"{name}.jsonl"))
        assert set(turns) == {2, 4}
        assert 0.10 < turns[4] / turns.total() < 0.2


def turns_of(pair: dict[str, Any]) -> tuple[str, ...]:
    return tuple(message["content"] for message in pair["chosen"][:-1])


@pytest.mark.slow
def test_the_world_meets_its_criteria_that_need_no_training(world: tuple[Path, dict]) -> None:
    folder, facts = world
    oracle = load_oracle(folder)
    best = [row["output"] for row in files.read_json(folder / "alpacaeval2/baseline.json")]
    ordered = sorted(len(words(text)) for text in best)
    assert ordered[len(ordered) * 95 // 100] >= 5 * ordered[len(ordered) * 5 // 100]
    means = facts["oracle_mean_on_alpacaeval2"]
    assert means["master"] > 9 and means["master"] > means["concise"] > max(
        means[name] for name in means if name not in ("master", "concise")
    )
    assert means["student"] > means["traveller"] > means["gossip"]
    pairs = files.read_rows(folder / "preferences.jsonl")
    agree = fmean(
        oracle.score(turns_of(p), p["chosen"][-1]["content"]) >= oracle.score(turns_of(p), p["rejected"][-1]["content"]) for p in pairs
    )
    assert 0.6 < agree < 0.98


@pytest.mark.slow
def test_chosen_answers_are_five_to_25_percent_longer_than_rejected_ones(world: tuple[Path, dict]) -> None:
    lengths = world[1]["preferences"]
    assert 1.05 <= lengths["mean_words_chosen"] / lengths["mean_words_rejected"] <= 1.25


@pytest.mark.slow
def test_the_readme_tells_this_world_s_size(world: tuple[Path, dict]) -> None:
    folder, facts = world
    knowledge = files.read_json(folder / "knowledge.json")
    assert (len(knowledge), {len(of_town) for of_town in knowledge.values()}) == (60, {7})
    readme = " ".join((CONF.parent / "README.md").read_text().split())
    assert "Sixty invented towns with seven facts each" in readme
    assert f"a controlled English of {facts['vocabulary']} words" in readme


@pytest.mark.slow
def test_the_same_seed_makes_the_same_world(world: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = world
    make_world(compose_config().world, tmp_path)
    for path in folder.rglob("*.json*"):
        assert files.sha256(path) == files.sha256(tmp_path / path.relative_to(folder)), path.name
