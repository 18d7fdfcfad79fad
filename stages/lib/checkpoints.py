"""Checkpoints: a training that is killed at any moment, even while it saves, resumes and ends with the same weights to the bit.

Call ``train`` in place of ``trainer.train()``. Checkpoints lie in ``.work/`` beside the stage configuration. Snakemake does not know that
folder, so it does not delete it before a retry. Transformers would resume from a half-saved checkpoint without an error, and end with other
weights. Therefore a marker is written last: it lists the files of the checkpoint and names the training (its configuration, start model and
data). Only a complete checkpoint of the same training is resumed. It restores all that a step depends on: weights, optimizer, schedule,
place in the data, random states. ``.work/attempts.log`` has a line an attempt, with the traceback if it failed. Rank 0 does all file
operations. A training may resume with another number of processes; its weights are then the same within rounding.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from stages.lib import files
from stages.plan.values import plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

MARKER = "complete.json"


def train(trainer: Trainer, config: DictConfig, label: str) -> dict[str, Any]:
    """Train the model to the end, from the newest complete checkpoint of this training if there is one; facts for the manifest.

    SIGTERM finishes the step, saves, and exits with status 143. The previous checkpoint is removed once the new one is complete on disk.

    config: the stage configuration. ``runtime.save_steps`` is the number of steps between checkpoints, by default a tenth of all steps.
    label: begins the printed lines.
    """
    import torch
    from transformers import TrainerCallback

    work, identity = Path(trainer.args.output_dir), identify(trainer, config)
    first, together = trainer.is_world_process_zero(), trainer.accelerator
    with together.main_process_first():  # rank 0 removes broken checkpoints before the others look
        start = newest(work, identity)
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    terminated = False

    def terminate(*_: Any) -> None:
        nonlocal terminated
        terminated = True

    def note(text: str) -> None:
        if not first:
            return
        with (work / "attempts.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()}, training {name}: {text}\n")

    class Keeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            at = f"at step {state.global_step} of {state.max_steps}"
            note(f"resuming {at}" if start else f"starting {at}")
            if start and first:
                print(f"{label}: resuming {at}", flush=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal terminated
            if together.num_processes > 1:  # SIGTERM may reach them at different steps, and all must end after the same one
                terminated = bool(together.reduce(torch.tensor(float(terminated), device=args.device), "sum"))
            every = config.runtime.get("save_steps") or ceil(state.max_steps / 10)
            control.should_training_stop |= terminated
            control.should_save = terminated or state.global_step % every == 0 or state.global_step == state.max_steps

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            together.wait_for_everyone()  # every process writes its random states
            if not first:
                return
            saved = work / f"checkpoint-{state.global_step}"
            complete(saved, identity, state.global_step)
            for other in work.glob("checkpoint-*"):
                if other != saved:
                    shutil.rmtree(other)

    trainer.add_callback(Keeper())
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    except Exception:
        note(f"failed\n{traceback.format_exc()}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    steps = trainer.state.global_step
    if terminated:
        note(f"ended by SIGTERM at step {steps}")
        if first:
            print(f"{label}: ended by SIGTERM at step {steps} of {trainer.state.max_steps}; the same command resumes there", flush=True)
        sys.exit(files.TERMINATED)
    if not first:
        return {}
    attempts = (work / "attempts.log").read_text(encoding="utf-8")
    return {"steps": steps, "resumed_at": [int(step) for step in re.findall(rf"training {name}: resuming at step (\d+)", attempts)]}


def identify(trainer: Trainer, config: DictConfig) -> dict[str, str]:
    """Hashes of what a training's weights depend on: the stage configuration without runtime knobs, the start model, the tokenised data."""
    values = {key: value for key, value in plain(config).items() if key != "runtime"}
    rows = hashlib.sha256()
    for row in trainer.train_dataset:
        rows.update(repr(row).encode())
    configuration = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    return {"configuration": configuration.hexdigest(), "start model": weights_sha256(trainer.model), "data": rows.hexdigest()}


def weights_sha256(model: PreTrainedModel) -> str:
    """The sha256 of a model's loaded weights, with their names, types and shapes. It is the same for a folder and a hub id."""
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def complete(folder: Path, identity: dict[str, str], step: int) -> None:
    """Mark a checkpoint as complete, after its files have reached the disk."""
    saved = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in saved:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in saved}
    files.write_json(folder / MARKER, {"identity": identity, "step": step, "files": sizes})


def newest(work: Path, identity: dict[str, str]) -> Path | None:
    """The newest complete checkpoint of this training below ``work``. Broken checkpoints are removed; a printed line says why."""
    steps = {}
    for folder in sorted(work.glob("checkpoint-*")):
        if trouble := trouble_with(folder, identity):
            print(f"{folder} is removed: {trouble}", flush=True)
            shutil.rmtree(folder)
        else:
            steps[folder] = files.read_json(folder / MARKER)["step"]
    return max(steps, key=lambda folder: steps[folder], default=None)


def trouble_with(folder: Path, identity: dict[str, str]) -> str | None:
    """Why a checkpoint cannot be resumed; None where it can."""
    if not (folder / MARKER).is_file():
        return f"its saving was cut short, it has no {MARKER}"
    marker = files.read_json(folder / MARKER)
    for name, size in marker["files"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            return f"its {name} is missing or cut"
    different = [key for key in identity if marker["identity"].get(key) != identity[key]]
    return f"it is of another {' and '.join(different)}" if different else None


def remove(folder: Path) -> None:
    """Remove a stage's ``.work/``, once its manifest is written."""
    shutil.rmtree(folder / ".work", ignore_errors=True)
