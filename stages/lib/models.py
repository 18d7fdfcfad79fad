"""How stages load, train and save language models.

A model is a folder (``results/<setting>/sft/model``) or a hub id with a revision. Weights are loaded in fp32: a bf16 weight does not move
at learning rates of 1e-6. ``precision: bf16`` means autocast.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
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
        # sdpa silently leaves out the soft cap of Gemma-2's attention scores. The authors, too, take eager attention for Gemma-2.
        attention = "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else "sdpa"
        how = {"dtype": torch.float32, "use_safetensors": True, "attn_implementation": attention}
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, config=config, revision=revision, **how)
    return model


def load_tokenizer(name: str, revision: str | None = None, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with ``chat_template`` in place of its own template. Of several named templates it keeps "default".

    UserError if there is no template, or tokenizer_config.json has something else in its place.
    """
    from transformers import AutoTokenizer

    try:
        with loading(name, revision):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, revision=revision)
    except (TypeError, KeyError) as error:  # Transformers takes any list for named templates
        expected = 'its chat_template must be a text, or a list of {"name", "template"}'
        raise UserError(f"{name}/tokenizer_config.json cannot be read ({type(error).__name__}: {error}); {expected}") from None
    template = chat_template or tokenizer.chat_template
    tokenizer.chat_template = template.get("default") if isinstance(template, dict) else template
    if not tokenizer.chat_template:
        named = f' named "default" among {", ".join(template)}' if template else ""
        raise UserError(f"the tokenizer of {name} has no chat template{named}; give one as chat_template beside the model in conf")
    return tokenizer


@contextmanager
def loading(name: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the block into a UserError: the files of the model cannot be reached or read, or are not a model."""
    checked_model(name)
    try:
        yield
    except (OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"model {name}{at} cannot be loaded: {reason}; `model` in conf/setting or conf/method must be a folder with a model, or"
            " a hub id that this machine has in its cache or reaches (with HF_TOKEN where a licence must be accepted first);"
            " `revision` must be a commit of it, or main"
        ) from None


def checked_model(name: str) -> str:
    """``name``; UserError where it is a folder that does not exist, or a folder below results/ whose files have changed.

    A model below results/ is checked by sha256, which takes about a second a GiB.
    """
    if name.startswith(("results/", "./", "/")) and not Path(name).is_dir():
        raise UserError(f"model {name} does not exist; {files.again(name)}")
    files.verify(name)
    return name


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write ``folder/model`` (safetensors, tokenizer, configs) completely, or leave it as it was."""
    partial, final = folder / ".model.partial", folder / "model"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def training_arguments(config: DictConfig, values: DictConfig, precision: str, folder: Path) -> dict[str, Any]:
    """The arguments that every Trainer here gets.

    config: the stage configuration
    values: the training's numbers: ``config.training`` or ``config.method``
    precision: fp32 or bf16
    folder: the stage's folder
    """
    return {
        "output_dir": str(folder / ".work"),
        "learning_rate": values.learning_rate,
        "num_train_epochs": values.epochs,
        "lr_scheduler_type": values.scheduler,
        "warmup_steps": values.warmup_ratio,
        "weight_decay": values.weight_decay,
        "max_grad_norm": values.max_grad_norm,
        "bf16": precision == "bf16",
        "seed": config.seed,
        "save_strategy": "no",  # stages/lib/checkpoints.py saves
        "report_to": "none",
        "use_cpu": device() == "cpu",
    }


def trl_arguments(config: DictConfig, folder: Path) -> dict[str, Any]:
    """The arguments that TRL's trainers share, from a stage configuration with ``training`` (stages/plan/schema.py:Supervised).

    A step has ``training.batch_size`` rows, ``config.runtime.micro_batch`` at a time. UserError where they do not divide.
    """
    micro_batch, training = config.runtime.micro_batch, config.training
    if training.batch_size % micro_batch:
        raise UserError(f"batch_size={training.batch_size} is not a multiple of the runtime's micro_batch={micro_batch}")
    return training_arguments(config, training, training.precision, folder) | {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": training.batch_size // micro_batch,
        "max_length": training.max_length,
        "gradient_checkpointing": training.precision == "bf16",
        "data_seed": config.seed,
        "logging_steps": 1,  # an interruption loses the losses since the last log
    }


def sft_trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Dataset, config: DictConfig, folder: Path) -> SFTTrainer:
    """TRL's SFTTrainer over every token of ``data`` (texts or conversations), packed into rows of ``training.max_length`` tokens.

    TRL warns that packing needs flash attention. It is exact under sdpa, too: position ids restart with each text, there is no attention
    mask, and Transformers then keeps the texts apart (tests/test_models.py).
    """
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(packing=True, **trl_arguments(config, folder))
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def supervise(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Dataset, config: DictConfig, folder: Path
) -> dict[str, Any]:
    """Train ``model`` in place with ``sft_trainer``; facts for the manifest."""
    trainer = sft_trainer(model, tokenizer, data, config, folder)
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset) * config.training.epochs  # TRL's own count starts anew on resuming
    return {**train(trainer, config), "tokens": tokens}


def train(trainer: Trainer, config: DictConfig) -> dict[str, Any]:
    """Train with checkpoints and lines of progress; facts for the manifest."""
    show_progress(trainer, config.stage)
    facts = checkpoints.train(trainer, config, config.stage)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    first, last = (fmean(part) for part in (losses[:10], losses[-10:]))
    return {**facts, "first_loss": first, "last_loss": last, "device": str(trainer.args.device)}


def show_progress(trainer: Trainer, label: str, lines: int = 10) -> None:
    """Have a trainer print about ``lines`` lines with loss and remaining time on standard output, in place of its own output."""
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
    """``cuda`` where there is a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
