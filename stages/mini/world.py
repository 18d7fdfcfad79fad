"""Make the mini world: knowledge, tokenizer, pretraining text, demonstrations, preference data, benchmarks. All from one seed.

    python -m stages.mini.world --config results/worlds/mini/config.yaml

In: the world's constants (conf/world). Out, beside the config, each in the public schema of its real counterpart:

    knowledge.json               the facts: {town: {attribute: value}}
    tokenizer/                   an ordinary Hugging Face tokenizer with a chat template
    corpus.jsonl                 {"text"}: the text for pretraining
    demonstrations-<name>.jsonl  {"prompt", "prompt_id", "messages"}, as UltraChat 200k
    preferences.jsonl            {"prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"},
                                 as UltraFeedback binarized: four writers a prompt, the annotator's best against a random other
    development/baseline.json    {"dataset", "instruction", "output", "generator"}: the questions that hyperparameters are chosen on
    alpacaeval2/baseline.json    {"dataset", "instruction", "output", "generator"}, as AlpacaEval's model_outputs.json
    alpacaeval2/writers/*.json   the same by every other writer, with the baseline's concise and verbose variants
    arena_hard/                  question.jsonl, baseline.jsonl, judge_config.yaml, in Arena-Hard v0.1's formats
    mt_bench/                    question.jsonl, reference_answer.jsonl, judge_prompts.jsonl, in FastChat's formats

A share ``follow_ups`` of the training conversations has a second turn.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stages.benchmarks.mt_bench import NEEDS_REFERENCE
from stages.lib import files
from stages.mini.knowledge import ATTRIBUTES, make_knowledge
from stages.mini.language import Language, make_tokenizer, words
from stages.mini.oracle import Oracle
from stages.mini.prompts import ARENA_HARD, MT_BENCH
from stages.mini.raters import rate
from stages.mini.tasks import Task, TaskReader, ask_more, draw_tasks
from stages.mini.writers import Writer, write

PLAIN = Writer(0, 0, 0, 0, 0, 0)
FIRST_QUESTION = 81  # MT-Bench's ids run from 81 to 160


def go_on(task: Task, share: float, answer: Callable[[Task], str], language: Language, rng: Random) -> Task:
    """``task``; or, in a ``share`` of calls, a second turn that follows ``task`` and ``answer(task)``."""
    if rng.random() < share:
        return TaskReader(language)(task.prompt, answer(task), ask_more(task, language, rng))
    return task


def corpus(language: Language, tasks: Iterable[Task], portraits: int, follow_ups: float, rng: Random) -> Iterator[dict[str, str]]:
    """The texts for pretraining, shuffled: the tasks with plain answers, and the facts.

    portraits: texts a town, each with all its facts in their order.
    follow_ups: the share of tasks with a second turn.
    """
    knowledge = language.knowledge
    texts = []
    for first in tasks:
        task = go_on(first, follow_ups, lambda task: write(task, PLAIN, language, rng), language, rng)
        texts.append(" ".join([*task.turns, write(task, PLAIN, language, rng)]))
    for town in knowledge.towns:
        for _ in range(portraits):
            texts.append(" ".join(language.say(("fact", town, a, knowledge.facts[town][a]), rng) for a in ATTRIBUTES))
    rng.shuffle(texts)
    return ({"text": text} for text in texts)


def prompt_id(task: Task) -> str:
    """The sha256 of the prompt's text, as in UltraFeedback binarized; with two turns, of the whole conversation."""
    return hashlib.sha256("\0".join(task.turns).encode()).hexdigest()


def conversation(task: Task, answer: str) -> list[dict[str, str]]:
    roles = ("user", "assistant", "user", "assistant")
    return [{"role": role, "content": text} for role, text in zip(roles, (*task.turns, answer), strict=False)]


def demonstrations(
    tasks: Iterable[Task], writers: dict[str, Writer], shares: dict[str, float], follow_ups: float, language: Language, rng: Random
) -> Iterator[dict[str, Any]]:
    """A conversation a task, each by one writer.

    shares: the weight of each writer.
    follow_ups: the share of conversations with a second turn.
    """
    for first in tasks:
        name = rng.choices(list(shares), list(shares.values()))[0]
        author = partial(write, writer=writers[name], language=language, rng=rng)
        task = go_on(first, follow_ups, author, language, rng)
        yield {"prompt": first.prompt, "prompt_id": prompt_id(task), "messages": conversation(task, author(task)), "writer": name}


