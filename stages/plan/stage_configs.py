"""The *stage configuration* is a stage's part of the configuration: all values that the stage depends on, and no others.

Each stage has a function. It takes the plan and the wildcards of the stage's rule, and gives the path of the stage configuration and its
values. If a value is a path below ``results/``, another stage makes it. The first three parts of the path are that stage's folder, and the
``manifest.json`` there stands for all of its files. Anything else (a hub id, a user's file) is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from stages.benchmarks import BENCHMARKS
from stages.lib import files
from stages.lib.errors import UserError
from stages.plan import targets
from stages.plan.check import default_of
from stages.plan.schema import MODEL_KEYS, Judge, Method
from stages.plan.values import leaves, plain

if TYPE_CHECKING:
    from stages.plan.planning import Plan

StageConfig = tuple[str, dict[str, Any]]

# Raise a stage's version if its numbers change without a change of conf/. The version is part of the stage configuration.
VERSIONS = {
    "assets": 1,
    "world": 4,
    "calibrate": 1,
    "pretrain": 1,
    "sft": 1,
    "generate": 1,
    "reward": 2,
    "annotate": 2,
    "pairs": 2,
    "reference": 2,
    "train": 2,
    "answer": 1,
    "judge": 2,
    "score": 4,
    "loglik": 1,
    "controls": 2,
    "develop": 1,
    "greedy": 1,
    "report": 2,
}
MADE_HERE = ("pretrain", "sft", "generate", "reward", "annotate")  # the parts of a setting that may be null
NO_JUDGMENT = ("budget", "retired", "refuses")  # keys of a judge that say whether it is asked, and never what it says
CONTROL_PROMPTS = 50  # ours, questions of a benchmark: the standard error of a share is then at most 7 points
# Models that conf/ may name and that this version cannot run yet: planning stops where one is needed.
NOT_READY = {"llm-blender/PairRM": "PairRM", "RLHFlow/ArmoRM-Llama3-8B-v0.1": "ArmoRM"}


def world(plan: Plan, *, world: str) -> StageConfig:
    config = plan.base.world
    if config is None or config.name != world:
        raise UserError(f"world {world!r}: scale {plan.scale['name']} has {config.name if config else 'none'}")
    return f"results/worlds/{world}/config.yaml", dict(config)


def calibrate(plan: Plan, *, world: str) -> StageConfig:
    config = plan.base
    if config.judge.server is None:
        raise UserError(f"judge {config.judge.name}: only a judge with its own server (judge.server) can calibrate world {world}")
    named = {key: config.world.alpacaeval2[key] for key in ("baseline", "concise", "verbose")}
    swap_seed = config.benchmarks.alpacaeval2.swap_seed
    return f"results/calibration/{world}/config.yaml", {**named, "swap_seed": swap_seed, "server": config.judge.server}


def assets(plan: Plan, *, benchmark: str) -> StageConfig:
    return f"results/assets/{benchmark}/config.yaml", {"assets": plan.base.benchmarks[benchmark].assets}


def part_of_setting(plan: Plan, *, stage: str, setting: str) -> StageConfig:
    """The configuration of a stage whose values are a part of the setting."""
    config = plan.setting(setting)
    given = config.setting[stage]
    if given is None:
        raise UserError(f"conf/setting/{setting}.yaml has {stage}: null, so results/{setting}/{stage} cannot be made")
    for key, model in not_ready(given).items():
        raise UserError(f"not ready: {model} (conf/setting/{setting}.yaml, {stage}.{key}); README.md, section Paper scale")
    return f"results/{setting}/{stage}/config.yaml", {"setting": setting, "seed": config.seed, **given}


def not_ready(part: DictConfig) -> dict[str, str]:
    """The models of ``NOT_READY`` that a part of a setting names, by key."""
    return {key: NOT_READY[value] for key, value in leaves(plain(part)) if value in NOT_READY}


def generate(plan: Plan, *, setting: str) -> StageConfig:
    path, values = part_of_setting(plan, stage="generate", setting=setting)
    return path, {**plan.setting(setting).setting.start, **values}


def annotate(plan: Plan, *, setting: str) -> StageConfig:
    path, values = part_of_setting(plan, stage="annotate", setting=setting)
    return path, {**values, "generations": f"results/{setting}/generate/generations.jsonl"}


def pairs(plan: Plan, *, setting: str) -> StageConfig:
    config = plan.setting(setting)
    given = {key: config.setting.pairs[key] for key in ("train", "heldout", "heldout_split")}
    return f"results/{setting}/data/config.yaml", {"seed": config.seed, **given}


def _lengths(config: DictConfig) -> dict[str, Any]:
    """The start model, the pairs, and the lengths and the precision in which models read the pairs."""
    given = {key: config.setting.pairs[key] for key in ("max_length", "max_prompt_length", "empty_system")}
    return {**config.setting.start, "pairs": f"results/{config.setting.name}/data", **given, "precision": config.setting.training.precision}


def reference(plan: Plan, *, setting: str) -> StageConfig:
    return f"results/{setting}/reference/config.yaml", {"setting": setting, **_lengths(plan.setting(setting))}


def train(plan: Plan, *, setting: str, run: str) -> StageConfig:
    config, (method, seed) = plan.setting(setting), plan.run(setting, run)
    if method.objective is None:
        raise UserError(f"run {run}: method {method.name} trains nothing; its model is {method.model or f'the start model of {setting}'}")
    known = {f.name for f in fields(Method)}
    shared = {key: value for key, value in config.setting.training.items() if key not in ("epochs", "batch_size", "precision")}
    given = {key: value for key, value in method.items() if key in known and key not in ("reference", *MODEL_KEYS)}
    hyperparameters = {key: value for key, value in method.items() if key not in known}
    reference = f"results/{setting}/reference" if method.reference == "cached" else method.reference
    values = {"setting": setting, "run": run, "seed": seed, **_lengths(config), "reference": reference}
    return f"results/{setting}/runs/{run}/config.yaml", {**values, "method": {**given, **shared, "hyperparameters": hyperparameters}}


def answer(plan: Plan, *, setting: str, run: str) -> StageConfig:
    config = plan.setting(setting)
    method = plan.run(setting, run).method
    model = {"model": f"results/{setting}/runs/{run}/model", "revision": None}
    if method.objective is None:
        model = {key: method[key] for key in MODEL_KEYS} if method.model else config.setting.start
    benchmarks = {
        name: {**{key: config.benchmarks[name][key] for key in ("protocol", "questions")}, **config.benchmarks[name].answering}
        for name in plan.answered
    }
    shared = {"empty_system": config.setting.pairs.empty_system, "stop_token_ids": config.setting.stop_token_ids}
    values = {"setting": setting, "run": run, **model, **shared, "benchmarks": benchmarks}
    return f"results/{setting}/runs/{run}/eval/answer.yaml", values


def judge(plan: Plan, *, setting: str, run: str) -> StageConfig:
    config = plan.setting(setting)
    folder = f"results/{setting}/runs/{run}/eval"
    benchmarks = {}
    for name, benchmark in config.benchmarks.items():
        given = {key: value for key, value in benchmark.items() if value is not None and key not in ("assets", "gamed", "answering")}
        paths = {"answers": f"{folder}/{targets.answers(plan, name)}", "judgments": f"{folder}/{targets.judgments(plan, name)}"}
        benchmarks[name] = given | paths
    # A key with the schema's default is left out: a judge without it is asked as before there was such a key.
    asked = [key for key in fields(Judge) if key.name not in NO_JUDGMENT]
    judge = {key.name: config.judge[key.name] for key in asked if config.judge[key.name] != default_of(key)}
    return f"{folder}/judge.yaml", {"setting": setting, "run": run, "benchmarks": benchmarks, "judge": judge}


def score(plan: Plan, *, setting: str, run: str) -> StageConfig:
    folder, benchmarks = f"results/{setting}/runs/{run}/eval", {}
    for name, config in plan.base.benchmarks.items():
        needs = BENCHMARKS[config.protocol].needs
        benchmarks[name] = {
            "protocol": config.protocol,
            "protocol_version": config.version,
            "answers": f"{folder}/{targets.answers(plan, name)}",
            "judgments": f"{folder}/{targets.judgments(plan, name)}",
            "needed": config[needs] if needs else None,
            "scores": f"{folder}/{name}/scores.json",
        }
    return f"{folder}/score.yaml", {"benchmarks": benchmarks}


def loglik(plan: Plan, *, setting: str, run: str) -> StageConfig:
    folder = f"results/{setting}/runs/{run}"
    lengths = _lengths(plan.setting(setting))
    start = {key: lengths.pop(key) for key in MODEL_KEYS}
    answered = plan.composed("answer", setting=setting, run=run)[1]
    benchmarks = {
        name: {
            "protocol": benchmark["protocol"],
            "questions": benchmark["questions"],
            "answers": f"{folder}/eval/{targets.answers(plan, name)}",
        }
        for name, benchmark in answered["benchmarks"].items()
    }
    model = {key: answered.get(key) for key in MODEL_KEYS}
    known = {"start": start, "reference": f"results/{setting}/reference"}
    return f"{folder}/eval/loglik.yaml", {"setting": setting, "run": run, **model, **lengths, **known, "benchmarks": benchmarks}


def controls(plan: Plan, *, judge: str) -> StageConfig:
    """The benchmarks with controls. The real answers are those of the tables' first run."""
    if judge != plan.base.judge.name:
        raise UserError(f"judge {judge!r}: scale {plan.scale['name']} has {plan.base.judge.name}")
    setting, run = targets.runs(plan, "methods")[0]
    judged = plan.composed("judge", setting=setting, run=run)[1]
    benchmarks = {name: value for name, value in judged["benchmarks"].items() if BENCHMARKS[value["protocol"]].controls}
    return f"results/controls/{judge}/config.yaml", {"prompts": CONTROL_PROMPTS, "benchmarks": benchmarks, "judge": judged["judge"]}


