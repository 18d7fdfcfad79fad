"""The mini world's prompts for a judge, in the formats of Arena-Hard's judge_config.yaml and MT-Bench's judge_prompts.jsonl. The real
benchmarks' protocols send them. AlpacaEval's prompt comes from its package.
"""

from __future__ import annotations

from typing import Any

ARENA_HARD: dict[str, Any] = {
    "system_prompt": (
        "Two assistants have answered a question about the towns of this world. First answer the question yourself. Then weigh both answers"
        " against yours: what is right, what is wrong, what is missing, what nobody asked for. Neither the order of the answers nor their"
        " length speaks for them. End with exactly one verdict, in this form:\n"
        "[[A>>B]] if A is much better, [[A>B]] if A is better, [[A=B]] if they are about the same, [[B>A]] if B is better, [[B>>A]] if B is"
        " much better."
    ),
    "prompt_template": ["Question:\n{question_1}\n\n<answer A>\n{answer_1}\n</answer A>\n\n<answer B>\n{answer_2}\n</answer B>"],
    "regex_pattern": r"\[\[([AB<>=]+)\]\]",
}

_RATE = "Rate it from 1 to 10 and end with the rating in this form: [[rating]], for example: [[5]]."
_SINGLE = f"An assistant has answered a question about the towns of this world. Judge how right and how complete the answer is. {_RATE}"
_MULTI = f"An assistant has answered two questions in one conversation. Judge how right and how complete the second answer is. {_RATE}"
_MATH = " A reference answer is given: compare with it before you rate."
_QUESTION, _ANSWER = "Question:\n{question}\n\n", "<answer>\n{answer}\n</answer>"
_REFERENCE = "<reference>\n{ref_answer_1}\n</reference>\n\n"
_TURNS = (
    "<conversation>\nUser: {question_1}\n\nAssistant: {answer_1}\n\nUser again: {question_2}\n\nAssistant again: {answer_2}\n"
    "</conversation>"
)
_REFERENCES = "<reference>\nFirst answer: {ref_answer_1}\n\nSecond answer: {ref_answer_2}\n</reference>\n\n"


def _prompt(name: str, system: str, template: str, category: str) -> dict[str, str]:
    fixed = {"type": "single", "description": "The mini world's words", "output_format": "[[rating]]"}
    return {"name": name, "system_prompt": system, "prompt_template": template, "category": category, **fixed}


MT_BENCH: list[dict[str, str]] = [
    _prompt("single-v1", "You judge answers.", f"{_SINGLE}\n\n{_QUESTION}{_ANSWER}", "general"),
    _prompt("single-math-v1", "You judge answers.", f"{_SINGLE}{_MATH}\n\n{_QUESTION}{_REFERENCE}{_ANSWER}", "math"),
    _prompt("single-v1-multi-turn", _MULTI, _TURNS, "general"),
    _prompt("single-math-v1-multi-turn", _MULTI + _MATH, f"{_REFERENCES}{_TURNS}", "math"),
]
