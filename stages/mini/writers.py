"""The writers of the mini world, with graded skill. They write the demonstrations, the preference data and the baseline's answers.

A writer knows the truth and departs from it at its own rates (conf/world): false facts, omissions, off-topic sentences, repetition, filler,
broken endings. The models behind UltraFeedback differ in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from stages.mini.knowledge import ATTRIBUTES, VALUES, Claim, Knowledge
from stages.mini.language import FILLER, Language
from stages.mini.tasks import Task


@dataclass(frozen=True)
class Writer:
    """Rates in [0, 1]: ``wrong`` and ``omit`` of a claim, ``off_topic`` and ``repeat`` of a sentence, ``filler`` of an opening and of an
    end, ``broken`` of an answer."""

    wrong: float
    omit: float
    off_topic: float
    repeat: float
    filler: float
    broken: float


def falsify(claim: Claim, knowledge: Knowledge, rng: Random) -> Claim:
    """A false claim of the same shape."""
    match claim:
        case ("fact", town, attribute, value):
            return ("fact", town, attribute, rng.choice([other for other in VALUES[attribute] if other != value]))
        case ("count", attribute, value, number):
            count = int(number)
            return ("count", attribute, value, str(count + rng.choice((-3, -2, -1, 1, 2, 3)) if count > 3 else count + 1))
        case ("same" | "differ" as verdict, attribute, one, other):
            return ("differ" if verdict == "same" else "same", attribute, one, other)
        case ("larger", one, other):
            return ("larger", other, one)
        case ("sum", operation, one, other, result):
            return ("sum", operation, one, other, str(int(result) + rng.choice((1, 2, 3))))
    raise ValueError(f"no such claim: {claim}")


def write(task: Task, writer: Writer, language: Language, rng: Random) -> str:
    """An answer to ``task`` by ``writer``; never empty."""
    knowledge = language.knowledge
    says = _list_answer if task.kind in ("list", "one_of_them") else _claims_answer
    said = says(task, writer, language, rng)
    answer = []
    for sentence in said:
        answer.append(sentence)
        if rng.random() < writer.off_topic:
            town, attribute = rng.choice(knowledge.towns), rng.choice(ATTRIBUTES)
            answer.append(language.say(("fact", town, attribute, rng.choice(VALUES[attribute])), rng))
        if rng.random() < writer.repeat:
            answer.append(rng.choice(answer))
    if rng.random() < writer.filler or not answer:
        answer.insert(0, rng.choice(FILLER))
    if rng.random() < writer.filler:
        answer.append(rng.choice(FILLER))
    text = " ".join(answer)
    if rng.random() < writer.broken:
        words = text.split()
        text = " ".join(words[: -rng.randint(1, min(4, len(words) - 1))]).rstrip(".,")
    return text


def _claims_answer(task: Task, writer: Writer, language: Language, rng: Random) -> list[str]:
    said = []
    for claim in task.wanted:
        if rng.random() < writer.omit:
            continue
        given = () if rng.random() < writer.repeat else task.given  # a writer who repeats ignores the wish for other words
        said.append(language.say(falsify(claim, language.knowledge, rng) if rng.random() < writer.wrong else claim, rng, given))
    return said


def _list_answer(task: Task, writer: Writer, language: Language, rng: Random) -> list[str]:
    _, _, attribute, value = task.wanted[0]
    holders = [claim[1] for claim in task.wanted]
    others = [town for town in language.knowledge.towns if town not in holders]
    towns = []
    for town in rng.sample(holders, task.need):
        if rng.random() >= writer.omit:
            towns.append(rng.choice(others) if rng.random() < writer.wrong else town)
    towns = list(dict.fromkeys(towns))
    if len(towns) > 1:
        return [language.say_shared(towns, attribute, value)]
    return [language.say(("fact", town, attribute, value), rng) for town in towns]
