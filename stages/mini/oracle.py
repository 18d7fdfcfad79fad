"""The mini world's true score of an answer, in [0, 10]. It is deterministic, and training never sees it.

An answer is cut into sentences, and the grammar reads the claims of each. W is the number of claims that were asked for:

    score = 10 * clip((covered - false - REPEATED r - MALFORMED m - UNFINISHED u - IRRELEVANT i - FILLER f) / W, 0, 1)

    covered   claims that were asked for and are true, each once
    false     claims that are not true
    r         claims of repeated sentences; where other words are asked for, also of sentences that the conversation has
    m         sentences outside the grammar
    u         1 if the end lacks a full stop
    i         true claims that nobody asked for
    f         sentences without a claim

A wrong guess costs as much as a right one gains, so guessing among many values never pays.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.lib import files
from stages.mini.knowledge import Claim, Knowledge
from stages.mini.language import Language, sentences
from stages.mini.tasks import Conversation, Task, TaskReader

# ours: a repeated or malformed sentence costs half a claim, so that leaving it out pays even when it is true; an irrelevant claim costs
# as much, and a polite phrase a quarter
REPEATED, MALFORMED, UNFINISHED, IRRELEVANT, FILLER = 0.5, 0.5, 0.5, 0.5, 0.25


@dataclass(frozen=True)
class Findings:
    """What the oracle counted in one answer; ``wanted`` is the number of claims that were asked for."""

    wanted: int
    covered: int
    false: int
    irrelevant: int
    repeated: int
    filler: int
    malformed: int
    unfinished: int

    @property
    def score(self) -> float:
        cost = self.false + REPEATED * self.repeated + MALFORMED * self.malformed + UNFINISHED * self.unfinished
        cost += IRRELEVANT * self.irrelevant + FILLER * self.filler
        return 10 * min(max((self.covered - cost) / self.wanted, 0.0), 1.0)


def examine(task: Task, answer: str, language: Language) -> Findings:
    """Read ``answer`` against ``task``."""
    seen: set[Claim] = set()
    said: set[str] = set()
    covered = false = irrelevant = repeated = filler = malformed = 0
    parts = sentences(answer)
    unfinished = int(not parts or parts[-1][-1] != ".")
    for number, sentence in enumerate(parts):
        claims = language.claims(sentence)
        if sentence in task.given:
            repeated += len(claims or (sentence,))
            continue
        if claims is None:
            malformed += not (unfinished and number == len(parts) - 1)  # an end without a full stop counts as unfinished alone
        elif not claims:
            filler += 1
            repeated += sentence in said
        for claim in claims or ():
            if claim in seen:
                repeated += 1
            elif not language.knowledge.is_true(claim):
                false += 1
            elif claim in task.wanted:
                covered += 1
            else:
                irrelevant += 1
            seen.add(claim)
        said.add(sentence)
    return Findings(len(task.wanted), covered, false, irrelevant, repeated, filler, malformed, unfinished)


class Oracle:
    """The oracle of one world. ``turns`` is a prompt, or (prompt, answer, prompt)."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.language = Language(knowledge)
        self.read_task = TaskReader(self.language)

    def examine(self, turns: str | Conversation, answer: str) -> Findings:
        task = self.read_task(turns) if isinstance(turns, str) else self.read_task(*turns)
        return examine(task, answer, self.language)

    def score(self, turns: str | Conversation, answer: str) -> float:
        return self.examine(turns, answer).score


def load_oracle(world: str | Path) -> Oracle:
    """The oracle of the world in a folder that stages/mini/world.py made."""
    return Oracle(Knowledge(files.read_json(Path(world) / "knowledge.json")))


def annotate(answers: list[dict[str, Any]], world: str | Path) -> list[dict[str, Any]]:
    """A row an answer of AlpacaEval's format (``instruction``, ``output``, ``generator``): its score and the findings."""
    oracle = load_oracle(world)
    rows = []
    for answer in answers:
        findings = oracle.examine(answer["instruction"], answer["output"])
        rows.append({key: answer[key] for key in ("instruction", "output", "generator")} | {"score": findings.score} | asdict(findings))
    return rows
