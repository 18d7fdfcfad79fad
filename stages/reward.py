"""Train a reward model on an annotator's preferences with TRL's RewardTrainer, to rank the on-policy answers with.

    python -m stages.reward --config results/smoke_on_policy/reward/config.yaml --runtime micro_batch=8

The Bradley-Terry loss -log sigmoid(r(x, y_w) - r(x, y_l)); r is a linear function of the last token's hidden state. The paper takes
released reward models (PairRM, ArmoRM). The smoke scale trains its own.

In: a start model (folder or hub id), and ``data``, preferences in the schema of UltraFeedback binarized. ``heldout`` of them are kept for
the accuracy, by whole prompts (stages/pairs.py:hold_out). Out: model/ (one label, its head's weights included), and a manifest with the
losses and the held-out accuracy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.lib import checkpoints, files, models
from stages.lib.errors import UserError
from stages.lib.records import inputs_of, number_of, numbered, preference_of, read_records
from stages.pairs import count_prompts, hold_out
from stages.preference.data import check_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


def conversations(rows: list[Row], path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Row], dict[str, int]]:
    """Prompt and both conversations of each preference, and how many pairs were left out, or have a chosen answer with the lower score.

    Pairs with an empty answer, with the same tokens or with equal scores are left out. A row needs no scores. UserError names the line that
    is not a preference, or a turn that the chat template leaves out.
    """
    pairs, counts = [], {"dropped_empty": 0, "dropped_identical": 0, "dropped_tied": 0, "chosen_scored_lower": 0}
    for where, row in numbered(rows, path):
        prompt, *answers = preference_of(row, where)
        keys = ("score_chosen", "score_rejected")
        scores = [number_of(row[key], f"{where}: {key!r}") for key in keys if key in row]
        if not all(answer["content"].strip() for answer in answers):
            counts["dropped_empty"] += 1
            continue
        sides = [[*prompt, answer] for answer in answers]
        for messages in sides:
            check_conversation(messages, tokenizer, where)
        chosen, rejected = (tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] for messages in sides)
        if chosen == rejected:
            counts["dropped_identical"] += 1
        elif len(scores) == 2 and scores[0] == scores[1]:
            counts["dropped_tied"] += 1
        else:
            counts["chosen_scored_lower"] += len(scores) == 2 and scores[0] < scores[1]
            pairs.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    return pairs, counts


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    # TRL averages an evaluation over batches, so batches of one give each pair the same weight.
    args = RewardConfig(per_device_eval_batch_size=1, **models.trl_arguments(config, folder))
    tokenizer = models.load_tokenizer(config.model, config.revision)
    pairs, left_out = conversations(read_records(config.data), config.data.data, tokenizer)
    heldout, train = hold_out(pairs, config.heldout, config.seed, "reward", config.data.data)
    prompts = count_prompts(train, heldout)
    set_seed(config.seed)  # the head's first weights
    model = AutoModelForSequenceClassification.from_pretrained(
        models.checked_model(config.model), revision=config.revision, num_labels=1, dtype="float32", use_safetensors=True
    )
    sides = ("chosen", "rejected")
    data, eval_data = (Dataset.from_list([{side: pair[side] for side in sides} for pair in part]) for part in (train, heldout))
    # It also sets the pad token.
    trainer = RewardTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=data, eval_dataset=eval_data)
    counts = {"train": len(trainer.train_dataset), "heldout": len(trainer.eval_dataset)}
    if not all(counts.values()):
        raise UserError(f"reward.training.max_length={config.training.max_length} leaves {counts} of the {len(pairs)} pairs; raise it")
    identical, lower = left_out["dropped_identical"], left_out["chosen_scored_lower"]
    print(f"reward: {config.model} on {counts['train']:,} pairs of {config.data.data}, {identical} identical ones left out", flush=True)
    if others := left_out["dropped_empty"] + left_out["dropped_tied"]:
        print(f"reward: {others} pairs with an empty answer or equal scores left out", flush=True)
    if lower:
        print(f"reward: {lower} pairs have a chosen answer with a lower score than the rejected one; they are kept as they are", flush=True)
    facts = models.train(trainer, config)
    accuracy = trainer.evaluate()["eval_accuracy"]
    models.save_model(folder, model, tokenizer)
    counts["dropped_long"] = len(pairs) - sum(counts.values())
    facts |= {"heldout_accuracy": accuracy, "prompts": prompts, **left_out}
    files.write_manifest(folder, config, inputs=inputs_of(config.data), pairs=counts, **facts)
    checkpoints.remove(folder)
    print(f"reward: held-out accuracy {accuracy:.3f} on {counts['heldout']} pairs")


if __name__ == "__main__":
    files.run(main)
