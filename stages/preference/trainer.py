"""The preference trainer: ``transformers.Trainer`` with exact global batches, whatever the packs and the number of processes.

In: tokenised pairs (stages/preference/data.py) with the reference's sums, and an objective of stages/preference/objectives.py with its
hyperparameters bound. The data loader yields a whole global batch in packs under a token budget (stages/preference/packing.py), and each
process gets its share of the packs. ``training_step`` computes them all. Every pair's loss counts 1 / (pairs in the global batch). The last
batch of an epoch may have fewer pairs; its loss is their mean. Weights are always fp32; bf16 is autocast. Loss, gradient norm and metrics
are fetched once a step, before the step is applied, so a loss that is not finite never reaches the weights. A training that was
interrupted resumes with the same weights to the bit: stages/lib/checkpoints.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from stages.lib.errors import NotFinite, UserError
from stages.preference.data import Pair
from stages.preference.logps import answer_logps, attention_layout, fastest_correct_layout
from stages.preference.objectives import Losses, Sums
from stages.preference.packing import Batch, collate, pack, to_device

Objective = Callable[[Sums], tuple[Tensor, Tensor, Tensor]]  # ``Losses``, or a plain tuple of the same three


@dataclass(frozen=True)
class TrainingPair:
    """A tokenised pair with what the objectives need of the reference."""

    tokens: Pair
    reference: tuple[float, float] | None = None  # the reference's log-probabilities of the chosen and the rejected answer, summed
    mismatched: Pair | None = None  # the same prompt with another row's answers: KTO's KL is estimated on these
    mismatched_reference: tuple[float, float] | None = None  # as ``reference``, of ``mismatched``


def global_batch(pairs: Sequence[TrainingPair], budget: int, layout: str, process: int = 0, processes: int = 1) -> dict[str, Any]:
    """The packs of a global batch that a process computes, and the numbers that all processes share.

    Every process gets the same number of packs. A pack's ``count`` is the number of its pairs. An empty pack computes one pair, which does
    not count.

    pairs: the pairs of the global batch
    budget: tokens of a pack
    layout: see stages/preference/packing.py
    process, processes: the number of the process, from 0, and how many there are
    """
    mismatched = [TrainingPair(pair.mismatched, pair.mismatched_reference) for pair in pairs if pair.mismatched is not None]
    shares = {}
    for name, rows in (("packs", pairs), ("mismatched", mismatched)):
        packs = pack([row.tokens for row in rows], budget, layout, processes) if rows else []
        shares[name] = [_pack([rows[row] for row in places], rows[0], layout) for places in packs[process::processes]]
    mean_chosen_length = sum(len(pair.tokens["chosen"]) for pair in pairs) / len(pairs)
    return {**shares, "pairs": len(pairs), "mean_chosen_length": mean_chosen_length}


def _pack(pairs: Sequence[TrainingPair], dummy: TrainingPair, layout: str) -> Batch:
    counted = len(pairs)
    pairs = pairs or [dummy]
    batch = collate([pair.tokens for pair in pairs], layout) | {"count": counted}
    references = [pair.reference for pair in pairs if pair.reference is not None]
    return batch | {"reference": torch.tensor(references, dtype=torch.float64)} if references else batch


def model_inputs(batch: Batch) -> Batch:
    """The part of a pack that ``answer_logps`` takes."""
    return {name: value for name, value in batch.items() if name not in ("count", "reference")}


def pair_sums(logps: Tensor, batch: Batch, mean_chosen_length: float, kl: Tensor | None = None) -> Sums:
    """The ``Sums`` of a pack's pairs that count.

    logps: the policy's sums of log-probabilities, [2n]
    batch: the pack, with ``count``, ``length`` and, if the objective needs it, ``reference``
    mean_chosen_length, kl: two numbers of the global batch, see ``Sums``
    """
    count = batch["count"]
    chosen, rejected = (part[:count] for part in logps.chunk(2))
    chosen_length, rejected_length = (part[:count] for part in batch["length"].chunk(2))
    of_chosen, of_rejected = batch["reference"][:count].to(logps.dtype).unbind(1) if "reference" in batch else (None, None)
    return Sums(chosen, rejected, chosen_length, rejected_length, mean_chosen_length, of_chosen, of_rejected, kl)


def log_ratios(logps: Tensor, batch: Batch) -> Tensor:
    """The sum of log π(y|x) - log ref(y|x) over both answers of the pairs that count; a scalar."""
    sums = pair_sums(logps, batch, 0.0)
    if sums.reference_chosen_logps is None or sums.reference_rejected_logps is None:
        raise UserError("the KL estimate needs the reference's log-probabilities; set method.reference=cached, or live")
    return (sums.chosen_logps - sums.reference_chosen_logps + sums.rejected_logps - sums.reference_rejected_logps).sum()


def pair_metrics(sums: Sums, result: Losses) -> dict[str, Tensor]:
    """The logged metrics of each pair, [n], under the names that TRL and the authors use. A tie is not accurate."""
    losses, chosen_rewards, rejected_rewards = result
    return {
        "loss": losses.detach(),
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
def evaluate_pairs(
    model: PreTrainedModel, pairs: Sequence[TrainingPair], objective: Objective, budget: int, layout: str
) -> dict[str, float]:
    """The means of ``pair_metrics`` over ``pairs``, taken as one global batch, in the precision of the weights.

    objective: with its hyperparameters bound
    budget: tokens of a pack
    layout: see stages/preference/packing.py
    """
    model.eval()
    everything = global_batch(pairs, budget, layout)
    total: dict[str, Tensor] = {}
    with attention_layout(model, layout):
        on_device = {name: [to_device(batch, model.device) for batch in everything[name]] for name in ("packs", "mismatched")}
        ratios = [log_ratios(answer_logps(model, **model_inputs(batch)), batch) for batch in on_device["mismatched"]]
        kl = torch.stack(ratios).sum() / (2 * len(pairs)) if ratios else None
        for batch in on_device["packs"]:
            sums = pair_sums(answer_logps(model, **model_inputs(batch)), batch, everything["mean_chosen_length"], kl)
            for name, values in pair_metrics(sums, Losses(*objective(sums))).items():
                total[name] = total.get(name, 0.0) + values.sum(dtype=torch.float64)
    return {name: float(value) / len(pairs) for name, value in total.items()}


class Shuffled(Sampler[list[int]]):
    """Whole global batches of rows, shuffled anew each epoch. The order depends on the seed and the epoch alone, in every process."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, 0

    def __len__(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        return (order[start : start + self.batch_size] for start in range(0, self.rows, self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class GlobalBatches(DataLoader[Any]):
    """A loader that passes the epoch from Trainer to its ``Shuffled``."""

    batch_sampler: Shuffled

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class Logger(TrainerCallback):
    """Logs a step's metrics at its end, so that a checkpoint of this step contains them."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.log(self.trainer.step_metrics)


class PreferenceTrainer(Trainer):
    """Trains ``model`` on ``pairs`` with ``objective``.

    args: ``per_device_train_batch_size`` is the global batch in pairs, of all processes together
    token_budget: tokens of a pack; it changes only speed and memory
    reference: a model that computes the reference's sums during training; without it they are in ``pairs``
    layout: one of stages/preference/packing.py; by default the fastest that is correct
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        pairs: Sequence[TrainingPair],
        objective: Objective,
        token_budget: int,
        *,
        reference: PreTrainedModel | None = None,
        layout: str | None = None,
    ) -> None:
        if low := sorted({str(p.dtype) for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)}):
            raise UserError(f"the model's weights are {', '.join(low)}, which lose a step of 1e-6; load them as torch.float32")
        if args.n_gpu > 1 or args.gradient_accumulation_steps > 1:
            raise UserError(
                "a process trains on one device, and a step is a whole global batch: start one process a GPU with runtime.train.processes,"
                " or set CUDA_VISIBLE_DEVICES=0; set gradient_accumulation_steps=1"
            )
        args.logging_strategy, args.ddp_find_unused_parameters = "no", False  # ``Logger`` logs; every pack uses every weight
        without_dropout(model)
        super().__init__(model=model, args=args, train_dataset=pairs)
        self.objective, self.token_budget, self.reference = objective, token_budget, reference
        if reference is not None:
            reference.requires_grad_(False).eval().to(args.device)
        self.layout = layout or fastest_correct_layout(model, [pair.tokens for pair in pairs], "bf16" if args.bf16 else "fp32")
        self.step_metrics: dict[str, float] = {}
        self.add_callback(Logger(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Whole global batches. Every process makes the same packs and keeps its share."""
        share = {"process": self.args.process_index, "processes": self.args.world_size}
        return GlobalBatches(
            self.train_dataset,
            batch_sampler=Shuffled(len(self.train_dataset), self.args.per_device_train_batch_size, self.args.seed),
            collate_fn=partial(global_batch, budget=self.token_budget, layout=self.layout, **share),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """``Trainer.train`` with ``answer_logps`` as the model's forward, because DDP and autocast wrap the forward."""
        self.model.forward = partial(answer_logps, self.model)
        try:
            with (
                attention_layout(self.model, self.layout),
                attention_layout(self.reference, self.layout) if self.reference else nullcontext(),
            ):
                return super().train(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
                raise UserError(
                    f"out of memory with packs of {self.token_budget:,} tokens; set runtime.train.token_budget in conf/scale to less"
                    " (a longer pair has a pack of its own), or runtime.train.gradient_checkpointing to 1; the results stay the same"
                ) from error
            raise
        finally:
            for name in ("forward", "_original_forward"):  # the latter is accelerate's
                self.model.__dict__.pop(name, None)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of this process's packs; returns the global batch's mean loss. NotFinite where a metric is not finite."""
        model.train()
        pairs, processes = inputs["pairs"], self.args.world_size
        kl = self._kl(model, inputs)
        totals: dict[str, Tensor] = {}
        for number, batch in enumerate(inputs["packs"], start=1):
            batch = self._with_reference(to_device(batch, self.args.device))
            last = number == len(inputs["packs"])
            with nullcontext() if last else self.accelerator.no_sync(model):
                sums = pair_sums(model(**model_inputs(batch)), batch, inputs["mean_chosen_length"], kl)
                result = Losses(*self.objective(sums))
                self.accelerator.backward(result.losses.sum() * (processes / pairs))  # DDP takes the mean over processes
            for name, values in pair_metrics(sums, result).items():
                totals[name] = totals.get(name, 0.0) + values.sum()
        gathered: Tensor = self.accelerator.reduce(torch.stack(list(totals.values())), "sum") / pairs
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
        means = torch.cat([gathered, norm.to(gathered.dtype).unsqueeze(0)]).tolist()  # the step's one wait for the device
        self.step_metrics = dict(zip([*totals, "grad_norm"], means, strict=True)) | {"learning_rate": self.optimizer.param_groups[0]["lr"]}
        if wrong := [name for name, value in self.step_metrics.items() if not math.isfinite(value)]:
            raise NotFinite(
                f"step {self.state.global_step + 1}: {', '.join(wrong)} is not finite; the step was not applied, and the last checkpoint is"
                " kept; lower method.learning_rate, or check the pairs of that batch"
            )
        return gathered[0].to(self.args.device, torch.float32)

    @torch.no_grad()
    def _kl(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        """The mean of log π/ref over the global batch's mismatched answers, two a pair; None without any."""
        if not inputs["mismatched"]:
            return None
        ratios = []
        for batch in inputs["mismatched"]:
            batch = self._with_reference(to_device(batch, self.args.device))
            ratios.append(log_ratios(model(**model_inputs(batch)), batch))
        total: Tensor = self.accelerator.reduce(torch.stack(ratios).sum(), "sum")
        return total / (2 * inputs["pairs"])

    @torch.no_grad()
    def _with_reference(self, batch: Batch) -> Batch:
        """The batch with the sums of the live reference, if there is one."""
        if self.reference is None:
            return batch
        with self.accelerator.autocast():
            logps = answer_logps(self.reference, **model_inputs(batch))
        return batch | {"reference": torch.stack(logps.chunk(2), dim=1)}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: floating-point operations are not counted, because Transformers' estimate would count every token as trained."""
        return 0


def without_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, also the copies in attention modules. The model's configuration keeps its values."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)
