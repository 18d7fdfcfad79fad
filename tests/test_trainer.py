"""stages/preference/trainer.py and the stages reference and train, on a tiny random Llama."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from transformers import TrainingArguments

from stages import files, reference, train
from stages.preference.data import tokenize_pairs
from stages.preference.objectives import Losses, Sums, dpo, simpo
from stages.preference.trainer import PreferenceTrainer, TrainingPair, evaluate_pairs

SIMPO = {"beta": 2.0, "gamma": 0.5, "length_normalization": True, "label_smoothing": 0.0, "loss_type": "sigmoid", "sft_weight": 0.2}


def training_pairs(n: int) -> list[TrainingPair]:
    rows = tokenize_pairs(tiny.pairs(n), tiny.tokenizer(), "pairs", max_length=200, max_prompt_length=100, empty_system=False)
    return [TrainingPair(row, (-20.0, -21.0)) for row in rows]


def trained(folder: Path, objective: Any, micro_batch: int, model: Any = None, **changes: Any) -> tuple[Any, list[dict[str, float]]]:
    """The model and the logged steps of two epochs over 14 pairs in batches of 8: the second batch of an epoch has 6."""
    model = tiny.llama().double() if model is None else model
    settings: dict[str, Any] = {"learning_rate": 1e-3, "num_train_epochs": 2, "logging_steps": 1} | changes
    args = TrainingArguments(str(folder), per_device_train_batch_size=8, seed=3, save_strategy="no", report_to="none", use_cpu=True,
                             remove_unused_columns=False, **settings)  # fmt: skip
    trainer = PreferenceTrainer(model, args, training_pairs(14), objective, micro_batch)
    trainer.train()
    return model, [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("objective", [partial(simpo, **SIMPO), partial(dpo, beta=0.1, label_smoothing=0.0)], ids=["simpo", "dpo"])
def test_the_micro_batch_changes_nothing(tmp_path: Path, objective: Any) -> None:
    """PreferenceTrainer: losses, gradient norms, metrics and final weights in float64 are the same for whole batches and any split."""
    whole, log = trained(tmp_path, objective, 8)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    for micro_batch in (3, 1):
        split, other = trained(tmp_path, objective, micro_batch)
        for first, second in zip(log, other, strict=True):
            assert second == pytest.approx(first, rel=1e-5, abs=1e-7)  # Trainer adds up the loss in float32
        for one, two in zip(whole.parameters(), split.parameters(), strict=True):
            assert torch.allclose(one, two, rtol=1e-7, atol=1e-9)


def test_training_raises_the_margin_and_logs_what_an_objective_sees(tmp_path: Path) -> None:
    """PreferenceTrainer, evaluate_pairs: SimPO raises the margin of its pairs; the first step's log is evaluate_pairs' of the start."""
    objective = partial(simpo, **SIMPO)
    start = evaluate_pairs(tiny.llama().double(), training_pairs(14), objective, 4)
    model, log = trained(tmp_path, objective, 4, num_train_epochs=20, learning_rate=3e-3, logging_steps=2)
    end = evaluate_pairs(model, training_pairs(14), objective, 4)
    assert end["rewards/margins"] > start["rewards/margins"] + 1
    assert end["rewards/accuracies"] > start["rewards/accuracies"]
    first = trained(tmp_path, objective, 4, num_train_epochs=1, learning_rate=0.0, logging_steps=2)[1][
        0
    ]  # an epoch, no step of which moves
    assert {name: first[name] for name in start} == pytest.approx(start, rel=1e-6)
    assert set(log[0]) == {*start, "loss", "grad_norm", "learning_rate", "epoch", "step"}


def test_dropout_is_off(tmp_path: Path) -> None:
    """PreferenceTrainer: a model with attention dropout trains as one without, and its configuration is left as it is."""
    objective = partial(simpo, **SIMPO)
    _, without = trained(tmp_path, objective, 8)
    model, with_dropout = trained(tmp_path, objective, 8, tiny.llama(attention_dropout=0.5).double())
    assert with_dropout == without
    assert model.config.attention_dropout == 0.5


def test_bf16_weights_are_refused_and_bf16_autocast_keeps_fp32_weights(tmp_path: Path) -> None:
    """PreferenceTrainer: master weights are fp32 always; under bf16 the loss is computed in bf16 and the weights stay fp32."""
    objective = partial(simpo, **SIMPO)
    with pytest.raises(ValueError, match="torch.bfloat16.*load them as torch.float32"):
        trained(tmp_path, objective, 8, tiny.llama().to(torch.bfloat16))
    _, full = trained(tmp_path, objective, 8, tiny.llama())
    model, half = trained(tmp_path, objective, 8, tiny.llama(), bf16=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert half[0]["loss"] != full[0]["loss"]
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.05)


def test_a_loss_that_is_no_number_stops_training(tmp_path: Path) -> None:
    """PreferenceTrainer.log: the error names the step, so that no model of NaNs is written."""

    def broken(sums: Sums) -> Losses:
        losses, *rewards = simpo(sums, **SIMPO)
        return losses * float("nan"), rewards[0] * float("nan"), rewards[1]

    with pytest.raises(FloatingPointError, match=r"step 1: .*rewards/chosen"):
        trained(tmp_path, broken, 4)


# -- the stages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a start model and pairs, each with a manifest, as the stages before leave them."""
    monkeypatch.chdir(tmp_path)
    start, data = Path("results/tiny/sft"), Path("results/tiny/data")
    tiny.llama().save_pretrained(start / "model")
    tiny.tokenizer().save_pretrained(start / "model")
    files.write_jsonl(data / "train.jsonl", tiny.pairs(20))
    files.write_jsonl(data / "heldout.jsonl", tiny.pairs(6, seed=1))
    made(start)
    made(data)
    return Path("results/tiny")


