"""Every key of conf/: its type, its allowed values and its meaning. Print all of them, in the order of conf/, or some:

    python -m stages.plan.schema
    python -m stages.plan.schema | grep learning_rate

A dataclass is a part of the configuration. Each of its fields is a key, and ``key`` gives its meaning and range. stages/plan/check.py and
stages/plan/knobs.py check values. Hyperparameters are parameters of the functions in stages/preference/objectives.py.
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
    """The numbers from ``low`` to ``high``. ``inclusive`` includes ``low``. ``multiple`` admits only its multiples, unless it is 0."""

    low: float
    inclusive: bool = True
    high: float = math.inf
    multiple: int = 0

    @property
    def expected(self) -> str:
        """What an error says after "expected"."""
        high = f" and at most {self.high:g}" if self.high < math.inf else ""
        multiple = f" and a multiple of {self.multiple}" if self.multiple else ""
        return f"{'at least' if self.inclusive else 'more than'} {self.low:g}{high}{multiple}"

    def holds(self, value: float) -> bool:
        """Whether ``value`` is in the range."""
        is_within = self.low <= value <= self.high and (self.inclusive or value != self.low)
        return is_within and not (self.multiple and value % self.multiple)


def key(words: str, default: Any = MISSING, *, range_: Range | None = None, choices: tuple[Any, ...] = ()) -> Any:
    """A key of the configuration.

    words: its meaning and its unit
    default: its value if conf/ does not give it; a class makes a new object; a key without a default is required
    range_: the allowed numbers
    choices: all allowed values, for the printed reference only
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
    """The settings, methods, seeds and sweeps of the tables and figures."""

    name: str = key("name of the scale and of its file")
    settings: list[str] = key("the settings: files of conf/setting")
    methods: list[str] = key("the methods of Table 4: files of conf/method")
    ablations: list[str] = key("the methods of Table 5")
    seeds: list[int] = key("seeds of each training in the tables; several seeds give means and intervals", range_=SEED)
    chains: list[int] = key(
        "seeds of further chains for `snakemake paper`; each repeats pretraining, fine-tuning, pairs and trainings", list, range_=SEED
    )
    chained: list[str] = key("the methods of each chain", list)
    sweeps: list[str] = key("the sweeps of the figures and the scorecard: conf/sweep/<scale>/<name>.yaml", list)


@dataclass
class Corpus:
    questions: int = key("number of questions with plain answers")
    portraits: int = key("number of portraits of each town")


@dataclass
class Writer:
    """An author of the mini world (stages/mini/writers.py)."""

    wrong: float = key("share of claims that are false")
    curt: float = key("share of answers with only the first half of the requested claims")
    wander: float = key("chance of an unrequested claim after the answer, and after each such claim")
    repeat: float = key("chance of a repetition after each sentence")
    polite: float = key("chance of a polite phrase at the answer's start, and at its end")
    broken: float = key("share of answers that end in mid-sentence")


@dataclass
class Demonstrations:
    n: int = key("number of demonstrations", range_=COUNT)
    writers: dict[str, float] = key("relative frequency of each writer")


@dataclass
class WorldPreferences:
    n: int = key("number of preference pairs", range_=COUNT)
    candidates: int = key("answers per prompt; the pair is the annotator's best and a random other one")
    writers: list[str] = key("the writers of the answers")


@dataclass
class Annotator:
    length_bias: float = key("points of the oracle's scale for each doubling of an answer's length")
    noise: float = key("scale of the annotator's Gumbel error, in points of the oracle's scale", range_=WEIGHT)


@dataclass
class WorldBenchmark:
    n: int = key("number of instructions", range_=COUNT)
    baseline: str = key("the writer of the baseline's answers")
    concise: str = key("the writer of the baseline's concise variant, for the length-controlled fit")
    verbose: str = key("the writer of the baseline's verbose variant")
    mix: dict[str, float] = key("relative frequency of each kind of task")


@dataclass
class WorldQuestions:
    n: int = key("number of questions", range_=COUNT)
    baseline: str = key("the writer of the baseline's answers")
    mix: dict[str, float] = key("relative frequency of each kind of task")


@dataclass
class WorldTurns:
    each: int = key("questions per category")
    categories: dict[str, str] = key("the kind of task in each of MT-Bench's categories")


