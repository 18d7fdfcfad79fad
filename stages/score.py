"""Scores of one model on one benchmark, from its answers and their judgments: anybody's files in the benchmark's own format.

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

Out: ``scores.json``. alpacaeval2: win rates in percent with standard errors, raw, discrete and length-controlled (by the package's
own functions). arena_hard: the Bradley-Terry win rate with its bootstrap interval. mt_bench: the mean rating, by turn and category.
oracle: the mean score in [0, 10], its standard error, the mean count of each finding. All with counts, failures by their kind, the
answers' lengths and shape (``ended``, ``repeated_3grams``), the protocol's version, which is printed too, and the versions of the packages
that they depend on.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stages.benchmarks import alpacaeval2, arena_hard, mt_bench
from stages.benchmarks.rows import ANSWER, MODEL_ANSWER, Row, as_number, check_same, check_texts, only, read_rows, turns_of
from stages.judging import VERSIONS
from stages.lib import files
from stages.lib.errors import UserError

ORACLE = (*ANSWER, "score")


def check_oracle(rows: list[Row], what: str) -> None:
    """UserError names ``what`` the rows are, the first row and the key whose value the oracle does not give."""
    check_texts(rows, ANSWER, what)
    for place, row in enumerate(rows):
        for key in ["score", *(key for key in rows[0] if key not in ORACLE)]:
            if math.isnan(as_number(row.get(key), f"{what}, row {place} (from 0): {key!r}")):
                raise UserError(f"{what}, row {place} (from 0): {key!r} has no value; the oracle gives every answer one")


FORMATS = {  # the keys that answers and judgments must have
    "alpacaeval2": (ANSWER, ("instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator", "preference")),
    "arena_hard": (MODEL_ANSWER, ("question_id", "model", "judge", "games")),
    "mt_bench": (MODEL_ANSWER, ("question_id", "model", "judge", "user_prompt", "judgment", "score", "turn")),
    "oracle": (ANSWER, ORACLE),
}
CHECKS = {  # of the values below the judgments' keys
    "alpacaeval2": alpacaeval2.check_annotations,
    "arena_hard": arena_hard.check_judgments,
    "mt_bench": mt_bench.check_judgments,
    "oracle": check_oracle,
}
NEEDS = {"alpacaeval2": "gamed", "arena_hard": "baseline", "mt_bench": "questions"}


def check_answers(rows: list[Row], what: str) -> None:
    """UserError names ``what`` the rows are, and the answer that is no text, in any benchmark's format."""
    for row in rows:
        if "choices" in row:
            turns_of(row, what)
    check_texts(rows, ("model_id",) if "choices" in rows[0] else ANSWER, what)


def score_oracle(answers: list[Row], judgments: list[Row]) -> dict[str, Any]:
    """Mean and standard error (ddof 1) of the oracle's scores, and how often each kind of finding comes in an answer."""
    for key in ("instruction", "output"):
        check_same(f"the answers' {key}s", [row[key] for row in answers], f"the judgments' {key}s", [row[key] for row in judgments])
    scores = [float(row["score"]) for row in judgments]
    findings = [key for key in judgments[0] if key not in ORACLE]
    return {
        "benchmark": "oracle",
        "protocol": {"version": VERSIONS["oracle"]},
        "generator": answers[0]["generator"],
        "n": len(scores),
        "mean": fmean(scores),
        "standard_error": stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None,
        "findings": {key: fmean(row[key] for row in judgments) for key in findings},
    }


def shape(answers: list[Row]) -> dict[str, float | None]:
    """What a training that went wrong shows in the answers, a turn being an answer of its own, in any benchmark's format.

    ``ended``: the share that ended by themselves (``finish_reason`` "stop"), None where the file does not say of all. ``repeated_3grams``:
    the mean over answers of the share of an answer's 3-grams of words, cut at white space, that came before in it; 0 below three words.
    """
    texts = [text for row in answers for text in (turns_of(row, "the answers") if "choices" in row else [row["output"]])]
    given = [row.get("finish_reason") for row in answers]
    reasons = [reason for found in given for reason in (found if isinstance(found, list) else [found])]
    says = len(reasons) == len(texts) and None not in reasons
    return {
        "ended": fmean(reason == "stop" for reason in reasons) if says else None,
        "repeated_3grams": fmean(map(repeated_3grams, texts)),
    }


def repeated_3grams(text: str) -> float:
    words = text.split()
    found = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(found)) / len(found) if found else 0.0


def score(benchmark: str, answers: list[Row], judgments: list[Row], needed: Path) -> tuple[dict[str, Any], str]:
    """The scores, and a line that sums them up. needed: the file of the option that ``NEEDS`` names."""
    if benchmark == "alpacaeval2":
        scores = alpacaeval2.score(answers, judgments, alpacaeval2.read_gamed(needed))
        return scores, "length-controlled win rate {length_controlled_winrate:.2f}, win rate {win_rate:.2f}".format(**scores)
    if benchmark == "arena_hard":
        scores = arena_hard.score(answers, judgments, baseline=only(read_rows(needed, MODEL_ANSWER), "model_id"))
        return scores, "win rate {win_rate:.2f} ({win_rate_low:.2f} to {win_rate_high:.2f})".format(**scores)
    if benchmark == "mt_bench":
        questions = read_rows(needed, mt_bench.QUESTION)
        check_texts(questions, ("category",), str(needed))
        scores = mt_bench.score(answers, judgments, questions)
        return scores, "mean rating {mean:.3f} of 10".format(**scores)
    scores = score_oracle(answers, judgments)
    return scores, "mean {mean:.3f} of 10".format(**scores)


def plain(value: Any) -> Any:
    """numpy's scalars as Python's own, at full precision, and None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", required=True, choices=sorted(FORMATS))
    parser.add_argument("--answers", required=True, type=Path)
    parser.add_argument("--judgments", required=True, type=Path)
    for benchmark, option in NEEDS.items():
        parser.add_argument(f"--{option}", type=Path, help=f"needed by {benchmark}, unused otherwise")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    needed = getattr(args, NEEDS.get(args.benchmark, ""), Path())
    if not needed:
        parser.error(f"--benchmark {args.benchmark} needs --{NEEDS[args.benchmark]}; --help says what that is")

    answer_keys, judgment_keys = FORMATS[args.benchmark]
    answers, judgments = read_rows(args.answers, answer_keys), read_rows(args.judgments, judgment_keys)
    check_answers(answers, str(args.answers))
    CHECKS[args.benchmark](judgments, str(args.judgments))
    scores, summary = score(args.benchmark, answers, judgments, needed)
    files.write_json(args.out, plain(scores | shape(answers)))
    failed = f", {scores['n_failed']} judgments failed" if "n_failed" in scores else ""
    by = [f"{key} {scores[key]}" for key in ("judge", "baseline") if scores.get(key)]
    print(f"score: {scores['generator']} on {args.benchmark}: {summary}{failed}; {', '.join([scores['protocol']['version'], *by])}")


if __name__ == "__main__":
    files.run(main)
