"""The peak memory of a training step by the tokens of its batch and by the vocabulary, for our trainer and TRL's CPOTrainer.

    python -m perf.memory --device cpu

Each point is a process. It takes SimPO's step on one batch in one piece, with a prompt and two answers of 64 tokens in each pair, on the
model of perf.train_step with another vocabulary. Memory is measured as in perf.train_step, over weights and optimizer state. TRL keeps the
logits of every token, so its memory grows with tokens times vocabulary. Ours computes them in tiles.

Out: memory.json, every point and for each vocabulary the bytes that one more token takes; memory.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from perf import arms
from perf.arms import Arm, World
from perf.pairs import Lengths, token_ids
from stages.lib import files
from stages.lib.errors import UserError

TRAINERS = {"ours": "ours", "trl": "TRL 1.16, CPOTrainer"}
PAIR = Lengths(64, 64, 64)
TOKENS, VOCABULARIES = (1024, 2048, 4096, 8192), (8192, 32768, 65536)
STYLE = Path(__file__).parent.parent / "analysis" / "style.mplstyle"


class Point(NamedTuple):
    """A measured step."""

    trainer: str
    tokens: int  # of both sequences of all pairs, each with the prompt
    vocabulary: int
    step: float  # bytes over weights and optimizer state


def measure(trainer: str, device: str, tokens: int, vocabulary: int) -> float:
    """The bytes of a ``Point``, in this process. It begins anew for each point, because freed memory would count."""
    count = tokens // PAIR.padless
    shape = replace(arms.SHAPES[device], vocab_size=vocabulary)
    world = World(device, shape, count, token_budget=tokens, bf16=device == "cuda")
    arm = Arm(trainer, "simpo", None, 0 if trainer == "ours" else count)
    run = arms.train(arm, world, token_ids([PAIR] * count, vocabulary), [(0.0, 0.0)] * count, epochs=2, memory=True)
    return run.memory["step"]


def lines(points: Sequence[Point]) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """(tokens, bytes) of the points, ascending, by trainer and vocabulary."""
    found: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for trainer, tokens, vocabulary, step in sorted(points):
        found.setdefault((trainer, vocabulary), []).append((tokens, step))
    return found


def slopes(points: Sequence[Point]) -> dict[str, dict[int, float]]:
    """Bytes that one more token takes, by trainer and vocabulary: between the fewest tokens and the most."""
    found: dict[str, dict[int, float]] = {}
    for (trainer, vocabulary), ((few, low), *_, (many, high)) in lines(points).items():
        found.setdefault(trainer, {})[vocabulary] = (high - low) / (many - few)
    return found


def draw(points: Sequence[Point], path: Path) -> None:
    """Memory by tokens on one scale: a panel a trainer, a line a vocabulary."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        panels: Any = figure.subplots(1, len(TRAINERS), sharey=True)
        for (trainer, vocabulary), line in lines(points).items():
            tokens, steps = zip(*line, strict=True)
            panel = panels[list(TRAINERS).index(trainer)]
            panel.plot(tokens, [step / 2**20 for step in steps], marker="o", label=f"vocabulary {vocabulary:,}")
            panel.set(title=TRAINERS[trainer], xlabel="tokens in the batch")
        panels[0].set_ylim(0, 1.05 * max(point.step for point in points) / 2**20)  # the panels share the axis
        panels[0].set_ylabel("peak memory of a step, MiB")
        panels[0].legend()
        figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="perf.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help=f"two or more multiples of {PAIR.padless}")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--point", nargs=3, metavar=("TRAINER", "TOKENS", "VOCABULARY"), help="one point in this process: its bytes")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    given = parser.parse_args(arguments)
    if wrong := [count for count in given.tokens if count < PAIR.padless or count % PAIR.padless]:
        raise UserError(f"--tokens {wrong[0]}: expected a multiple of {PAIR.padless}, a pair's tokens")
    if len(set(given.tokens)) < 2:
        raise UserError(f"--tokens {given.tokens[0]}: expected at least two numbers, between which memory grows")
    wanted = [(name, count, size) for name in TRAINERS for count in given.tokens for size in given.vocabularies]
    if given.dry_run:
        words = f"{len(wanted)} points, a process each: {', '.join(TRAINERS)} at {given.tokens} tokens and {given.vocabularies} words"
        print(f"{words}; results in {given.out}. This was a dry-run.")
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; run this where it does, or give --device cpu")
    if given.point:
        arms.quiet()
        trainer, tokens, vocabulary = given.point
        print(measure(trainer, given.device, int(tokens), int(vocabulary)))
        return

    def in_a_process(trainer: str, tokens: int, vocabulary: int) -> Point:
        words = ("--device", given.device, "--point", trainer, str(tokens), str(vocabulary))
        point = Point(trainer, tokens, vocabulary, arms.in_a_process("perf.memory", *words))
        print(f"{trainer}: {tokens} tokens, vocabulary {vocabulary}: {point.step / 2**20:.0f} MiB", file=sys.stderr, flush=True)
        return point

    with ThreadPoolExecutor(2 if given.device == "cpu" else 1) as pool:
        points = list(pool.map(lambda point: in_a_process(*point), wanted))
    given.out.mkdir(parents=True, exist_ok=True)
    report = {"bytes_a_token": slopes(points), "points": [point._asdict() for point in points]}
    (given.out / "memory.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(points, given.out / "memory.png")
    for trainer, found in slopes(points).items():
        print(f"{trainer}, KiB that one more token takes:", *(f"{size / 1024:.1f} at {words:,} words" for words, size in found.items()))


if __name__ == "__main__":
    files.run(main)