@dataclass
class World:
    """The mini world's constants: stages/mini/world.py."""

    name: str = key("name of the world, of its file and of its folder in results/worlds")
    seed: int = key("seed of all random draws: towns, texts, preferences, questions", range_=SEED)
    n_towns: int = key("number of invented towns")
    mix: dict[str, float] = key("relative frequency of each kind of task (stages/mini/tasks.py)")
    follow_ups: float = key("share of conversations with a second turn, in all training data", range_=SHARE)
    writers: dict[str, Writer] = key("the writers, each with its own error rates")
    corpus: Corpus = key("the pretraining data")
    demonstrations: dict[str, Demonstrations] = key("the data of supervised fine-tuning, by name")
    preferences: WorldPreferences = key("the off-policy preference data")
    annotator: Annotator = key("the annotator of the preference data")
    development: WorldQuestions = key("questions for choosing hyperparameters, in AlpacaEval's format")
    alpacaeval2: WorldBenchmark = key("this world's questions for AlpacaEval")
    arena_hard: WorldQuestions = key("this world's questions for Arena-Hard")
    mt_bench: WorldTurns = key("this world's questions for MT-Bench")


@dataclass
class Architecture:
    """Keys of transformers.LlamaConfig."""

    hidden_size: int = key("width of the hidden states")
    intermediate_size: int = key("width of the MLP's inner layer")
    num_hidden_layers: int = key("number of decoder layers")
    num_attention_heads: int = key("attention heads per layer")
    num_key_value_heads: int = key("key-value heads per layer, which the attention heads share")
    max_position_embeddings: int = key("maximum length of a sequence, in tokens")
    tie_word_embeddings: bool = key("whether the output layer shares the input embedding's weights")


@dataclass
class Supervised:
    """How SFT, pretraining and a reward model train: stages/lib/models.py:supervise."""

    learning_rate: float = key("highest learning rate of AdamW", range_=RATE)
    epochs: int = key("passes over the data", range_=EPOCHS)
    batch_size: int = key("rows per optimizer step", range_=BATCH)
    max_length: int = key("maximum tokens per row", range_=TOKENS)
    scheduler: str = key("learning-rate schedule after the warm-up, by its name in Transformers")
    warmup_ratio: float = key("share of the steps that are warm-up", range_=SHARE)
    weight_decay: float = key("AdamW's weight decay")
    max_grad_norm: float = key("gradient norm above which gradients are clipped")
    precision: str = key("fp32, or bf16: fp32 weights with autocast to bfloat16")


@dataclass
class Pretrain:
    tokenizer: str = key("folder of the tokenizer")
    data: str = key("the corpus: a JSON-lines file of texts")
    architecture: Architecture = key("the model's architecture", Architecture)
    training: Supervised = key("the training values", Supervised)


@dataclass
class Data:
    """Rows: a JSON-lines file, or a data set on the hub with its revision and split (stages/lib/records.py)."""

    data: str = key("a JSON-lines file, or the id of a data set on the hub")
    revision: str | None = key("revision of a hub id: a commit, or main", None)
    split: str | None = key("split of a data set on the hub", None)


@dataclass
class Sft:
    model: str = key("the model to fine-tune: a folder or a hub id")
    revision: str | None = key("revision of a hub id: a commit, or main")
    chat_template: str | None = key("chat template that replaces the tokenizer's own", None)
    data: Data = key("the demonstrations", Data)
    training: Supervised = key("the training values", Supervised)


@dataclass
class Generate:
    """On-policy samples: stages/generate.py."""

    prompts: Data = key("the prompts that the start model answers", Data)
    n: int = key("samples per prompt", range_=COUNT)
    temperature: float = key("sampling temperature; 0: greedy", range_=Range(0, True, 10))
    top_p: float = key("probability mass of nucleus sampling", range_=RATE)
    max_tokens: int = key("maximum tokens per sample", range_=BATCH)
    seed: int = key("seed of the samples", range_=SEED)


@dataclass
class Reward:
    """A reward model trained here: stages/reward.py."""

    model: str = key("the model that its training starts from: a folder or a hub id")
    revision: str | None = key("revision of a hub id: a commit, or main")
    data: Data = key("the preference data", Data)
    heldout: int = key("number of held-out pairs; pairs of one prompt stay together", range_=COUNT)
    training: Supervised = key("the training values", Supervised)


