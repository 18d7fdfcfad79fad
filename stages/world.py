"""Make the mini world: knowledge, tokenizer, pretraining text, demonstrations, preference data, benchmark. All from one seed.

    python -m stages.world --config results/worlds/mini/config.yaml

In: the world's constants (conf/world). Out, beside the config, each in the public schema of its real counterpart:

    knowledge.json               what is true: {town: {attribute: value}}
    tokenizer/                   an ordinary Hugging Face tokenizer with a chat template
    corpus.jsonl                 {"text"}: what the model is pretrained on
    demonstrations-<name>.jsonl  {"prompt", "prompt_id", "messages"}, as UltraChat 200k
    preferences.jsonl            {"prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"},
                                 as UltraFeedback binarized: four writers a prompt, the annotator's best against a random other
    alpacaeval2/baseline.json    {"dataset", "instruction", "output", "generator"}, as AlpacaEval's model_outputs.json
    alpacaeval2/writers/*.json   likewise, by every other writer, the baseline's concise and verbose variants among them
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from omegaconf import DictConfig

from stages import files
from stages.mini.knowledge import ATTRIBUTES, COUNTED, make_knowledge
from stages.mini.language import Language, make_tokenizer, words
from stages.mini.oracle import Oracle
from stages.mini.raters import rate
from stages.mini.tasks import Task, draw_tasks
from stages.mini.writers import Writer, write

SHARED_TOWNS = 4  # at most as many towns in one sentence of the corpus


def corpus(language: Language, tasks: Iterable[Task], portraits: int, shared: int, rng: Random) -> Iterator[dict[str, str]]:
    """Texts to learn the world from: questions with plain answers, ``portraits`` a town (all its facts, shuffled), ``shared``
    sentences for each property that towns share."""
    knowledge = language.knowledge
    plain = Writer(0, 0, 0, 0, 0, 0)
    texts = [f"{task.prompt} {write(task, plain, language, rng)}" for task in tasks]
    for town in knowledge.towns:
        for _ in range(portraits):
            facts = [language.say(("fact", town, a, knowledge.facts[town][a]), rng) for a in rng.sample(ATTRIBUTES, len(ATTRIBUTES))]
            texts.append(" ".join(facts))
    for (attribute, value), towns in knowledge.holders.items():
        if attribute in COUNTED and len(towns) > 1:
            for _ in range(shared):
                some = rng.sample(towns, rng.randint(2, min(SHARED_TOWNS, len(towns))))
                texts.append(f"{language.say(('count', attribute, value, str(len(towns))))} {language.say_shared(some, attribute, value)}")
    rng.shuffle(texts)
    return ({"text": text} for text in texts)


def prompt_id(prompt: str) -> str:
    """The sha256 of the prompt's text, as in UltraFeedback binarized."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def demonstrations(
    tasks: Iterable[Task], writers: dict[str, Writer], shares: dict[str, float], language: Language, rng: Random
) -> Iterator[dict[str, Any]]:
    """Each task answered by one writer, drawn with the weights in ``shares``."""
    for task in tasks:
        name = rng.choices(list(shares), list(shares.values()))[0]
        messages = conversation(task.prompt, write(task, writers[name], language, rng))
        yield {"prompt": task.prompt, "prompt_id": prompt_id(task.prompt), "messages": messages, "writer": name}


def preferences(
    tasks: Iterable[Task],
    writers: dict[str, Writer],
    pool: list[str],
    candidates: int,
    annotator: dict[str, float],
    oracle: Oracle,
    rng: Random,
) -> Iterator[dict[str, Any]]:
    """``candidates`` different writers a task; the annotator's best is chosen, a random other is rejected (UltraFeedback binarized)."""
    for task in tasks:
        answers = [write(task, writers[name], oracle.language, rng) for name in rng.sample(pool, candidates)]
        scores = [rate(oracle, task.prompt, answer, rng=rng, **annotator) for answer in answers]
        best = max(range(candidates), key=scores.__getitem__)
        other = rng.choice([i for i in range(candidates) if i != best])
        yield {
            "prompt": task.prompt,
            "prompt_id": prompt_id(task.prompt),
            "chosen": conversation(task.prompt, answers[best]),
            "rejected": conversation(task.prompt, answers[other]),
            "messages": conversation(task.prompt, answers[best]),
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


def make_world(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Write the world into ``folder``; the facts for its manifest."""
    knowledge = make_knowledge(config.n_towns, config.seed)
    oracle = Oracle(knowledge)
    language = oracle.language
    writers = {name: Writer(**rates) for name, rates in config.writers.items()}
    files.write_json(folder / "knowledge.json", knowledge.facts)
    make_tokenizer(language).save_pretrained(folder / "tokenizer")

    # The benchmark's prompts are drawn first and never again: no training prompt is one of them.
    taken: set[str] = set()
    benchmark = draw_tasks(knowledge, config.alpacaeval2.n, dict(config.alpacaeval2.mix), Random(f"alpacaeval2-{config.seed}"), taken)
    outputs = {name: model_outputs(benchmark, name, writer, language, config.seed) for name, writer in writers.items()}
    shutil.rmtree(folder / "alpacaeval2", ignore_errors=True)  # no writer of an earlier world stays behind
    for name, rows in outputs.items():
        path = "baseline.json" if name == config.alpacaeval2.baseline else f"writers/{name}.json"
        files.write_json(folder / "alpacaeval2" / path, rows)

    rng = Random(f"corpus-{config.seed}")
    tasks = draw_tasks(knowledge, config.corpus.questions, dict(config.mix), rng, set(taken))
    files.write_jsonl(folder / "corpus.jsonl", corpus(language, tasks, config.corpus.portraits, config.corpus.shared, rng))

    rng = Random(f"preferences-{config.seed}")
    tasks = draw_tasks(knowledge, config.preferences.n, dict(config.mix), rng, taken)
    pairs = list(
        preferences(tasks, writers, list(config.preferences.writers), config.preferences.candidates, dict(config.annotator), oracle, rng)
    )
    files.write_jsonl(folder / "preferences.jsonl", pairs)
    for name, wanted in config.demonstrations.items():
        rng = Random(f"demonstrations-{name}-{config.seed}")
        tasks = draw_tasks(knowledge, wanted.n, dict(config.mix), rng, set(taken))
        shown = demonstrations(tasks, writers, dict(wanted.writers), language, rng)
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
