"""The lengths of the pairs that perf measures with: perf/lengths.csv, UltraFeedback-like and the same on every machine.

    python -m perf.lengths        writes perf/lengths.csv again, bit for bit

Log-normal lengths in Llama-3 tokens, of the prompt P, the chosen answer L_w and the rejected L_l: means 172, 346 and 314, and as the
dpo-prefix-sharing paper (arXiv 2410.20305) has UltraFeedback, a median of P + L_w near 409 and of P / L_w near 0.42. The two answers
correlate: what a pair is padded to depends on it. No sequence exceeds 2,048 tokens, 1,800 of them the prompt's, as in the paper's training.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

FILE = Path(__file__).with_name("lengths.csv")
ROWS, SEED = 512, 25
MEAN_PROMPT, MEAN_CHOSEN, MEAN_REJECTED = 172, 346, 314
# Standard deviations of the logarithms, and the answers' correlation: fitted to the medians above, and to the padding that random
# micro-batches of 1, 2, 4 and 8 such pairs have (1.17, 1.53, 1.89, 2.25 padded tokens a real one).
SIGMA_PROMPT, SIGMA_ANSWER, CORRELATION = 0.95, 0.72, 0.7
MAX_LENGTH, MAX_PROMPT = 2048, 1800


class Lengths(NamedTuple):
    """Numbers of tokens: of the prompt, of the chosen and of the rejected answer."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def longest(self) -> int:
        """Tokens of the pair's longer sequence: what a padded batch makes of both."""
        return self.prompt + max(self.chosen, self.rejected)

    @property
    def padless(self) -> int:
        """Tokens of both sequences, the prompt in each."""
        return 2 * self.prompt + self.chosen + self.rejected

    @property
    def shared(self) -> int:
        """Tokens where both answers share the prompt."""
        return self.prompt + self.chosen + self.rejected


def generate(rows: int = ROWS, seed: int = SEED) -> list[Lengths]:
    """``rows`` triples. ``random.Random.random`` is the same in every version of Python, the normal samplers are not: hence the inverse."""
    draw, inverse = random.Random(seed), NormalDist().inv_cdf

    def normal() -> float:
        return inverse(draw.random() or 0.5)

    def tokens(mean: float, sigma: float, z: float, low: int, high: int) -> int:
        return min(max(round(mean * math.exp(sigma * z - sigma * sigma / 2)), low), high)

    drawn = []
    for _ in range(rows):
        common = math.sqrt(CORRELATION) * normal()
        prompt = tokens(MEAN_PROMPT, SIGMA_PROMPT, normal(), 8, MAX_PROMPT)
        answers = [
            tokens(mean, SIGMA_ANSWER, common + math.sqrt(1 - CORRELATION) * normal(), 8, MAX_LENGTH - prompt)
            for mean in (MEAN_CHOSEN, MEAN_REJECTED)
        ]
        drawn.append(Lengths(prompt, *answers))
    return drawn


def write(path: Path, rows: list[Lengths]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Lengths._fields)
        writer.writerows(rows)


def read(path: Path = FILE, divisor: int = 1) -> list[Lengths]:
    """The file's lengths divided by ``divisor``, at least two tokens each."""
    with path.open(newline="") as file:
        return [Lengths(*(max(2, int(row[name]) // divisor) for name in Lengths._fields)) for row in csv.DictReader(file)]


def token_ids(lengths: list[Lengths], vocabulary: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs of random token ids with these lengths; ids 0 and 1 stay for padding and end."""
    draw = random.Random(seed)
    return [{name: draw.choices(range(2, vocabulary), k=count) for name, count in row._asdict().items()} for row in lengths]


def padded_share(rows: list[Lengths], micro_batch: int) -> float:
    """The share of padding in all tokens of padded micro-batches of ``micro_batch`` pairs taken in order, both sequences of each pair."""
    parts = [rows[start : start + micro_batch] for start in range(0, len(rows), micro_batch)]
    padded = sum(2 * len(part) * max(row.longest for row in part) for part in parts)
    return 1 - sum(row.padless for row in rows) / padded


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write(FILE, generate())
    print(f"{FILE.name}: {ROWS} rows")


if __name__ == "__main__":
    main()
