"""Answer every benchmark's questions with vLLM, one engine for all of them.

    python -m stages.answer --config results/mini_base/runs/simpo/eval/answer.yaml

In: a model (folder or hub id), the benchmarks' questions and this setting's decoding. Out: <benchmark>/model_outputs.json in
AlpacaEval's format. Each question has a seed of its own, made from its text, so that an answer depends neither on the order
nor on what else is in the batch.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from stages import files, models
from stages.engine import seed_of, start_engine


def main() -> None:
    config, folder = files.stage_config(__doc__)
    tokenizer = models.load_tokenizer(config.model, config.revision)
    asked: list[tuple[str, DictConfig, dict[str, Any], list[int]]] = []
    for name, benchmark in config.benchmarks.items():
        questions = files.read_json(benchmark.questions)
        if not questions:
            raise ValueError(f"{benchmark.questions} holds no questions; {files.again(benchmark.questions)}")
        for question in questions:
            messages = [{"role": "user", "content": question["instruction"]}]
            tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
            asked.append((name, benchmark, question, tokens))
    longest = max(len(tokens) + benchmark.max_tokens for _, benchmark, _, tokens in asked)

    engine = start_engine(config, longest)
    from vllm import SamplingParams

    print(f"answer: {config.model}, {len(asked)} questions", flush=True)
    sampling = [
        SamplingParams(temperature=b.temperature, top_p=b.top_p, max_tokens=b.max_tokens, seed=seed_of(question["instruction"], b.seed))
        for _, b, question, _ in asked
    ]
    outputs = engine.generate([{"prompt_token_ids": tokens} for *_, tokens in asked], sampling)

    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in config.benchmarks}
    for (name, _, question, _), output in zip(asked, outputs, strict=True):
        completion = output.outputs[0]
        text = tokenizer.decode(completion.token_ids, skip_special_tokens=True).strip()
        row = {"dataset": question.get("dataset", name), "instruction": question["instruction"], "output": text}
        answers[name].append(
            row | {"generator": config.run, "tokens": len(completion.token_ids), "finish_reason": completion.finish_reason}
        )
    for name, rows in answers.items():
        files.write_json(folder / name / "model_outputs.json", rows)
        ended = sum(row["finish_reason"] == "stop" for row in rows) / len(rows)
        print(f"answer: {name}, {len(rows)} answers, {ended:.1%} ended by themselves")


if __name__ == "__main__":
    files.run(main)
