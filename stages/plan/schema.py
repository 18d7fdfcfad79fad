"""Every key of conf/: its type, the values it may have, and what it means. All of them, in the order of conf/:

    python -m stages.plan.schema
    python -m stages.plan.schema | grep learning_rate

A dataclass is a part of the configuration, a field of it a key: ``key`` gives the meaning and the range. stages/plan/check.py and
stages/plan/knobs.py hold values to it. Hyperparameters are parameters of the functions in stages/preference/objectives.py.
"""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from stages.lib.errors import UserError
from stages.plan.values import nearest, shown

OBJECTIVES = Path(__file__).resolve().parents[1] / "preference/objectives.py"


class Range(NamedTuple):
    """The numbers from ``low`` to ``high``, with ``low`` itself if ``inclusive``; only multiples of ``multiple`` unless it is 0."""

    low: float
    inclusive: bool = True
    high: float = math.inf
    multiple: int = 0

    @property
    def expected(self) -> str:
        """The end of an error's sentence."""
        high = f" and at most {self.high:g}" if self.high < math.inf else ""
        multiple = f" and a multiple of {self.multiple}" if self.multiple else ""
        return f"{'at least' if self.inclusive else 'more than'} {self.low:g}{high}{multiple}"

    def holds(self, value: float) -> bool:
        """Whether ``value`` is one of the numbers."""
        is_within = self.low <= value <= self.high and (self.inclusive or value != self.low)
        return is_within and not (self.multiple and value % self.multiple)


def key(words: str, default: Any = MISSING, *, range_: Range | None = None, choices: tuple[Any, ...] = ()) -> Any:
    """A key of the configuration.

    words: its meaning, with its unit
    default: its value if conf/ does not give it; a class stands for a new object of it; without a default the key is required
    range_: the numbers that it may have
    choices: all values that it may have; only for the reader
    """
    metadata = {"words": words, "range": range_, "choices": choices}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


POSITIVE, COUNT, SHARE, WEIGHT = Range(0, False, 1e4), Range(0, False, 1e9), Range(0, True, 1), Range(0, True, 1e4)
RATE, EPOCHS, BATCH, TOKENS = Range(0, False, 1), Range(0, False, 1000), Range(0, False, 1e6), Range(0, False, 1e7)
SEED, DOLLARS, ONE_ON = Range(0, True, 2**32 - 1), Range(0, True, 1e6), Range(1)
SEARCHES, REFERENCES = ("sample", "width_1_beam"), (None, "cached", "live")
DTYPES, REFUSABLE = (None, "bfloat16", "float16", "float32"), ("temperature", "top_p", "logprobs", "tools")


@dataclass
class Scale:
    """What the tables and figures are made of."""

    name: str = key("the scale's name, that of its file")
    settings: list[str] = key("the settings: files of conf/setting")
    methods: list[str] = key("the methods of Table 4: files of conf/method")
    ablations: list[str] = key("the methods of Table 5")
    seeds: list[int] = key("the seeds of each training in the tables; several give means and intervals", range_=SEED)
    chains: list[int] = key(
        "seeds of further chains, which `snakemake paper` makes: pretraining, fine-tuning, pairs and trainings once more", list, range_=SEED
    )
    chained: list[str] = key("the methods of each chain", list)
    sweeps: list[str] = key("the sweeps of the figures and the scorecard: conf/sweep/<scale>/<name>.yaml", list)


@dataclass
class Corpus:
    questions: int = key("questions with plain answers")
    portraits: int = key("portraits of each town")


@dataclass
class Writer:
    """An author of the mini world (stages/mini/writers.py)."""

    wrong: float = key("share of claims that are false")
    curt: float = key("share of answers that have only the first half of what was asked for")
    wander: float = key("chance of a further claim that nobody asked for, after the answer and after each further claim")
    repeat: float = key("chance of a repetition after each sentence")
    polite: float = key("chance of a polite phrase at the answer's opening, and at its end")
    broken: float = key("share of answers that break off")


@dataclass
class Demonstrations:
    n: int = key("demonstrations", range_=COUNT)
    writers: dict[str, float] = key("how often each writer writes one, as weights")


