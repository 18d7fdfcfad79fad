"""The preference trainer: ``transformers.Trainer`` with exact global batches, whatever the micro-batch.

The data loader yields a whole global batch; ``training_step`` walks through it in micro-batches, and every pair's loss counts
1 / (pairs in the global batch). Weights are fp32 always, bf16 is autocast; dropout is off. In: tokenised pairs
(stages/preference/data.py) and an objective of stages/preference/objectives.py with its hyperparameters bound. Metrics are summed on the
device and fetched once a logged step. An epoch's last pairs that do not fill a batch wait for the next epoch's shuffle, as in the
authors' Trainer; with one epoch they are not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from stages.preference.data import Batch, Row, collate, mean_chosen_length, split_by_length
from stages.preference.logps import pair_sums
from stages.preference.objectives import Losses, Sums

Objective = Callable[[Sums], Losses]


def global_batch(rows: Sequence[Row], micro_batch: int) -> dict[str, Any]:
    """A global batch in micro-batches, with what is common to all of them."""
    groups = [collate(group) for group in split_by_length(rows, micro_batch)]
    return {"micro_batches": groups, "pairs": len(rows), "mean_chosen_length": mean_chosen_length(rows)}


def pair_metrics(sums: Sums, chosen_rewards: Tensor, rejected_rewards: Tensor) -> dict[str, Tensor]:
    """The logged metrics of each pair, [B], under the names that TRL and the authors use; an accuracy counts ties as wrong."""
    return {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/accuracies": (chosen_rewards > rejected_rewards).to(chosen_rewards.dtype),
        "rewards/margins": chosen_rewards - rejected_rewards,
        "logps/chosen": sums.chosen_logps.detach(),
        "logps/rejected": sums.rejected_logps.detach(),
        "average_logps/chosen": sums.chosen_logps.detach() / sums.chosen_length,
        "average_logps/rejected": sums.rejected_logps.detach() / sums.rejected_length,
    }


@torch.inference_mode()
def evaluate(model: PreTrainedModel, rows: Sequence[Row], objective: Objective, micro_batch: int, precision: str) -> dict[str, float]:
    """The means of the loss and of ``pair_metrics`` over ``rows``."""
    total: dict[str, Tensor] = {}
    for group in split_by_length(rows, micro_batch):
        batch = {name: tensor.to(model.device) for name, tensor in collate(group).items()}
        sums = pair_sums(model, batch, precision, mean_chosen_length(rows))
        losses, *rewards = objective(sums)
        for name, values in {"loss": losses, **pair_metrics(sums, *rewards)}.items():
            total[name] = total.get(name, 0.0) + values.sum(dtype=torch.float64)
    return {name: float(value) / len(rows) for name, value in total.items()}


class PreferenceTrainer(Trainer):  # type: ignore[misc, unused-ignore]
    """Trains ``model`` on ``rows`` with ``objective``; ``method`` is the slice's (learning_rate, epochs, batch_size, scheduler, …)."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        objective: Objective,
        method: Mapping[str, Any],
        *,
        seed: int,
        precision: str,
        micro_batch: int,
        log_every: int,
        folder: Path,
    ) -> None:
        if low := sorted({str(p.dtype) for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)}):
            raise ValueError(f"the model's weights are {', '.join(low)}: a step of 1e-6 is lost in them; load them as torch.float32")
        if micro_batch < 1 or log_every < 1:
            raise ValueError(f"--runtime micro_batch={micro_batch} log_every={log_every}: both must be at least 1")
        batch_size, epochs = method["batch_size"], method["epochs"]
        if len(rows) < batch_size:
            raise ValueError(f"method.batch_size={batch_size}: there are only {len(rows)} pairs to train on; lower it or add pairs")
        cuda = torch.cuda.is_available()
        args = TrainingArguments(
            output_dir=str(folder / ".work"),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=1,
            dataloader_drop_last=True,
            dataloader_pin_memory=cuda,
            remove_unused_columns=False,
            num_train_epochs=epochs,
            learning_rate=method["learning_rate"],
            lr_scheduler_type=method["scheduler"],
            warmup_steps=math.ceil(method["warmup_ratio"] * epochs * (len(rows) // batch_size)),
            weight_decay=method["weight_decay"],
            max_grad_norm=method["max_grad_norm"],
            optim="adamw_torch",
            adam_beta1=method["adam_beta1"],
            adam_beta2=method["adam_beta2"],
            adam_epsilon=method["adam_epsilon"],
            seed=seed,
            data_seed=seed,
            logging_steps=log_every,
            logging_nan_inf_filter=False,  # it would wait for the device in every step, and hide what it finds
            save_strategy="no",
            report_to="none",
            use_cpu=not cuda,
        )
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError("preference training runs in one process on one device: start it without a launcher, and with CUDA_VISIBLE_DEVICES=0")
        without_dropout(model)
        super().__init__(model=model, args=args, train_dataset=rows, data_collator=partial(global_batch, micro_batch=micro_batch))
        self.objective, self.precision = objective, precision
        self.totals: dict[str, Tensor] = {}
        self.counted = 0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of one global batch; the mean of its pairs' losses."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = torch.zeros((), device=self.args.device)
        for batch in inputs["micro_batches"]:
            part = self.compute_loss(model, {**inputs, **batch}, num_items_in_batch=inputs["pairs"])
            self.accelerator.backward(part)
            loss = loss + part.detach()
        self.counted += inputs["pairs"]
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """A micro-batch's share of the loss of a global batch with ``num_items_in_batch`` pairs; its metrics are added to the totals."""
        batch: Batch = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        sums = pair_sums(self.model, batch, self.precision, inputs["mean_chosen_length"])
        losses, *rewards = self.objective(sums)
        metrics = pair_metrics(sums, *rewards)
        for name, values in metrics.items():
            self.totals[name] = self.totals.get(name, 0.0) + values.sum()
        loss = losses.sum() / num_items_in_batch
        return (loss, metrics) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last logged step; FloatingPointError where the loss is no number, so that no such model is written."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise FloatingPointError(
                    f"step {self.state.global_step}: the loss is {logs['loss']}; lower method.learning_rate, or look at the pairs of that step"
                )
            means = (torch.stack(list(self.totals.values())) / self.counted).tolist()
            logs |= dict(zip(self.totals, means, strict=True))
            self.totals, self.counted = {}, 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None are counted: Transformers' estimate takes every token for a trained one."""
        return 0


def without_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0: those of nn.Dropout, and those that attention modules keep as attributes."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