@dataclass
class Rater:
    """The annotator of a mini world as a rater of samples: stages/mini/raters.py."""

    world: str = key("the folder of the world")
    length_bias: float = key("points of the oracle's scale for each doubling of an answer's length")
    noise: float = key("scale of the rater's Gumbel error, in points of the oracle's scale", range_=WEIGHT)
    seed: int = key("seed of the error", range_=SEED)


@dataclass
class Annotate:
    """What scores the samples, a reward model or a rater: stages/annotate.py."""

    model: str | None = key("the reward model: a folder or a hub id; null if there is a rater", None)
    revision: str | None = key("revision of a hub id: a commit, or main", None)
    max_length: int | None = key("maximum tokens per conversation for the reward model", None, range_=TOKENS)
    rater: Rater | None = key("the mini world's rater; null if there is a reward model", None)


@dataclass
class Pairs:
    """The preference pairs. A number of them, or another split, is held out."""

    train: Data = key("the preference pairs", Data)
    heldout: int | None = key("number of held-out pairs; pairs of one prompt stay together; null if heldout_split is given", range_=COUNT)
    heldout_split: str | None = key("the held-out split", None)
    max_length: int = key("maximum tokens of a prompt with its answer; longer ones are cut", range_=TOKENS)
    max_prompt_length: int = key("prompt tokens that are kept if a pair is too long", range_=TOKENS)
    empty_system: bool = key("whether a conversation without a system turn gets an empty one")


@dataclass
class PreferenceTraining:
    """What all preference methods of a setting share: stages/preference/trainer.py."""

    epochs: int = key("passes over the pairs", range_=EPOCHS)
    batch_size: int = key("pairs per optimizer step", range_=BATCH)
    scheduler: str = key("learning-rate schedule after the warm-up, by its name in Transformers")
    warmup_ratio: float = key("share of the steps that are warm-up", range_=SHARE)
    weight_decay: float = key("AdamW's weight decay")
    max_grad_norm: float = key("gradient norm above which gradients are clipped")
    adam_beta1: float = key("decay rate of AdamW's mean of gradients")
    adam_beta2: float = key("decay rate of AdamW's mean of squared gradients")
    adam_epsilon: float = key("AdamW's ε, added to the divisor")
    precision: str = key("fp32, or bf16: fp32 weights with autocast to bfloat16")


@dataclass
class Answering:
    """How a benchmark's questions are answered."""

    search: str = key("sample with the temperatures, or width_1_beam: search greedily without them", "sample", choices=SEARCHES)
    temperature: float = key("sampling temperature of a category that is not in temperatures", range_=Range(0, True, 10))
    top_p: float = key("probability mass of nucleus sampling", range_=RATE)
    max_tokens: int = key("maximum tokens per answer", range_=BATCH)
    seed: int = key("seed of the answers", range_=SEED)
    temperatures: dict[str, float] = key("sampling temperature by the question's category", dict)


@dataclass
class Start:
    """The start model of the preference methods."""

    model: str = key("the start model: a folder or a hub id")
    revision: str | None = key("revision of a hub id: a commit, or main")
    chat_template: str | None = key("chat template that replaces the tokenizer's own; trained models keep it", None)


@dataclass
class Setting:
    """A start model, its preference data, and the values chosen for each method. Parts that are null are not made here."""

    name: str = key("name of the setting, of its file and of its folder in results/")
    pretrain: Pretrain | None = key("pretraining of the base model; null: none here")
    sft: Sft | None = key("fine-tuning of the start model; null: none here")
    start: Start = key("the start model of the preference methods", Start)
    generate: Generate | None = key("sampling of on-policy answers; null: none")
    reward: Reward | None = key("training of a reward model; null: none here")
    annotate: Annotate | None = key("scoring of the samples; null: none")
    pairs: Pairs = key("the preference pairs", Pairs)
    training: PreferenceTraining = key("what all preference methods share", PreferenceTraining)
    decoding: dict[str, Answering] = key("how questions are answered, by benchmark, if its protocol leaves this to the model")
    stop_token_ids: list[int] = key("token ids that end an answer, besides the tokenizer's own", list)
    tuned: dict[str, dict[str, Any]] = key("chosen values of each method, for its keys that differ between settings")


