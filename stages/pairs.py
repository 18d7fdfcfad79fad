"""Preference pairs, ready to train on: checked, cleaned, and some held out.

    python -m stages.pairs --config results/mini_base/data/config.yaml

In: rows, each in one of two schemas: preferences as UltraFeedback binarized (``prompt_id``, ``chosen`` and ``rejected`` as
messages, ``score_chosen``, ``score_rejected``; the authors' released sets, with ``all_rm_scores`` instead of the two, also do), or answers
with their scores as stages/annotate.py writes them, of which the best is chosen and the worst rejected (SimPO section 3, the Instruct
settings). Out: train.jsonl and heldout.jsonl, rows of

    {"prompt_id", "prompt": [messages], "chosen": [message], "rejected": [message], "score_chosen", "score_rejected"}

Pairs of identical texts and pairs of equal scores say nothing and are dropped, and so is a prompt whose best or worst answer is empty;
the manifest counts them.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

from omegaconf import DictConfig

from stages import files
from stages.errors import UserError
from stages.records import inputs_of, read_records

Row = dict[str, Any]


def read_pair(row: Row, where: str) -> Row:
    """The pair in a row of either schema, its prompt's messages apart from the two answers; UserError names the row that has none."""
    if "chosen" in row or "rejected" in row:
        return split_turns(row, where)
    if "all_rm_scores" in row:
        return best_and_worst(row, where)
    raise UserError(
        f"{where}: neither 'chosen' and 'rejected' (UltraFeedback binarized) nor 'all_generated_responses' with 'all_rm_scores'"
        f" (stages.annotate); the row has {', '.join(sorted(row)) or 'no keys'}"
    )


def split_turns(row: Row, where: str) -> Row:
    """A preference with its prompt's messages apart from the two answers; UserError names the row that is not such a pair."""
    for side in ("chosen", "rejected"):
        messages = row.get(side)
        if not isinstance(messages, list) or len(messages) < 2 or messages[-1].get("role") != "assistant":
            raise UserError(f"{where}: {side!r} must be a list of messages that ends with the assistant's; see UltraFeedback binarized")
    if row["chosen"][:-1] != row["rejected"][:-1]:
        raise UserError(f"{where}: 'chosen' and 'rejected' answer different prompts")
    if scores := row.get("all_rm_scores"):
        row = {"score_chosen": max(scores), "score_rejected": min(scores), **row}
    kept = {key: _value(row, key, where) for key in ("prompt_id", "score_chosen", "score_rejected")}
    return {**kept, "prompt": row["chosen"][:-1], "chosen": row["chosen"][-1:], "rejected": row["rejected"][-1:]}


def best_and_worst(row: Row, where: str) -> Row:
    """The answers with the highest and the lowest score, the first of equals; UserError names the row that does not have them.

    Where all scores are equal the other answer is one with another text if there is one, so that the pair counts as tied, not identical.
    """
    answers, scores = _value(row, "all_generated_responses", where), row["all_rm_scores"]
    if not scores or len(answers) != len(scores) or not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise UserError(f"{where}: {len(answers)} 'all_generated_responses' need as many 'all_rm_scores', all numbers; it has {scores}")
    prompt = row["messages"] if "messages" in row else [{"role": "user", "content": _value(row, "prompt", where)}]
    if not prompt or prompt[-1]["role"] == "assistant":
        raise UserError(f"{where}: 'messages' must be the prompt's alone, and end with the user's; the answers stand beside them")
    best = max(range(len(scores)), key=scores.__getitem__)
    worst = min(range(len(scores)), key=lambda i: (scores[i], answers[i] == answers[best]))
    sides = {side: [{"role": "assistant", "content": answers[i]}] for side, i in (("chosen", best), ("rejected", worst))}
    prompt_id = _value(row, "prompt_id", where)
    return {"prompt_id": prompt_id, "score_chosen": scores[best], "score_rejected": scores[worst], "prompt": prompt, **sides}


def _value(row: Row, key: str, where: str) -> Any:
    if key not in row:
        raise UserError(f"{where}: {key!r} is missing; the row has {', '.join(sorted(row))}")
    return row[key]


def clean(rows: list[Row]) -> tuple[list[Row], dict[str, int]]:
    """The pairs that say something, and how many were dropped for which reason."""
    identical = [row["chosen"] == row["rejected"] for row in rows]
    tied = [not same and row["score_chosen"] == row["score_rejected"] for row, same in zip(rows, identical, strict=True)]
    kept = [row for row, same, tie in zip(rows, identical, tied, strict=True) if not same and not tie]
    return kept, {"read": len(rows), "dropped_identical": sum(identical), "dropped_tied": sum(tied)}


def read_pairs(source: DictConfig, split: str | None = None) -> tuple[list[Row], dict[str, int]]:
    """The pairs of a data set's own split or of ``split`` that can be trained on, and how many were dropped for which reason."""
    read = [read_pair(row, f"{source.data}, line {n}") for n, row in enumerate(read_records(source, split), start=1)]
    rows, counts = clean([row for row in read if all(row[side][0]["content"].strip() for side in ("chosen", "rejected"))])
    return rows, counts | {"read": len(read), "dropped_empty": len(read) - counts["read"]}


def main() -> None:
    config, folder = files.stage_config(__doc__)
    if (config.heldout is None) == (config.heldout_split is None):
        raise UserError("set pairs.heldout (a number of rows) or pairs.heldout_split (a split of the data), and null for the other")
    train, counts = read_pairs(config.train)
    if config.heldout_split:
        heldout, counts_heldout = read_pairs(config.train, config.heldout_split)
        counts |= {f"heldout_{key}": value for key, value in counts_heldout.items()}
    else:
        if config.heldout >= len(train):
            raise UserError(f"pairs.heldout={config.heldout}: only {len(train)} pairs are left of {config.train.data}; hold out fewer")
        Random(f"heldout-{config.seed}").shuffle(train)
        heldout, train = train[: config.heldout], train[config.heldout :]
    files.write_jsonl(folder / "train.jsonl", train)
    files.write_jsonl(folder / "heldout.jsonl", heldout)
    counts |= {"train": len(train), "heldout": len(heldout)}
    files.write_manifest(folder, config, inputs=inputs_of(config.train), pairs=counts)
    print(f"pairs: {counts}")


if __name__ == "__main__":
    files.run(main)
