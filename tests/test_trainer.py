"""stages/preference/trainer.py and the stages reference and train, on a tiny random Llama."""

from __future__ import annotations

import math
import shutil
import signal
import traceback
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from transformers import TrainerCallback, TrainingArguments

from stages import reference, train
from stages.lib import files
from stages.lib.errors import NotFinite, UserError
from stages.plan import Plan
from stages.plan.schema import Method
from stages.plan.values import plain
from stages.preference import objectives, refcache
from stages.preference.data import mismatched, tokenize_rows
from stages.preference.objectives import Losses, Sums, dpo, kto, simpo
from stages.preference.trainer import PreferenceTrainer, TrainingPair, evaluate_pairs

BIG = 10**6  # tokens: a global batch in one pack
SIMPO = {"beta": 2.0, "gamma": 0.5, "length_normalization": True, "label_smoothing": 0.0, "loss_type": "sigmoid", "sft_weight": 0.2}


def training_pairs(n: int) -> list[TrainingPair]:
    rows = tokenize_rows(tiny.pairs(n), tiny.tokenizer(), "pairs", max_length=200, max_prompt_length=100, empty_system=False).pairs
    return [TrainingPair(row, (-20.0, -21.0)) for row in rows]


def trained(
    folder: Path, objective: Any, budget: int, model: Any = None, pairs: Any = None, how: Any = None, **changes: Any
) -> tuple[Any, list[dict[str, float]]]:
    """The model and the logged steps of two epochs over 14 pairs in batches of 8: the second batch of an epoch has 6."""
    model = tiny.double(tiny.llama()) if model is None else model
    settings: dict[str, Any] = {"learning_rate": 1e-3, "num_train_epochs": 2} | changes
    args = TrainingArguments(str(folder), per_device_train_batch_size=8, seed=3, save_strategy="no", report_to="none", use_cpu=True,
                             remove_unused_columns=False, **settings)  # fmt: skip
    trainer = PreferenceTrainer(model, args, pairs or training_pairs(14), objective, budget, **how or {})
    trainer.train()
    return model, [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("objective", [partial(simpo, **SIMPO), partial(dpo, beta=0.1, label_smoothing=0.0)], ids=["simpo", "dpo"])
@pytest.mark.slow
def test_budget_and_layout_change_nothing(tmp_path: Path, objective: Any) -> None:
    """PreferenceTrainer: losses, gradient norms, metrics and final weights in float64 are the same for whole batches and any packs."""
    whole, log = trained(tmp_path, objective, BIG)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    for budget, layout in ((60, "shared"), (1, "shared"), (60, "packed"), (60, "padded")):
        split, other = trained(tmp_path, objective, budget, how={"layout": layout})
        for first, second in zip(log, other, strict=True):
            assert second == pytest.approx(first, rel=1e-7, abs=1e-9)
        for one, two in zip(whole.parameters(), split.parameters(), strict=True):
            assert torch.allclose(one, two, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    """PreferenceTrainer: layers that are computed again in the backward pass read the same shared prompts."""
    one, log = trained(tmp_path, partial(simpo, **SIMPO), 60)
    two, other = trained(tmp_path, partial(simpo, **SIMPO), 60, gradient_checkpointing=True)
    assert other == log
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.slow
def test_each_epoch_has_its_own_order_and_every_pair_once(tmp_path: Path) -> None:
    """PreferenceTrainer.get_train_dataloader: Trainer tells the sampler the epoch; batches are whole but for the last."""
    seen: list[list[float]] = []

    def watched(sums: Sums) -> Losses:
        seen.append(sums.chosen_logps.detach().tolist())
        return simpo(sums, **SIMPO)

    trained(tmp_path, watched, BIG, learning_rate=0.0, num_train_epochs=3)
    assert [len(batch) for batch in seen] == [8, 6] * 3
    epochs = [seen[start] + seen[start + 1] for start in (0, 2, 4)]
    assert len({tuple(sorted(round(value, 9) for value in epoch)) for epoch in epochs}) == 1
    assert len({tuple(sorted(round(value, 9) for value in seen[start])) for start in (0, 2, 4)}) == 3


@pytest.mark.slow
def test_training_raises_the_margin_and_logs_what_an_objective_sees(tmp_path: Path) -> None:
    """PreferenceTrainer, evaluate_pairs: SimPO raises the margin of its pairs; the first step's log is evaluate_pairs' of the start."""
    objective = partial(simpo, **SIMPO)
    start = evaluate_pairs(tiny.double(tiny.llama()), training_pairs(14), objective, 60, "shared")
    model, log = trained(tmp_path, objective, 60, num_train_epochs=20, learning_rate=3e-3)
    end = evaluate_pairs(model, training_pairs(14), objective, 60, "padded")
    assert end["rewards/margins"] > start["rewards/margins"] + 1
    assert end["rewards/accuracies"] > start["rewards/accuracies"]
    assert end["loss"] < start["loss"]
    still = trained(tmp_path, objective, 60, num_train_epochs=1, learning_rate=0.0)[1]  # an epoch, no step of which moves
    names = [name for name in start if name != "loss"]  # its SFT term is normalised by each batch's tokens
    assert {name: (8 * still[0][name] + 6 * still[1][name]) / 14 for name in names} == pytest.approx({n: start[n] for n in names}, rel=1e-9)
    assert set(log[0]) == {*start, "grad_norm", "learning_rate", "epoch", "step"}


@pytest.mark.slow
def test_dropout_is_off(tmp_path: Path) -> None:
    """PreferenceTrainer: a model with attention dropout trains as one without, and its configuration is left as it is."""
    objective = partial(simpo, **SIMPO)
    _, without = trained(tmp_path, objective, BIG)
    model, with_dropout = trained(tmp_path, objective, BIG, tiny.double(tiny.llama(attention_dropout=0.5)))
    assert with_dropout == without
    assert model.config.attention_dropout == 0.5


@pytest.mark.slow
def test_bf16_weights_are_refused_and_bf16_autocast_keeps_fp32_weights(tmp_path: Path) -> None:
    """PreferenceTrainer: master weights are fp32 always; under bf16 the loss is computed in bf16 and the weights stay fp32."""
    objective = partial(simpo, **SIMPO)
    with pytest.raises(UserError, match="torch.bfloat16.*load them as torch.float32"):
        trained(tmp_path, objective, BIG, tiny.llama().to(torch.bfloat16))
    _, full = trained(tmp_path, objective, BIG, tiny.llama())
    model, half = trained(tmp_path, objective, BIG, tiny.llama(), bf16=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert half[0]["loss"] != full[0]["loss"]
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.05)


@pytest.mark.slow
def test_a_loss_that_is_no_number_leaves_the_weights_as_they_are(tmp_path: Path) -> None:
    """PreferenceTrainer: where a loss, or a gradient alone, is no number the error names the step, which is not applied."""
    steps = []

    def broken(sums: Sums, by: float, gradient: float) -> Losses:
        losses, *rewards = simpo(sums, **SIMPO)
        steps.append(1)
        if len(steps) == 3:  # the third batch
            losses = losses * by + (sums.chosen_logps - sums.chosen_logps.detach()) * gradient
        return losses, rewards[0], rewards[1]

    for values, named in (({"by": float("nan"), "gradient": 0.0}, "loss"), ({"by": 1.0, "gradient": float("inf")}, "grad_norm")):
        steps.clear()
        model, two = tiny.double(tiny.llama()), tiny.double(tiny.llama())
        with pytest.raises(NotFinite, match=f"step 3: .*{named}.* is not finite; the step was not applied"):
            trained(tmp_path, partial(broken, **values), BIG, model)
        trained(tmp_path, partial(simpo, **SIMPO), BIG, two, max_steps=2, lr_scheduler_type="constant")
        first = tiny.double(tiny.llama())
        steps.clear()
        with pytest.raises(NotFinite):
            trained(tmp_path, partial(broken, **values), BIG, first, lr_scheduler_type="constant")
        for one, other in zip(first.parameters(), two.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.slow
def test_out_of_memory_names_the_knob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PreferenceTrainer.train: an allocation that fails, on CUDA or CPU, is an error that names what to lower; other errors stay."""
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 bytes")):
        model = tiny.llama()
        monkeypatch.setattr(model.lm_head, "forward", None)
        with pytest.raises(UserError, match=r"packs of 60 tokens; set runtime.train.token_budget"):
            trained(tmp_path, raising(error), 60, model)
    with pytest.raises(RuntimeError, match="something else"):
        trained(tmp_path, raising(RuntimeError("something else")), 60, tiny.llama())


def raising(error: Exception) -> Any:
    def objective(sums: Sums) -> Losses:
        raise error

    return objective


@pytest.mark.slow
def test_a_live_reference_is_the_cached_one(tmp_path: Path) -> None:
    """PreferenceTrainer(reference=…): DPO and KTO train to the same weights as with the sums of the same model computed beforehand."""
    reference = tiny.double(tiny.llama(seed=1))
    rows = [pair.tokens for pair in training_pairs(14)]
    others = mismatched(rows, max_length=200, max_prompt_length=100)
    own, other = (refcache.sums(refcache.compute(reference, part, 60, "shared", "fp32", "reference")) for part in (rows, others))
    for objective in (partial(dpo, beta=0.1, label_smoothing=0.0), partial(kto, beta=0.1, chosen_weight=1.0, rejected_weight=1.0)):
        with_kl = "chosen_weight" in objective.keywords
        cached = [TrainingPair(a, b, *((c, d) if with_kl else ())) for a, b, c, d in zip(rows, own, others, other, strict=True)]
        bare = [TrainingPair(a, None, *((c,) if with_kl else ())) for a, c in zip(rows, others, strict=True)]
        one, log = trained(tmp_path, objective, 60, pairs=cached)
        two, other_log = trained(tmp_path, objective, 60, pairs=bare, how={"reference": reference})
        assert [entry["loss"] for entry in other_log] == pytest.approx([entry["loss"] for entry in log], rel=1e-9)
        for first, second in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.allclose(first, second, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_a_step_waits_for_the_device_once(tmp_path: Path) -> None:
    """PreferenceTrainer: no value is fetched singly, in no pack and no step; the figures come in one list."""
    fetched: list[str] = []
    once = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                fetched.append("".join(traceback.format_stack(limit=12)))
            return func(*args, **(kwargs or {}))

    class Count(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            fetched.clear()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            nonlocal once
            once += 1
            assert not fetched, fetched[0]

    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=8, save_strategy="no", report_to="none", use_cpu=True,
                             remove_unused_columns=False, logging_nan_inf_filter=False)  # fmt: skip
    trainer = PreferenceTrainer(tiny.llama(), args, training_pairs(14), partial(simpo, **SIMPO), 60)
    trainer.add_callback(Count())
    with Watch():
        trainer.train()
    assert once == 6


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


def stage(
    module: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, runtime: tuple[str, ...] = ("token_budget=60",), **values: Any
) -> dict[str, Any]:
    """Run a stage as its command line does; its manifest."""
    lengths = {"max_length": 200, "max_prompt_length": 100, "empty_system": False, "precision": "fp32"}
    start = {"setting": "tiny", "model": "results/tiny/sft/model", "revision": None, "pairs": "results/tiny/data"}
    files.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({**start, **lengths, **values})))
    monkeypatch.setattr("sys.argv", [module.__name__, "--config", str(folder / "config.yaml"), "--runtime", *runtime])
    module.main()
    return files.read_manifest(folder)


def method(objective: str, **hyperparameters: Any) -> dict[str, Any]:
    shared = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "scheduler": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.0}
    adam = {"max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
    return {
        "name": objective,
        "objective": objective,
        "mismatched": objective == "kto",
        **shared,
        **adam,
        "hyperparameters": hyperparameters,
    }


def run_dpo(monkeypatch: pytest.MonkeyPatch, setting: Path, **changes: Any) -> dict[str, Any]:
    values = {"run": "dpo", "seed": 42, "reference": str(setting / "reference"), "method": method("dpo", beta=0.1, label_smoothing=0.0)}
    return stage(train, monkeypatch, setting / "runs/dpo", stage="train", **(values | changes))


@pytest.mark.slow
def test_dpo_from_the_cached_reference(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.reference, stages.train: the cache's sums are the model's own, DPO's first loss is ln 2, all files are there."""
    import pandas as pd

    made = stage(reference, monkeypatch, setting / "reference", stage="reference")
    assert set(made["outputs"]) == {"logps.parquet"}
    frame = pd.read_parquet(setting / "reference/logps.parquet")
    assert set(frame) == {"split", "row", "chosen_logps", "chosen_length", "rejected_logps", "rejected_length"}
    rows = tokenize_rows(tiny.pairs(20), tiny.tokenizer(), "pairs", max_length=200, max_prompt_length=100, empty_system=False).pairs
    with torch.no_grad():
        sums, lengths = tiny.batch_parts(tiny.llama(), rows)
    assert set(frame["split"]) == {"train", "heldout", "mismatched train", "mismatched heldout"}
    cached = frame[frame["split"] == "train"].sort_values("row")
    assert [*cached["chosen_logps"], *cached["rejected_logps"]] == pytest.approx([value.item() for value in sums], rel=1e-5)
    assert [*cached["chosen_length"], *cached["rejected_length"]] == lengths

    manifest = run_dpo(monkeypatch, setting)
    log = files.read_rows(setting / "runs/dpo/train.jsonl")
    assert log[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert manifest["steps"] == len(log) == 3
    assert {"model/model.safetensors", "model/tokenizer.json", "model/config.json", "train.jsonl"} <= set(manifest["outputs"])
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen", "avg_logps/chosen"} <= set(manifest["heldout"])


@pytest.mark.slow
def test_every_method_of_table_4_trains(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """conf/method and conf/setting/mini_base, stages.train: each method with its own hyperparameters on the cached reference, KTO with its
    mismatched pairs, moves the model away from the start; no two of them move it alike."""
    stage(reference, monkeypatch, setting / "reference", stage="reference")
    plan, moved = Plan("mini"), set()
    for name in plan.scale["methods"]:
        given = plain(plan.method("mini_base", name))
        if given["objective"] is None:
            continue
        hyperparameters = {key: value for key, value in given.items() if key not in {f.name for f in fields(Method)}}
        config = method(given["objective"], **hyperparameters) | {"mismatched": given["mismatched"]}
        cached = str(setting / "reference") if given["reference"] == "cached" else None
        values = {"stage": "train", "run": name, "seed": 42, "reference": cached, "method": config}
        made = stage(train, monkeypatch, setting / "runs" / name, **values)
        assert all(math.isfinite(entry["loss"]) for entry in files.read_rows(setting / "runs" / name / "train.jsonl"))
        moved.add(made["outputs"]["model/model.safetensors"]["sha256"])
    assert len(moved) == len(plan.scale["methods"]) - 1 == 11


@pytest.mark.slow
def test_simpo_needs_no_reference_and_repeats_itself_to_the_byte(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.train: two runs of a reference-free method give the same weights and the same log; another seed gives others."""
    values: dict[str, Any] = {"stage": "train", "run": "simpo", "seed": 42, "reference": None, "method": method("simpo", **SIMPO)}
    hashes = []
    for seed in (42, 42, 43):
        shutil.rmtree(setting / "runs", ignore_errors=True)
        outputs = stage(train, monkeypatch, setting / "runs/simpo", **(values | {"seed": seed}))["outputs"]
        hashes.append((outputs["model/model.safetensors"]["sha256"], outputs["train.jsonl"]["sha256"]))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_stage_and_keeps_its_checkpoint(
    setting: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """stages.train: exit status 3, a sentence with the step, no model; its last checkpoint is whole, and training goes on from there."""
    values: dict[str, Any] = {"stage": "train", "run": "simpo", "seed": 42, "reference": None, "method": method("simpo", **SIMPO)}
    folder, batches = setting / "runs/simpo", []

    def broken(sums: Sums, **hyperparameters: Any) -> Losses:
        batches.append(1)
        losses, *rewards = simpo(sums, **hyperparameters)
        return losses * (float("nan") if len(batches) == 3 else 1.0), rewards[0], rewards[1]

    def run_with(objective: Any) -> Any:
        monkeypatch.setattr(objectives, "named", lambda name: objective)
        return stage(train, monkeypatch, folder, runtime=("save_steps=1", "token_budget=1000000"), **values)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            files.run(lambda: run_with(broken))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 3
    assert "error: step 3: loss" in (said := capsys.readouterr().err) and "checkpoint" in said
    assert [path.name for path in (folder / ".work").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (folder / "manifest.json").exists() and not (folder / "model").exists()
    assert run_with(simpo)["resumed_at"] == [2]


@pytest.mark.slow
def test_a_reference_of_other_tokens_or_weights_is_refused(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stages.train: log-probabilities of other pairs, of the same cut otherwise, or of another model stop it with the command to give."""
    stage(reference, monkeypatch, setting / "reference", stage="reference")
    with pytest.raises(UserError, match=r"results/tiny/reference was computed from other token ids of train and .*snakemake"):
        run_dpo(monkeypatch, setting, max_length=14, max_prompt_length=4)
    rows = files.read_rows(setting / "data/train.jsonl")
    files.write_jsonl(setting / "data/train.jsonl", rows[::-1])
    made(setting / "data")
    with pytest.raises(UserError, match=r"results/tiny/reference was computed from other token ids of train and .*snakemake"):
        run_dpo(monkeypatch, setting)
    files.write_jsonl(setting / "data/train.jsonl", rows)
    tiny.llama(seed=9).save_pretrained(setting / "sft/model")
    made(setting / "data")
    made(setting / "sft")
    with pytest.raises(UserError, match=r"results/tiny/reference was computed from other weights than .*snakemake"):
        run_dpo(monkeypatch, setting)
    assert not (setting / "runs/dpo/manifest.json").exists()
