"""The typed schema of conf/: every key, its type and range."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import MISSING

from stages.lib.errors import UserError
from stages.plan.values import nearest, shown

OBJECTIVES = Path(__file__).resolve().parents[1] / "preference/objectives.py"


@dataclass
class Scale:
    """What the tables and figures are made of."""

    name: str = MISSING
    settings: list[str] = MISSING
    methods: list[str] = MISSING  # Table 4
    ablations: list[str] = MISSING  # Table 5
    seeds: list[int] = MISSING  # of each training in the tables
    sweeps: list[str] = field(default_factory=list)  # of the figures: conf/sweep/<scale>/<name>.yaml


@dataclass
class Corpus:
    questions: int = MISSING
    portraits: int = MISSING
    shared: int = MISSING
    sums: int = MISSING


@dataclass
class Writer:
    wrong: float = MISSING
    omit: float = MISSING
    off_topic: float = MISSING
    repeat: float = MISSING
    filler: float = MISSING
    broken: float = MISSING


@dataclass
class Demonstrations:
    n: int = MISSING
    writers: dict[str, float] = MISSING


@dataclass
class WorldPreferences:
    n: int = MISSING
    candidates: int = MISSING
    writers: list[str] = MISSING


@dataclass
class Annotator:
    length_bias: float = MISSING
    noise: float = MISSING


@dataclass
class WorldBenchmark:
    n: int = MISSING
    baseline: str = MISSING
    concise: str = MISSING
    verbose: str = MISSING
    mix: dict[str, float] = MISSING


@dataclass
class WorldQuestions:
    n: int = MISSING
    baseline: str = MISSING
    mix: dict[str, float] = MISSING


@dataclass
class WorldTurns:
    each: int = MISSING
    categories: dict[str, str] = MISSING


@dataclass
class World:
    """The mini world's constants: stages/mini, stages/mini/world.py."""

    name: str = MISSING
    seed: int = MISSING
    n_towns: int = MISSING
    mix: dict[str, float] = MISSING
    follow_ups: float = MISSING
    writers: dict[str, Writer] = MISSING
    corpus: Corpus = MISSING
    demonstrations: dict[str, Demonstrations] = MISSING
    preferences: WorldPreferences = MISSING
    annotator: Annotator = MISSING
    alpacaeval2: WorldBenchmark = MISSING
    arena_hard: WorldQuestions = MISSING
    mt_bench: WorldTurns = MISSING


@dataclass
class Architecture:
    """Keys of transformers.LlamaConfig."""

    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    max_position_embeddings: int = MISSING
    tie_word_embeddings: bool = MISSING


@dataclass
class Supervised:
    """How SFT and pretraining train: stages/lib/models.py:supervise."""

    learning_rate: float = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    max_length: int = MISSING
    scheduler: str = MISSING
    warmup_ratio: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    precision: str = MISSING


@dataclass
class Pretrain:
    tokenizer: str = MISSING
    data: str = MISSING
    architecture: Architecture = field(default_factory=Architecture)
    training: Supervised = field(default_factory=Supervised)


@dataclass
class Data:
    """Rows: a JSON-lines file, or a data set on the hub with its revision and split (stages/lib/records.py)."""

    data: str = MISSING
    revision: str | None = None
    split: str | None = None


@dataclass
class Sft:
    model: str = MISSING
    revision: str | None = MISSING
    chat_template: str | None = None
    data: Data = field(default_factory=Data)
    training: Supervised = field(default_factory=Supervised)


@dataclass
class Generate:
    """On-policy samples: stages/generate.py."""

    prompts: Data = field(default_factory=Data)
    n: int = MISSING
    temperature: float = MISSING
    top_p: float = MISSING
    max_tokens: int = MISSING
    seed: int = MISSING


@dataclass
class Reward:
    """A reward model trained here: stages/reward.py."""

    model: str = MISSING
    revision: str | None = MISSING
    data: Data = field(default_factory=Data)
    heldout: int = MISSING
    training: Supervised = field(default_factory=Supervised)


