"""The reference model's log-probabilities of the preference pairs, computed once per setting for every method, beta and gamma.

    python -m stages.reference --config results/mini_base/reference/config.yaml --runtime token_budget=2048

In: the start model; train.jsonl and heldout.jsonl of the pairs. For KTO, the model also reads each prompt with another row's answers.
Out: logps.parquet (stages/preference/refcache.py) and a manifest with the identity of its inputs.
"""

from __future__ import annotations

from stages.lib import files, models


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from stages.preference import refcache
    from stages.preference.data import dropped, read_splits, with_mismatched
    from stages.preference.logps import fastest_correct_layout

    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    model = models.load_model(config.model, config.revision).to(models.device()).eval()
    tokenized = read_splits(config, tokenizer)
    left_out = dropped(tokenized, f"reference: {config.setting}")
    splits = with_mismatched(tokenized, config)
    layout = fastest_correct_layout(model, splits["train"], config.precision)
    frames = {
        split: refcache.compute(model, pairs, config.runtime.token_budget, layout, config.precision, f"reference: {config.setting} {split}")
        for split, pairs in splits.items()
    }
    refcache.write(folder, frames)
    identity = refcache.identity(model, splits, config.precision)
    facts = {"identity": identity, "dropped": left_out, "device": str(model.device)}
    files.write_manifest(folder, config, inputs=[f"{config.pairs}/{files.MANIFEST}"], **facts)


if __name__ == "__main__":
    files.run(main)