def made(folder: Path) -> None:
    """The manifest of a stage that has ended."""
    files.write_manifest(folder, OmegaConf.create({"stage": folder.name}))


def stage(module: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, **values: Any) -> dict[str, Any]:
    """Run a stage as its command line does; its manifest."""
    lengths = {"max_length": 200, "max_prompt_length": 100, "empty_system": False, "precision": "fp32"}
    start = {"setting": "tiny", "model": "results/tiny/sft/model", "revision": None, "pairs": "results/tiny/data"}
    files.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({**start, **lengths, **values})))
    monkeypatch.setattr("sys.argv", [module.__name__, "--config", str(folder / "config.yaml"), "--runtime", "micro_batch=3"])
    module.main()
    return files.read_manifest(folder)


def method(objective: str, **hyperparameters: Any) -> dict[str, Any]:
    shared = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "scheduler": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.0}
    adam = {"max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
    return {"name": objective, "objective": objective, **shared, **adam, "hyperparameters": hyperparameters}


def run_dpo(monkeypatch: pytest.MonkeyPatch, setting: Path, **changes: Any) -> dict[str, Any]:
    values = {"run": "dpo", "seed": 42, "reference": str(setting / "reference"), "method": method("dpo", beta=0.1, label_smoothing=0.0)}
    return stage(train, monkeypatch, setting / "runs/dpo", stage="train", **(values | changes))


def test_dpo_from_the_cached_reference(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.reference, stages.train: the cache's sums are the model's own, DPO's first loss is ln 2, all files are there."""
    import pandas as pd

    made = stage(reference, monkeypatch, setting / "reference", stage="reference")
    assert set(made["outputs"]) == {"logps.parquet"}
    frame = pd.read_parquet(setting / "reference/logps.parquet")
    assert set(frame) == {"split", "row", "chosen_logps", "chosen_length", "rejected_logps", "rejected_length"}
    rows = tokenize_pairs(tiny.pairs(20), tiny.tokenizer(), "pairs", max_length=200, max_prompt_length=100, empty_system=False)
    with torch.no_grad():
        sums, lengths = tiny.batch_parts(tiny.llama(), rows)
    cached = frame[frame["split"] == "train"].sort_values("row")
    assert [*cached["chosen_logps"], *cached["rejected_logps"]] == pytest.approx([value.item() for value in sums], rel=1e-5)
    assert [*cached["chosen_length"], *cached["rejected_length"]] == lengths

    manifest = run_dpo(monkeypatch, setting)
    log = files.read_jsonl(setting / "runs/dpo/train.jsonl")
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert manifest["steps"] == len(log) == 3
    assert {"model/model.safetensors", "model/tokenizer.json", "model/config.json", "train.jsonl"} <= set(manifest["outputs"])
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen", "avg_logps/chosen"} <= set(manifest["heldout"])


def test_simpo_needs_no_reference_and_repeats_itself_to_the_byte(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.train: two runs of a reference-free method give the same weights and the same log; another seed gives others."""
    values: dict[str, Any] = {"stage": "train", "run": "simpo", "seed": 42, "reference": None, "method": method("simpo", **SIMPO)}
    hashes = []
    for seed in (42, 42, 43):
        shutil.rmtree(setting / "runs", ignore_errors=True)
        outputs = stage(train, monkeypatch, setting / "runs/simpo", **(values | {"seed": seed}))["outputs"]
        hashes.append((outputs["model/model.safetensors"]["sha256"], outputs["train.jsonl"]["sha256"]))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_reference_of_other_tokens_or_weights_is_refused(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.train: log-probabilities of other pairs, of the same cut otherwise, or of another model stop it with the command to give."""
    stage(reference, monkeypatch, setting / "reference", stage="reference")
    with pytest.raises(ValueError, match=r"results/tiny/reference was computed from other token ids of train and .*snakemake"):
        run_dpo(monkeypatch, setting, max_length=14, max_prompt_length=4)
    rows = files.read_jsonl(setting / "data/train.jsonl")
    files.write_jsonl(setting / "data/train.jsonl", rows[::-1])
    made(setting / "data")
    with pytest.raises(ValueError, match=r"results/tiny/reference was computed from other token ids of train than .*snakemake"):
        run_dpo(monkeypatch, setting)
    files.write_jsonl(setting / "data/train.jsonl", rows)
    tiny.llama(seed=9).save_pretrained(setting / "sft/model")
    made(setting / "data")
    made(setting / "sft")
    with pytest.raises(ValueError, match=r"results/tiny/reference was computed from other weights than .*snakemake"):
        run_dpo(monkeypatch, setting)
    assert not (setting / "runs/dpo/manifest.json").exists()
