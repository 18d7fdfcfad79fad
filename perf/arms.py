"""The arms that perf compares. An arm trains on some pairs while perf measures its time or its peak memory.

All arms share the Llama with its random weights, the token ids, the global batches and their order, AdamW and its learning rate, the
precision and the gradient checkpointing. An arm logs, evaluates and saves nothing.

``ours`` is stages/preference/trainer.py. ``trl`` is TRL's own trainer: CPOTrainer for SimPO, DPOTrainer for DPO. ``vanilla`` is DPO as the
SimPO paper's authors trained it: CPOTrainer's padded batches and full logits, with a live reference. TRL's trainers get token ids instead
of texts and, with a cached reference, its sums. Everything else is TRL's.

The random weights are larger than usual. Policy and reference then give different log-probabilities, so that the losses can be compared.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback, TrainingArguments

from perf.pairs import Shape

if TYPE_CHECKING:
    from transformers import Trainer

SHAPES = {
    "cpu": Shape(32768, 256, 1024, 4, 4, 2),
    "cuda": Shape(128256, 2048, 8192, 16, 32, 8),  # Llama-3.2-1B
}
SIMPO = {"beta": 2.5, "gamma": 1.375}  # paper Table 8, Llama-3-Instruct: γ/β = 0.55
DPO = {"beta": 0.1}
# For a process that measures its memory: a tensor with its own memory mapping leaves resident memory as soon as it is freed.
OWN_PROCESS = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
POLICY, REFERENCE = 0, 1  # seeds of the weights

Pair = dict[str, list[int]]


@dataclass(frozen=True)
class Arm:
    """A trainer with its options."""

    trainer: str  # ``ours``, ``trl`` or ``vanilla``
    objective: str
    reference: str | None = None  # ``cached`` or ``live``, for DPO
    micro_batch: int = 0  # pairs of a padded micro-batch; ours takes the token budget instead
    rebalance: bool = False  # TRL's ``train_sampling_strategy="batch_rebalance"``: micro-batches of similar cost in a global batch
    plain_head: bool = False  # TRL's DPO with ``plain_head`` below


@dataclass(frozen=True)
class World:
    """The settings that all arms share."""

    device: str
    shape: Shape
    batch_size: int  # pairs of a global batch
    token_budget: int  # tokens of our packs
    bf16: bool


@dataclass
class Run:
    """The measurements of an arm."""

    loss: float = float("nan")  # the first step's, a mean over pairs
    tokens: list[int] = field(default_factory=lambda: [0])  # tokens through the policy, per step
    seconds: list[float] = field(default_factory=list)  # per step, without the first step
    memory: dict[str, float] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)


def build(world: World, seed: int) -> LlamaForCausalLM:
    """A Llama on the device, with fp32 weights drawn from ``seed``. Its logits have a standard deviation near 1.6."""
    config = LlamaConfig(
        **asdict(world.shape),
        initializer_range=1.6 / world.shape.hidden_size**0.5,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(seed)
    with torch.device(world.device):
        return LlamaForCausalLM._from_config(config, dtype=torch.float32, attn_implementation="sdpa")


@torch.no_grad()
def reference_sums(world: World, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """The reference's log-probabilities of each pair's answers, from full logits of one sequence at a time."""
    model, sums = build(world, REFERENCE).eval(), []
    with torch.autocast(world.device, torch.bfloat16, enabled=world.bf16):
        for pair in pairs:
            for side in ("chosen", "rejected"):
                ids = torch.tensor([pair["prompt"] + pair[side]], device=world.device)
                start = len(pair["prompt"])
                logits = model(ids).logits[0, start - 1 : -1].float()
                sums.append(-torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum"))
    values = torch.stack(sums).view(-1, 2).tolist()
    return [(chosen, rejected) for chosen, rejected in values]


def train(
    arm: Arm, world: World, pairs: Sequence[Pair], sums: Sequence[tuple[float, float]], *, epochs: int = 1, memory: bool = False
) -> Run:
    """Train a new model of ``arm`` on ``pairs``, one step per global batch.

    arm, world: the trainer, and the settings that all arms share
    pairs:      token ids
    sums:       the reference's log-probabilities of each pair's answers, for a cached reference
    epochs:     passes over the pairs
    memory:     measure the last step's peak memory instead of times
    """
    run = Run()
    with tempfile.TemporaryDirectory() as folder:
        wait(world.device)
        before = allocated(world.device)
        arguments = {
            "output_dir": folder,
            "num_train_epochs": epochs,
            "learning_rate": 1e-6,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused" if world.device == "cuda" else "adamw_torch",
            "bf16": world.bf16,
            "gradient_checkpointing": True,  # as in TRL and the paper
            "train_sampling_strategy": "batch_rebalance" if arm.rebalance else "sequential",
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "use_cpu": world.device == "cpu",
            "seed": 0,
        }
        with plain_head() if arm.plain_head else nullcontext():
            trainer = (ours if arm.trainer == "ours" else trls)(arm, world, pairs, sums, arguments, run)
            run.configuration["trainer"] = "PreferenceTrainer" if arm.trainer == "ours" else type(trainer).__name__.removeprefix("Ids")
            watch = Memory(world.device, before, len(pairs) // world.batch_size * epochs, run) if memory else Clock(world.device, run)
            trainer.add_callback(watch)
            trainer.remove_callback(PrinterCallback)
            trainer.model.get_input_embeddings().register_forward_hook(partial(_count, run))
            trainer.train()
        run.configuration |= {name: value for name, value in trainer.args.to_dict().items() if name not in ("output_dir", "logging_dir")}
    del trainer
    gc.collect()
    if world.device == "cuda":
        torch.cuda.empty_cache()
    return run


def _count(run: Run, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    run.tokens[-1] += inputs[0].numel()


class Clock(TrainerCallback):
    """Seconds from the end of one optimizer step to the end of the next. They include the making of batches. The first step has none.

    A GPU run reads the wall clock. A CPU run reads the CPU time of its one thread, which other users of the machine do not change.
    """

    def __init__(self, device: str, run: Run) -> None:
        self.device, self.run = device, run
        self.last: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait(self.device)
        now = time.perf_counter() if self.device == "cuda" else time.process_time()
        if self.last is not None:
            self.run.seconds.append(now - self.last)
        self.last = now
        self.run.tokens.append(0)


class Memory(TrainerCallback):
    """The last step's peak memory in bytes. ``peak`` subtracts the memory before the arm's models were made. ``step`` subtracts the memory
    at the start of the step: weights, optimizer state and a live reference."""

    def __init__(self, device: str, before: int, steps: int, run: Run) -> None:
        self.device, self.before, self.steps, self.run = device, before, steps, run

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.steps - 1:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                self.began = torch.cuda.memory_allocated()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # reset the peak
                self.began = _status("VmHWM")
        elif state.global_step == self.steps:
            peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else _status("VmHWM")
            self.run.memory = {"peak": peak - self.before, "step": peak - self.began}


def wait(device: str) -> None:
    """Wait until the GPU has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def allocated(device: str) -> int:
    """Bytes of tensors on the GPU; on a CPU, this process's resident memory."""
    return torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS")