@dataclass
class WorldPreferences:
    n: int = key("preference pairs", range_=COUNT)
    candidates: int = key("answers to a prompt, of which the annotator picks the pair")
    writers: list[str] = key("who writes the answers")


@dataclass
class Annotator:
    length_bias: float = key("what a twice longer answer is worth, in points of the oracle's scale")
    noise: float = key("standard deviation of the annotator's error, in points of the oracle's scale", range_=WEIGHT)


@dataclass
class WorldBenchmark:
    n: int = key("instructions", range_=COUNT)
    baseline: str = key("the writer whose answers the judge compares with")
    concise: str = key("the writer of the baseline's concise variant, for the length-controlled fit")
    verbose: str = key("the writer of its verbose variant")
    mix: dict[str, float] = key("how often each kind of task is asked, as weights")


@dataclass
class WorldQuestions:
    n: int = key("questions", range_=COUNT)
    baseline: str = key("the writer whose answers the judge compares with")
    mix: dict[str, float] = key("how often each kind of task is asked, as weights")


@dataclass
class WorldTurns:
    each: int = key("questions of a category")
    categories: dict[str, str] = key("MT-Bench's categories, and the kind of task in each")


@dataclass
class World:
    """The mini world's constants: stages/mini, stages/mini/world.py."""

    name: str = key("the world's name, that of its file and its folder in results/worlds")
    seed: int = key("seed of all that is drawn: towns, texts, preferences, questions", range_=SEED)
    n_towns: int = key("invented towns")
    mix: dict[str, float] = key("how often each kind of task is asked, as weights (stages/mini/tasks.py)")
    follow_ups: float = key("share of conversations that go on to a second turn, in all that a model learns from", range_=SHARE)
    writers: dict[str, Writer] = key("the authors, from best to worst, each with its own rates of error")
    corpus: Corpus = key("what a model is pretrained on")
    demonstrations: dict[str, Demonstrations] = key("what supervised fine-tuning shows")
    preferences: WorldPreferences = key("the off-policy preference data")
    annotator: Annotator = key("who prefers one answer to another")
    development: WorldQuestions = key("the questions that hyperparameters are chosen on, in AlpacaEval's format")
    alpacaeval2: WorldBenchmark = key("AlpacaEval's questions of this world")
    arena_hard: WorldQuestions = key("Arena-Hard's questions of this world")
    mt_bench: WorldTurns = key("MT-Bench's questions of this world")


@dataclass
class Architecture:
    """Keys of transformers.LlamaConfig."""

    hidden_size: int = key("width of the hidden states")
    intermediate_size: int = key("width of the MLP's inner layer")
    num_hidden_layers: int = key("decoder layers")
    num_attention_heads: int = key("attention heads of a layer")
    num_key_value_heads: int = key("heads of keys and values, which attention heads share")
    max_position_embeddings: int = key("tokens of the longest text")
    tie_word_embeddings: bool = key("whether the output layer is the input embedding")


@dataclass
class Supervised:
    """How SFT, pretraining and a reward model train: stages/lib/models.py:supervise."""

    learning_rate: float = key("highest learning rate of AdamW", range_=RATE)
    epochs: int = key("passes over the data", range_=EPOCHS)
    batch_size: int = key("rows of an optimizer step", range_=BATCH)
    max_length: int = key("tokens of a row at most", range_=TOKENS)
    scheduler: str = key("course of the learning rate after the warm-up, by Transformers' name")
    warmup_ratio: float = key("share of the steps in which the learning rate rises", range_=SHARE)
    weight_decay: float = key("AdamW's weight decay")
    max_grad_norm: float = key("norm to which larger gradients are clipped")
    precision: str = key("fp32; bf16 for autocast to bfloat16 over fp32 weights")


@dataclass
class Pretrain:
    tokenizer: str = key("folder of the tokenizer")
    data: str = key("the corpus: a JSON-lines file of texts")
    architecture: Architecture = key("the model's shape", Architecture)
    training: Supervised = key("how it trains", Supervised)