def develop(plan: Plan, *, setting: str, method: str) -> StageConfig:
    """The trials of a method, asked the development questions as AlpacaEval's are asked, and judged by its protocol."""
    config, name = plan.setting(setting), plan.scale["name"]
    if config.development is None:
        raise UserError(
            f"scale {name} has no development questions: set development.questions and development.baseline in conf/scale/{name}.yaml, two"
            " files in AlpacaEval's format; hyperparameters are chosen on them, so no benchmark and no training may have them"
        )
    runs = [trial.run for trial in plan.trials if (trial.setting, trial.method) == (setting, method)]
    if not runs:
        raise UserError(f"method {method} has no trials in {setting}: write conf/sweep/{name}/{method}.yaml")
    answered, judged = (plan.composed(stage, setting=setting, run=runs[0])[1] for stage in ("answer", "judge"))
    asked = {**answered["benchmarks"]["alpacaeval2"], **config.development}
    shown = {key: judged["benchmarks"]["alpacaeval2"][key] for key in ("version", "template", "swap_seed", "decoding")}
    return f"results/{setting}/tuning/{method}/config.yaml", {
        "setting": setting,
        "method": method,
        **{key: answered[key] for key in ("empty_system", "stop_token_ids")},
        "trials": {run: f"results/{setting}/runs/{run}/model" for run in runs},
        "benchmarks": {"development": {**asked, **shown}},
        "judge": judged["judge"],
    }