def in_a_process(module: str, *words: str) -> Any:
    """Run ``python -m module`` with ``words`` and measurable memory. Return the JSON in its last line. RuntimeError has its last error."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=os.environ | OWN_PROCESS, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(words)} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def ours(
    arm: Arm, world: World, pairs: Sequence[Pair], sums: Sequence[tuple[float, float]], arguments: dict[str, Any], run: Run
) -> Trainer:
    """The project's trainer. It shuffles its rows, so the rows are placed to come out in the order of ``pairs``."""
    from stages.preference import objectives
    from stages.preference.trainer import PreferenceTrainer, Shuffled, TrainingPair

    if arm.objective == "simpo":
        options: dict[str, Any] = {"length_normalization": True, "label_smoothing": 0.0, "loss_type": "sigmoid", "sft_weight": 0.0}
        objective: Callable[..., Any] = partial(objectives.simpo, **options | SIMPO)
    else:
        objective = partial(objectives.dpo, beta=DPO["beta"], label_smoothing=0.0)
    args = TrainingArguments(per_device_train_batch_size=world.batch_size, **arguments)
    known = sums if arm.reference == "cached" else [None] * len(pairs)
    rows: list[Any] = [None] * len(pairs)
    shuffled = (row for batch in Shuffled(len(pairs), world.batch_size, args.seed) for row in batch)
    for place, pair, pair_sums in zip(shuffled, pairs, known, strict=True):
        rows[place] = TrainingPair(tokens=pair, reference=pair_sums)
    live = build(world, REFERENCE) if arm.reference == "live" else None
    trainer = PreferenceTrainer(build(world, POLICY), args, rows, objective, world.token_budget, reference=live)
    run.configuration["layout"] = trainer.layout
    step = trainer.training_step

    def recorded(*inputs: Any, **named: Any) -> Tensor:
        loss = step(*inputs, **named)
        if run.loss != run.loss:
            run.loss = float(loss)
        return loss

    trainer.training_step = recorded  # type: ignore[method-assign]
    return trainer


