"""The tasks of the mini world: eight kinds of prompt, and the second turns that may follow them.

A task knows the claims that an ideal answer makes. ``TaskReader`` recovers it from the conversation's text alone, by the grammar, so that
a judge needs nothing but the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from stages.lib.errors import UserError
from stages.mini import language as english
from stages.mini.knowledge import ATTRIBUTES, COUNTED, VALUES, Claim, Knowledge
from stages.mini.language import Language, enumerate_words, sentences, words

LISTED = range(2, 5)  # how many towns a list may be asked for
SMALL = range(1, 9)  # the numbers of arithmetic tasks

Conversation = tuple[str, ...]  # prompt; or prompt, answer, prompt


@dataclass(frozen=True)
class Task:
    """A prompt and what it asks for."""

    kind: str
    turns: Conversation  # with the prompt as the last
    wanted: tuple[Claim, ...]  # the claims that are asked for, in plain order
    need: int  # how many of them an ideal answer makes
    given: frozenset[str] = frozenset()  # sentences that the answer must not repeat

    @property
    def prompt(self) -> str:
        return self.turns[-1]


def _facts(knowledge: Knowledge, town: str, attributes: Sequence[str]) -> tuple[Claim, ...]:
    return tuple(("fact", town, attribute, knowledge.facts[town][attribute]) for attribute in attributes)


def _comparison(knowledge: Knowledge, one: str, other: str, attributes: Sequence[str]) -> tuple[Claim, ...]:
    claims: list[Claim] = []
    for attribute in attributes:
        claims += [*_facts(knowledge, one, (attribute,)), *_facts(knowledge, other, (attribute,))]
        larger = _larger(knowledge, one, other)
        ours, theirs = knowledge.facts[one][attribute], knowledge.facts[other][attribute]
        verdict = ("same" if ours == theirs else "differ", attribute, *sorted((one, other)))
        claims += larger if attribute == "size" and larger else (verdict,)
    return tuple(claims)


def _larger(knowledge: Knowledge, one: str, other: str) -> tuple[Claim, ...]:
    """The claim which of two towns is larger; none if they have the same size."""
    gap = int(knowledge.facts[one]["size"]) - int(knowledge.facts[other]["size"])
    return (("larger", one, other) if gap > 0 else ("larger", other, one),) if gap else ()


def _holders(knowledge: Knowledge, attribute: str, value: str) -> tuple[Claim, ...]:
    return tuple(("fact", town, attribute, value) for town in knowledge.holders.get((attribute, value), ()))


def _count(knowledge: Knowledge, attribute: str, value: str) -> tuple[Claim, ...]:
    return (("count", attribute, value, str(len(_holders(knowledge, attribute, value)))),)


def sum_of(operation: str, one: str, other: str) -> tuple[Claim, ...]:
    """The claim of a sum, as what is wanted."""
    return (("sum", operation, one, other, str(int(one) + int(other) if operation == "plus" else int(one) - int(other))),)


# -- asking ----------------------------------------------------------------------------------------------------------------


def _ask_fact(language: Language, rng: Random) -> str:
    return rng.choice(english.FACT_PROMPTS[rng.choice(ATTRIBUTES)]).format(town=rng.choice(language.knowledge.towns))


def _ask_facts(language: Language, rng: Random) -> str:
    attributes = enumerate_words(rng.sample(ATTRIBUTES, rng.randint(2, 4)))
    return rng.choice(english.FACTS_PROMPTS).format(attributes=attributes, town=rng.choice(language.knowledge.towns))


def _ask_describe(language: Language, rng: Random) -> str:
    return rng.choice(english.DESCRIBE_PROMPTS).format(town=rng.choice(language.knowledge.towns))


def _ask_compare(language: Language, rng: Random) -> str:
    (one, other), attributes = rng.sample(language.knowledge.towns, 2), rng.sample(ATTRIBUTES, rng.randint(1, 3))
    return rng.choice(english.COMPARE_PROMPTS).format(one=one, other=other, attributes=enumerate_words(attributes))


def _ask_list(language: Language, rng: Random) -> str:
    holders = language.knowledge.holders
    attribute, value = rng.choice([key for key, towns in holders.items() if key[0] in COUNTED and len(towns) >= min(LISTED)])
    number = rng.randint(min(LISTED), min(max(LISTED), len(holders[attribute, value])))
    return rng.choice(english.LIST_PROMPTS).format(number=number, shared=english.SHARED[attribute].format(value=value))


def _ask_count(language: Language, rng: Random) -> str:
    attribute = rng.choice(COUNTED)
    return rng.choice(english.COUNT_PROMPTS).format(shared=english.SHARED[attribute].format(value=rng.choice(VALUES[attribute])))


def _ask_arithmetic(language: Language, rng: Random) -> str:
    one, other = sorted(rng.choices(SMALL, k=2), reverse=True)  # the larger first: no result is below 0
    return rng.choice(english.SUM_PROMPTS).format(one=one, operation=rng.choice(english.OPERATIONS), other=other)


def _ask_rewrite(language: Language, rng: Random) -> str:
    town, attributes = rng.choice(language.knowledge.towns), rng.sample(ATTRIBUTES, rng.randint(1, 3))
    text = " ".join(language.say(claim, rng) for claim in _facts(language.knowledge, town, attributes))
    return rng.choice(english.REWRITE_PROMPTS).format(text=text)


KINDS: dict[str, Callable[[Language, Random], str]] = {
    "fact": _ask_fact,
    "facts": _ask_facts,
    "describe": _ask_describe,
    "compare": _ask_compare,
    "list": _ask_list,
    "count": _ask_count,
    "arithmetic": _ask_arithmetic,
    "rewrite": _ask_rewrite,
}


def ask_more(task: Task, language: Language, rng: Random) -> str | None:
    """A second turn's prompt after ``task``; None if there is nothing to ask (two towns of one size)."""
    match task.kind:
        case "fact" | "facts" | "rewrite":
            left = [attribute for attribute in ATTRIBUTES if attribute not in {claim[2] for claim in task.wanted}]
            its = rng.choice(english.ITS_PROMPTS).format(attributes=enumerate_words(rng.sample(left, rng.randint(1, min(2, len(left))))))
            return its if task.kind == "rewrite" or rng.random() < 0.5 else rng.choice(english.AGAIN_PROMPTS)
        case "describe":
            return rng.choice(english.AGAIN_PROMPTS)
        case "compare":
            return rng.choice(english.LARGER_PROMPTS) if _larger(language.knowledge, *_compared(task)) else None
        case "list":
            return rng.choice(english.HOW_MANY_PROMPTS)
        case "count":
            return rng.choice(english.ONE_OF_THEM_PROMPTS) if task.wanted[0][3] != "0" else None
        case "arithmetic":
            result = int(task.wanted[0][4])
            operation = rng.choice(english.OPERATIONS) if result else "plus"
            most = min(max(SMALL), result) if operation == "minus" else max(SMALL)
            return english.THEN_PROMPTS[operation].format(number=rng.randint(1, most))
    raise ValueError(f"no second turn follows a task of kind {task.kind!r}")


