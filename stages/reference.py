"""The reference model's log-probabilities of the preference pairs: once a setting, for every method, beta and gamma.

    python -m stages.reference --config results/mini_base/reference/config.yaml --runtime micro_batch=16

In: the start model, train.jsonl and heldout.jsonl of the pairs. Out: logps.parquet (stages/preference/refcache.py) and a manifest
with the identity of what it was computed from.
"""

from __future__ import annotations

from stages import files, models


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from stages.preference import refcache
    from stages.preference.data import read_splits

    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    model = models.load_model(config.model, config.revision).to(models.device()).eval()
    splits = read_splits(config, tokenizer)
    label = f"reference: {config.setting}"
    frames = {
        split: refcache.compute(model, pairs, config.runtime.micro_batch, config.precision, f"{label} {split}")
        for split, pairs in splits.items()
    }
    refcache.write(folder, frames)
    identity = refcache.identity(model, splits, config.precision)
    files.write_manifest(folder, config, inputs=[f"{config.pairs}/{files.MANIFEST}"], identity=identity, device=str(model.device))


if __name__ == "__main__":
    files.run(main)
