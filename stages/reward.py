"""Train a reward model on an annotator's preferences with TRL's RewardTrainer, to rank the on-policy answers with.

    python -m stages.reward --config results/mini_instruct/reward/config.yaml --runtime micro_batch=8

The Bradley-Terry loss -log sigmoid(r(x, y_w) - r(x, y_l)), with r a linear function of the last token's hidden state. The paper takes
released reward models (PairRM, ArmoRM); a world of one's own needs one of its own.

In: a start model (folder or hub id), and ``data``, preferences in the schema of UltraFeedback binarized, of which ``heldout`` are kept for
the accuracy. Out: model/ (one label, its head's weights included), and a manifest with the losses and the held-out accuracy.
"""

from __future__ import annotations

from random import Random
from statistics import fmean
from typing import Any

from stages import checkpoints, files, models
from stages.errors import UserError
from stages.records import inputs_of, read_records

Row = dict[str, Any]


def conversations(rows: list[Row], path: str) -> list[Row]:
    """``chosen`` and ``rejected`` of each row, pairs of identical conversations left out; UserError names the line without such lists."""
    pairs = []
    for number, row in enumerate(rows, start=1):
        for side in ("chosen", "rejected"):
            if not isinstance(row.get(side), list) or not row[side]:
                raise UserError(f"{path}, line {number}: {side!r} must be a list of messages; see UltraFeedback binarized")
        if row["chosen"] != row["rejected"]:
            pairs.append({side: row[side] for side in ("chosen", "rejected")})
    return pairs


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    # TRL averages an evaluation over batches: only batches of one weigh each pair the same.
    args = RewardConfig(per_device_eval_batch_size=1, **models.trl_arguments(config, folder))
    pairs = conversations(read_records(config.data), config.data.data)
    if not 0 < config.heldout < len(pairs):
        raise UserError(
            f"reward.heldout={config.heldout}: {config.data.data} has {len(pairs)} pairs; hold out at least one, and fewer than that"
        )
    Random(f"heldout-{config.seed}").shuffle(pairs)
    set_seed(config.seed)  # the head's first weights
    tokenizer = models.load_tokenizer(config.model, config.revision)
    model = AutoModelForSequenceClassification.from_pretrained(
        models.found(config.model), revision=config.revision, num_labels=1, dtype="float32", use_safetensors=True
    )
    splits = {"train_dataset": Dataset.from_list(pairs[config.heldout :]), "eval_dataset": Dataset.from_list(pairs[: config.heldout])}
    trainer = RewardTrainer(model=model, args=args, processing_class=tokenizer, **splits)  # also sets the pad token
    counts = {"train": len(trainer.train_dataset), "heldout": len(trainer.eval_dataset)}
    if not all(counts.values()):
        raise UserError(f"reward.training.max_length={config.training.max_length} leaves {counts} of the {len(pairs)} pairs; raise it")
    print(f"reward: {config.model} on {counts['train']:,} pairs of {config.data.data}", flush=True)
    models.show_progress(trainer, "reward")
    facts = checkpoints.train(trainer, config, "reward")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    accuracy = trainer.evaluate()["eval_accuracy"]
    models.save_model(folder, model, tokenizer)
    counts["dropped_long"] = len(pairs) - sum(counts.values())
    first, last = (fmean(part) for part in (losses[:10], losses[-10:]))
    facts |= {"first_loss": first, "last_loss": last, "heldout_accuracy": accuracy, "device": str(args.device)}
    files.write_manifest(folder, config, inputs=inputs_of(config.data), pairs=counts, **facts)
    checkpoints.remove(folder)
    print(f"reward: held-out accuracy {accuracy:.3f} on {counts['heldout']} pairs")


if __name__ == "__main__":
    files.run(main)
