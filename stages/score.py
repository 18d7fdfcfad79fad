"""Scores of one model on one benchmark, from its answers and their judgments: anybody's files in the benchmark's own format.

    python -m stages.score --benchmark alpacaeval2 --answers model_outputs.json --judgments annotations.json \\
        --gamed df_gamed.csv --out scores.json
    python -m stages.score --benchmark oracle --answers model_outputs.json --judgments annotations.json --out scores.json

In, plain or gzipped (.gz), answers and judgments for the same instructions in the benchmark's order:

    --answers    AlpacaEval's model_outputs.json: a list of {"instruction", "output", "generator"}
    --judgments  alpacaeval2: the alpaca_eval package's annotations.json: a list of {"instruction", "output_1", "generator_1",
                 "output_2", "generator_2", "annotator", "preference"}, 1 the baseline and 2 the model, null a failed judgment;
                 oracle: a list of {"instruction", "output", "generator", "score", and a count for each kind of finding}
    --gamed      alpacaeval2: df_gamed.csv with the columns index, model, preference, std_delta_len, instruction_difficulty,
                 not_gamed_baseline, as in the data set tatsu-lab/alpaca_eval

Out: ``scores.json``. alpacaeval2: win rates in percent with standard errors, raw, discrete and length-controlled (by the package's
own functions), counts, failures, average length, and the versions that they depend on. oracle: the mean score in [0, 10], its
standard error, the mean count of each finding.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stages import files
from stages.judging import alpacaeval2
from stages.judging.rows import Row, check_same, read_rows

ANSWER = ("instruction", "output", "generator")
JUDGMENT = {
    "alpacaeval2": ("instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator", "preference"),
    "oracle": (*ANSWER, "score"),
}


def score_oracle(answers: list[Row], judgments: list[Row]) -> dict[str, Any]:
    """Mean and standard error (ddof 1) of the oracle's scores, and how often each kind of finding comes in an answer."""
    for key in ("instruction", "output"):
        check_same(f"the answers' {key}s", [row[key] for row in answers], f"the judgments' {key}s", [row[key] for row in judgments])
    scores = [float(row["score"]) for row in judgments]
    findings = [key for key in judgments[0] if key not in JUDGMENT["oracle"]]
    return {
        "benchmark": "oracle",
        "generator": answers[0]["generator"],
        "n": len(scores),
        "mean": fmean(scores),
        "standard_error": stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None,
        "findings": {key: fmean(row[key] for row in judgments) for key in findings},
    }


def plain(value: Any) -> Any:
    """numpy's scalars as Python's own, at full precision, and None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", required=True, choices=sorted(JUDGMENT))
    parser.add_argument("--answers", required=True, type=Path)
    parser.add_argument("--judgments", required=True, type=Path)
    parser.add_argument("--gamed", type=Path, help="needed by alpacaeval2, unused otherwise")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    if args.benchmark == "alpacaeval2" and not args.gamed:
        parser.error("--benchmark alpacaeval2 needs --gamed: AlpacaEval's df_gamed.csv, or the world's own")

    answers, judgments = read_rows(args.answers, ANSWER), read_rows(args.judgments, JUDGMENT[args.benchmark])
    if args.benchmark == "alpacaeval2":
        scores = plain(alpacaeval2.score(answers, judgments, alpacaeval2.read_gamed(args.gamed)))
        lc, raw = scores["length_controlled_winrate"], scores["win_rate"]
        summary = f"length-controlled win rate {lc:.2f}, win rate {raw:.2f}, {scores['n_failed']} of {len(answers)} judgments failed"
    else:
        scores = plain(score_oracle(answers, judgments))
        summary = f"mean {scores['mean']:.3f} of 10"
    files.write_json(args.out, scores)
    print(f"score: {scores['generator']} on {args.benchmark}: {summary}")


if __name__ == "__main__":
    files.run(main)
