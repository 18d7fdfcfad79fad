"""Answer every benchmark's questions with vLLM: one engine for all benchmarks and both turns.

    python -m stages.answer --config results/mini_base/runs/simpo/eval/answer.yaml

In: a model (folder or hub id), and each benchmark's questions and decoding. Out, in the benchmarks' own formats:

    <benchmark>/model_outputs.json   AlpacaEval: {"dataset", "instruction", "output", "generator"}
    <benchmark>/model_answer.jsonl   Arena-Hard: {"question_id", "answer_id", "model_id", "choices": [{"index", "turns": [{"content",
                                     "token_len"}]}]}; MT-Bench: likewise, a turn being its text

and for each answer ``finish_reason``, which is ``stop`` if the answer ended by itself. ``token_len`` counts the model's own tokens. The
second turn is asked after the model's own first answer. Each question has its own seed, made from its text, so an answer depends neither
on the order of the questions nor on the rest of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import DictConfig

from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import Question, Turn
from stages.lib import files, models
from stages.lib.engine import generate, seed_of, start_engine
from stages.preference.data import question_tokens


@dataclass
class Asked:
    """A question on its way through its turns."""

    benchmark: str
    question: Question
    temperature: float
    turns: list[Turn] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the next prompt, which is its last message."""
        said = [text for prompt, turn in zip(self.question.prompts, self.turns, strict=False) for text in (prompt, turn.text)]
        said.append(self.question.prompts[len(self.turns)])
        return [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(said)]


def read_questions(name: str, benchmark: DictConfig) -> list[Asked]:
    """The questions of a benchmark, each with its temperature: 0 if the configuration asks for a beam of width one.

    Such a beam keeps the likeliest token at each step, and so does temperature 0. vLLM's sampling has no ``use_beam_search`` any more.
    """
    questions = BENCHMARKS[benchmark.protocol].format.read_questions(benchmark.questions)
    if benchmark.search == "width_1_beam":
        return [Asked(name, question, 0.0) for question in questions]
    usual = benchmark.temperature
    return [Asked(name, question, benchmark.temperatures.get(question.row.get("category", ""), usual)) for question in questions]


def answer_turns(engine: Any, tokenizer: Any, asked: list[Asked], config: DictConfig) -> None:
    """Add the next turn's answer to each of ``asked``."""
    from vllm import SamplingParams

    prompts, sampling, stops = [], [], list(config.stop_token_ids)
    for one in asked:
        benchmark = config.benchmarks[one.benchmark]
        seed = seed_of("\0".join(one.question.prompts[: len(one.turns) + 1]), benchmark.seed)
        shared = {"top_p": benchmark.top_p, "max_tokens": benchmark.max_tokens, "stop_token_ids": stops}
        sampling.append(SamplingParams(temperature=one.temperature, seed=seed, **shared))
        prompts.append({"prompt_token_ids": question_tokens(one.messages(), tokenizer, empty_system=config.empty_system)})
    for one, output in zip(asked, generate(engine, prompts, sampling), strict=True):
        answer = output.outputs[0]
        text = tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()
        one.turns.append(Turn(text, answer.finish_reason, len(answer.token_ids)))


def longest(tokenizer: Any, asked: list[Asked], config: DictConfig) -> int:
    """An upper bound on the tokens of any conversation: all prompts, and all answers at their longest.

    An earlier answer is read again as text, which may have more tokens: a token that was part of a character becomes U+FFFD, perhaps three
    tokens, and the tokenizer may cut the answer differently beside the template's own text.
    """

    def bound(one: Asked) -> int:
        earlier = [Turn("", "stop")] * (len(one.question.prompts) - 1)
        tokens = question_tokens(replace(one, turns=earlier).messages(), tokenizer, empty_system=config.empty_system)
        most = config.benchmarks[one.benchmark].max_tokens
        return len(tokens) + len(earlier) * (3 * most + 32) + most

    return max(map(bound, asked))


def main() -> None:
    config, folder = files.stage_config(__doc__)
    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    asked = [one for name, benchmark in config.benchmarks.items() for one in read_questions(name, benchmark)]
    engine = start_engine(config, longest(tokenizer, asked, config))
    print(f"answer: {config.model}, {len(asked)} questions", flush=True)
    while waiting := [one for one in asked if len(one.turns) < len(one.question.prompts)]:
        answer_turns(engine, tokenizer, waiting, config)
    for name, benchmark in config.benchmarks.items():
        done = [one for one in asked if one.benchmark == name]
        format = BENCHMARKS[benchmark.protocol].format
        files.write_rows(folder / name / format.file, [format.answer_row(one.question, one.turns, config.run, name) for one in done])
        ended = [turn.finish_reason == "stop" for one in done for turn in one.turns]
        print(f"answer: {name}, {len(ended)} answers, {sum(ended) / len(ended):.1%} ended by themselves")


if __name__ == "__main__":
    files.run(main)
