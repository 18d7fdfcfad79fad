"""What the mini world's users ask: six kinds of task, from one fact to a comparison, each with its ideal answer.

A task knows the claims that an ideal answer makes. ``read_task`` recovers it from the prompt's text alone, by the grammar,
so that whoever judges an answer needs nothing but what was asked and what was answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from stages.mini.knowledge import ATTRIBUTES, COUNTED, VALUES, Claim, Knowledge
from stages.mini.language import (
    COMPARE_PROMPTS,
    COUNT_PROMPTS,
    DESCRIBE_PROMPTS,
    FACT_PROMPTS,
    FACTS_PROMPTS,
    LIST_PROMPTS,
    SHARED,
    Language,
    enumerate_words,
)

LISTED = range(2, 5)  # how many towns a list may be asked for


@dataclass(frozen=True)
class Task:
    """``wanted``: the claims that were asked for, in plain order; an ideal answer makes ``need`` of them, and no other."""

    kind: str
    prompt: str
    wanted: tuple[Claim, ...]
    need: int


def _facts(knowledge: Knowledge, town: str, attributes: tuple[str, ...]) -> tuple[Claim, ...]:
    return tuple(("fact", town, attribute, knowledge.facts[town][attribute]) for attribute in attributes)


def _comparison(knowledge: Knowledge, one: str, other: str, attributes: tuple[str, ...]) -> tuple[Claim, ...]:
    claims: list[Claim] = []
    for attribute in attributes:
        claims += [*_facts(knowledge, one, (attribute,)), *_facts(knowledge, other, (attribute,))]
        ours, theirs = knowledge.facts[one][attribute], knowledge.facts[other][attribute]
        if attribute == "size" and ours != theirs:
            claims.append(("larger", one, other) if int(ours) > int(theirs) else ("larger", other, one))
        else:
            claims.append(("same" if ours == theirs else "differ", attribute, *sorted((one, other))))
    return tuple(claims)


def _task(kind: str, prompt: str, wanted: tuple[Claim, ...], need: int | None = None) -> Task:
    return Task(kind, prompt, wanted, len(wanted) if need is None else need)


def _fact(knowledge: Knowledge, rng: Random) -> Task:
    town, attribute = rng.choice(knowledge.towns), rng.choice(ATTRIBUTES)
    return _task("fact", rng.choice(FACT_PROMPTS[attribute]).format(town=town), _facts(knowledge, town, (attribute,)))


def _several_facts(knowledge: Knowledge, rng: Random) -> Task:
    town, attributes = rng.choice(knowledge.towns), rng.sample(ATTRIBUTES, rng.randint(2, 4))
    prompt = rng.choice(FACTS_PROMPTS).format(attributes=enumerate_words(attributes), town=town)
    return _task("facts", prompt, _facts(knowledge, town, tuple(attributes)))


def _describe(knowledge: Knowledge, rng: Random) -> Task:
    town = rng.choice(knowledge.towns)
    return _task("describe", rng.choice(DESCRIBE_PROMPTS).format(town=town), _facts(knowledge, town, ATTRIBUTES))


def _compare(knowledge: Knowledge, rng: Random) -> Task:
    (one, other), attributes = rng.sample(knowledge.towns, 2), rng.sample(ATTRIBUTES, rng.randint(1, 3))
    prompt = rng.choice(COMPARE_PROMPTS).format(one=one, other=other, attributes=enumerate_words(attributes))
    return _task("compare", prompt, _comparison(knowledge, one, other, tuple(attributes)))


def _list(knowledge: Knowledge, rng: Random) -> Task:
    attribute, value = rng.choice([key for key, towns in knowledge.holders.items() if key[0] in COUNTED and len(towns) >= min(LISTED)])
    holders = knowledge.holders[attribute, value]
    need = rng.randint(min(LISTED), min(max(LISTED), len(holders)))
    prompt = rng.choice(LIST_PROMPTS).format(number=need, shared=SHARED[attribute].format(value=value))
    return _task("list", prompt, tuple(("fact", town, attribute, value) for town in holders), need)


def _count(knowledge: Knowledge, rng: Random) -> Task:
    attribute = rng.choice(COUNTED)
    value = rng.choice(VALUES[attribute])
    prompt = rng.choice(COUNT_PROMPTS).format(shared=SHARED[attribute].format(value=value))
    return _task("count", prompt, (("count", attribute, value, str(len(knowledge.holders.get((attribute, value), ())))),))


KINDS: dict[str, Callable[[Knowledge, Random], Task]] = {
    "fact": _fact,
    "facts": _several_facts,
    "describe": _describe,
    "compare": _compare,
    "list": _list,
    "count": _count,
}


def draw_tasks(knowledge: Knowledge, n: int, mix: dict[str, float], rng: Random, taken: set[str]) -> list[Task]:
    """``n`` tasks of the kinds in ``mix`` (weights), no prompt twice nor one of ``taken``, to which the new prompts are added.

    ValueError when a world as small as this has not that many different prompts.
    """
    tasks: list[Task] = []
    kinds, weights = list(mix), list(mix.values())
    failures = 0
    while len(tasks) < n:
        task = KINDS[rng.choices(kinds, weights)[0]](knowledge, rng)
        if task.prompt in taken:
            failures += 1
            if failures > 100 * n + 1000:
                raise ValueError(
                    f"{len(tasks)} of {n} prompts found: too few for world.n_towns={len(knowledge.towns)}; raise it or ask for fewer"
                )
            continue
        taken.add(task.prompt)
        tasks.append(task)
    return tasks


class TaskReader:
    """Recovers a task from its prompt's text."""

    def __init__(self, language: Language) -> None:
        self.language = language
        one, other = language.knowledge.towns[:2]
        self._kinds: dict[str, tuple[str, str]] = {}
        for attribute, forms in FACT_PROMPTS.items():
            for form in forms:
                self._add(form.format(town=one), "fact", attribute)
        for form in FACTS_PROMPTS:
            self._add(form.format(attributes="crop and river", town=one), "facts")
        for form in DESCRIBE_PROMPTS:
            self._add(form.format(town=one), "describe")
        for form, attributes in ((f, a) for f in COMPARE_PROMPTS for a in ("crop", "crop and river")):
            self._add(form.format(one=one, other=other, attributes=attributes), "compare")
        for attribute, form in SHARED.items():
            shared = form.format(value=VALUES[attribute][0])
            for prompt in LIST_PROMPTS:
                self._add(prompt.format(number=3, shared=shared), "list", attribute)
            for prompt in COUNT_PROMPTS:
                self._add(prompt.format(shared=shared), "count", attribute)

    def _add(self, prompt: str, kind: str, attribute: str = "") -> None:
        self._kinds[self.language.read(prompt).shape] = (kind, attribute)

    def __call__(self, prompt: str) -> Task:
        """The task behind a prompt; ValueError names a prompt that is none of this world's."""
        reading = self.language.read(prompt)
        kind, attribute = self._kinds.get(reading.shape, ("", ""))
        knowledge, towns, attributes = self.language.knowledge, reading.towns, reading.attributes
        match kind, len(towns):
            case "fact", 1:
                return _task(kind, prompt, _facts(knowledge, towns[0], (attribute,)))
            case "facts", 1:
                return _task(kind, prompt, _facts(knowledge, towns[0], attributes))
            case "describe", 1:
                return _task(kind, prompt, _facts(knowledge, towns[0], ATTRIBUTES))
            case "compare", 2:
                return _task(kind, prompt, _comparison(knowledge, towns[0], towns[1], attributes))
            case "list", 0:
                holders = knowledge.holders.get((attribute, reading.values[0]), [])
                return _task(kind, prompt, tuple(("fact", t, attribute, reading.values[0]) for t in holders), int(reading.numbers[0]))
            case "count", 0:
                holders = knowledge.holders.get((attribute, reading.values[0]), [])
                return _task(kind, prompt, (("count", attribute, reading.values[0], str(len(holders))),))
        raise ValueError(f"not a prompt of this world: {prompt!r}")