@dataclass
class Data:
    """Rows: a JSON-lines file, or a data set on the hub with its revision and split (stages/lib/records.py)."""

    data: str = key("a JSON-lines file, or the id of a data set on the hub")
    revision: str | None = key("of a hub id: a commit, or main", None)
    split: str | None = key("of a hub id: its split", None)


@dataclass
class Sft:
    model: str = key("the model to fine-tune: a folder or a hub id")
    revision: str | None = key("of a hub id: a commit, or main")
    chat_template: str | None = key("chat template in place of the tokenizer's own", None)
    data: Data = key("the demonstrations", Data)
    training: Supervised = key("how it trains", Supervised)


@dataclass
class Generate:
    """On-policy samples: stages/generate.py."""

    prompts: Data = key("the prompts that the start model answers", Data)
    n: int = key("samples of a prompt", range_=COUNT)
    temperature: float = key("sampling temperature; 0: greedy", range_=Range(0, True, 10))
    top_p: float = key("probability mass that is sampled from", range_=RATE)
    max_tokens: int = key("tokens of a sample at most", range_=BATCH)
    seed: int = key("seed of the samples", range_=SEED)


@dataclass
class Reward:
    """A reward model trained here: stages/reward.py."""

    model: str = key("the model that it starts from: a folder or a hub id")
    revision: str | None = key("of a hub id: a commit, or main")
    data: Data = key("the preferences that it learns", Data)
    heldout: int = key("pairs held out of the training, by whole prompts", range_=COUNT)
    training: Supervised = key("how it trains", Supervised)


@dataclass
class Rater:
    """The annotator of a mini world as a rater of samples: stages/mini/raters.py."""

    world: str = key("the folder of the world")
    length_bias: float = key("what a twice longer answer is worth, in points of the oracle's scale")
    noise: float = key("scale of the rater's error, in points of the oracle's scale", range_=WEIGHT)
    seed: int = key("seed of the error", range_=SEED)


@dataclass
class Annotate:
    """Who scores the samples, a reward model or a rater: stages/annotate.py."""

    model: str | None = key("the reward model: a folder or a hub id; null where there is a rater", None)
    revision: str | None = key("of a hub id: a commit, or main", None)
    max_length: int | None = key("tokens of a conversation that the reward model scores at most", None, range_=TOKENS)
    rater: Rater | None = key("the mini world's rater; null where there is a reward model", None)


@dataclass
class Pairs:
    """The pairs, and how much of them is held out: a number of rows, or the rows of another split."""

    train: Data = key("the preference pairs", Data)
    heldout: int | None = key("pairs held out, by whole prompts; null where heldout_split has them", range_=COUNT)
    heldout_split: str | None = key("the split that is held out", None)
    max_length: int = key("tokens of a prompt with an answer at most; longer ones are cut", range_=TOKENS)
    max_prompt_length: int = key("tokens of the prompt that stay where a pair is too long", range_=TOKENS)
    empty_system: bool = key("whether a conversation without a system turn gets an empty one")


@dataclass
class PreferenceTraining:
    """What all preference methods of a setting share: stages/preference/trainer.py."""

    epochs: int = key("passes over the pairs", range_=EPOCHS)
    batch_size: int = key("pairs of an optimizer step", range_=BATCH)
    scheduler: str = key("course of the learning rate after the warm-up, by Transformers' name")
    warmup_ratio: float = key("share of the steps in which the learning rate rises", range_=SHARE)
    weight_decay: float = key("AdamW's weight decay")
    max_grad_norm: float = key("norm to which larger gradients are clipped")
    adam_beta1: float = key("decay of AdamW's mean of gradients")
    adam_beta2: float = key("decay of AdamW's mean of squared gradients")
    adam_epsilon: float = key("what AdamW adds to its divisor")
    precision: str = key("fp32; bf16 for autocast to bfloat16 over fp32 weights")


@dataclass
class Answering:
    """How a benchmark's questions are answered."""

    search: str = key("sample at the temperatures, or search greedily and without regard to them", "sample", choices=SEARCHES)
    temperature: float = key("sampling temperature of a category that temperatures does not name", range_=Range(0, True, 10))
    top_p: float = key("probability mass that is sampled from", range_=RATE)
    max_tokens: int = key("tokens of an answer at most", range_=BATCH)
    seed: int = key("seed of the answers", range_=SEED)
    temperatures: dict[str, float] = key("sampling temperature by the question's category", dict)


