"""stages/lib/models.py: packing keeps texts apart, a whole model or none, and errors that name the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from datasets import Dataset
from omegaconf import OmegaConf

from stages.lib import models
from stages.lib.errors import UserError

CONFIG = OmegaConf.create(
    {
        "seed": 1,
        "runtime": {"micro_batch": 2},
        "training": {
            "learning_rate": 1e-3,
            "epochs": 1,
            "batch_size": 4,
            "max_length": 64,
            "scheduler": "cosine",
            "warmup_ratio": 0.1,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "precision": "fp32",
        },
    }
)


def conversations(n: int) -> Dataset:
    return Dataset.from_list([{"messages": row["prompt"] + row["chosen"]} for row in tiny.pairs(n)])


def test_packed_texts_do_not_see_each_other(tmp_path: Path) -> None:
    """TRL packs several texts into a row; the logits of each are those that it has by itself."""
    model = tiny.llama().double().eval()
    trainer = models.sft_trainer(model, tiny.tokenizer(), conversations(30), CONFIG, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert "attention_mask" not in batch
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    assert len(starts) >= 3
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits[0]
        for start, end in zip(starts, [*starts[1:], batch["input_ids"].shape[1]], strict=True):
            alone = model(input_ids=batch["input_ids"][:, start:end]).logits[0]
            assert torch.allclose(packed[start:end], alone, rtol=1e-9, atol=1e-9)


def test_every_token_is_trained_and_none_is_lost(tmp_path: Path) -> None:
    """The authors train all turns (princeton-nlp/SimPO issue 71); a row may be shorter than max_length, a token is in one of them."""
    tokenizer, data = tiny.tokenizer(), conversations(30)
    trainer = models.sft_trainer(tiny.llama(), tokenizer, data, CONFIG, tmp_path)
    batches = list(trainer.get_train_dataloader())
    rendered = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in data]
    expected = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in rendered)
    assert sum(batch["input_ids"].numel() for batch in batches) == expected
    for batch in batches:
        first = batch["position_ids"] == 0  # nothing predicts a text's first token
        assert torch.equal(batch["labels"][~first], batch["input_ids"][~first])


def test_a_batch_that_the_micro_batch_does_not_divide_is_refused(tmp_path: Path) -> None:
    config = OmegaConf.merge(CONFIG, {"runtime": {"micro_batch": 3}})
    with pytest.raises(UserError, match="batch_size=4 is not a multiple of the runtime's micro_batch=3"):
        models.sft_trainer(tiny.llama(), tiny.tokenizer(), conversations(4), config, tmp_path)


def test_a_model_is_saved_whole_and_read_back_in_fp32(tmp_path: Path) -> None:
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    (tmp_path / ".model.partial").mkdir()  # what a killed save leaves behind
    models.save_model(tmp_path, model, tokenizer)
    models.save_model(tmp_path, model.to(torch.bfloat16), tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {p.dtype for p in models.load_model(str(tmp_path / "model")).parameters()} == {torch.float32}
    assert models.load_tokenizer(str(tmp_path / "model")).chat_template == tokenizer.chat_template


def test_a_missing_model_and_a_model_without_chat_template_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results/s/sft/model does not exist; make it again with: snakemake"):
        models.load_model("results/s/sft/model")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    models.save_model(tmp_path, tiny.llama(), tokenizer)
    with pytest.raises(UserError, match="no chat template"):
        models.load_tokenizer(str(tmp_path / "model"))


def test_of_named_chat_templates_the_default_is_taken(tmp_path: Path) -> None:
    """models.load_tokenizer: Transformers' list of named templates; a list of anything else is named by its file."""
    tokenizer = tiny.tokenizer()
    template = tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())

    def loaded(chat_template: object) -> str | None:
        path.write_text(json.dumps({**config, "chat_template": chat_template}))
        return models.load_tokenizer(str(tmp_path)).chat_template

    tools = {"name": "tool_use", "template": "x"}
    assert loaded([tools, {"name": "default", "template": template}]) == template
    with pytest.raises(UserError, match='no chat template named "default" among tool_use; give one'):
        loaded([tools])
    with pytest.raises(UserError, match=r"tokenizer_config\.json cannot be read .*chat_template must be a text, or a list"):
        loaded(["x"])