@dataclass
class Method:
    """A method: its objective and its training. All keys that are not listed here are the objective's hyperparameters.

    Without an objective nothing is trained. The evaluated model is then ``model``, or the setting's start model. A run may vary
    learning_rate, epochs, batch_size and every hyperparameter. Its name gives what it varies.
    """

    name: str = key("name of the method, of its file and of its runs")
    objective: str | None = key("a function of stages/preference/objectives.py; null: nothing is trained")
    reference: str | None = key("null: no reference; cached: computed once per setting; live: during training", None, choices=REFERENCES)
    mismatched: bool = key("whether to score prompts with other prompts' answers too, for KTO's KL estimate", False)
    model: str | None = key("the model to evaluate without an objective: a folder or a hub id; null: the start model", None)
    revision: str | None = key("revision of model, if it is a hub id: a commit, or main", None)
    chat_template: str | None = key("chat template of model that replaces its tokenizer's own", None)
    learning_rate: float | None = key("highest learning rate of AdamW", None, range_=RATE)
    epochs: int | None = key("passes over the pairs", None, range_=EPOCHS)
    batch_size: int | None = key("pairs per optimizer step", None, range_=BATCH)


@dataclass
class Hyperparameters:
    """Meaning and range of the shipped objectives' hyperparameters. objectives.py gives their types."""

    beta: float = key("β: scale of the implicit reward; with a reference, the strength of the KL constraint", range_=POSITIVE)
    gamma: float = key("γ: target reward margin, absolute as in the paper", range_=WEIGHT)
    length_normalization: bool = key("whether |y| divides the sum of an answer's log-probabilities")
    label_smoothing: float = key("ε: share of labels assumed to be flipped", range_=Range(0, True, 0.5))
    loss_type: str = key("sigmoid: -log σ(h) of the margin h; hinge: max(0, 1 - h)")
    sft_weight: float = key("λ: weight of the chosen answers' cross-entropy, a mean over all their tokens", range_=WEIGHT)
    nll_weight: float = key("λ: weight of the chosen answer's cross-entropy", range_=WEIGHT)
    nll: str = key("divisor of the chosen answer's cross-entropy: 1, its length, or the batch's mean length")
    odds_weight: float = key("λ: weight of the odds-ratio term", range_=WEIGHT)
    chosen_weight: float = key("λ_w: weight of the desirable answers", range_=WEIGHT)
    rejected_weight: float = key("λ_l: weight of the undesirable answers", range_=WEIGHT)
    delta: float = key("δ: margin between the answers' log-probabilities", range_=WEIGHT)
    tau: float = key("τ: strength of the KL constraint; the loss pulls the margin to 1/(2τ)", range_=POSITIVE)
    alpha: float = key("α: cost of a token, in units of the reward", range_=WEIGHT)


@dataclass
class Asset:
    """A file that others published, at a URL or in an installed Python package."""

    sha256: str = key("the file's SHA-256; any other file is refused")
    licence: str = key("the file's licence")
    url: str | None = key("the file's URL", None)
    package: str | None = key("the installed Python package that has the file", None)
    path: str | None = key("the file's path in the package", None)


@dataclass
class Benchmark:
    """A benchmark's questions, and how the answers are judged. Files that a benchmark does not read are null."""

    protocol: str = key("the protocol's name in stages/benchmarks")
    version: str = key("the protocol's version in stages/benchmarks")
    answers: str = key("the benchmark whose answers are judged: itself, or another one")
    questions: str | None = key("file of the questions", None)
    baseline: str | None = key("file of the baseline's answers", None)
    references: str | None = key("file of the reference answers that the judge sees", None)
    template: str | None = key("file of the judge's prompts", None)
    gamed: str | None = key("file with the rows of the length-controlled fit (AlpacaEval's df_gamed.csv)", None)
    world: str | None = key("folder of the mini world, for its oracle", None)
    swap_seed: int | None = key("seed that decides which answer the judge sees first", None)
    answering: Answering | None = key("how the questions are answered; null: not at all", None)
    decoding: dict[str, Any] = key("keys of the chat request to the judge, besides model and messages", dict)
    assets: dict[str, Asset] = key("published files to fetch and check, by file name", dict)


@dataclass
class Development:
    """Questions for choosing hyperparameters, judged by AlpacaEval's protocol. No benchmark and no training has them."""

    questions: str = key("file of the questions, in AlpacaEval's format")
    baseline: str = key("file of the baseline's answers, in AlpacaEval's format")