@dataclass
class Start:
    """What the preference methods start from."""

    model: str = key("the start model: a folder or a hub id")
    revision: str | None = key("of a hub id: a commit, or main")
    chat_template: str | None = key("chat template in place of the tokenizer's own; models trained from it keep it", None)


@dataclass
class Setting:
    """A start model, its preference data, and the values chosen for each method. A part that is null is not made here."""

    name: str = key("the setting's name, that of its file and its folder in results/")
    pretrain: Pretrain | None = key("how the base model is pretrained here; null: it is not")
    sft: Sft | None = key("how the start model is fine-tuned here; null: it is not")
    start: Start = key("what the preference methods start from", Start)
    generate: Generate | None = key("how on-policy answers are sampled; null: there are none")
    reward: Reward | None = key("the reward model that is trained here; null: none is")
    annotate: Annotate | None = key("who scores the samples; null: nothing is scored")
    pairs: Pairs = key("the preference pairs", Pairs)
    training: PreferenceTraining = key("what all preference methods share", PreferenceTraining)
    decoding: dict[str, Answering] = key("how questions are answered, by benchmark, where its protocol leaves that to the model")
    stop_token_ids: list[int] = key("token ids that end an answer, besides the tokenizer's own", list)
    tuned: dict[str, dict[str, Any]] = key("the values chosen for each method: its keys that differ between settings")


@dataclass
class Method:
    """A method: its objective and how it is trained. Its further keys are the objective's hyperparameters.

    Without an objective nothing is trained: the setting's start model is evaluated, or ``model`` in its place. A run may vary every
    further key, learning_rate, epochs and batch_size; what it varies is part of its name.
    """

    name: str = key("the method's name, that of its file and its runs")
    objective: str | None = key("a function of stages/preference/objectives.py; null: nothing is trained")
    reference: str | None = key("the reference's log-probabilities: none, made once a setting, or in training", None, choices=REFERENCES)
    mismatched: bool = key("whether questions with the answers of others are scored too, for KTO's estimate of the KL divergence", False)
    model: str | None = key("without an objective: the model to evaluate, a folder or a hub id; null: the start model", None)
    revision: str | None = key("of a hub id in model: a commit, or main", None)
    chat_template: str | None = key("chat template in place of the tokenizer's own, of model", None)
    learning_rate: float | None = key("highest learning rate of AdamW", None, range_=RATE)
    epochs: int | None = key("passes over the pairs", None, range_=EPOCHS)
    batch_size: int | None = key("pairs of an optimizer step", None, range_=BATCH)


@dataclass
class Hyperparameters:
    """Meaning and range of the shipped objectives' hyperparameters; their types stand in objectives.py."""

    beta: float = key("β: scale of the implicit reward; with a reference, the strength of the KL constraint", range_=POSITIVE)
    gamma: float = key("γ: target reward margin, absolute as in the paper", range_=WEIGHT)
    length_normalization: bool = key("whether |y| divides the sum of an answer's log-probabilities")
    label_smoothing: float = key("ε: share of the labels that are taken for flipped", range_=Range(0, True, 0.5))
    loss_type: str = key("-log σ(h) of the margin h, or max(0, 1 - h)")
    sft_weight: float = key("λ: weight of the chosen answers' cross-entropy, a mean over all their tokens", range_=WEIGHT)
    nll_weight: float = key("λ: weight of the chosen answer's cross-entropy", range_=WEIGHT)
    nll: str = key("what the chosen answer's cross-entropy is divided by: nothing, its length, or the batch's mean length")
    odds_weight: float = key("λ: weight of the odds ratio beside the cross-entropy", range_=WEIGHT)
    chosen_weight: float = key("λ_w: weight of the desirable answers", range_=WEIGHT)
    rejected_weight: float = key("λ_l: weight of the undesirable answers", range_=WEIGHT)
    delta: float = key("δ: margin between the answers' log-probabilities", range_=WEIGHT)
    tau: float = key("τ: strength of the KL constraint; the margin is drawn to 1/(2τ)", range_=POSITIVE)
    alpha: float = key("α: what a token costs, in units of the reward", range_=WEIGHT)


