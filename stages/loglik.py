"""Log-likelihoods of a run: of its setting's pairs and of its own answers, under its policy and under the setting's start model.

    python -m stages.loglik --config results/mini_base/runs/simpo/eval/loglik.yaml --runtime token_budget=2048

Figures 2 to 5 and Table 6 of arXiv 2405.14734 are made from them: rewards, margins, average log-likelihoods, log π(y|x) - log π_ref(y|x).
In: the policy and the start model; the pairs, and the reference's log-probabilities of them; each benchmark's questions, and the run's
answers. Out, beside the stage configuration: ``loglik.parquet``, a row a text: train, heldout, then the answers in the benchmarks' order.

    split            train or heldout, the pairs; answers, the run's own
    benchmark        the answer's benchmark; null in a pair
    id               the pair's row in its file, from 0; the answer's question_id, or its row if the benchmark has no ids (AlpacaEval)
    turn             1; in MT-Bench 1 or 2
    side             chosen or rejected; answer
    length           |y| in tokens, with header and end-of-turn, as everywhere (stages/preference/data.py)
    logp             log π(y|x) under the policy, summed over these tokens
    reference_logp   the same under the start model; null if the start model reads other tokens

The prompt of an answer holds the turns before it, also the run's own first answer. Answers are not cut. An answer that the engine cut at
max_tokens has no end-of-turn, as the model wrote none. Blank answers are left out, and the last printed line counts them. An answer's text
is tokenised here; these need not be the tokens that were sampled.

Nothing is computed twice: the start model's sums of the pairs are read from the reference stage, and a run that is the start model has the
same sums under both. The models are loaded one after the other. If the tokenizer of a user's checkpoint (conf/method/checkpoint.yaml)
gives the pairs other tokens than the start model's, there is no reference_logp: a ratio of likelihoods of different tokens means nothing.
For a run that was trained here this is an error.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from omegaconf import DictConfig

from stages.benchmarks import BENCHMARKS
from stages.lib import files, models
from stages.lib.errors import UserError
from stages.preference.data import Pair, read_splits, whole_pair, with_system

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "loglik.parquet"
Messages = list[dict[str, str]]


class Answer(NamedTuple):
    """An answer of the run, the conversation before it (``asked``), and whether it ended by itself."""

    id: str
    turn: int
    asked: Messages
    text: str
    ended: bool


class Text(NamedTuple):
    """A pair or an answer as token ids, and its key in the parquet."""

    split: str
    benchmark: str | None
    id: str
    turn: int
    tokens: Pair


def read_answers(benchmark: DictConfig) -> list[Answer]:
    """The answers to a benchmark, one a turn. UserError names the file if it has other questions or lacks a key."""
    format = BENCHMARKS[benchmark.protocol].format
    questions = format.read_questions(benchmark.questions)
    answers = []
    for question, turns in zip(questions, format.read_turns(benchmark.answers, questions, benchmark.questions), strict=True):
        said: Messages = []
        for number, (prompt, turn) in enumerate(zip(question.prompts, turns, strict=True), start=1):
            asked = [*said, {"role": "user", "content": prompt}]
            answers.append(Answer(question.id, number, asked, turn.text, turn.finish_reason == "stop"))
            said = [*asked, {"role": "assistant", "content": turn.text}]
    return answers


def tokenize_answer(answer: Answer, tokenizer: PreTrainedTokenizerBase, where: str, *, empty_system: bool) -> Pair:
    """An answer as the chosen answer of a pair. The rejected answer is one token, which takes no place in a shared pack, and is dropped."""
    said = [{"role": "assistant", "content": answer.text}]
    row = {"prompt": answer.asked, "chosen": said, "rejected": said}
    pair = whole_pair(row, tokenizer, where, empty_system=empty_system)
    tokens = pair["chosen"]
    if not answer.ended:
        asked = with_system(answer.asked, tokenizer) if empty_system else answer.asked
        text = tokenizer.apply_chat_template(asked + said, tokenize=False, continue_final_message=True)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        if pair["prompt"][0] != whole[0]:  # a BOS that the template does not write
            whole = pair["prompt"][:1] + whole
        tokens = whole[len(pair["prompt"]) :]
    return {"prompt": pair["prompt"], "chosen": tokens, "rejected": tokens[:1]}


def table(texts: list[Text], policy: list[tuple[float, float]], reference: list[tuple[float, float]]) -> pd.DataFrame:
    """The parquet's rows.

    texts: the pairs and answers
    policy, reference: the sums (chosen, rejected) of each text under both models; the second sum of an answer is dropped
    """
    rows = []
    for text, own, other in zip(texts, policy, reference, strict=True):
        sides = {"answer": "chosen"} if text.split == "answers" else {"chosen": "chosen", "rejected": "rejected"}
        for (side, key), logp, reference_logp in zip(sides.items(), own, other, strict=False):
            rows.append((*text[:4], side, len(text.tokens[key]), logp, reference_logp))
    return pd.DataFrame(rows, columns=["split", "benchmark", "id", "turn", "side", "length", "logp", "reference_logp"])


def main() -> None:
    config, folder = files.stage_config(__doc__)
    from stages.preference import refcache
    from stages.preference.logps import fastest_correct_layout

    label = f"loglik: {config.setting} {config.run}"
    tokenizer = models.load_tokenizer(config.model, config.revision, config.get("chat_template"))
    tokenized = read_splits(config, tokenizer)
    splits = {split: part.pairs for split, part in tokenized.items()}
    texts = [
        Text(split, None, str(row), 1, pair) for split, part in tokenized.items() for row, pair in zip(part.rows, part.pairs, strict=True)
    ]
    answers, blank = list[Text](), 0
    for name, benchmark in config.benchmarks.items():
        for answer in read_answers(benchmark):
            if not answer.text.strip():
                blank += 1
                continue
            where = f"{benchmark.answers}, answer {answer.id}, turn {answer.turn}"
            tokens = tokenize_answer(answer, tokenizer, where, empty_system=config.empty_system)
            answers.append(Text("answers", name, answer.id, answer.turn, tokens))

    def sums(model: PreTrainedModel, of: list[Text], whose: str) -> list[tuple[float, float]]:
        layout = fastest_correct_layout(model, splits["train"], config.precision)
        pairs = [text.tokens for text in of]
        return refcache.sums(refcache.compute(model, pairs, config.runtime.token_budget, layout, config.precision, f"{label}, {whose}"))

    files.verify(config.reference)
    start = models.load_model(config.start.model, config.start.revision).to(models.device()).eval()
    try:
        cached = refcache.read(config.reference, refcache.identity(start, splits, config.precision))
    except UserError:
        if config.model.startswith("results/"):
            raise
        own = read_splits(config, models.load_tokenizer(config.start.model, config.start.revision, config.start.chat_template))
        known = {split: part.pairs for split, part in own.items()}
        refcache.read(config.reference, refcache.identity(start, known, config.precision))  # an error here has another cause
        print(f"{label}: {config.model} reads other tokens than {config.start.model}, so that there is no reference_logp")
        reference = [(math.nan, math.nan)] * len(texts + answers)
    else:
        reference = [*cached["train"], *cached["heldout"], *sums(start, answers, "start model")]
    del start  # two models of the paper's size may not fit
    policy = reference
    if (config.model, config.revision) != (config.start.model, config.start.revision):
        trained = models.load_model(config.model, config.revision).to(models.device()).eval()
        policy = sums(trained, texts + answers, "policy")

    frame = table(texts + answers, policy, reference)
    with files.atomic(folder / FILE) as partial:
        frame.to_parquet(partial, index=False)
    liked = frame[(frame["split"] == "heldout") & (frame["side"] == "chosen")]
    average = (liked["logp"] / liked["length"]).mean()
    print(f"{label}: {average:.4f} a token on held-out chosen answers; {len(answers):,} answers of its own, {blank} blank ones left out")


if __name__ == "__main__":
    files.run(main)