def preferences(
    tasks: Iterable[Task],
    writers: dict[str, Writer],
    pool: list[str],
    candidates: int,
    annotator: dict[str, float],
    follow_ups: float,
    oracle: Oracle,
    rng: Random,
) -> Iterator[dict[str, Any]]:
    """A preference a task: the annotator's best answer against a random other, as in UltraFeedback binarized.

    pool: the writers' names; ``candidates`` of them answer each task.
    annotator: its temperament, as ``rate`` takes it.
    follow_ups: the share of tasks with a second turn.
    """
    for first in tasks:
        opening = partial(write, writer=writers[rng.choice(pool)], language=oracle.language, rng=rng)
        task = go_on(first, follow_ups, opening, oracle.language, rng)
        answers = [write(task, writers[name], oracle.language, rng) for name in rng.sample(pool, candidates)]
        scores = [rate(oracle, task.turns, answer, rng=rng, **annotator) for answer in answers]
        best = max(range(candidates), key=scores.__getitem__)
        other = rng.choice([i for i in range(candidates) if i != best])
        yield {
            "prompt": task.prompt,
            "prompt_id": prompt_id(task),
            "chosen": conversation(task, answers[best]),
            "rejected": conversation(task, answers[other]),
            "messages": conversation(task, answers[best]),
            "score_chosen": round(scores[best], 6),
            "score_rejected": round(scores[other], 6),
        }


def model_outputs(tasks: list[Task], name: str, writer: Writer, language: Language, seed: int) -> list[dict[str, str]]:
    """One writer's answers to a benchmark, in AlpacaEval's format."""
    rng = Random(f"benchmark-{seed}-{name}")
    return [
        {"dataset": task.kind, "instruction": task.prompt, "output": write(task, writer, language, rng), "generator": name}
        for task in tasks
    ]


def write_arena_hard(folder: Path, config: DictConfig, writers: dict[str, Writer], language: Language, seed: int, taken: set[str]) -> None:
    """Arena-Hard's files: questions, the baseline's answers, the judge's prompt."""
    tasks = draw_tasks(language, config.n, dict(config.mix), Random(f"arena_hard-{seed}"), taken)
    rng = Random(f"arena_hard-{seed}-{config.baseline}")
    questions, answers = [], []
    for task in tasks:
        question_id = hashlib.sha256(task.prompt.encode()).hexdigest()[:32]
        about = {"category": "arena-hard-v0.1", "cluster": task.kind}
        questions.append({"question_id": question_id, **about, "turns": [{"content": task.prompt}]})
        text = write(task, writers[config.baseline], language, rng)
        answers.append(model_answer(question_id, config.baseline, [{"content": text, "token_len": len(words(text))}]))
    files.write_jsonl(folder / "question.jsonl", questions)
    files.write_jsonl(folder / "baseline.jsonl", answers)
    files.write_text(folder / "judge_config.yaml", OmegaConf.to_yaml(OmegaConf.create(ARENA_HARD)))


def write_mt_bench(folder: Path, config: DictConfig, language: Language, seed: int, taken: set[str]) -> None:
    """MT-Bench's files: questions of two turns, ``config.each`` a category, reference answers, the judge's prompts."""
    rng = Random(f"mt_bench-{seed}")
    questions: list[dict[str, Any]] = []
    references = []
    for category, kind in config.categories.items():
        for first, prompt in islice(_two_turns(kind, language, rng, taken), config.each):
            question_id = FIRST_QUESTION + len(questions)
            question = {"question_id": question_id, "category": category, "turns": [first.prompt, prompt]}
            if category in NEEDS_REFERENCE:
                answer = write(first, PLAIN, language, rng)
                reference = [answer, write(TaskReader(language)(first.prompt, answer, prompt), PLAIN, language, rng)]
                references.append(model_answer(question_id, "reference", reference))
                question["reference"] = reference
            questions.append(question)
    files.write_jsonl(folder / "question.jsonl", questions)
    files.write_jsonl(folder / "reference_answer.jsonl", references)
    files.write_jsonl(folder / "judge_prompts.jsonl", MT_BENCH)