@dataclass
class Asset:
    """A file that somebody else published: at an address, or in an installed Python package."""

    sha256: str = key("the file's SHA-256; any other file is refused")
    licence: str = key("the file's licence")
    url: str | None = key("the file's address", None)
    package: str | None = key("the installed Python package that has the file", None)
    path: str | None = key("the file's path in the package", None)


@dataclass
class Benchmark:
    """Questions, and how answers to them are judged. The files that a benchmark does not read are null."""

    protocol: str = key("a benchmark of stages/benchmarks")
    version: str = key("the state of the protocol, as stages/benchmarks has it")
    answers: str = key("the benchmark whose answers are judged: itself, or another one")
    questions: str | None = key("file of the questions", None)
    baseline: str | None = key("file of the answers that the judge compares with", None)
    references: str | None = key("file of the reference answers that the judge is shown", None)
    template: str | None = key("file of the judge's prompts", None)
    gamed: str | None = key("file with the rows of the length-controlled fit (AlpacaEval's df_gamed.csv)", None)
    world: str | None = key("folder of the mini world, for its oracle", None)
    swap_seed: int | None = key("seed that decides which answer the judge is shown first", None)
    answering: Answering | None = key("how the questions are answered; null: they are not", None)
    decoding: dict[str, Any] = key("how the judge is asked, besides model and messages: keys of the chat request", dict)
    assets: dict[str, Asset] = key("published files that are fetched and checked, by file name", dict)


@dataclass
class Development:
    """What hyperparameters are chosen on: questions that no benchmark and no training has, judged by AlpacaEval's protocol."""

    questions: str = key("file of the questions, in AlpacaEval's format")
    baseline: str = key("file of the answers that the judge compares with, in AlpacaEval's format")


@dataclass
class Server:
    """A judge that runs here, for as long as the judge stage does: a module, and its temperament (stages/mini/raters.py)."""

    module: str = key("the server's Python module")
    world: str = key("folder of the mini world that it judges by")
    sharpness: float = key("log-odds for a point of the oracle's scale")
    length_bias: float = key("what a twice longer answer is worth, in points of the oracle's scale")
    position_bias: float = key("log-odds in favour of what is shown first")
    noise: float = key("standard deviation of its error, in log-odds", range_=WEIGHT)
    tie: float = key("log-odds within which it calls a tie")
    strong: float = key("log-odds from which on it calls an answer much better")
    silence: float = key("share of comparisons that it ends without a verdict", range_=SHARE)
    seed: int = key("seed of its errors", range_=SEED)


@dataclass
class Price:
    input: float = key("dollars for a million tokens that the judge reads", range_=DOLLARS)
    output: float = key("dollars for a million tokens that it writes", range_=DOLLARS)


@dataclass
class Judge:
    """Who judges: an endpoint, or a server that the judge stage starts."""

    name: str = key("the judge's name, in scores and in results/controls")
    model: str = key("the model, as its endpoint calls it")
    base_url: str | None = key("address of an OpenAI-compatible endpoint; null: that of server")
    api_key_env: str | None = key("environment variable that holds the endpoint's key; null: it asks for none")
    server: Server | None = key("a judge that runs here; null: base_url has one")
    price: Price = key("what a call costs", Price)
    budget: float | None = key("dollars for all that the cache's file pays for; null: no limit", range_=DOLLARS)
    cache: bool = key("whether responses are kept in results/judgments.sqlite, and asked for once")
    retired: str | None = key("day on which its provider switches the model off, as 2026-03-26; null: none is known", None)
    revision: str | None = key("commit of the weights that the server has; null: not known", None)
    dtype: str | None = key("type of the numbers in which the server computes; null: not known", None, choices=DTYPES)
    reasoning_parser: str | None = key("vLLM's --reasoning-parser, by which the server keeps thoughts out of the text; null: none", None)
    chat_template_kwargs: dict[str, Any] = key("switches of the model's chat template, sent with each request", dict)
    max_completion_tokens: bool = key("whether the endpoint takes max_completion_tokens in place of max_tokens", False)
    refuses: list[str] = key(
        "keys of a request that the endpoint refuses: planning stops if a benchmark needs one", list, choices=REFUSABLE
    )


