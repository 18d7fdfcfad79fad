"""The typed schema of conf/: every key, its type and range. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.errors import UserError
from stages.judging import VERSIONS

OBJECTIVES = Path(__file__).resolve().parent / "preference/objectives.py"


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
    """The mini world's constants: stages/mini, stages/world.py."""

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
    """How SFT and pretraining train: stages/models.py:supervise."""

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
    """Rows: a JSON-lines file, or a data set on the hub with its revision and split (stages/records.py)."""

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
    runtime: dict[str, dict[str, int]] = MISSING


# The keys of a method that no run may vary: what they change is another method.
CHECKPOINT = ("model", "revision", "chat_template")  # what is evaluated where nothing is trained
FORM = ("name", "objective", "reference", "mismatched", *CHECKPOINT)
SEARCHES = ("sample", "width_1_beam")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

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


def validate(config: DictConfig) -> DictConfig:
    """``config`` against the schema and the ranges; UserError names the key, what is wrong and the nearest key."""
    known = {f.name for f in fields(Method)}
    container = _merge(Config, plain(config) | {"method": {key: value for key, value in plain(config.method).items() if key in known}})
    method = validate_method(config.method)
    for where, value in leaves(container):
        check_range(where, value)
        if where.endswith(".search") and value not in SEARCHES:
            raise UserError(f"{where}={value}: expected {' or '.join(SEARCHES)}")
    for name, benchmark in container["benchmarks"].items():
        protocol, version = benchmark["protocol"], benchmark["version"]
        if protocol not in VERSIONS:
            raise UserError(f"benchmarks.{name}.protocol={protocol}: no such protocol in stages/judging{nearest(protocol, VERSIONS)}")
        if version != VERSIONS[protocol]:
            raise UserError(f"benchmarks.{name}.version={version!r}: stages/judging has {protocol} as {VERSIONS[protocol]!r} and no other")
    return OmegaConf.create(container | {"method": method})


def validate_method(config: DictConfig) -> DictConfig:
    """A method against the schema, its objective's parameters and the ranges; likewise."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"method.{missing[0].removeprefix('method.')} is missing; give it in a file of conf/method")
    method = plain(config)
    known = {f.name for f in fields(Method)}
    hyperparameters = {key: value for key, value in method.items() if key not in known}
    allowed = objective_parameters(method["objective"]) if method.get("objective") else ()
    for key in hyperparameters:
        if key not in allowed:
            raise UserError(f"method.{key}: objective {method.get('objective')!r} has no such parameter{nearest(key, [*known, *allowed])}")
    for key in allowed:
        if key not in hyperparameters:
            raise UserError(f"conf/method/{method['name']}.yaml lacks {key!r}, which objective {method['objective']!r} needs")
    container = _merge(Method, {key: value for key, value in method.items() if key in known}, "method.") | hyperparameters
    if container["reference"] not in (None, "cached", "live"):
        raise UserError(f"method.reference={container['reference']}: expected null, cached or live")
    _check_model(container)
    for key, value in container.items():
        check_range(f"method.{key}", value)
    return OmegaConf.create(container)


def _check_model(method: dict[str, Any]) -> None:
    """What a method without an objective evaluates; UserError where it says how to train it, or where no such model can be."""
    given = [key for key, value in method.items() if value not in (None, False)]
    if method["objective"] is None:
        wrong, why = [key for key in given if key not in ("name", *CHECKPOINT)], "it has no objective, and trains nothing"
    else:
        wrong, why = [key for key in given if key in CHECKPOINT], "it has an objective, and trains the setting's start model"
    if wrong:
        raise UserError(f"method.{wrong[0]}: leave it out of method {method['name']}: {why}")
    model, revision = method["model"], method["revision"]
    if model is None:
        if alone := [key for key in CHECKPOINT if key in given]:
            raise UserError(f"method.{alone[0]}: there is no method.model that it could be of")
    elif not model.startswith("results/") and not Path(model).is_dir():  # what lies below results/ may be yet to be made
        if model.startswith((".", "/", "~")) or not HUB_ID.fullmatch(model):
            raise UserError(f"method.model={model}: no such folder; give one that exists, or a hub id with its method.revision")
        if revision is None:
            raise UserError(f"method.revision: {model} is no folder here, and a hub id needs one: a commit of it, or main")


def _merge(schema: type, given: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    try:
        return plain(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        where = prefix + (error.full_key or "")
        siblings = list(getattr(error.object_type, "__dataclass_fields__", ()))
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: {reason}{nearest(where.rpartition('.')[2], siblings) if 'not in' in reason else ''}") from None


def check_range(where: str, value: Any) -> Any:
    """``value``, unless RANGES has the key at the end of ``where`` and the value lies outside; then a UserError."""
    key = where.rpartition(".")[2]
    if key in RANGES and isinstance(value, int | float) and not isinstance(value, bool):
        low, inclusive, high = RANGES[key]
        if not (low <= value <= high) or (value == low and not inclusive):
            raise UserError(f"{where}={value}: expected {'at least' if inclusive else 'more than'} {low:g} and at most {high:g}")
    return value


def objective_parameters(objective: str) -> tuple[str, ...]:
    """The keyword-only parameters of a function in objectives.py, read from its source: planning imports no torch."""
    functions = _objectives()
    if objective not in functions:
        raise UserError(
            f"method.objective={objective}: no such function in stages/preference/objectives.py{nearest(objective, list(functions))}"
        )
    return functions[objective]


@cache
def _objectives() -> dict[str, tuple[str, ...]]:
    tree = ast.parse(OBJECTIVES.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"))
    return {node.name: tuple(argument.arg for argument in node.args.kwonlyargs) for node in functions if node.args.kwonlyargs}


def nearest(key: str, known: Iterable[str]) -> str:
    """The end of an error's sentence: the known key that ``key`` may have meant, or all that are known."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(sorted(known))}" if known else ""


def plain(config: Any) -> dict[str, Any]:
    """A configuration as a dict of plain values, interpolations resolved; an error where a value is missing (``???``)."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings and lists."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{where}[{number}]")
    else:
        yield where, value
