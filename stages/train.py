"""Train one run: the start model on preference pairs, with one objective and its hyperparameters.

    python -m stages.train --config results/mini_base/runs/simpo/config.yaml --runtime token_budget=1024

In: the start model, the pairs, and the reference's log-probabilities if the method has ``reference: cached``. With ``reference: live`` the
start model computes them during training. Out: model/, train.jsonl (one row per optimizer step), and a manifest with the metrics on the
held-out pairs. A killed training resumes at its last checkpoint (stages/lib/checkpoints.py). A loss that is not finite ends the training
with exit status 3; the last checkpoint stays. For several processes use ``python -m torch.distributed.run --standalone --nproc-per-node 4
-m stages.train …``; rank 0 writes the files.
"""

from __future__ import annotations

from functools import partial
from itertools import repeat
from typing import Any

from stages.lib import checkpoints, files, models
from stages.plan.values import plain


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from transformers import TrainingArguments, set_seed

    from stages.preference import objectives, refcache
    from stages.preference.data import dropped, read_splits, with_mismatched
    from stages.preference.trainer import PreferenceTrainer, TrainingPair, evaluate_pairs

    method, runtime = config.method, config.runtime
    set_seed(config.seed)
    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    model = models.load_model(config.model, config.revision)
    tokenized = read_splits(config, tokenizer)
    splits = with_mismatched(tokenized, config)
    sums: dict[str, Any] = {split: repeat(None) for split in splits}
    live = models.load_model(config.model, config.revision) if config.reference == "live" else None
    if config.reference and live is None:
        files.verify(config.reference)
        sums = refcache.read(config.reference, refcache.identity(model, splits, config.precision))
    objective = partial(objectives.named(method.objective), **plain(method.hyperparameters))
    label = f"train: {config.setting} {config.run}"
    left_out = dropped(tokenized, label)
    if files.first_process():
        print(f"{label}: {len(splits['train']):,} pairs from {config.model}", flush=True)
    args = TrainingArguments(
        per_device_train_batch_size=method.batch_size,
        adam_beta1=method.adam_beta1,
        adam_beta2=method.adam_beta2,
        adam_epsilon=method.adam_epsilon,
        optim="adamw_torch_fused",
        gradient_checkpointing=bool(runtime.get("gradient_checkpointing", 0)),
        logging_nan_inf_filter=False,  # a loss that is not finite is an error, not a step to leave out
        remove_unused_columns=False,
        **models.training_arguments(config, method, config.precision, folder),
    )

    def pairs_of(split: str) -> list[TrainingPair]:
        columns = [splits[split], sums[split]]
        if method.mismatched:
            columns += [splits[f"mismatched {split}"], sums[f"mismatched {split}"]]
        return [TrainingPair(*row) for row in zip(*columns, strict=False)]

    trainer = PreferenceTrainer(model, args, pairs_of("train"), objective, runtime.token_budget, reference=live)
    models.show_progress(trainer, label)
    facts = checkpoints.train(trainer, config, label)
    if not files.first_process():
        return
    if live is not None:
        how = (runtime.token_budget, trainer.layout, config.precision)
        for split in ("heldout", "mismatched heldout"):
            sums[split] = refcache.sums(refcache.compute(live, splits[split], *how, f"{label}, reference"))
    heldout = evaluate_pairs(model, pairs_of("heldout"), objective, runtime.token_budget, trainer.layout)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    # Sorted as rows from a checkpoint are: the file is the same whether or not the training was resumed.
    files.write_jsonl(folder / "train.jsonl", [{key: entry[key] for key in sorted(entry) if key != "epoch"} for entry in history])
    models.save_model(folder, model, tokenizer)
    inputs = [f"{made}/{files.MANIFEST}" for made in (config.pairs, config.reference) if made not in (None, "live")]
    facts |= {
        "device": str(args.device),
        "processes": args.world_size,
        "layout": trainer.layout,
        "dropped": left_out,
        "heldout_pairs": len(splits["heldout"]),
        "heldout": heldout,
    }
    files.write_manifest(folder, config, inputs=inputs, **facts)
    checkpoints.remove(folder)
    print(f"{label}: held-out accuracy {heldout['rewards/accuracies']:.3f}, margin {heldout['rewards/margins']:.3f}")


if __name__ == "__main__":
    files.run(main)
