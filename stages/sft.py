"""Supervised fine-tuning on demonstrations with TRL's SFTTrainer: the model that every preference method starts from.

    python -m stages.sft --config results/mini_base/sft/config.yaml

In: a start model (folder or hub id), conversations in UltraChat's schema (a JSON-lines file or a hub id with its split).
Out: model/, manifest.json. Every token of a conversation is trained, as the authors did (princeton-nlp/SimPO issue 71).
"""

from __future__ import annotations

from stages import checkpoints, files, models
from stages.records import inputs_of, read_records


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from datasets import Dataset
    from transformers import set_seed

    set_seed(config.seed)
    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    model = models.load_model(config.model, config.revision)
    data = Dataset.from_list([{"messages": row["messages"]} for row in read_records(config.data)])
    print(f"sft: {config.model} on {len(data):,} conversations of {config.data.data}")
    facts = models.supervise(model, tokenizer, data, config, folder)
    models.save_model(folder, model, tokenizer)
    files.write_manifest(folder, config, inputs=inputs_of(config.data), conversations=len(data), **facts)
    checkpoints.remove(folder)


if __name__ == "__main__":
    files.run(main)
