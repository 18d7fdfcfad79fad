"""The writers of the mini world, with graded skill. They write the demonstrations, the preference data and the baseline's answers.

A writer knows the truth and departs from it at its own rates (conf/world): false facts, half answers, claims that nobody asked for,
repetition, polite phrases, broken endings. The models behind UltraFeedback differ in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from stages.mini.knowledge import ATTRIBUTES, VALUES, Claim, Knowledge
from stages.mini.language import CLOSINGS, OPENINGS, Language
from stages.mini.tasks import Task


@dataclass(frozen=True)
class Writer:
    """Rates in [0, 1].

    wrong: of false claims.
    curt: of answers with only the first half of what was asked for.
    wander: of a further claim that nobody asked for, after the answer and after each further claim.
    repeat: of sentences that are followed by an earlier one.
    polite: of answers with a phrase before them, and of answers with one after them.
    broken: of answers that end in the middle of a sentence.
    """

    wrong: float
    curt: float
    wander: float
    repeat: float
    polite: float
    broken: float


def falsify(claim: Claim, knowledge: Knowledge, rng: Random) -> Claim:
    """A false claim of the same shape."""
    match claim:
        case ("fact", town, attribute, value):
            return ("fact", town, attribute, rng.choice([other for other in VALUES[attribute] if other != value]))
        case ("same" | "differ" as verdict, attribute, one, other):
            return ("differ" if verdict == "same" else "same", attribute, one, other)
    raise ValueError(f"no such claim: {claim}")


def write(task: Task, writer: Writer, language: Language, rng: Random) -> str:
    """An answer to ``task`` by ``writer``; never empty."""
    asked = list(task.wanted)
    if rng.random() < writer.curt:
        asked = asked[: (len(asked) + 1) // 2]
    answer: list[str] = []
    for claim in asked + _wander(task, writer, language.knowledge, rng):
        given = () if rng.random() < writer.repeat else task.given  # a writer who repeats ignores the wish for other words
        answer.append(language.say(falsify(claim, language.knowledge, rng) if rng.random() < writer.wrong else claim, rng, given))
        if rng.random() < writer.repeat:
            answer.append(rng.choice(answer))
    if rng.random() < writer.polite:
        answer.insert(0, rng.choice(OPENINGS))
    if rng.random() < writer.polite:
        answer.append(rng.choice(CLOSINGS))
    text = " ".join(answer)
    if rng.random() < writer.broken:
        words = text.split()
        text = " ".join(words[: -rng.randint(1, min(4, len(words) - 1))]).rstrip(".,")
    return text


def _wander(task: Task, writer: Writer, knowledge: Knowledge, rng: Random) -> list[Claim]:
    """Claims that nobody asked for: the facts that follow the last one in the order of ``ATTRIBUTES``, of the same town."""
    town = task.wanted[0][1]
    last = max(ATTRIBUTES.index(claim[2]) for claim in task.wanted if claim[0] == "fact")
    further: list[Claim] = []
    for attribute in ATTRIBUTES[last + 1 :]:
        if rng.random() >= writer.wander:
            break
        further.append(("fact", town, attribute, knowledge.facts[town][attribute]))
    return further
