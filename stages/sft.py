"""Supervised fine-tuning on demonstrations with TRL's SFTTrainer. Every preference method starts from this model.

    python -m stages.sft --config results/mini_base/sft/config.yaml

In: a start model (folder or hub id), conversations in UltraChat's schema (a JSON file or a hub id with its split).
Out: model/, manifest.json. The loss covers every token of a conversation, as in the authors' training (princeton-nlp/SimPO issue 71). The
stage checks all rows before it trains: a row's messages must be well-formed, and the chat template must render each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.lib import checkpoints, files, models
from stages.lib.errors import UserError
from stages.lib.records import MESSAGES, inputs_of, keys_of, messages_of, numbered, read_records
from stages.preference.data import check_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


def conversations(rows: list[Row], path: str, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """``{"messages"}`` of each row; UserError names a line without messages, or with a message that the chat template leaves out."""
    read = []
    for where, row in numbered(rows, path):
        if "messages" not in row:
            hint = "; ShareGPT's 'conversations' become it with from and value renamed role and content" if "conversations" in row else ""
            raise UserError(f"{where}: 'messages', {MESSAGES}, is missing; the row has {keys_of(row)}{hint}")
        messages = messages_of(row["messages"], f"{where}: 'messages'")
        check_conversation(messages, tokenizer, where)
        read.append({"messages": messages})
    return read


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from datasets import Dataset
    from transformers import set_seed

    set_seed(config.seed)
    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    rows = conversations(read_records(config.data), config.data.data, tokenizer)
    model = models.load_model(config.model, config.revision)
    data = Dataset.from_list(rows)
    print(f"sft: {config.model} on {len(data):,} conversations of {config.data.data}")
    facts = models.supervise(model, tokenizer, data, config, folder)
    models.save_model(folder, model, tokenizer)
    files.write_manifest(folder, config, inputs=inputs_of(config.data), conversations=len(data), **facts)
    checkpoints.remove(folder)


if __name__ == "__main__":
    files.run(main)