def trls(
    arm: Arm, world: World, pairs: Sequence[Pair], sums: Sequence[tuple[float, float]], arguments: dict[str, Any], run: Run
) -> Trainer:
    """TRL's trainer, or ``vanilla``."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    core = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")  # TRL needs its padding token, id 0
    arguments |= {
        "per_device_train_batch_size": arm.micro_batch,
        "gradient_accumulation_steps": world.batch_size // arm.micro_batch,
        "max_length": 4096,
    }
    ids = {f"{name}_ids": [pair[name] for pair in pairs] for name in ("prompt", "chosen", "rejected")}
    longest = [len(pair["prompt"]) + max(len(pair["chosen"]), len(pair["rejected"])) for pair in pairs]
    columns: dict[str, list[Any]] = ids | {"length": longest}
    model = build(world, POLICY)
    reference = build(world, REFERENCE) if arm.reference == "live" else None
    trainer: Trainer
    if arm.trainer == "trl" and arm.objective == "dpo":
        from trl import DPOConfig, DPOTrainer

        class IdsDPOTrainer(_Ordered, DPOTrainer):
            def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
                return dataset

            def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
                chosen, rejected = zip(*sums, strict=True)
                return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

        args = DPOConfig(beta=DPO["beta"], precompute_ref_log_probs=arm.reference == "cached", **arguments)
        trainer = IdsDPOTrainer(model, reference, args=args, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer)
    else:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        class IdsCPOTrainer(_Ordered, CPOTrainer):
            def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, list[int]]:
                row = {"prompt_input_ids": feature["prompt_ids"]}
                row["prompt_attention_mask"] = [1] * len(feature["prompt_ids"])
                for side in ("chosen", "rejected"):
                    tokens = feature["prompt_ids"] + feature[f"{side}_ids"]
                    row[f"{side}_input_ids"], row[f"{side}_attention_mask"] = tokens, [1] * len(tokens)
                    row[f"{side}_labels"] = [-100] * len(feature["prompt_ids"]) + feature[f"{side}_ids"]
                return row

            def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, ...]:
                chosen, rejected, *rest = super().concatenated_forward(model, batch)
                if reference is None:
                    return chosen, rejected, *rest
                with torch.no_grad(), self.accelerator.autocast():
                    reference_chosen, reference_rejected, *_ = super().concatenated_forward(reference, batch)
                return chosen - reference_chosen, rejected - reference_rejected, *rest

        simpo = {"loss_type": "simpo", "beta": SIMPO["beta"], "simpo_gamma": SIMPO["gamma"]}
        loss = simpo if arm.objective == "simpo" else {"loss_type": "sigmoid", "beta": DPO["beta"]}
        columns |= {name: [""] * len(pairs) for name in ("prompt", "chosen", "rejected")}
        data = Dataset.from_dict(columns)
        trainer = IdsCPOTrainer(model, CPOConfig(cpo_alpha=0.0, **loss, **arguments), train_dataset=data, processing_class=tokenizer)
        trainer.train_dataset = trainer.train_dataset.remove_columns(list(ids))
    compute, counted, total = trainer.compute_loss, 0, torch.zeros((), device=world.device)

    def recorded(model: Any, inputs: dict[str, Any], *others: Any, **named: Any) -> Any:
        """Record the first step's loss as a mean over pairs. TRL's own loss is a mean over micro-batches, which differ in size."""
        nonlocal counted, total
        loss = compute(model, inputs, *others, **named)
        if counted < world.batch_size:
            pairs = (inputs["input_ids"] if "input_ids" in inputs else inputs["chosen_labels"].repeat(2, 1)).shape[0] // 2
            counted, total = counted + pairs, total + loss.detach() * pairs
            if counted == world.batch_size:
                run.loss = float(total) / counted
        return loss

    trainer.compute_loss = recorded
    return trainer


class _Ordered:
    """Keep the data's order of global batches. The rebalancing sampler would shuffle the data before it sorts each batch."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        if hasattr(sampler, "shuffle"):
            sampler.shuffle = False
        return sampler


@contextmanager
def plain_head() -> Iterator[None]:
    """Replace the tiled kernel of TRL's DPO head by plain logits of the trained positions.

    Without Triton, the kernel of TRL 1.16 projects every position. It is several times slower than plain logits, and no setting changes
    that. This patch gives TRL its fastest head on a CPU.
    """
    from trl.trainer import utils

    class Plain:
        @staticmethod
        def apply(hidden: Tensor, weight: Tensor, bias: Any, labels: Tensor, *_: Any) -> tuple[Tensor, ...]:
            logps = -torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight, bias).float(), labels, reduction="none")
            rest = torch.zeros_like(logps)  # metrics (entropy, squared probabilities, mean logit, top-1), here at no cost
            return logps, rest, rest, rest, rest.bool()

    with mock.patch.object(utils, "_use_triton", lambda device: True), mock.patch.object(utils, "_ChunkedLogProbFunction", Plain):
        yield


def quiet() -> None:
    """Turn off the libraries' progress bars and notices, so that only perf writes to standard error."""
    import warnings

    import datasets
    import transformers

    warnings.simplefilter("ignore")
    os.environ |= {"TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