@dataclass
class Server:
    """A judge that runs here during the judge stage: its module and its temperament (stages/mini/raters.py)."""

    module: str = key("the server's Python module")
    world: str = key("folder of the mini world, for its oracle")
    sharpness: float = key("log-odds per point of the oracle's scale")
    length_bias: float = key("points of the oracle's scale for each doubling of an answer's length")
    position_bias: float = key("log-odds in favour of the answer shown first")
    noise: float = key("standard deviation of the judge's error, in log-odds", range_=WEIGHT)
    tie: float = key("largest log-odds of a tie")
    strong: float = key("smallest log-odds of the verdict that an answer is much better")
    silence: float = key("share of comparisons in which the first reply has no verdict", range_=SHARE)
    seed: int = key("seed of the judge's errors", range_=SEED)


@dataclass
class Price:
    input: float = key("dollars per million input tokens", range_=DOLLARS)
    output: float = key("dollars per million output tokens", range_=DOLLARS)


@dataclass
class Judge:
    """The judge: an endpoint, or a server that the judge stage starts."""

    name: str = key("the judge's name, in scores and in results/controls")
    model: str = key("the model's name at its endpoint")
    base_url: str | None = key("address of an OpenAI-compatible endpoint; null: the address of server")
    api_key_env: str | None = key("environment variable with the endpoint's key; null: the endpoint needs no key")
    server: Server | None = key("a judge that runs here; null: the judge is at base_url")
    price: Price = key("the price of a call", Price)
    budget: float | None = key("dollars that all calls in the cache's file may cost together; null: no limit", range_=DOLLARS)
    cache: bool = key("whether to keep responses in results/judgments.sqlite, so that none is asked for twice")
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
    """The signs of a collapsed training, in its answers to AlpacaEval's questions."""

    ended: float = key("the training collapsed if a smaller share of answers ends by itself", range_=SHARE)
    repeated_3grams: float = key("the training collapsed if a larger share of 3-grams came before in the same answer", range_=SHARE)


@dataclass
class Analysis:
    """How analysis/ judges the paper's claims. No measured number depends on it."""

    level: float = key("confidence level of every interval", range_=RATE)
    resamples: int = key("number of bootstrap resamples", range_=BATCH)
    seed: int = key("seed of the bootstrap", range_=SEED)
    about: float = key('tolerance of "about": "about half" is 0.5 ± this value', range_=SHARE)
    collapse: Collapse = key("the signs of a collapsed training", Collapse)


@dataclass
class MicroBatches:
    """The knobs of supervised training: stages/lib/models.py, stages/lib/checkpoints.py."""

    micro_batch: int = key("rows per forward pass", range_=ONE_ON)
    save_steps: int | None = key("optimizer steps between two checkpoints", None, range_=ONE_ON)


@dataclass
class Packs:
    """The knobs of a forward pass over all texts: stages/preference/refcache.py."""

    token_budget: int = key("maximum tokens per pack", range_=ONE_ON)


@dataclass
class PackedTraining:
    """The knobs of a preference method's training: stages/train.py."""

    token_budget: int = key("maximum tokens per pack", range_=ONE_ON)
    gradient_checkpointing: int | None = key("1: recompute activations in the backward pass", None, range_=Range(0, True, 1))
    processes: int | None = key("number of processes, one per GPU", None, range_=Range(1, True, 4096))
    save_steps: int | None = key("optimizer steps between two checkpoints", None, range_=ONE_ON)


@dataclass
class Calls:
    """The knobs of the calls to a judge: stages/judging/client.py."""

    concurrency: int | None = key("concurrent calls", None, range_=ONE_ON)
    timeout: float | None = key("seconds per try", None, range_=Range(1e-3))
    max_retries: int | None = key("retries per call", None, range_=Range(0))
    rpm: int | None = key("calls per minute; 0: no limit", None, range_=Range(0))
    budget: float | None = key("dollars, which planning takes from judge.budget", None, range_=Range(0))


@dataclass
class Efficiency:
    """The options of ``python -m perf.train_step --claim``."""

    steps: int | None = key("timed steps per round", None, range_=ONE_ON)
    warmup: int | None = key("untimed steps before the timed ones", None, range_=ONE_ON)
    rounds: int | None = key("number of rounds through all arms", None, range_=ONE_ON)
    batch: int | None = key("pairs per global batch", None, range_=Range(4, multiple=4))
    token_budget: int | None = key("maximum tokens per pack", None, range_=ONE_ON)


