"""Language models as stages load, fine-tune and save them. Supervised training is TRL's SFTTrainer; this is what stages share.

A model is a folder (``results/<setting>/sft/model``) or a hub id with a revision. Weights are loaded in fp32: at learning
rates of 1e-6 a bf16 weight does not move. bf16, where asked for, is autocast.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from stages.lib import checkpoints, files
from stages.lib.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
    from trl import SFTTrainer


def load_model(name: str, revision: str | None = None) -> PreTrainedModel:
    """The causal language model in a folder or on the hub, weights in fp32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with loading(name, revision):
        config = AutoConfig.from_pretrained(name, revision=revision)
        # sdpa leaves out the soft cap of Gemma-2's attention scores without a word; for Gemma-2 the authors, too, take eager attention.
        attention = "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else "sdpa"
        how = {"dtype": torch.float32, "use_safetensors": True, "attn_implementation": attention}
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, config=config, revision=revision, **how)
    return model


def load_tokenizer(name: str, revision: str | None = None, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with ``chat_template`` where it is given; else it must have one of its own."""
    from transformers import AutoTokenizer

    with loading(name, revision):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, revision=revision)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {name} has no chat template; give one as chat_template beside the model in conf")
    return tokenizer


@contextmanager
def loading(name: str, revision: str | None) -> Iterator[None]:
    """A UserError in one sentence where the files of a model (``checked_model``) cannot be reached or read, or are not those of one."""
    checked_model(name)
    try:
        yield
    except (OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"model {name}{at} cannot be loaded: {reason}; `model` in conf/setting or conf/method must be a folder with a model, or"
            " a hub id that this machine has in its cache or reaches (with HF_TOKEN where a licence must be accepted first), and `revision`"
            " a commit of it, or main"
        ) from None


def checked_model(name: str) -> str:
    """``name``, if it is a hub id, a folder of the user's that exists, or a folder below results/ that is as its stage left it.

    UserError with the next command otherwise: a flipped byte in a model of ours is found here, by its sha256 (a second a GiB).
    """
    if name.startswith(("results/", "./", "/")) and not Path(name).is_dir():
        raise UserError(f"model {name} does not exist; {files.again(name)}")
    files.verify(name)
    return name


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write ``folder/model`` (safetensors, tokenizer, configs), whole or not at all."""
    partial, final = folder / ".model.partial", folder / "model"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def trl_arguments(config: DictConfig, folder: Path) -> dict[str, Any]:
    """What the configurations of TRL's trainers have in common, from a slice with ``training`` (stages/plan/schema.py:Supervised).

    ``training.batch_size`` rows a step, ``config.runtime.micro_batch`` at a time. UserError where the one is no multiple of the other.
    """
    micro_batch, training = config.runtime.micro_batch, config.training
    if training.batch_size % micro_batch:
        raise UserError(f"batch_size={training.batch_size} is not a multiple of the runtime's micro_batch={micro_batch}")
    return {
        "output_dir": str(folder / ".work"),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": training.batch_size // micro_batch,
        "learning_rate": training.learning_rate,
        "num_train_epochs": training.epochs,
        "lr_scheduler_type": training.scheduler,
        "warmup_steps": training.warmup_ratio,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "max_length": training.max_length,
        "bf16": training.precision == "bf16",
        "gradient_checkpointing": training.precision == "bf16",
        "seed": config.seed,
        "data_seed": config.seed,
        "logging_steps": 1,  # a sum over several steps would be lost between two attempts
        "save_strategy": "no",  # stages/lib/checkpoints.py saves
        "report_to": "none",
        "use_cpu": device() == "cpu",
    }


def sft_trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Dataset, config: DictConfig, folder: Path) -> SFTTrainer:
    """TRL's SFTTrainer over every token of ``data`` (texts or conversations), packed into rows of ``training.max_length`` tokens.

    Packing under sdpa is exact, whatever TRL's warning about flash attention says: position ids restart with each text, there is no
    attention mask, and Transformers then keeps the texts apart (tests/test_models.py).
    """
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(packing=True, **trl_arguments(config, folder))
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def supervise(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Dataset, config: DictConfig, folder: Path
) -> dict[str, Any]:
    """Train ``model`` in place with ``sft_trainer``; what the manifest says of it."""
    trainer = sft_trainer(model, tokenizer, data, config, folder)
    show_progress(trainer, config.stage)
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset) * config.training.epochs  # TRL's own count starts anew on resuming
    facts = checkpoints.train(trainer, config, config.stage)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    first, last = (sum(part) / len(part) for part in (losses[:10], losses[-10:]))
    return {**facts, "first_loss": first, "last_loss": last, "tokens": tokens, "device": str(trainer.args.device)}


def show_progress(trainer: Trainer, label: str, lines: int = 10) -> None:
    """Have a trainer print about ``lines`` lines on standard output, with loss and remaining time, and nothing else there."""
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    class Lines(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began, self.first, self.due = time.time(), state.global_step, state.global_step

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if state.is_world_process_zero and logs and "loss" in logs and state.global_step >= self.due:
                left = (time.time() - self.began) / (state.global_step - self.first) * (state.max_steps - state.global_step)
                print(
                    f"{label}: step {state.global_step} of {state.max_steps}, loss {float(logs['loss']):.4f}, {left:.0f} s left", flush=True
                )
                self.due += state.max_steps / lines

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Lines())


def device() -> str:
    """Where a model runs: the GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
