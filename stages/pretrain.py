"""Pretrain a small Llama from random weights on the world's text. The paper downloads a base model instead.

    python -m stages.pretrain --config results/mini_base/pretrain/config.yaml

In: one text per line (``corpus.jsonl``), a tokenizer, the architecture and the training values. Out: model/, manifest.json.
"""

from __future__ import annotations

from typing import Any

from stages.lib import checkpoints, files, models
from stages.lib.records import numbered, text_of, value_of
from stages.plan.values import plain


def texts(rows: list[dict[str, Any]], path: str) -> list[dict[str, str]]:
    """``{"text"}`` of each row; UserError names a line without text."""
    return [{"text": text_of(value_of(row, "text", where), f"{where}: 'text'")} for where, row in numbered(rows, path)]


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(config.seed)
    tokenizer = models.load_tokenizer(config.tokenizer)
    architecture = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **plain(config.architecture),
    )
    model = LlamaForCausalLM(architecture)
    print(f"pretrain: {model.num_parameters():,} parameters, {config.data}")
    data = Dataset.from_list(texts(files.read_rows(config.data), config.data))
    facts = models.supervise(model, tokenizer, data, config, folder)
    models.save_model(folder, model, tokenizer)
    files.write_manifest(folder, config, inputs=[config.data], parameters=model.num_parameters(), **facts)
    checkpoints.remove(folder)


if __name__ == "__main__":
    files.run(main)
