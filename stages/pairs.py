"""Preference pairs, ready to train on: checked, cleaned, and some held out.

    python -m stages.pairs --config results/mini_base/data/config.yaml

In: rows, each in one of two schemas:

    preferences     as UltraFeedback binarized: ``prompt_id``, ``chosen`` and ``rejected`` as messages, ``score_chosen`` and
                    ``score_rejected``; or, as in the authors' released sets, ``all_rm_scores`` in place of both scores. Each side may also
                    be the answer alone, with the messages before it in ``prompt``, as in TRL
    scored answers  as stages/annotate.py writes them: the best is chosen, the worst rejected (SimPO section 3, the Instruct settings)

Out: train.jsonl and heldout.jsonl, rows of

    {"prompt_id", "prompt": [messages], "chosen": [message], "rejected": [message], "score_chosen", "score_rejected"}

Pairs with identical texts, with equal scores or with an empty answer are dropped, and the manifest counts them. Messages are compared by
role and content. Whole prompts are held out, so that no held-out prompt is trained on. With ``heldout_split`` the data's own split is held
out, and the manifest counts the prompts that are in both.
"""

from __future__ import annotations

from random import Random
from typing import Any

from omegaconf import DictConfig

from stages.lib import files, records
from stages.lib.errors import UserError
from stages.lib.records import Message

Row = dict[str, Any]


def read_pair(row: Row, where: str) -> Row:
    """The pair in a row of either schema; UserError names the row without one."""
    sides = [side for side in ("chosen", "rejected") if side in row]
    if any(row[side] is not None for side in sides) or (sides and "all_rm_scores" not in row):
        return split_turns(row, where)
    if "all_rm_scores" in row:
        return best_and_worst(row, where)
    raise UserError(
        f"{where}: neither 'chosen' and 'rejected' (UltraFeedback binarized) nor 'all_generated_responses' with 'all_rm_scores'"
        f" (stages.annotate); the row has {records.keys_of(row)}"
    )