def _two_turns(kind: str, language: Language, rng: Random, taken: set[str]) -> Iterator[tuple[Task, str]]:
    while True:
        first = draw_tasks(language, 1, {kind: 1.0}, rng, taken)[0]
        yield first, ask_more(first, language, rng)


def model_answer(question_id: str | int, author: str, turns: list[Any]) -> dict[str, Any]:
    """A row of ``model_answer``, as Arena-Hard and FastChat write it."""
    answer_id = hashlib.sha256(f"{author}-{question_id}".encode()).hexdigest()[:22]
    return {"question_id": question_id, "answer_id": answer_id, "model_id": author, "choices": [{"index": 0, "turns": turns}]}


def make_world(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Write the world into ``folder``; the facts for its manifest."""
    knowledge = make_knowledge(config.n_towns, config.seed)
    oracle = Oracle(knowledge)
    language = oracle.language
    writers = {name: Writer(**rates) for name, rates in config.writers.items()}
    for made in ("development", "alpacaeval2", "arena_hard", "mt_bench"):  # remove an earlier world's files
        shutil.rmtree(folder / made, ignore_errors=True)
    files.write_json(folder / "knowledge.json", knowledge.facts)
    make_tokenizer(language).save_pretrained(folder / "tokenizer")

    # The benchmarks' prompts are drawn first, so that no training prompt is one of them.
    taken: set[str] = set()
    benchmark = draw_tasks(language, config.alpacaeval2.n, dict(config.alpacaeval2.mix), Random(f"alpacaeval2-{config.seed}"), taken)
    outputs = {name: model_outputs(benchmark, name, writer, language, config.seed) for name, writer in writers.items()}
    for name, rows in outputs.items():
        path = "baseline.json" if name == config.alpacaeval2.baseline else f"writers/{name}.json"
        files.write_json(folder / "alpacaeval2" / path, rows)
    development = draw_tasks(language, config.development.n, dict(config.development.mix), Random(f"development-{config.seed}"), taken)
    name = config.development.baseline
    files.write_json(folder / "development/baseline.json", model_outputs(development, name, writers[name], language, config.seed))
    write_mt_bench(folder / "mt_bench", config.mt_bench, language, config.seed, taken)
    write_arena_hard(folder / "arena_hard", config.arena_hard, writers, language, config.seed, taken)

    rng = Random(f"corpus-{config.seed}")
    tasks = draw_tasks(language, config.corpus.questions, dict(config.mix), rng, set(taken))
    texts = corpus(language, tasks, config.corpus.portraits, config.follow_ups, rng)
    files.write_jsonl(folder / "corpus.jsonl", texts)

    rng = Random(f"preferences-{config.seed}")
    tasks = draw_tasks(language, config.preferences.n, dict(config.mix), rng, taken)
    pool, annotator = list(config.preferences.writers), dict(config.annotator)
    pairs = list(preferences(tasks, writers, pool, config.preferences.candidates, annotator, config.follow_ups, oracle, rng))
    files.write_jsonl(folder / "preferences.jsonl", pairs)
    for name, wanted in config.demonstrations.items():
        rng = Random(f"demonstrations-{name}-{config.seed}")
        tasks = draw_tasks(language, wanted.n, dict(config.mix), rng, set(taken))
        shown = demonstrations(tasks, writers, dict(wanted.writers), config.follow_ups, language, rng)
        files.write_jsonl(folder / f"demonstrations-{name}.jsonl", shown)

    lengths = [[len(words(pair[side][-1]["content"])) for pair in pairs] for side in ("chosen", "rejected")]
    scores = {name: fmean(oracle.score(row["instruction"], row["output"]) for row in rows) for name, rows in outputs.items()}
    return {
        "vocabulary": len(language.vocabulary),
        "oracle_mean_on_alpacaeval2": {name: round(score, 3) for name, score in scores.items()},
        "preferences": {"mean_words_chosen": round(fmean(lengths[0]), 2), "mean_words_rejected": round(fmean(lengths[1]), 2)},
    }


def main() -> None:
    config, folder = files.stage_config(__doc__)
    facts = make_world(config, folder)
    files.write_manifest(folder, config, **facts)
    print(f"world: {facts}")


if __name__ == "__main__":
    files.run(main)