def tables(plan: Plan) -> StageConfig:
    sweeps = {name: [trial._asdict() for trial in trials] for name, trials in plan.sweeps.items()}
    asked = {key: {name: plan.base.benchmarks[name][key] for name in plan.answered} for key in ("questions", "baseline")}
    taught = {name: part.data.data if (part := plan.setting(name).setting.sft) is not None else None for name in plan.scale["settings"]}
    return "results/tables.yaml", {
        **plan.scale,
        "benchmarks": plan.benchmarks,
        "protocols": {name: plan.base.benchmarks[name].protocol for name in plan.benchmarks},
        "judge": plan.base.judge.model,
        "controls": str(PurePosixPath(targets.controls(plan)).parent),
        **asked,
        "demonstrations": taught,
        "rows": [row._asdict() for row in targets.rows(plan)],
        "chains": [{**row._asdict(), "chain_of": plan.chains[row.setting][0]} for row in plan.chained],
        "sweeps": sweeps,
        "analysis": plan.base.analysis,
    }


def tuning(plan: Plan) -> StageConfig:
    targets.check_budgets(plan)
    references = {name: f"results/{name}/reference" for name in plan.scale["settings"]}
    return "results/tuning.yaml", {"references": references, "trials": [trial._asdict() for trial in plan.trials]}


