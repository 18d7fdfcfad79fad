"""The reference's log-probabilities of the pairs: computed once for a setting, kept on disk, used by every method, β and γ.

They depend on the reference's weights, the token ids and the precision, which are their key; not on hyperparameters or batches. On disk:
``logps.parquet`` with ``split, row, chosen_logps, chosen_length, rejected_logps, rejected_length`` (sums over the trained tokens, and
their number). The manifest beside it has the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from stages.lib import files
from stages.lib.checkpoints import weights_sha256
from stages.lib.errors import UserError
from stages.preference.data import Pair, tokens_sha256
from stages.preference.logps import answer_logps, attention_layout
from stages.preference.packing import collate, pack, to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "logps.parquet"


def identity(model: PreTrainedModel, splits: Mapping[str, Sequence[Pair]], precision: str) -> dict[str, str]:
    """The key: what the log-probabilities depend on. ``splits``: the token ids of the pairs, by split."""
    tokens = {f"token ids of {split}": tokens_sha256(pairs) for split, pairs in splits.items()}
    return {"weights": weights_sha256(model), **tokens, "precision": precision}


@torch.no_grad()
def compute(model: PreTrainedModel, pairs: Sequence[Pair], token_budget: int, layout: str, precision: str, label: str) -> pd.DataFrame:
    """A row a pair, in the order of ``pairs``, without ``split``.

    pairs: their token ids
    token_budget, layout: as in training (stages/preference/packing.py)
    precision: ``bf16`` computes under autocast
    label: begins the lines of progress
    """
    values: dict[int, tuple[float, float, int, int]] = {}
    packs, lines = pack(pairs, token_budget, layout), 10
    with attention_layout(model, layout), torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for number, rows in enumerate(packs):
            batch = to_device(collate([pairs[row] for row in rows], layout), model.device)
            logps = answer_logps(model, **batch)
            values |= zip(rows, zip(*logps.view(2, -1).tolist(), *batch["length"].view(2, -1).tolist(), strict=True), strict=True)
            if number * lines // len(packs) != (number + 1) * lines // len(packs):
                print(f"{label}: {len(values):,} of {len(pairs):,} prompts", flush=True)
    frame = pd.DataFrame.from_dict(values, orient="index", columns=["chosen_logps", "rejected_logps", "chosen_length", "rejected_length"])
    return frame.sort_index().rename_axis("row").reset_index()


def write(folder: Path, frames: Mapping[str, pd.DataFrame]) -> None:
    with files.atomic(folder / FILE) as partial:
        pd.concat([frame.assign(split=split) for split, frame in frames.items()]).to_parquet(partial, index=False)


def read(folder: str | Path, wanted: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
    """The sums (chosen, rejected) of each split's pairs, in order; UserError if the key of ``folder`` is not ``wanted``."""
    found = files.read_manifest(folder).get("identity", {})
    if different := " and ".join(key for key in wanted if found.get(key) != wanted[key]):
        raise UserError(f"{folder} was computed from other {different} than this run starts from; {files.again(folder)}")
    frame = pd.read_parquet(Path(folder) / FILE).sort_values(["split", "row"])
    return {str(split): sums(part) for split, part in frame.groupby("split")}


def sums(frame: pd.DataFrame) -> list[tuple[float, float]]:
    """(chosen, rejected) of each row."""
    return list(zip(frame["chosen_logps"], frame["rejected_logps"], strict=True))