@dataclass
class Annotate:
    """Which reward model scores the samples: stages/annotate.py."""

    model: str = MISSING
    revision: str | None = MISSING
    max_length: int = MISSING


@dataclass
class Pairs:
    """The pairs, and how much of them is held out: a number of rows, or the rows of another split."""

    train: Data = field(default_factory=Data)
    heldout: int | None = MISSING
    heldout_split: str | None = None
    max_length: int = MISSING
    max_prompt_length: int = MISSING
    empty_system: bool = MISSING


@dataclass
class PreferenceTraining:
    """What all preference methods of a setting share: stages/preference/trainer.py."""

    epochs: int = MISSING
    batch_size: int = MISSING
    scheduler: str = MISSING
    warmup_ratio: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    adam_beta1: float = MISSING
    adam_beta2: float = MISSING
    adam_epsilon: float = MISSING
    precision: str = MISSING


@dataclass
class Answering:
    """How a benchmark's questions are answered; ``temperatures`` by the question's category, ``temperature`` for the others.

    ``search``: ``sample`` at these temperatures, or ``width_1_beam``, greedily and without regard to them.
    """

    search: str = "sample"
    temperature: float = MISSING
    top_p: float = MISSING
    max_tokens: int = MISSING
    seed: int = MISSING
    temperatures: dict[str, float] = field(default_factory=dict)


@dataclass
class Start:
    """What the preference methods start from; ``chat_template`` in place of the tokenizer's own, which a model trained from it keeps."""

    model: str = MISSING
    revision: str | None = MISSING
    chat_template: str | None = None


@dataclass
class Setting:
    """A start model, its preference data, and the values chosen for each method. What is made here has a part of its own: the model by
    ``pretrain`` and ``sft``, on-policy data by ``generate``, ``reward`` and ``annotate``."""

    name: str = MISSING
    pretrain: Pretrain | None = MISSING
    sft: Sft | None = MISSING
    start: Start = field(default_factory=Start)
    generate: Generate | None = MISSING
    reward: Reward | None = MISSING
    annotate: Annotate | None = MISSING
    pairs: Pairs = field(default_factory=Pairs)
    training: PreferenceTraining = field(default_factory=PreferenceTraining)
    decoding: dict[str, Answering] = MISSING
    stop_token_ids: list[int] = field(default_factory=list)
    tuned: dict[str, dict[str, Any]] = MISSING


@dataclass
class Method:
    """A method: its objective and how it is trained. All further keys are the objective's hyperparameters (objectives.py).

    ``reference``: null, ``cached`` (computed once a setting) or ``live`` (computed as training goes); ``mismatched``: whether the objective
    needs the KL that is estimated on other rows' answers. Without an objective nothing is trained: the setting's start model is evaluated,
    or in its place ``model``, a folder or a hub id with its ``revision``. Every key but these and ``name`` may differ between runs, and is
    then part of the run's name.
    """

    name: str = MISSING
    objective: str | None = MISSING
    reference: str | None = None
    mismatched: bool = False
    model: str | None = None
    revision: str | None = None
    chat_template: str | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int | None = None


@dataclass
class Asset:
    """A file that somebody else published: at an address, or in an installed Python package."""

    sha256: str = MISSING
    licence: str = MISSING
    url: str | None = None
    package: str | None = None
    path: str | None = None


@dataclass
class Benchmark:
    """``protocol`` is a module of stages/judging, or ``oracle``, and ``version`` what stages/judging/__init__.py has for it; ``answers``
    names the benchmark whose answers are judged."""

    protocol: str = MISSING
    version: str = MISSING
    answers: str = MISSING
    questions: str | None = None
    baseline: str | None = None
    references: str | None = None
    template: str | None = None
    gamed: str | None = None
    world: str | None = None
    swap_seed: int | None = None
    answering: Answering | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    assets: dict[str, Asset] = field(default_factory=dict)