@dataclass
class Collapse:
    """What a training that went wrong shows, in its answers to AlpacaEval's questions."""

    ended: float = key("share of answers that end by themselves, below which it collapsed", range_=SHARE)
    repeated_3grams: float = key("share of 3-grams that came before in the same answer, above which it collapsed", range_=SHARE)


@dataclass
class Analysis:
    """How analysis/ judges the paper's claims. No measured number depends on it."""

    level: float = key("confidence level of every interval", range_=RATE)
    resamples: int = key("resamples of the bootstrap", range_=BATCH)
    seed: int = key("seed of the bootstrap", range_=SEED)
    about: float = key('how far "about" reaches: "about half" is 0.5, more or less this', range_=SHARE)
    collapse: Collapse = key("when a training went wrong", Collapse)


@dataclass
class MicroBatches:
    """The knobs of supervised training: stages/lib/models.py, stages/lib/checkpoints.py."""

    micro_batch: int = key("rows of a forward pass", range_=ONE_ON)
    save_steps: int | None = key("optimizer steps between two checkpoints", None, range_=ONE_ON)


@dataclass
class Packs:
    """The knobs of a forward pass over all texts: stages/preference/refcache.py."""

    token_budget: int = key("tokens of a pack", range_=ONE_ON)


@dataclass
class PackedTraining:
    """The knobs of a preference method's training: stages/train.py."""

    token_budget: int = key("tokens of a pack", range_=ONE_ON)
    gradient_checkpointing: int | None = key("1: compute activations again in the backward pass", None, range_=Range(0, True, 1))
    processes: int | None = key("one a GPU", None, range_=Range(1, True, 4096))
    save_steps: int | None = key("optimizer steps between two checkpoints", None, range_=ONE_ON)


@dataclass
class Calls:
    """The knobs of the calls to a judge: stages/judging/client.py."""

    concurrency: int | None = key("calls at a time", None, range_=ONE_ON)
    timeout: float | None = key("seconds a try", None, range_=Range(1e-3))
    max_retries: int | None = key("further tries of a call", None, range_=Range(0))
    rpm: int | None = key("calls a minute; 0: as many as the endpoint takes", None, range_=Range(0))
    budget: float | None = key("dollars; planning takes it from judge.budget", None, range_=Range(0))


@dataclass
class Efficiency:
    """The options of ``python -m perf.train_step --claim``."""

    steps: int | None = key("timed steps a round", None, range_=ONE_ON)
    warmup: int | None = key("steps before them", None, range_=ONE_ON)
    rounds: int | None = key("rounds through all arms", None, range_=ONE_ON)
    batch: int | None = key("pairs of a global batch", None, range_=Range(4, multiple=4))
    token_budget: int | None = key("tokens of a pack", None, range_=ONE_ON)


@dataclass
class Workflow:
    """How the Snakefile starts the stages."""

    warm: bool | None = key("one process imports the libraries, and forks for each job (stages/lib/warm.py)", None)


@dataclass
class Runtime:
    """What changes the speed and never the result: the knobs of each stage that has any. A scale leaves out the stages that it lacks.

    A knob that is null has the stage's own default.
    """

    pretrain: MicroBatches | None = key("knobs of stages/pretrain.py", None)
    sft: MicroBatches | None = key("knobs of stages/sft.py", None)
    reward: MicroBatches | None = key("knobs of stages/reward.py", None)
    reference: Packs | None = key("knobs of stages/reference.py", None)
    loglik: Packs | None = key("knobs of stages/loglik.py", None)
    train: PackedTraining | None = key("knobs of stages/train.py", None)
    judge: Calls | None = key("knobs of stages/judge.py, stages/controls.py and stages/develop.py", None)
    efficiency: Efficiency | None = key("options of python -m perf.train_step --claim", None)
    workflow: Workflow | None = key("how the Snakefile starts the stages", None)


