"""Train one run: the start model on preference pairs, with one objective and its hyperparameters.

    python -m stages.train --config results/mini_base/runs/simpo/config.yaml --runtime micro_batch=8

In: the start model, the pairs, and the reference's log-probabilities where the method has ``reference: cached``. Out: model/,
train.jsonl (a row an optimizer step), and a manifest with the figures on the held-out pairs. Killed, it goes on where it was
(stages/checkpoints.py).
"""

from __future__ import annotations

from functools import partial

from stages import checkpoints, files, models
from stages.schema import plain


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from transformers import TrainingArguments, set_seed

    from stages.preference import refcache
    from stages.preference.data import read_splits
    from stages.preference.objectives import OBJECTIVES
    from stages.preference.trainer import PreferenceTrainer, TrainingPair, evaluate_pairs

    method, micro_batch = config.method, config.runtime.micro_batch
    set_seed(config.seed)
    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    model = models.load_model(config.model, config.revision)
    splits = read_splits(config, tokenizer)
    pairs = {split: [TrainingPair(pair) for pair in read] for split, read in splits.items()}
    if config.reference:
        files.verify(config.reference)
        sums = refcache.read(config.reference, refcache.identity(model, splits, config.precision))
        pairs = {split: [TrainingPair(*both) for both in zip(read, sums[split], strict=True)] for split, read in splits.items()}
    objective = partial(OBJECTIVES[method.objective], **plain(method.hyperparameters))
    label = f"train: {config.setting} {config.run}"
    print(f"{label}: {len(pairs['train']):,} pairs from {config.model}", flush=True)
    args = TrainingArguments(
        output_dir=str(folder / ".work"),
        per_device_train_batch_size=method.batch_size,
        learning_rate=method.learning_rate,
        num_train_epochs=method.epochs,
        lr_scheduler_type=method.scheduler,
        warmup_steps=method.warmup_ratio,
        weight_decay=method.weight_decay,
        max_grad_norm=method.max_grad_norm,
        adam_beta1=method.adam_beta1,
        adam_beta2=method.adam_beta2,
        adam_epsilon=method.adam_epsilon,
        optim="adamw_torch",
        bf16=config.precision == "bf16",
        gradient_checkpointing=config.precision == "bf16",
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number is an error, not a step to leave out of the log
        save_strategy="no",  # stages/checkpoints.py saves
        report_to="none",
        use_cpu=models.device() == "cpu",
        remove_unused_columns=False,
    )
    trainer = PreferenceTrainer(model, args, pairs["train"], objective, micro_batch)
    models.show_progress(trainer, label)
    facts = checkpoints.train(trainer, config, label)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    # Sorted: the rows that come out of a checkpoint are, and the file shall not tell where the training was resumed.
    files.write_jsonl(folder / "train.jsonl", [{key: entry[key] for key in sorted(entry) if key != "epoch"} for entry in history])
    heldout = evaluate_pairs(model, pairs["heldout"], objective, micro_batch)
    models.save_model(folder, model, tokenizer)
    inputs = [f"{config.pairs}/{files.MANIFEST}"] + ([f"{config.reference}/{files.MANIFEST}"] if config.reference else [])
    files.write_manifest(folder, config, inputs=inputs, **facts, device=str(args.device), heldout=heldout)
    checkpoints.remove(folder)
    print(f"{label}: held-out accuracy {heldout['rewards/accuracies']:.3f}, margin {heldout['rewards/margins']:.3f}")


if __name__ == "__main__":
    files.run(main)