@dataclass
class Server:
    """A judge that runs here, for as long as the judge stage does: a module, and its temperament (stages/mini/raters.py)."""

    module: str = MISSING
    world: str = MISSING
    sharpness: float = MISSING
    length_bias: float = MISSING
    position_bias: float = MISSING
    noise: float = MISSING
    tie: float = MISSING
    strong: float = MISSING
    silence: float = MISSING
    seed: int = MISSING


@dataclass
class Price:
    """Dollars a million tokens."""

    input: float = MISSING
    output: float = MISSING


@dataclass
class Judge:
    """``budget``, dollars for all that the cache's file pays for, is the stage's runtime knob: no judgment depends on it."""

    name: str = MISSING
    model: str = MISSING
    base_url: str | None = MISSING
    api_key_env: str | None = MISSING
    server: Server | None = MISSING
    price: Price = field(default_factory=Price)
    budget: float | None = MISSING
    cache: bool = MISSING


@dataclass
class Collapse:
    """What a training that went wrong shows: below a share of answers that end by themselves, above a share of repeated 3-grams."""

    ended: float = MISSING
    repeated_3grams: float = MISSING


@dataclass
class Analysis:
    """How the scorecard judges: the intervals' level, the bootstrap's resamples and seed, and how far "about" reaches."""

    level: float = MISSING
    resamples: int = MISSING
    seed: int = MISSING
    about: float = MISSING
    collapse: Collapse = field(default_factory=Collapse)


def _knob(doc: str, least: float, most: float = math.inf, *, needed: bool = False, multiple: int = 0) -> Any:
    """A knob with its range. ``needed``: the stage cannot start without it; any other knob has a default in the stage."""
    return field(default=MISSING if needed else None, metadata={"doc": doc, "least": least, "most": most, "multiple": multiple})


@dataclass
class MicroBatches:
    """The knobs of supervised training: stages/lib/models.py, stages/lib/checkpoints.py."""

    micro_batch: int = _knob("rows of a forward pass", 1, needed=True)
    save_steps: int | None = _knob("optimizer steps between two checkpoints", 1)


@dataclass
class Packs:
    """The knobs of a forward pass over all texts: stages/preference/refcache.py."""

    token_budget: int = _knob("tokens of a pack", 1, needed=True)


@dataclass
class PackedTraining:
    """The knobs of a preference method's training: stages/train.py."""

    token_budget: int = _knob("tokens of a pack", 1, needed=True)
    gradient_checkpointing: int | None = _knob("1: compute activations again in the backward pass", 0, 1)
    processes: int | None = _knob("one a GPU", 1, 4096)
    save_steps: int | None = _knob("optimizer steps between two checkpoints", 1)


@dataclass
class Calls:
    """The knobs of the calls to a judge: stages/judging/client.py."""

    concurrency: int | None = _knob("calls at a time", 1)
    timeout: float | None = _knob("seconds a try", 1e-3)
    max_retries: int | None = _knob("further tries of a call", 0)
    rpm: int | None = _knob("calls a minute; 0: as many as the endpoint takes", 0)
    budget: float | None = _knob("dollars; planning takes it from judge.budget", 0)


@dataclass
class Efficiency:
    """The options of ``python -m perf.train_step --claim``."""

    steps: int | None = _knob("timed steps a round", 1)
    warmup: int | None = _knob("steps before them", 1)
    rounds: int | None = _knob("rounds through all arms", 1)
    batch: int | None = _knob("pairs of a global batch", 4, multiple=4)
    token_budget: int | None = _knob("tokens of a pack", 1)