def split_turns(row: Row, where: str) -> Row:
    """The pair in a preference; UserError names the row that is not a preference."""
    prompt, chosen, rejected = records.preference_of(row, where)
    if row.get("all_rm_scores") and not ("score_chosen" in row and "score_rejected" in row):
        scores = _scores(row, where)
        row = {"score_chosen": max(scores), "score_rejected": min(scores), **row}
    kept = {"prompt_id": records.value_of(row, "prompt_id", where)}
    kept |= {key: records.number_of(records.value_of(row, key, where), f"{where}: {key!r}") for key in ("score_chosen", "score_rejected")}
    return {**kept, "prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def best_and_worst(row: Row, where: str) -> Row:
    """The pair of the answers with the highest and the lowest score, the first of equals; UserError names the row without such answers.

    If all scores are equal, the rejected answer has another text where there is one: the pair then counts as tied, not as identical.
    """
    answers, scores = records.value_of(row, "all_generated_responses", where), _scores(row, where)
    if not isinstance(answers, list) or not scores or len(answers) != len(scores):
        count = len(answers) if isinstance(answers, list) else "no list of"
        raise UserError(f"{where}: {count} 'all_generated_responses' need as many 'all_rm_scores', all numbers; it has {scores}")
    answers = [records.text_of(answer, f"{where}: 'all_generated_responses'[{number}]") for number, answer in enumerate(answers)]
    prompt = prompt_of(row, where)
    best = max(range(len(scores)), key=scores.__getitem__)
    worst = min(range(len(scores)), key=lambda i: (scores[i], answers[i] == answers[best]))
    sides = {side: [{"role": "assistant", "content": answers[i]}] for side, i in (("chosen", best), ("rejected", worst))}
    prompt_id = records.value_of(row, "prompt_id", where)
    return {"prompt_id": prompt_id, "score_chosen": scores[best], "score_rejected": scores[worst], "prompt": prompt, **sides}


def prompt_of(row: Row, where: str) -> list[Message]:
    """The prompt of scored answers: ``messages``; or ``prompt``, a list of messages or the text of one user turn."""
    key = "messages" if row.get("messages") is not None else "prompt"
    value = records.value_of(row, key, where)
    if key == "prompt" and not isinstance(value, list):
        if not isinstance(value, str):
            raise UserError(f"{where}: 'prompt' must be a text or a list of messages; it is {value!r}")
        return [{"role": "user", "content": value}]
    prompt = records.messages_of(value, f"{where}: {key!r}") if value else []
    if not prompt or prompt[-1]["role"] == "assistant":
        raise UserError(f"{where}: {key!r} must hold the prompt's messages alone, and end with the user's; the answers stand beside it")
    return prompt


def _scores(row: Row, where: str) -> list[float]:
    scores = row["all_rm_scores"]
    if not isinstance(scores, list) or not all(map(records.is_number, scores)):
        raise UserError(
            f"{where}: every answer of 'all_generated_responses' needs its score in 'all_rm_scores', all numbers; it has {scores}"
        )
    return scores


def clean(rows: list[Row]) -> tuple[list[Row], dict[str, int]]:
    """The pairs with different texts and different scores, and how many were dropped for which reason."""
    different = [row for row in rows if row["chosen"] != row["rejected"]]
    kept = [row for row in different if row["score_chosen"] != row["score_rejected"]]
    counts = {"dropped_identical": len(rows) - len(different), "dropped_tied": len(different) - len(kept)}
    return kept, {"read": len(rows), **counts}


def read_pairs(source: DictConfig, split: str | None = None) -> tuple[list[Row], dict[str, int]]:
    """The pairs of a data set that can be trained on, and how many were dropped for which reason. ``split``: in place of its own."""
    read = [read_pair(row, where) for where, row in records.numbered(records.read_records(source, split), source.data)]
    rows, counts = clean([row for row in read if all(row[side][0]["content"].strip() for side in ("chosen", "rejected"))])
    return rows, counts | {"read": len(read), "dropped_empty": len(read) - counts["read"]}


def hold_out(pairs: list[Row], wanted: Any, seed: int, stage: str, data: str) -> tuple[list[Row], list[Row]]:
    """Held-out and training pairs, shuffled. No prompt is in both. UserError if no pair is left to train on.

    Whole prompts are held out, in the shuffled order of their first pairs, until ``wanted`` pairs are reached.

    pairs: rows with ``prompt``
    wanted: how many pairs to hold out; there are more if the last prompt has several
    seed: the seed of the shuffling
    stage, data: the names of the stage and of its data set, for the error
    """
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise UserError(f"{stage}.heldout={wanted!r} must be a whole number of pairs, at least 1; correct it in the stage configuration")
    shuffled = list(pairs)
    Random(f"heldout-{seed}").shuffle(shuffled)
    prompts: dict[Any, list[Row]] = {}
    for pair in shuffled:
        prompts.setdefault(records.prompt_key(pair["prompt"]), []).append(pair)
    held, count = set(), 0
    for key, answers in prompts.items():
        if count < wanted:
            held.add(key)
            count += len(answers)
    if count == len(pairs):
        raise UserError(
            f"{stage}.heldout={wanted}: the {len(pairs)} pairs of {data} answer {len(prompts)} prompts, and only whole prompts are held"
            " out, which leaves none to train on; hold out fewer, or add rows with other prompts"
        )
    parts: tuple[list[Row], list[Row]] = ([], [])
    for pair in shuffled:
        parts[records.prompt_key(pair["prompt"]) not in held].append(pair)
    return parts


def count_prompts(train: list[Row], heldout: list[Row]) -> dict[str, int]:
    """How many prompts each part has, and how many are in both."""
    parts = [{records.prompt_key(pair["prompt"]) for pair in part} for part in (train, heldout)]
    return {"train": len(parts[0]), "heldout": len(parts[1]), "in_both": len(parts[0] & parts[1])}


def main() -> None:
    config, folder = files.stage_config(__doc__)
    if (config.heldout is None) == (config.heldout_split is None):
        raise UserError("set pairs.heldout (a number of rows) or pairs.heldout_split (a split of the data), and null for the other")
    train, counts = read_pairs(config.train)
    if config.heldout_split is not None:
        heldout, counts_heldout = read_pairs(config.train, config.heldout_split)
        counts |= {f"heldout_{key}": value for key, value in counts_heldout.items()}
        for split, part in ((config.train.split, train), (config.heldout_split, heldout)):
            if not part:
                raise UserError(
                    f"no pair is left of split {split} of {config.train.data} ({counts}); correct the data, or name another split"
                )
    else:
        heldout, train = hold_out(train, config.heldout, config.seed, "pairs", config.train.data)
    files.write_jsonl(folder / "train.jsonl", train)
    files.write_jsonl(folder / "heldout.jsonl", heldout)
    counts |= {"train": len(train), "heldout": len(heldout)}
    prompts = count_prompts(train, heldout)
    lower = sum(row["score_chosen"] < row["score_rejected"] for row in train + heldout)
    files.write_manifest(folder, config, inputs=records.inputs_of(config.train), pairs=counts, prompts=prompts, chosen_scored_lower=lower)
    print(f"pairs: {counts}, of {prompts['train']:,} and {prompts['heldout']:,} prompts")
    if not config.heldout_split and len(heldout) != config.heldout:
        print(f"pairs: {len(heldout)} pairs are held out instead of {config.heldout}, so that no prompt is in both parts")
    if prompts["in_both"]:
        print(f"pairs: {prompts['in_both']} prompts of {config.heldout_split} are in {config.train.split} too, and trained on")
    if lower:
        print(f"pairs: {lower} pairs have a chosen answer with a lower score than the rejected one; they are kept as they are")


if __name__ == "__main__":
    files.run(main)