def greedy(plan: Plan, *, setting: str) -> StageConfig:
    config = plan.setting(setting)
    runs = {}
    for of, run in targets.runs(plan):
        if of == setting and (answered := plan.composed("answer", setting=setting, run=run)[1])["model"].startswith("results/"):
            runs[run] = answered["model"]
    benchmark = config.benchmarks.alpacaeval2
    asked = {"questions": benchmark.questions, "seed": 0, "top_p": 1.0, "max_tokens": benchmark.answering.max_tokens}
    shared = {"empty_system": config.setting.pairs.empty_system, "stop_token_ids": config.setting.stop_token_ids}
    world = f"results/worlds/{config.world.name}"
    return f"results/{setting}/greedy/config.yaml", {
        "setting": setting,
        "world": world,
        "runs": runs,
        **shared,
        "benchmarks": {"alpacaeval2": asked},
    }


def report(plan: Plan) -> StageConfig:
    runs: dict[str, dict[str, str]] = {name: {} for name in plan.scale["settings"]}
    for row in targets.rows(plan):
        runs[row.setting][row.run] = row.method
    chains: dict[str, dict[str, list[str]]] = {name: {} for name in runs}
    for row in plan.chained:
        chains[plan.chains[row.setting][0]].setdefault(row.setting, []).append(row.run)
    sweeps = {name: [trial._asdict() for trial in trials] for name, trials in plan.sweeps.items()} if plan.chained else {}
    return "results/world_report.yaml", {
        "world": f"results/worlds/{plan.base.world.name}",
        "gamed": plan.base.benchmarks.alpacaeval2.gamed,
        "runs": runs,
        "generated": [name for name in runs if plan.setting(name).setting.generate is not None],
        "greedy": [f"results/{name}/greedy/greedy.json" for name in runs],
        "chains": chains,
        "sweeps": sweeps,
    }


STAGES: dict[str, Callable[..., StageConfig]] = {
    "assets": assets,
    "world": world,
    "calibrate": calibrate,
    "pretrain": partial(part_of_setting, stage="pretrain"),
    "sft": partial(part_of_setting, stage="sft"),
    "generate": generate,
    "reward": partial(part_of_setting, stage="reward"),
    "annotate": annotate,
    "pairs": pairs,
    "reference": reference,
    "train": train,
    "answer": answer,
    "judge": judge,
    "score": score,
    "loglik": loglik,
    "controls": controls,
    "develop": develop,
    "tables": tables,
    "tuning": tuning,
    "greedy": greedy,
    "report": report,
}


def upstream_manifests(config: StageConfig) -> list[str]:
    """The manifests of the stages that make the files and folders that a stage configuration names."""
    path, values = config
    own = str(PurePosixPath(path).parent)
    named = [PurePosixPath(value) for _, value in leaves(values) if isinstance(value, str) and value.startswith("results/")]
    folders = {"/".join(path.parts[:3]) for path in named if path.parts[2] != "runs"}
    # A run's other files are literal inputs of the rules.
    folders |= {str(path.parent) for path in named if path.parts[2] == "runs" and path.name == "model"}
    return sorted(f"{folder}/{files.MANIFEST}" for folder in folders if folder != own)


# The folders below results/ that do not belong to a setting: the stage that writes there, and its rule's wildcard.
FOLDERS = {
    "assets": ("assets", "benchmark"),
    "worlds": ("world", "world"),
    "calibration": ("calibrate", "world"),
    "controls": ("controls", "judge"),
}


def stage_of(path: str) -> tuple[str, dict[str, str]]:
    """The stage that makes a file below results/, and the wildcards of its rule."""
    match PurePosixPath(path).parts:
        case ("results", folder, name, *_) if folder in FOLDERS:
            stage, wildcard = FOLDERS[folder]
            return stage, {wildcard: name}
        case ("results", setting, "runs", run, *_):
            return "train", {"setting": setting, "run": run}
        case ("results", setting, "tuning", method, *_):
            return "develop", {"setting": setting, "method": method}
        case ("results", setting, "data", *_):
            return "pairs", {"setting": setting}
        case ("results", setting, stage, *_) if stage in STAGES:
            return stage, {"setting": setting}
    raise UserError(f"{path}: no stage makes such a file")


def as_plain(value: Any) -> Any:
    """``value`` with its configurations as dicts and lists."""
    if isinstance(value, DictConfig | ListConfig):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {key: as_plain(inner) for key, inner in value.items()}
    return [as_plain(inner) for inner in value] if isinstance(value, list) else value
