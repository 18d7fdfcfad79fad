"""The preference trainer: ``transformers.Trainer`` with exact global batches, whatever the micro-batch.

The data loader yields a whole global batch; ``training_step`` walks through it in micro-batches, and every pair's loss counts
1 / (pairs in the global batch). Weights are fp32 always, bf16 is Trainer's autocast. In: tokenised pairs (stages/preference/data.py)
with the reference's sums, and an objective of stages/preference/objectives.py with its hyperparameters bound. Metrics are summed on the
device and fetched once a logged step. An epoch's last batch may be smaller; its loss is the mean over the pairs it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from stages.preference.data import Batch, Pair, collate
from stages.preference.logps import response_logps
from stages.preference.objectives import Losses, Sums

Objective = Callable[[Sums], Losses]


@dataclass(frozen=True)
class TrainingPair:
    """A tokenised pair and the reference's sums of log-probabilities of its chosen and its rejected answer."""

    tokens: Pair
    reference: tuple[float, float] | None = None


def global_batch(pairs: Sequence[TrainingPair], micro_batch: int) -> dict[str, Any]:
    """A global batch in micro-batches of ``micro_batch`` pairs (the last may be smaller), with what is common to all of them.

    The pairs are sorted by their longer sequence first, so that little is padded; a batch's mean does not depend on their order.
    """
    ordered = sorted(pairs, key=lambda pair: len(pair.tokens["prompt"]) + max(len(pair.tokens["chosen"]), len(pair.tokens["rejected"])))
    batches = []
    for start in range(0, len(ordered), micro_batch):
        part = ordered[start : start + micro_batch]
        batch = collate([pair.tokens for pair in part], pad=0)
        references = [pair.reference for pair in part if pair.reference is not None]
        if references:
            batch["reference"] = torch.tensor(references, dtype=torch.float64)
        batches.append(batch)
    mean_chosen_length = sum(len(pair.tokens["chosen"]) for pair in pairs) / len(pairs)
    return {"micro_batches": batches, "pairs": len(pairs), "mean_chosen_length": mean_chosen_length}


def pair_sums(model: PreTrainedModel, batch: Batch, mean_chosen_length: float) -> Sums:
    """What the objectives see of a micro-batch."""
    plan = {name: tensor for name, tensor in batch.items() if name != "reference"}
    logps, lengths = response_logps(model, **plan)
    (chosen, rejected), (chosen_length, rejected_length) = logps.chunk(2), lengths.chunk(2)
    if "reference" not in batch:
        return Sums(chosen, rejected, chosen_length, rejected_length, mean_chosen_length)
    return Sums(chosen, rejected, chosen_length, rejected_length, mean_chosen_length, *batch["reference"].to(logps.dtype).unbind(1))


def pair_metrics(sums: Sums, chosen_rewards: Tensor, rejected_rewards: Tensor) -> dict[str, Tensor]:
    """The logged metrics of each pair, [B], rewards and logps under the names that TRL and the authors use; a tie is not accurate."""
    return {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/accuracies": (chosen_rewards > rejected_rewards).to(chosen_rewards.dtype),
        "rewards/margins": chosen_rewards - rejected_rewards,
        "logps/chosen": sums.chosen_logps.detach(),
        "logps/rejected": sums.rejected_logps.detach(),
        "avg_logps/chosen": sums.chosen_logps.detach() / sums.chosen_length,
        "avg_logps/rejected": sums.rejected_logps.detach() / sums.rejected_length,
    }


@torch.no_grad()
def evaluate_pairs(model: PreTrainedModel, pairs: Sequence[TrainingPair], objective: Objective, micro_batch: int) -> dict[str, float]:
    """The means of ``pair_metrics`` over ``pairs``, in the precision of the weights."""
    model.eval()
    everything = global_batch(pairs, micro_batch)
    total: dict[str, Tensor] = {}
    for micro in everything["micro_batches"]:
        batch = {name: tensor.to(model.device) for name, tensor in micro.items()}
        sums = pair_sums(model, batch, everything["mean_chosen_length"])
        _, *rewards = objective(sums)
        for name, values in pair_metrics(sums, *rewards).items():
            total[name] = total.get(name, 0.0) + values.sum(dtype=torch.float64)
    return {name: float(value) / len(pairs) for name, value in total.items()}


class PreferenceTrainer(Trainer):
    """Trains ``model`` on ``pairs``. ``args.per_device_train_batch_size`` is the global batch, ``micro_batch`` what fits at a time."""

    def __init__(
        self, model: PreTrainedModel, args: TrainingArguments, pairs: Sequence[TrainingPair], objective: Objective, micro_batch: int
    ) -> None:
        if low := sorted({str(p.dtype) for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)}):
            raise ValueError(f"the model's weights are {', '.join(low)}: a step of 1e-6 is lost in them; load them as torch.float32")
        if micro_batch < 1:
            raise ValueError(f"--runtime micro_batch={micro_batch}: expected at least 1")
        if args.world_size > 1 or args.n_gpu > 1 or args.gradient_accumulation_steps > 1:
            raise ValueError(
                "preference training runs in one process on one device, a whole global batch a step: start it without a launcher,"
                " with CUDA_VISIBLE_DEVICES=0 and gradient_accumulation_steps=1"
            )
        without_dropout(model)
        super().__init__(model=model, args=args, train_dataset=pairs, data_collator=partial(global_batch, micro_batch=micro_batch))
        self.objective = objective
        self.totals: dict[str, Tensor] = {}
        self.counted = 0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of one global batch; the mean of its pairs' losses."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = torch.zeros((), device=self.args.device)
        for batch in inputs["micro_batches"]:
            with self.autocast():
                share = self.compute_loss(model, {**inputs, "batch": batch})
            self.accelerator.backward(share)
            loss = loss + share.detach()
        self.counted += inputs["pairs"]
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """A micro-batch's share in the mean loss of a global batch of ``inputs["pairs"]`` pairs; its metrics are added to the totals."""
        sums = pair_sums(self.model, inputs["batch"], inputs["mean_chosen_length"])
        losses, *rewards = self.objective(sums)
        metrics = pair_metrics(sums, *rewards)
        for name, values in metrics.items():
            self.totals[name] = self.totals.get(name, 0.0) + values.sum()
        loss = losses.sum() / inputs["pairs"]
        return (loss, metrics) if return_outputs else loss

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where it is asked for. Accelerate wraps the whole model's forward, and the log-probabilities go past that."""
        return torch.autocast(self.args.device.type, torch.bfloat16) if self.args.bf16 else nullcontext()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last logged step; FloatingPointError where one is no number, so that no such model is written."""
        if "loss" in logs:
            means = (torch.stack(list(self.totals.values())) / self.counted).tolist()
            logs |= dict(zip(self.totals, means, strict=True))
            if wrong := [name for name, value in logs.items() if not math.isfinite(value)]:
                raise FloatingPointError(f"step {self.state.global_step}: {', '.join(wrong)} is not finite; lower method.learning_rate")
            self.totals, self.counted = {}, 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None are counted: Transformers' estimate takes every token for a trained one."""
        return 0


def without_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, those that attention modules copied from the configuration included; the configuration stays."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)
