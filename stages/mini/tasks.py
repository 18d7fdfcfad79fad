"""The tasks of the mini world: five kinds of prompt, and the second turns that may follow them.

A task knows the claims that an ideal answer makes. ``TaskReader`` recovers it from the conversation's text alone, by the grammar, so that
a judge needs nothing but the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from stages.lib.errors import UserError
from stages.mini import language as english
from stages.mini.knowledge import ATTRIBUTES, Claim, Knowledge
from stages.mini.language import Language, enumerate_words, sentences, words

ASKED = (2, 3, 4)  # how many attributes of a town are asked for at once

Conversation = tuple[str, ...]  # prompt; or prompt, answer, prompt


@dataclass(frozen=True)
class Task:
    """A prompt and what it asks for."""

    kind: str
    turns: Conversation  # with the prompt as the last
    wanted: tuple[Claim, ...]  # the claims that are asked for, in plain order
    given: frozenset[str] = frozenset()  # sentences that the answer must not repeat

    @property
    def prompt(self) -> str:
        return self.turns[-1]


def _facts(knowledge: Knowledge, town: str, attributes: Sequence[str]) -> tuple[Claim, ...]:
    return tuple(("fact", town, attribute, knowledge.facts[town][attribute]) for attribute in attributes)


def _comparison(knowledge: Knowledge, one: str, other: str, attribute: str) -> tuple[Claim, ...]:
    ours, theirs = (_facts(knowledge, town, (attribute,))[0] for town in (one, other))
    return ours, theirs, ("same" if ours[3] == theirs[3] else "differ", attribute, *sorted((one, other)))


# -- asking ----------------------------------------------------------------------------------------------------------------


def _ask_fact(language: Language, rng: Random) -> str:
    return rng.choice(english.FACT_PROMPTS[rng.choice(ATTRIBUTES)]).format(town=rng.choice(language.knowledge.towns))


def _some(attributes: Sequence[str], number: int, rng: Random) -> list[str]:
    """``number`` of the attributes, in their order."""
    return sorted(rng.sample(attributes, number), key=ATTRIBUTES.index)


def _ask_facts(language: Language, rng: Random) -> str:
    attributes = enumerate_words(_some(ATTRIBUTES, rng.choice(ASKED), rng))
    return rng.choice(english.FACTS_PROMPTS).format(attributes=attributes, town=rng.choice(language.knowledge.towns))


def _ask_describe(language: Language, rng: Random) -> str:
    return rng.choice(english.DESCRIBE_PROMPTS).format(town=rng.choice(language.knowledge.towns))


def _ask_compare(language: Language, rng: Random) -> str:
    one, other = sorted(rng.sample(language.knowledge.towns, 2))
    return rng.choice(english.COMPARE_PROMPTS).format(one=one, other=other, attribute=rng.choice(ATTRIBUTES))


def _ask_rewrite(language: Language, rng: Random) -> str:
    (claim,) = _facts(language.knowledge, rng.choice(language.knowledge.towns), (rng.choice(ATTRIBUTES),))
    return rng.choice(english.REWRITE_PROMPTS).format(text=language.say(claim, rng))


KINDS: dict[str, Callable[[Language, Random], str]] = {
    "fact": _ask_fact,
    "facts": _ask_facts,
    "describe": _ask_describe,
    "compare": _ask_compare,
    "rewrite": _ask_rewrite,
}


def ask_more(task: Task, language: Language, rng: Random) -> str:
    """A second turn's prompt after ``task``."""
    asked = {claim[2] for claim in task.wanted if claim[0] == "fact"}
    left = [attribute for attribute in ATTRIBUTES if attribute not in asked]
    if task.kind == "compare":
        return rng.choice(english.ALSO_PROMPTS).format(attribute=rng.choice(left))
    if task.kind == "describe" or (task.kind != "rewrite" and rng.random() < 0.5):
        return rng.choice(english.AGAIN_PROMPTS)
    return rng.choice(english.ITS_PROMPTS).format(attributes=enumerate_words(_some(left, rng.randint(1, min(2, len(left))), rng)))


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
            self._add("its", english.ITS_PROMPTS, attributes=attributes)
        self._add("describe", english.DESCRIBE_PROMPTS, town=one)
        self._add("compare", english.COMPARE_PROMPTS, one=one, other=other, attribute="crop")
        self._add("again", english.AGAIN_PROMPTS)
        self._add("also", english.ALSO_PROMPTS, attribute="crop")
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
        return Task(found[0], turns, *found[1:])

    def _first(self, prompt: str) -> tuple[str, tuple[Claim, ...], frozenset[str]] | None:
        text = " ".join(words(prompt))
        if opening := next((opening for opening in self._rewrite if text.startswith(opening)), None):
            given = sentences(text.removeprefix(opening))
            claims = [claim for sentence in given for claim in self.language.claims(sentence) or ()]
            return ("rewrite", tuple(claims), frozenset(given)) if claims else None
        reading = self.language.read(prompt)
        kind, detail = self._kinds.get(reading.shape, ("", ""))
        knowledge, towns, attributes = self.language.knowledge, reading.towns, reading.attributes
        wanted: tuple[Claim, ...]
        match kind, len(towns):
            case "fact", 1:
                wanted = _facts(knowledge, towns[0], (detail,))
            case "facts", 1:
                wanted = _facts(knowledge, towns[0], attributes)
            case "describe", 1:
                wanted = _facts(knowledge, towns[0], ATTRIBUTES)
            case "compare", 2 if len(attributes) == 1:
                wanted = _comparison(knowledge, towns[0], towns[1], attributes[0])
            case _:
                return None
        return kind, wanted, frozenset()

    def _second(self, first: Task, answer: str, prompt: str) -> tuple[str, tuple[Claim, ...], frozenset[str]] | None:
        reading = self.language.read(prompt)
        kind, detail = self._kinds.get(reading.shape, ("", ""))
        knowledge = self.language.knowledge
        wanted: tuple[Claim, ...]
        given = frozenset[str]()
        match kind, first.kind:
            case "its", "fact" | "facts" | "rewrite":
                wanted = _facts(knowledge, first.wanted[0][1], reading.attributes)
            case "again", "fact" | "facts" | "describe":
                wanted, given = first.wanted, frozenset(sentences(answer))
            case "also", "compare":
                wanted = _comparison(knowledge, first.wanted[0][1], first.wanted[1][1], reading.attributes[0])
            case _:
                return None
        return (kind, wanted, given) if wanted else None
