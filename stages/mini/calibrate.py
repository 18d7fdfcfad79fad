"""The instructions' difficulties and the gamed baseline's rows, which the length-controlled win rate needs for a world and a judge.

    python -m stages.mini.calibrate --config results/calibration/mini/config.yaml

AlpacaEval publishes both for its own baseline and judge (alpaca_eval, metrics/glm_winrate.py). This makes them for the mini world. The
difficulty of an instruction is the standardised logit of the writers' mean preference on it against the baseline. The gamed rows are the
judged concise and verbose variants of the baseline. In: the world, the judge's temperament. Out: ``df_gamed.csv``, as in the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from stages.benchmarks.alpacaeval2 import is_swapped
from stages.lib import files
from stages.mini.oracle import Oracle, load_oracle
from stages.mini.raters import judge_log_odds
from stages.plan.values import plain

Rows = list[dict[str, Any]]


def preferences(oracle: Oracle, baseline: Rows, outputs: Rows, temperament: dict[str, Any], swap_seed: int) -> np.ndarray:
    """The judge's preference for ``outputs`` over ``baseline`` on each instruction, in [0, 1].

    temperament: the judge's, as ``judge_log_odds`` takes it.
    swap_seed: of AlpacaEval's draw of which answer is shown first.
    """
    found = []
    for ours, theirs in zip(baseline, outputs, strict=True):
        prompt, first, second = ours["instruction"], ours["output"], theirs["output"]
        swapped = is_swapped(prompt, swap_seed)
        odds = judge_log_odds(oracle, (prompt, second, first) if swapped else (prompt, first, second), **temperament)
        preferred = 1 / (1 + np.exp(-odds))
        found.append(0.5 if first == second else 1 - preferred if swapped else preferred)
    return np.array(found)


def standardised_logit(mean: np.ndarray) -> np.ndarray:
    """logit(p), shifted and scaled to mean 0 and standard deviation 1 over the instructions; p is clipped away from 0 and 1."""
    p = np.clip(mean, 1e-3, 1 - 1e-3)
    logit = np.log(p / (1 - p))
    return (logit - logit.mean()) / logit.std()


def calibrate(config: DictConfig) -> pd.DataFrame:
    """A row an instruction and variant: ``index, model, preference, std_delta_len, instruction_difficulty, not_gamed_baseline``."""
    server = plain(config.server)
    world = Path(server["world"])
    oracle = load_oracle(world)
    baseline = files.read_json(world / "alpacaeval2/baseline.json")
    writers = {path.stem: files.read_json(path) for path in sorted((world / "alpacaeval2/writers").glob("*.json"))}
    preferred = {name: preferences(oracle, baseline, rows, server, config.swap_seed) for name, rows in writers.items()}
    authors = [values for name, values in preferred.items() if name not in (config.concise, config.verbose)]
    difficulty = standardised_logit(np.mean(authors, axis=0))
    frames = []
    for name in (config.concise, config.verbose):
        gap = pd.Series([len(a["output"]) - len(b["output"]) for a, b in zip(baseline, writers[name], strict=True)])
        frame = pd.DataFrame({"index": range(len(baseline)), "model": name, "preference": preferred[name]})
        frames.append(frame.assign(std_delta_len=gap / gap.std(), instruction_difficulty=difficulty, not_gamed_baseline=False))
    return pd.concat(frames, ignore_index=True)


def main() -> None:
    config, folder = files.stage_config(__doc__)
    frame = calibrate(config)
    with files.atomic(folder / "df_gamed.csv") as partial:
        frame.to_csv(partial, index=False)
    means = {name: round(float(mean), 4) for name, mean in frame.groupby("model")["preference"].mean().items()}
    files.write_manifest(folder, config, inputs=[f"{config.server.world}/manifest.json"], mean_preference=means)
    print(f"calibrate: the gamed baseline's mean preference: {means}")


if __name__ == "__main__":
    files.run(main)