@dataclass
class Workflow:
    """How the Snakefile starts the stages."""

    warm: bool | None = key("whether one process imports the libraries and forks for each job (stages/lib/warm.py)", None)


@dataclass
class Runtime:
    """The knobs of the stages. They change the speed and never the result. A scale leaves out the stages that it lacks.

    A knob that is null takes the stage's own default.
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

    seed: int = key("seed of the split into training and held-out pairs, and of all trainings whose run names no other seed", range_=SEED)
    chain: str = key("suffix of a chain's folder, after the setting's name: +chain=<seed>; empty for the scale's own settings", "")
    analysis: Analysis = key("how analysis/ judges the paper's claims", Analysis)
    scale: Scale = key("the settings, methods, seeds and sweeps of the tables and figures: conf/scale", Scale)
    setting: Setting = key("start model, data and chosen values: conf/setting", Setting)
    method: Method = key("objective and hyperparameters: conf/method", Method)
    benchmarks: dict[str, Benchmark] = key("the scale's benchmarks, by name: conf/benchmark")
    judge: Judge = key("the judge: conf/judge", Judge)
    development: Development | None = key("the scale's questions for choosing hyperparameters; null: none", None)
    world: World | None = key("the mini world's constants: conf/world; null: the scale has no mini world", None)
    runtime: Runtime = key("the scale's knobs, which change the speed and never the result", Runtime)


class Kind(NamedTuple):
    """What a key holds: a float, int, bool or str (None: any of these), one of ``choices`` if there are any, or null if ``optional``."""

    type: type | None = None
    choices: tuple[Any, ...] = ()
    optional: bool = False

    @property
    def expected(self) -> str:
        """What an error says after "expected"."""
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

# No run may vary these keys of a method. Other values would make it another method.
MODEL_KEYS = ("model", "revision", "chat_template")  # the model to evaluate if nothing is trained
FIXED_KEYS = ("name", "objective", "reference", "mismatched", *MODEL_KEYS)
# The keys that every trained method has, and what they hold.
TRAINED = {"learning_rate": Kind(float), "epochs": Kind(int), "batch_size": Kind(int)}


# -- hyperparameters ------------------------------------------------------------------------------------------------------


class Objective(NamedTuple):
    """A function of objectives.py: its docstring, and the kinds that its keyword-only parameters are annotated with."""

    doc: str
    kinds: dict[str, Kind]

    def words(self, parameter: str) -> str:
        """The meaning of a parameter: from ``Hyperparameters``, else the docstring's sentence that names it, else its first sentence."""
        known = {each.name: each.metadata["words"] for each in fields(Hyperparameters)}
        sentences = re.split(r"(?<=[.:])\s+", " ".join(self.doc.split()))
        naming = [sentence for sentence in sentences if f"``{parameter}``" in sentence]
        return known.get(parameter) or (naming or [f"stages/preference/objectives.py: {sentences[0]}"])[0]


@cache
def objectives() -> dict[str, Objective]:
    """The objectives by name. They are read from the source, because planning imports no torch."""
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
    """The kind of an annotation: a type, ``Literal[…]``, or one of these ``| None``. Any other annotation gives ``Kind()``."""
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
    """(dotted key, field) of a dataclass and of all dataclasses in it, in order. ``<name>`` stands for a name that conf/ gives."""
    hints = get_type_hints(part)
    for each in fields(part):
        yield where + each.name, each
        for inner in (hints[each.name], *get_args(hints[each.name])):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from keys(inner, f"{where}{each.name}.{'<name>.' if get_origin(hints[each.name]) is dict else ''}")


# The ranges, by the last part of the key. Runtime knobs have their own ranges (knobs.py).
RANGES: dict[str, Range] = {
    each.name: each.metadata["range"]
    for where, each in (*keys(Config), *keys(Hyperparameters))
    if each.metadata["range"] is not None and not where.startswith("runtime.")
}


Row = tuple[str, str, str, str, str]  # key, type, values, default, meaning
LEGEND = """Every key of conf/, in its order.

Values: [0, 1] means the numbers from 0 to 1; (0, 1] excludes 0. Default: the value if conf/ does not give the key.
<name> stands for a name that conf/ gives, such as a benchmark or a writer. A key of type "keys" holds the keys that follow it."""


def reference() -> str:
    """All keys in the order of conf/, one per line, in Markdown. Each objective's hyperparameters follow the method's keys."""
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