@dataclass
class Runtime:
    """What changes the speed and never the result: the knobs of each stage that has any. A scale leaves out the stages that it lacks."""

    pretrain: MicroBatches | None = None
    sft: MicroBatches | None = None
    reward: MicroBatches | None = None
    reference: Packs | None = None
    loglik: Packs | None = None
    train: PackedTraining | None = None
    judge: Calls | None = None
    efficiency: Efficiency | None = None


SAME_KNOBS = {"controls": "judge"}  # a stage that takes the knobs of another one


@dataclass
class Config:
    seed: int = MISSING
    analysis: Analysis = field(default_factory=Analysis)
    scale: Scale = field(default_factory=Scale)
    world: World | None = None
    setting: Setting = field(default_factory=Setting)
    method: Method = field(default_factory=Method)
    benchmarks: dict[str, Benchmark] = MISSING
    judge: Judge = field(default_factory=Judge)
    runtime: Runtime = field(default_factory=Runtime)


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
        """Whether ``value`` is of this kind. A whole number is also a float, and true and false are no numbers."""
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


# The keys of a method that no run may vary: what they change is another method.
MODEL_KEYS = ("model", "revision", "chat_template")  # what is evaluated where nothing is trained
FIXED_KEYS = ("name", "objective", "reference", "mismatched", *MODEL_KEYS)
# The keys of every method that trains, and what they hold.
TRAINED = {"learning_rate": Kind(float), "epochs": Kind(int), "batch_size": Kind(int)}
SEARCHES = ("sample", "width_1_beam")

# Allowed ranges: (lowest, is it allowed itself, highest). Values outside stop before anything runs.
RANGES: dict[str, tuple[float, bool, float]] = {
    "learning_rate": (0, False, 1),
    "beta": (0, False, 1e4),
    "gamma": (0, True, 1e4),
    "label_smoothing": (0, True, 0.5),
    "sft_weight": (0, True, 1e4),
    "nll_weight": (0, True, 1e4),
    "odds_weight": (0, True, 1e4),
    "chosen_weight": (0, True, 1e4),
    "rejected_weight": (0, True, 1e4),
    "delta": (0, True, 1e4),
    "tau": (0, False, 1e4),
    "alpha": (0, True, 1e4),
    "epochs": (0, False, 1000),
    "batch_size": (0, False, 1e6),
    "max_length": (0, False, 1e7),
    "max_prompt_length": (0, False, 1e7),
    "warmup_ratio": (0, True, 1),
    "temperature": (0, True, 10),
    "top_p": (0, False, 1),
    "max_tokens": (0, False, 1e6),
    "seed": (0, True, 2**32 - 1),
    "seeds": (0, True, 2**32 - 1),
    "noise": (0, True, 1e4),
    "follow_ups": (0, True, 1),
    "silence": (0, True, 1),
    "level": (0, False, 1),
    "resamples": (0, False, 1e6),
    "about": (0, True, 1),
    "ended": (0, True, 1),
    "repeated_3grams": (0, True, 1),
    "input": (0, True, 1e6),
    "output": (0, True, 1e6),
    "budget": (0, True, 1e6),
    "n": (0, False, 1e9),
    "heldout": (0, False, 1e9),
}


def objective_kinds(objective: str) -> dict[str, Kind]:
    """The keyword-only parameters of a function in objectives.py with what their annotations allow, read from its source: planning imports
    no torch."""
    functions = objectives()
    if objective not in functions:
        raise UserError(
            f"method.objective={objective}: no such function in stages/preference/objectives.py{nearest(objective, list(functions))}"
        )
    return functions[objective]


@cache
def objectives() -> dict[str, dict[str, Kind]]:
    tree = ast.parse(OBJECTIVES.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"))
    return {
        node.name: {argument.arg: _annotated(argument.annotation) for argument in node.args.kwonlyargs}
        for node in functions
        if node.args.kwonlyargs
    }


def _annotated(annotation: ast.expr | None) -> Kind:
    """The kind that an annotation names: a type, ``Literal[…]``, or one of these ``| None``; any kind where it names none of these."""
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
