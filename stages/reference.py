"""The reference model's log-probabilities of the preference pairs: once a setting, for every method, beta and gamma.

    python -m stages.reference --config results/mini_base/reference/config.yaml --runtime micro_batch=16

In: the start model, train.jsonl and heldout.jsonl of the pairs. Out: logps.parquet with ``split, row, chosen_logps, chosen_length,
rejected_logps, rejected_length``, sums over the response's tokens as trained, and a manifest that says of which tokens.
"""

from __future__ import annotations

from pathlib import Path

from stages import files, models


def main() -> None:
    config, folder = files.stage_config(__doc__)
    import pandas as pd
    import torch

    from stages.preference.data import collate, tokenize_pairs, tokens_sha256
    from stages.preference.logps import response_logps

    tokenizer = models.load_tokenizer(config.model, config.revision)
    model = models.load_model(config.model, config.revision).to(models.device()).eval()
    lengths = {key: config[key] for key in ("max_length", "max_prompt_length", "empty_system")}
    step, frames, identity = config.runtime.micro_batch, [], {}
    for split in ("train", "heldout"):
        path = Path(config.pairs) / f"{split}.jsonl"
        pairs = tokenize_pairs(files.read_jsonl(path), tokenizer, str(path), **lengths)
        identity[split] = tokens_sha256(pairs)
        for start in range(0, len(pairs), step):
            part = pairs[start : start + step]
            tensors = {name: tensor.to(model.device) for name, tensor in collate(part, tokenizer.pad_token_id or 0).items()}
            with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logps, counts = response_logps(model, *tensors.values())
            chosen, rejected = logps.tolist()[: len(part)], logps.tolist()[len(part) :]
            columns = {"split": split, "row": range(start, start + len(part)), "chosen_logps": chosen}
            columns |= {"chosen_length": counts.tolist()[: len(part)], "rejected_logps": rejected}
            frames.append(pd.DataFrame(columns | {"rejected_length": counts.tolist()[len(part) :]}))
            if start // step % 25 == 0:
                print(f"reference: {split}, pair {start} of {len(pairs)}", flush=True)
    with files.atomic(folder / "logps.parquet") as partial:
        pd.concat(frames, ignore_index=True).to_parquet(partial, index=False)
    files.write_manifest(folder, config, inputs=[f"{config.pairs}/{files.MANIFEST}"], tokens_sha256=identity, device=str(model.device))


if __name__ == "__main__":
    main()
