"""The reference's log-probabilities of the pairs: computed once for a setting, kept on disk, and used by every method, β and γ.

They are keyed by what they depend on: the reference's weights, the token ids and the precision. Never by a hyperparameter, nor by how
the pairs were batched.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stages import files
from stages.preference.data import Row, collate, split_by_length, token_hash
from stages.preference.logps import answer_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "logps.parquet"
COLUMNS = ("chosen_logps", "chosen_length", "rejected_logps", "rejected_length")
WHAT = {"weights": "other weights", "tokens": "other pairs or token ids", "precision": "another precision"}


def identity(model: PreTrainedModel, splits: Mapping[str, Sequence[Row]], precision: str) -> dict[str, Any]:
    """What the log-probabilities depend on. The weights are hashed as loaded, so that a folder and a hub id are alike."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {"weights": digest.hexdigest(), "tokens": {split: token_hash(rows) for split, rows in splits.items()}, "precision": precision}


def compute(model: PreTrainedModel, rows: Sequence[Row], micro_batch: int, precision: str, label: str) -> list[Row]:
    """A row {"row", *COLUMNS} for each pair, in the order of ``rows``; lengths are trained tokens."""
    numbered = [{**row, "row": number} for number, row in enumerate(rows)]
    done: list[Row] = []
    started, due = time.time(), 0.0
    with torch.inference_mode():
        for group in split_by_length(numbered, micro_batch):
            batch = {name: tensor.to(model.device) for name, tensor in collate(group).items()}
            sums = answer_logps(model, batch, precision).view(2, -1).tolist()
            for row, chosen, rejected in zip(group, *sums, strict=True):
                done.append(dict(zip(("row", *COLUMNS), (row["row"], chosen, len(row["chosen"]), rejected, len(row["rejected"])), strict=True)))
            if len(done) >= due * len(rows):
                due += 0.25
                print(f"{label}: {len(done):,} of {len(rows):,} pairs, {time.time() - started:.0f} s", flush=True)
    return sorted(done, key=lambda row: row["row"])


def write(folder: Path, splits: Mapping[str, Sequence[Row]]) -> None:
    """``folder/logps.parquet``: split, row and ``COLUMNS``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"split": split, **row} for split, computed in splits.items() for row in computed]
    with files.atomic(folder / FILE) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)


def attach(folder: str | Path, model: PreTrainedModel, splits: Mapping[str, Sequence[Row]], precision: str) -> dict[str, list[Row]]:
    """``splits``, each row with reference_chosen_logps and reference_rejected_logps; ValueError where those of ``folder`` belong to others."""
    import pyarrow.parquet as pq

    found, wanted = files.read_manifest(folder).get("identity", {}), identity(model, splits, precision)
    if different := [WHAT[key] for key in wanted if found.get(key) != wanted[key]]:
        made = Path(folder) / files.MANIFEST
        raise ValueError(
            f"{folder} was computed from {' and '.join(different)} than this training starts from;"
            f" make it again with: snakemake --cores all --forcerun {made} -- {made}"
        )
    cached = {(row["split"], row["row"]): row for row in pq.read_table(Path(folder) / FILE).to_pylist()}

    def with_reference(split: str, number: int, row: Row) -> Row:
        sums = cached[split, number]
        return {**row, **{f"reference_{side}_logps": sums[f"{side}_logps"] for side in ("chosen", "rejected")}}

    return {split: [with_reference(split, number, row) for number, row in enumerate(rows)] for split, rows in splits.items()}