SAME_KNOBS = {"controls": "judge", "develop": "judge"}  # a stage that takes the knobs of another one


@dataclass
class Config:
    """conf/config.yaml, and what is composed into it."""

    seed: int = key("seed of every training where no run says another, and of the split into training and held-out pairs", range_=SEED)
    chain: str = key("what follows a setting's name in the folders of a chain: +chain=<seed>; empty in the scale's own settings", "")
    analysis: Analysis = key("how analysis/ judges the paper's claims", Analysis)
    scale: Scale = key("what the tables and figures are made of: conf/scale", Scale)
    setting: Setting = key("start model, data and chosen values: conf/setting", Setting)
    method: Method = key("objective and hyperparameters: conf/method", Method)
    benchmarks: dict[str, Benchmark] = key("questions and protocols by name, of the scale: conf/benchmark")
    judge: Judge = key("who judges: conf/judge", Judge)
    development: Development | None = key("what hyperparameters are chosen on, of the scale; null: they cannot be chosen here", None)
    world: World | None = key("the mini world's constants: conf/world; null: a scale without it", None)
    runtime: Runtime = key("what changes the speed and never the result, of the scale", Runtime)


class Kind(NamedTuple):
    """What a key holds: a type among float, int, bool and str (None: any of them), one of ``choices`` if there are any, or null."""

    type: type | None = None
    choices: tuple[Any, ...] = ()
    optional: bool = False

    @property
    def expected(self) -> str:
        """The end of an error's sentence."""
        return (" or ".join(map(shown, self.choices)) or WORDS[self.type]) + (" or null" if self.optional else "")

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is of this kind. A whole number is also a float. True and false are not numbers."""
        if value is None:
            return self.optional
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if isinstance(value, float) and not math.isfinite(value):
            return False
        types = tuple(TYPES.values()) if self.type is None else (float, int) if self.type is float else (self.type,)
        return type(value) in types and value != ""


TYPES: dict[str, type] = {"float": float, "int": int, "bool": bool, "str": str}
ANY = "a number, a word, true or false"
WORDS: dict[type | None, str] = {float: "a number", int: "a whole number", bool: "true or false", str: "a word", None: ANY}

# The keys of a method that no run may vary: with other values it would be another method.
MODEL_KEYS = ("model", "revision", "chat_template")  # what is evaluated where nothing is trained
FIXED_KEYS = ("name", "objective", "reference", "mismatched", *MODEL_KEYS)
# The keys of every method that trains, and what they hold.
TRAINED = {"learning_rate": Kind(float), "epochs": Kind(int), "batch_size": Kind(int)}


# -- hyperparameters ------------------------------------------------------------------------------------------------------


class Objective(NamedTuple):
    """A function of objectives.py: its docstring, and its keyword-only parameters with what their annotations allow."""

    doc: str
    kinds: dict[str, Kind]

    def words(self, parameter: str) -> str:
        """The meaning of a parameter: from ``Hyperparameters``, or the docstring's sentence that names it, or its first sentence."""
        known = {each.name: each.metadata["words"] for each in fields(Hyperparameters)}
        sentences = re.split(r"(?<=[.:])\s+", " ".join(self.doc.split()))
        naming = [sentence for sentence in sentences if f"``{parameter}``" in sentence]
        return known.get(parameter) or (naming or [f"stages/preference/objectives.py: {sentences[0]}"])[0]


