"""Whether a benchmark's prompts are among the prompts that a model was trained on.

    python -m analysis.tables.overlap --results results --out results

In: tables.yaml, the benchmarks' questions, each setting's preference pairs results/<setting>/data/(train, heldout).jsonl, and the
demonstrations of its start model where they are a file on this machine. Out: overlap.csv, with a caption, overlap.txt, one row a setting,
set and benchmark: ``prompts`` in the set, ``questions`` in the benchmark, and the number of questions that have

    exact    a prompt of the same words. Case, white space and punctuation at a word's ends do not count; signs of arithmetic do
    near     no such prompt, but one with at least 0.8 of the question's distinct 8-grams of words. The question has 8 words or more

``example`` is the first question found. Only first turns are compared, because a second turn says little by itself. For a set that is no
file here, ``note`` says "not checked" and why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import study as shared
from analysis.study import Study, Table, require
from stages.benchmarks.rows import Row, read_rows
from stages.lib import files

GRAM, NEAR = 8, 0.8
ENDS = ".,;:!?\"'`()[]{}…“”‘’«»"  # stripped from words; an operator between two numbers is a word of its own


def words(prompt: str) -> tuple[str, ...]:
    return tuple(word for part in prompt.casefold().split() if (word := part.strip(ENDS)))


def grams(text: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {text[i : i + GRAM] for i in range(len(text) - GRAM + 1)}


def first_turn(row: Row) -> str:
    """The first thing the user says in a row of any set or benchmark."""
    said: Any = (
        row["instruction"] if "instruction" in row else row["turns"][0] if "turns" in row else row.get("messages", row.get("prompt"))
    )
    if isinstance(said, list):
        said = next((message for message in said if message["role"] == "user"), {"content": ""})
    text: str = said["content"] if isinstance(said, dict) else said
    return text


def found_in(questions: list[tuple[str, ...]], prompts: Iterable[tuple[str, ...]]) -> tuple[set[int], set[int]]:
    """The numbers of the questions that have an exact and of those that have a near overlap (see above)."""
    same, holding = defaultdict(list), defaultdict(list)
    sizes = [len(grams(question)) for question in questions]
    for number, question in enumerate(questions):
        if question:
            same[question].append(number)
        for gram in grams(question):
            holding[gram].append(number)
    exact, near = set[int](), set[int]()
    for prompt in prompts:
        exact.update(same.get(prompt, ()))
        shares = Counter(number for gram in grams(prompt) for number in holding.get(gram, ()))
        near.update(number for number, count in shares.items() if count >= NEAR * sizes[number])
    return exact, near - exact


def sets(study: Study, setting: str) -> dict[str, Path | str]:
    """The files that a setting's models learn from. Where one cannot be read, the reason stands in its place."""
    found: dict[str, Path | str] = {split: study.results / setting / f"data/{split}.jsonl" for split in ("train", "heldout")}
    taught = study.config["demonstrations"].get(setting)
    if taught is None:
        return found | {"demonstrations": "the start model is somebody else's, and its data are not known here"}
    is_file = study.path(taught).is_file() or taught.startswith("results/")
    return found | {"demonstrations": study.path(taught) if is_file else f"{taught} is not a file on this machine"}


def make(study: Study) -> Table:
    benchmarks = {
        benchmark: [first_turn(row) for row in read_rows(study.path(named), ())] for benchmark, named in study.config["questions"].items()
    }
    asked = {benchmark: [words(question) for question in questions] for benchmark, questions in benchmarks.items()}
    rows = []
    for setting in study.config["settings"]:
        for name, source in sets(study, setting).items():
            prompts = None
            if isinstance(source, Path):
                prompts = [words(first_turn(row)) for row in files.read_rows(require(source, source.with_name(files.MANIFEST)))]
            for benchmark, questions in asked.items():
                values: dict[str, Any] = {"setting": setting, "set": name, "benchmark": benchmark, "questions": len(questions)}
                if prompts is None:
                    rows.append(values | {"note": f"not checked: {source}"})
                    continue
                exact, near = found_in(questions, prompts)
                example = next((benchmarks[benchmark][number] for number in sorted(exact) or sorted(near)), "")
                counts = {"prompts": len(prompts), "exact": len(exact), "near": len(near)}
                rows.append(values | counts | {"example": " ".join(example.split())[:120], "note": ""})
    table = pd.DataFrame(rows, columns=["setting", "set", "benchmark", "prompts", "questions", "exact", "near", "example", "note"])
    table = table.astype(dict.fromkeys(("prompts", "exact", "near"), "Int64"))
    return table, caption(study, table)


def caption(study: Study, table: pd.DataFrame) -> str:
    """The caption: where overlaps were found, if any, and what was not checked."""
    exact, near = (int(table[kind].fillna(0).sum()) for kind in ("exact", "near"))
    told = [
        f"{row.setting}, {row.set}: {row.exact} exact and {row.near} near of the {row.questions} of {row.benchmark}"
        for row in table[(table["exact"] > 0) | (table["near"] > 0)].itertuples()
    ]
    checked = f"in {table['prompts'].notna().sum()} comparisons of a training set and a benchmark"
    found = f"{exact} exact and {near} near overlaps were found {checked}: {'; '.join(told)}" if told else f"No overlap was found {checked}"
    left = table[table["note"] != ""].drop_duplicates(["setting", "set"])
    why = [f"{'; '.join(part['setting'] + ', ' + part['set'])}: {reason}." for reason, part in left.groupby("note", sort=False)]
    return study.caption("Benchmark prompts among training prompts.", study.rows(), f"{found}.", *why)


if __name__ == "__main__":
    shared.table(__doc__, "overlap", make)
