"""Train one run: the start model on preference pairs, with one objective and its hyperparameters.

    python -m stages.train --config results/mini_base/runs/simpo/config.yaml --runtime micro_batch=8

In: the start model, the pairs, and the reference's log-probabilities where the method has ``reference: cached``. Out: model/,
train.jsonl (a row an optimizer step), and a manifest with the figures on the held-out pairs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from stages import files, models
from stages.schema import plain

if TYPE_CHECKING:
    from stages.preference.trainer import TrainingPair


def read_pairs(config: DictConfig, tokenizer: object) -> dict[str, list[TrainingPair]]:
    """The pairs of both splits, with the reference's sums; ValueError where the reference was computed from other tokens."""
    import pandas as pd

    from stages.preference.data import tokenize_pairs, tokens_sha256
    from stages.preference.trainer import TrainingPair

    lengths = {key: config[key] for key in ("max_length", "max_prompt_length", "empty_system")}
    read = {}
    for split in ("train", "heldout"):
        path = Path(config.pairs) / f"{split}.jsonl"
        pairs = tokenize_pairs(files.read_jsonl(path), tokenizer, str(path), **lengths)
        if config.reference is None:
            read[split] = [TrainingPair(pair) for pair in pairs]
            continue
        if files.read_manifest(config.reference)["tokens_sha256"][split] != tokens_sha256(pairs):
            again = f"snakemake --cores all --forcerun reference -- {config.reference}/{files.MANIFEST}"
            raise ValueError(f"{config.reference} holds log-probabilities of other tokens than {path} has; make it again with: {again}")
        frame = pd.read_parquet(Path(config.reference) / "logps.parquet")
        frame = frame[frame["split"] == split].sort_values("row")
        sums = zip(frame["chosen_logps"], frame["rejected_logps"], strict=True)
        read[split] = [TrainingPair(pair, reference) for pair, reference in zip(pairs, sums, strict=True)]
    return read


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from transformers import TrainingArguments, set_seed

    from stages.preference.objectives import OBJECTIVES
    from stages.preference.trainer import PreferenceTrainer, evaluate_pairs

    method, micro_batch = config.method, config.runtime.micro_batch
    set_seed(config.seed)
    tokenizer = models.load_tokenizer(config.model, config.revision)
    model = models.load_model(config.model, config.revision)
    models.disable_dropout(model)
    pairs = read_pairs(config, tokenizer)
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
        save_strategy="no",
        report_to="none",
        use_cpu=models.device() == "cpu",
        remove_unused_columns=False,
    )
    trainer = PreferenceTrainer(model, args, pairs["train"], objective, micro_batch)
    models.show_progress(trainer, label)
    trainer.train()
    history = [{key: value for key, value in entry.items() if key != "epoch"} for entry in trainer.state.log_history if "loss" in entry]
    files.write_jsonl(folder / "train.jsonl", history)
    heldout = evaluate_pairs(model, pairs["heldout"], objective, micro_batch)
    models.save_model(folder, model, tokenizer)
    inputs = [f"{config.pairs}/{files.MANIFEST}"] + ([f"{config.reference}/{files.MANIFEST}"] if config.reference else [])
    files.write_manifest(folder, config, inputs=inputs, steps=trainer.state.global_step, device=str(args.device), heldout=heldout)
    print(f"{label}: held-out accuracy {heldout['rewards/accuracies']:.3f}, margin {heldout['rewards/margins']:.3f}")


if __name__ == "__main__":
    main()
