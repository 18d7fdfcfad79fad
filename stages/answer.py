"""Answer every benchmark's questions with vLLM: one engine for all benchmarks and both turns.

    python -m stages.answer --config results/mini_base/runs/simpo/eval/answer.yaml

In: a model (folder or hub id), and each benchmark's questions and decoding. Out, in the benchmarks' own formats:

    <benchmark>/model_outputs.json   AlpacaEval: {"dataset", "instruction", "output", "generator"}
    <benchmark>/model_answer.jsonl   Arena-Hard: {"question_id", "answer_id", "model_id", "choices": [{"index", "turns": [{"content",
                                     "token_len"}]}]}; MT-Bench: likewise, a turn being its text

and for each answer ``finish_reason``, ``stop`` where it ended by itself. ``token_len`` counts the model's own tokens. A second turn is
asked with the model's own first answer. Each question has a seed of its own, made from its text, so that an answer depends neither on the
order nor on what else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import DictConfig

from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import Question
from stages.lib import files, models
from stages.lib.engine import generate, seed_of, start_engine
from stages.preference.data import question_tokens


@dataclass
class Asked:
    """A question on its way through its turns."""

    benchmark: str
    question: Question
    temperature: float
    answers: list[Any] = field(default_factory=list)  # vLLM's completions, a turn each
    texts: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return self.question.prompts

    def messages(self) -> list[dict[str, str]]:
        """The conversation up to and with the next prompt."""
        turns = [text for pair in zip(self.prompts, self.texts, strict=False) for text in pair] + [self.prompts[len(self.texts)]]
        return [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(turns)]


def read_questions(name: str, benchmark: DictConfig) -> list[Asked]:
    """The questions of a benchmark, each with its temperature: 0 where a beam of width one is asked for.

    Such a beam keeps the likeliest token at each step, as temperature 0 does; vLLM has taken ``use_beam_search`` out of its sampling.
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
        seed = seed_of("\0".join(one.prompts[: len(one.texts) + 1]), benchmark.seed)
        shared = {"top_p": benchmark.top_p, "max_tokens": benchmark.max_tokens, "stop_token_ids": stops}
        sampling.append(SamplingParams(temperature=one.temperature, seed=seed, **shared))
        prompts.append({"prompt_token_ids": question_tokens(one.messages(), tokenizer, empty_system=config.empty_system)})
    for one, output in zip(asked, generate(engine, prompts, sampling), strict=True):
        one.answers.append(output.outputs[0])
        one.texts.append(tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True).strip())


def longest(tokenizer: Any, asked: list[Asked], config: DictConfig) -> int:
    """An upper bound on the tokens of any conversation: all prompts, and all answers at their longest.

    An earlier answer is read again as text: a token that was a part of a character is U+FFFD there, perhaps three tokens, and beside the
    template's own text it may be cut otherwise.
    """

    def bound(one: Asked) -> int:
        earlier = [""] * (len(one.prompts) - 1)
        tokens = question_tokens(replace(one, texts=earlier).messages(), tokenizer, empty_system=config.empty_system)
        most = config.benchmarks[one.benchmark].max_tokens
        return len(tokens) + len(earlier) * (3 * most + 32) + most

    return max(map(bound, asked))


def main() -> None:
    config, folder = files.stage_config(__doc__)
    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    asked = [one for name, benchmark in config.benchmarks.items() for one in read_questions(name, benchmark)]
    engine = start_engine(config, longest(tokenizer, asked, config))
    print(f"answer: {config.model}, {len(asked)} questions", flush=True)
    while waiting := [one for one in asked if len(one.texts) < len(one.prompts)]:
        answer_turns(engine, tokenizer, waiting, config)
    for name, benchmark in config.benchmarks.items():
        done = [one for one in asked if one.benchmark == name]
        format, rows = BENCHMARKS[benchmark.protocol].format, []
        for one in done:
            lengths, reasons = [len(answer.token_ids) for answer in one.answers], [answer.finish_reason for answer in one.answers]
            rows.append(format.answer_row(one.question, one.texts, lengths, reasons, config.run, name))
        files.write_rows(folder / name / format.file, rows)
        ended = [answer.finish_reason == "stop" for one in done for answer in one.answers]
        print(f"answer: {name}, {len(ended)} answers, {sum(ended) / len(ended):.1%} ended by themselves")


if __name__ == "__main__":
    files.run(main)