@cache
def objectives() -> dict[str, Objective]:
    """The objectives by name, read from their source: planning imports no torch."""
    tree = ast.parse(OBJECTIVES.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"))
    return {
        node.name: Objective(ast.get_docstring(node) or "", {each.arg: _annotated(each.annotation) for each in node.args.kwonlyargs})
        for node in functions
        if node.args.kwonlyargs
    }


def objective_kinds(objective: str) -> dict[str, Kind]:
    """The kind of each hyperparameter of an objective. If there is no such objective, UserError names those that exist."""
    if objective not in (known := objectives()):
        where = "stages/preference/objectives.py"
        raise UserError(f"method.objective={objective}: no such function in {where}{nearest(objective, known)}")
    return known[objective].kinds


def _annotated(annotation: ast.expr | None) -> Kind:
    """The kind that an annotation names: a type, ``Literal[…]``, or one of these ``| None``; for any other annotation, any kind."""
    match annotation:
        case ast.Name(id=name) if name in TYPES:
            return Kind(TYPES[name])
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            found = ast.literal_eval(choices)
            found = found if isinstance(found, tuple) else (found,)
            return Kind(type(found[0]), found)
        case ast.BinOp(left=kind, op=ast.BitOr(), right=ast.Constant(value=None)):
            return _annotated(kind)._replace(optional=True)
    return Kind()


# -- the reference --------------------------------------------------------------------------------------------------------


def keys(part: type, where: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """(dotted key, field) of a dataclass and of all dataclasses in it, in order; ``<name>`` stands for a name that conf/ gives."""
    hints = get_type_hints(part)
    for each in fields(part):
        yield where + each.name, each
        for inner in (hints[each.name], *get_args(hints[each.name])):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from keys(inner, f"{where}{each.name}.{'<name>.' if get_origin(hints[each.name]) is dict else ''}")


# The range of each key that has one, by the last part of the key; a runtime knob has its own (knobs.py).
RANGES: dict[str, Range] = {
    each.name: each.metadata["range"]
    for where, each in (*keys(Config), *keys(Hyperparameters))
    if each.metadata["range"] is not None and not where.startswith("runtime.")
}


Row = tuple[str, str, str, str, str]  # key, type, values, default, meaning
LEGEND = """Every key of conf/, in its order.

Values: [0, 1] are the numbers from 0 to 1, (0, 1] those without 0. Default: what holds where conf/ does not give the key.
<name> stands for a name that conf/ gives, as of a benchmark or a writer. A key of type "keys" holds the keys that follow it."""


def reference() -> str:
    """All keys in the order of conf/, a line each, in Markdown; each objective's hyperparameters after the method's keys."""
    text, parts = [LEGEND], get_type_hints(Config)
    for top, rows in groupby((_row(where, each) for where, each in keys(Config)), lambda row: row[0].partition(".")[0]):
        about = [each.__doc__ for each in (parts[top], *get_args(parts[top])) if is_dataclass(each)]
        text += [f"## {top}", *(textwrap.fill(" ".join(str(doc).split()), 120) for doc in about), _table(rows)]
        for name, objective in objectives().items() if top == "method" else ():
            own = [_hyperparameter(objective, parameter) for parameter in objective.kinds]
            text += [f"### method, objective {name}", objective.doc.partition("\n")[0], _table(own)]
    return "\n\n".join(text)


def _table(given: Iterable[Row]) -> str:
    rows = [("key", "type", "values", "default", "meaning"), *given]
    widths = [*(max(len(row[column]) for row in rows) for column in range(4)), len("meaning")]
    rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * widths[2], "-" * widths[3], "-" * widths[4]))
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(where: str, each: Field[Any]) -> Row:
    default = each.default_factory() if callable(each.default_factory) else each.default
    shown_default = "required" if default == MISSING else "" if is_dataclass(default) else shown(default)
    type_ = re.sub(r"\b[A-Z]\w+\b", lambda name: {"None": "null", "Any": "any"}.get(name[0], "keys"), str(each.type))
    return where, type_, _values(each.metadata["range"], each.metadata["choices"]), shown_default, each.metadata["words"]


def _hyperparameter(objective: Objective, parameter: str) -> Row:
    kind = objective.kinds[parameter]
    type_ = (kind.type.__name__ if kind.type else "any") + (" | null" if kind.optional else "")
    return f"method.{parameter}", type_, _values(RANGES.get(parameter), kind.choices), "required", objective.words(parameter)


def _values(range_: Range | None, choices: tuple[Any, ...]) -> str:
    """The numbers of a range as an interval, or all choices."""
    if range_ is None:
        return " | ".join(map(shown, choices))
    high = f"{range_.high:g}]" if range_.high < math.inf else "∞)"
    return f"{'[' if range_.inclusive else '('}{range_.low:g}, {high}" + (f" by {range_.multiple}" if range_.multiple else "")


if __name__ == "__main__":
    print(reference())