def _compared(task: Task) -> tuple[str, str]:
    return task.wanted[0][1], task.wanted[1][1]  # a comparison opens with a fact of each


def draw_tasks(language: Language, n: int, mix: dict[str, float], rng: Random, taken: set[str]) -> list[Task]:
    """``n`` tasks with different prompts; UserError if the world has too few.

    mix: the weight of each kind.
    taken: prompts that may not come again; the new ones are added.
    """
    read = TaskReader(language)
    tasks: list[Task] = []
    kinds, weights = list(mix), list(mix.values())
    failures = 0
    while len(tasks) < n:
        prompt = KINDS[rng.choices(kinds, weights)[0]](language, rng)
        if prompt in taken:
            failures += 1
            if failures > 100 * n + 1000:
                towns = len(language.knowledge.towns)
                raise UserError(f"{len(tasks)} of {n} prompts found: too few for world.n_towns={towns}; raise it or ask for fewer")
            continue
        taken.add(prompt)
        tasks.append(read(prompt))
    return tasks


# -- reading ---------------------------------------------------------------------------------------------------------------


class TaskReader:
    """Recovers a task from its conversation's text."""

    def __init__(self, language: Language) -> None:
        self.language = language
        one, other = language.knowledge.towns[:2]
        self._kinds: dict[str, tuple[str, str]] = {}
        for attribute, forms in english.FACT_PROMPTS.items():
            self._add("fact", forms, attribute, town=one)
        for attributes in ("crop", "crop and river"):
            self._add("facts", english.FACTS_PROMPTS, attributes=attributes, town=one)
            self._add("compare", english.COMPARE_PROMPTS, one=one, other=other, attributes=attributes)
            self._add("its", english.ITS_PROMPTS, attributes=attributes)
        self._add("describe", english.DESCRIBE_PROMPTS, town=one)
        for attribute, form in english.SHARED.items():
            shared = form.format(value=VALUES[attribute][0])
            self._add("list", english.LIST_PROMPTS, attribute, number=3, shared=shared)
            self._add("count", english.COUNT_PROMPTS, attribute, shared=shared)
        for operation in english.OPERATIONS:
            self._add("arithmetic", english.SUM_PROMPTS, operation, one=1, operation=operation, other=1)
            self._add("then", (english.THEN_PROMPTS[operation],), operation, number=1)
        for kind, forms in (("again", english.AGAIN_PROMPTS), ("larger", english.LARGER_PROMPTS), ("how_many", english.HOW_MANY_PROMPTS)):
            self._add(kind, forms)
        self._add("one_of_them", english.ONE_OF_THEM_PROMPTS)
        self._rewrite = tuple(" ".join(words(form.format(text=""))) + " " for form in english.REWRITE_PROMPTS)

    def _add(self, kind: str, forms: Sequence[str], detail: str = "", **places: object) -> None:
        for form in forms:
            self._kinds[self.language.read(form.format(**places)).shape] = (kind, detail)

    def __call__(self, *turns: str) -> Task:
        """The task of a prompt, or of the last turn in (prompt, answer, prompt); UserError names a text that is no prompt of this world."""
        if len(turns) == 1:
            found = self._first(turns[0])
        elif len(turns) == 3:
            found = self._second(self(turns[0]), turns[1], turns[2])
        else:
            raise UserError(f"a conversation of {len(turns)} texts; this world knows (prompt) and (prompt, answer, prompt)")
        if found is None:
            raise UserError(f"not a prompt of this world: {turns[-1]!r}")
        kind, wanted, need, given = found
        return Task(kind, turns, wanted, len(wanted) if need is None else need, given)

    def _first(self, prompt: str) -> tuple[str, tuple[Claim, ...], int | None, frozenset[str]] | None:
        text = " ".join(words(prompt))
        if opening := next((opening for opening in self._rewrite if text.startswith(opening)), None):
            given = sentences(text.removeprefix(opening))
            claims = [claim for sentence in given for claim in self.language.claims(sentence) or ()]
            return ("rewrite", tuple(claims), None, frozenset(given)) if claims else None
        reading = self.language.read(prompt)
        kind, detail = self._kinds.get(reading.shape, ("", ""))
        knowledge, towns, attributes = self.language.knowledge, reading.towns, reading.attributes
        wanted: tuple[Claim, ...]
        need = None
        match kind, len(towns):
            case "fact", 1:
                wanted = _facts(knowledge, towns[0], (detail,))
            case "facts", 1:
                wanted = _facts(knowledge, towns[0], attributes)
            case "describe", 1:
                wanted = _facts(knowledge, towns[0], ATTRIBUTES)
            case "compare", 2:
                wanted = _comparison(knowledge, towns[0], towns[1], attributes)
            case "list", 0:
                wanted, need = _holders(knowledge, detail, reading.values[0]), int(reading.numbers[0])
            case "count", 0:
                wanted = _count(knowledge, detail, reading.values[0])
            case "arithmetic", 0:
                wanted = sum_of(detail, *reading.numbers)
            case _:
                return None
        return kind, wanted, need, frozenset()

    def _second(self, first: Task, answer: str, prompt: str) -> tuple[str, tuple[Claim, ...], int | None, frozenset[str]] | None:
        reading = self.language.read(prompt)
        kind, detail = self._kinds.get(reading.shape, ("", ""))
        knowledge = self.language.knowledge
        wanted: tuple[Claim, ...]
        need, given = None, frozenset[str]()
        match kind, first.kind:
            case "its", "fact" | "facts" | "rewrite":
                wanted = _facts(knowledge, first.wanted[0][1], reading.attributes)
            case "again", "fact" | "facts" | "describe":
                wanted, given = first.wanted, frozenset(sentences(answer))
            case "larger", "compare":
                wanted = _larger(knowledge, *_compared(first))
            case "how_many", "list":
                wanted = _count(knowledge, *first.wanted[0][2:])
            case "one_of_them", "count":
                wanted, need = _holders(knowledge, *first.wanted[0][1:3]), 1
            case "then", "arithmetic":
                wanted = sum_of(detail, first.wanted[0][4], reading.numbers[0])
            case _:
                return None
        return (kind, wanted, need, given) if wanted else None
