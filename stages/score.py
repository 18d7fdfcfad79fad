"""Scores of one model on benchmarks, from its answers and their judgments: a run's, or anybody's files in a benchmark's own format.

    python -m stages.score --config results/mini_base/runs/dpo/eval/score.yaml
    python -m stages.score --benchmark alpacaeval2 --answers model_outputs.json --judgments annotations.json \\
        --gamed df_gamed.csv --out scores.json
    python -m stages.score --benchmark arena_hard --answers model_answer.jsonl --judgments model_judgment.jsonl \\
        --baseline gpt-4-0314.jsonl --out scores.json
    python -m stages.score --benchmark mt_bench --answers model_answer.jsonl --judgments model_judgment.jsonl \\
        --questions question.jsonl --out scores.json
    python -m stages.score --benchmark oracle --answers model_outputs.json --judgments annotations.json --out scores.json

In, plain or gzipped (.gz), answers and judgments for the same instructions:

    --answers    alpacaeval2, oracle: AlpacaEval's model_outputs.json: a list of {"instruction", "output", "generator"};
                 arena_hard, mt_bench: model_answer/<model>.jsonl: {"question_id", "model_id", "choices": [{"turns": [...]}]} a line, a
                 turn being {"content", "token_len"} in Arena-Hard and a text in MT-Bench
    --judgments  alpacaeval2: the alpaca_eval package's annotations.json: a list of {"instruction", "output_1", "generator_1",
                 "output_2", "generator_2", "annotator", "preference"}, 1 the baseline and 2 the model, null a failed judgment, in the
                 benchmark's order; arena_hard: model_judgment/<judge>/<model>.jsonl: {"question_id", "model", "judge", "games":
                 [{"user_prompt", "judgment", "score"}, ...]}; mt_bench: {"question_id", "model", "judge", "user_prompt", "judgment",
                 "score", "turn"}; oracle: a list of {"instruction", "output", "generator", "score", and a count for each kind of finding}
    --gamed      alpacaeval2: df_gamed.csv with the columns index, model, preference, std_delta_len, instruction_difficulty,
                 not_gamed_baseline, as in the data set tatsu-lab/alpaca_eval
    --baseline   arena_hard: the baseline's model_answer file, for its name
    --questions  mt_bench: question.jsonl, for the categories

    --config     a run's stage configuration, which names these files for each benchmark

Out: ``scores.json``, a benchmark each, with the protocol's version, counts, failures by kind, and the answers' shape (``shape``).
alpacaeval2: win rates in percent with standard errors: raw, discrete, and length-controlled by the package's own functions.
arena_hard: the Bradley-Terry win rate with its bootstrap interval. mt_bench: the mean rating, by turn and category.
oracle: the mean score in [0, 10], its standard error, and the mean count of each finding.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import Format
from stages.benchmarks.rows import Row, check_texts, placed, read_rows, turns_of
from stages.lib import files


def check_answers(rows: list[Row], format: Format, what: str) -> None:
    """UserError names the first answer that is not a text. ``what``: the name of the rows."""
    for where, row in placed(rows, what):
        format.texts(row, where)
    check_texts(rows, [key for key in format.keys if key in ("instruction", format.author)], what)


def shape(answers: list[Row]) -> dict[str, float | None]:
    """Two numbers that show a training that went wrong. Each turn counts as an answer.

    ``ended``: the share of answers that ended by themselves (``finish_reason`` "stop"); None if the file does not have it for all.
    ``repeated_3grams``: the mean of ``repeated_3grams`` over the answers.
    """
    texts = [text for row in answers for text in ([row["output"]] if "output" in row else turns_of(row, "the answers"))]
    given = [row.get("finish_reason") for row in answers]
    reasons = [reason for found in given for reason in (found if isinstance(found, list) else [found])]
    says = len(reasons) == len(texts) and None not in reasons
    return {
        "ended": fmean(reason == "stop" for reason in reasons) if says else None,
        "repeated_3grams": fmean(map(repeated_3grams, texts)),
    }


def repeated_3grams(text: str) -> float:
    """The share of a text's 3-grams of words (cut at white space) that came before in it; 0 below three words."""
    words = text.split()
    found = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(found)) / len(found) if found else 0.0


def plain(value: Any) -> Any:
    """Python numbers for numpy's scalars, at full precision, and None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def score(protocol: str, answered: Path, judged: Path, needed: Path | None, out: Path) -> None:
    """Write the scores of one model on one benchmark, and print them.

    protocol: the benchmark's
    answered, judged: the files of answers and judgments
    needed: the file that the benchmark's scores need besides, if any
    """
    benchmark = BENCHMARKS[protocol]
    answers, judgments = read_rows(answered, benchmark.format.keys), read_rows(judged, benchmark.judgment_keys)
    check_answers(answers, benchmark.format, str(answered))
    benchmark.check(judgments, str(judged))
    scores = benchmark.score(answers, judgments, needed)
    if settings := judgments[0].get("judge_settings"):  # what is special about the judge (stages/judging/client.py)
        scores["protocol"]["judge_settings"] = settings
    files.write_json(out, plain(scores | shape(answers)))
    failed = f", {scores['n_failed']} judgments failed" if "n_failed" in scores else ""
    told = [scores["protocol"]["version"], *(f"{key} {scores[key]}" for key in ("judge", "baseline") if scores.get(key))]
    print(f"score: {scores['generator']} on {protocol}: {benchmark.summary.format(**scores)}{failed}; {', '.join(told)}")


def main() -> None:
    if any(argument.startswith("--config") for argument in sys.argv):
        config, _ = files.stage_config(__doc__)
        for one in config.benchmarks.values():
            score(one.protocol, Path(one.answers), Path(one.judgments), Path(one.needed) if one.needed else None, Path(one.scores))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", required=True, choices=sorted(BENCHMARKS))
    parser.add_argument("--answers", required=True, type=Path)
    parser.add_argument("--judgments", required=True, type=Path)
    for option in dict.fromkeys(known.needs for known in BENCHMARKS.values() if known.needs):
        names = [name for name, known in BENCHMARKS.items() if known.needs == option]
        parser.add_argument(f"--{option}", type=Path, help=f"needed by {', '.join(names)}, unused otherwise")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    benchmark = BENCHMARKS[args.benchmark]
    needed = getattr(args, benchmark.needs) if benchmark.needs else None
    if benchmark.needs and not needed:
        parser.error(f"--benchmark {args.benchmark} needs --{benchmark.needs}; --help says what that is")

    score(args.benchmark, args.answers, args.judgments, needed, args.out)


if __name__ == "__main__":
    files.run(main)
