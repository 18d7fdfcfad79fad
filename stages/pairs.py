"""Preference pairs, ready to train on: checked, cleaned, and some held out.

    python -m stages.pairs --config results/mini_base/data/config.yaml

In: preferences in the schema of UltraFeedback binarized (``prompt``, ``prompt_id``, ``chosen``, ``rejected`` as messages,
``score_chosen``, ``score_rejected``). Out: train.jsonl and heldout.jsonl, rows of

    {"prompt_id", "prompt": [messages], "chosen": [message], "rejected": [message], "score_chosen", "score_rejected"}

Pairs of identical texts and pairs of equal scores say nothing and are dropped; the manifest counts them.
"""

from __future__ import annotations

from random import Random
from typing import Any

from stages import files

Row = dict[str, Any]


def split_turns(row: Row, where: str) -> Row:
    """A preference with its prompt's messages apart from the two answers; ValueError names the row that is not such a pair."""
    for side in ("chosen", "rejected"):
        messages = row.get(side)
        if not isinstance(messages, list) or len(messages) < 2 or messages[-1].get("role") != "assistant":
            raise ValueError(f"{where}: {side!r} must be a list of messages that ends with the assistant's; see UltraFeedback binarized")
        if not messages[-1].get("content", "").strip():
            raise ValueError(f"{where}: {side!r} is an empty answer; remove the row")
    if row["chosen"][:-1] != row["rejected"][:-1]:
        raise ValueError(f"{where}: 'chosen' and 'rejected' answer different prompts")
    kept = {key: row[key] for key in ("prompt_id", "score_chosen", "score_rejected")}
    return {**kept, "prompt": row["chosen"][:-1], "chosen": row["chosen"][-1:], "rejected": row["rejected"][-1:]}


def clean(rows: list[Row]) -> tuple[list[Row], dict[str, int]]:
    """The pairs that say something, and how many were dropped for which reason."""
    identical = [row["chosen"] == row["rejected"] for row in rows]
    tied = [not same and row["score_chosen"] == row["score_rejected"] for row, same in zip(rows, identical, strict=True)]
    kept = [row for row, same, tie in zip(rows, identical, tied, strict=True) if not same and not tie]
    return kept, {"read": len(rows), "dropped_identical": sum(identical), "dropped_tied": sum(tied)}


def main() -> None:
    config, folder = files.stage_config(__doc__)
    rows = [split_turns(row, f"{config.data}, line {n}") for n, row in enumerate(files.read_jsonl(config.data), start=1)]
    rows, counts = clean(rows)
    if config.heldout >= len(rows):
        raise ValueError(f"pairs.heldout={config.heldout}: only {len(rows)} pairs are left of {config.data}; hold out fewer")
    Random(f"heldout-{config.seed}").shuffle(rows)
    heldout, train = rows[: config.heldout], rows[config.heldout :]
    files.write_jsonl(folder / "train.jsonl", train)
    files.write_jsonl(folder / "heldout.jsonl", heldout)
    counts |= {"train": len(train), "heldout": len(heldout)}
    files.write_manifest(folder, config, inputs=[config.data], pairs=counts)
    print(f"pairs: {counts}")


if __name__ == "__main__":
    files.run(main)
