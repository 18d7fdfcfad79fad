"""A results folder as a finished mini scale leaves it, a tenth as large and drawn from a seed: what the tests of analysis/ read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from stages.benchmarks import BENCHMARKS
from stages.lib import files
from stages.plan import Plan, targets

TOWNS = ["Nanburg", "Solstad", "Poraven", "Gendeth", "Mimton", "Brorgard"]
PLANTS = ["plums", "hops", "wheat"]
SKILL = {"sft": 0.0, "dpo": 0.2, "simpo": 0.3, "simpo_no_ln": -0.1, "simpo_no_margin": 0.25}
QUESTIONS = {"alpacaeval2": 60, "arena_hard": 24, "mt_bench": 16}
PAIRS = {"train": 50, "heldout": 40}
CATEGORIES = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]


def make(results: Path, scale: str = "mini", with_chains: bool = False, **given: list[Any]) -> Plan:
    """Everything that ``Plan.needs`` names for the scripts of analysis/, below ``results``; the plan that it was made by.

    with_chains: whether the folder has the scale's chains, as `snakemake paper` leaves it
    given:       keys of the scale (settings, sweeps) in the place of conf's, for a folder that is made sooner
    """
    plan = Plan(scale)
    plan.scale |= given
    plan.chained = targets.chains(plan) if with_chains else []
    results.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(plan.composed("tables")[1]), results / "tables.yaml")
    _questions(results, plan)
    runs = {(row.setting, row.run): row.method for row in targets.rows(plan)}
    runs |= {(trial.setting, trial.run): trial.method for trials in plan.sweeps.values() for trial in trials}
    runs |= {(row.setting, row.run): row.method for row in plan.chained}
    for (setting, run), method in runs.items():
        make_run(results / setting / "runs" / run, plan, setting, run, method)
    _controls(results, results / Path(targets.controls(plan)).parent.relative_to("results"))
    return plan


def _version(benchmark: str) -> dict[str, Any]:
    return {"version": BENCHMARKS[benchmark].version}


def one(words: list[str], draws: np.random.Generator) -> str:
    """``draws.choice(words)``, which would make an array of them each time."""
    return words[draws.integers(len(words))]


def answer(number: int, draws: np.random.Generator) -> str:
    sentences = [f"The people of {one(TOWNS, draws)} grow {one(PLANTS, draws)}." for _ in range(draws.integers(1, 7))]
    return " ".join([f"This is answer {number}.", *sentences])


def _questions(results: Path, plan: Plan) -> None:
    tables = OmegaConf.to_container(OmegaConf.load(results / "tables.yaml"))
    assert isinstance(tables, dict)

    def below(path: str) -> Path:
        return results / path.removeprefix("results/")

    draws = np.random.default_rng(1)
    for benchmark, path in tables["questions"].items():
        if benchmark not in QUESTIONS:  # a test's own, which makes its files itself
            continue
        texts = [f"Benchmark {benchmark}: what is known of {TOWNS[i % 6]} in the year {i}?" for i in range(QUESTIONS[benchmark])]
        baseline = tables["baseline"][benchmark]
        if benchmark == "alpacaeval2":
            rows = [
                {"dataset": "towns", "instruction": text, "output": answer(i, draws), "generator": "master"} for i, text in enumerate(texts)
            ]
            files.write_json(below(path), rows)
            continue
        turns = [[text, "And what else?"] if benchmark == "mt_bench" else [{"content": text}] for text in texts]
        files.write_jsonl(
            below(path), [{"question_id": 81 + i, "category": CATEGORIES[i % 8], "turns": turn} for i, turn in enumerate(turns)]
        )
        if baseline:
            shared = [{"index": 0, "turns": [{"content": answer(i, draws), "token_len": 9}]} for i in range(len(texts))]
            rows = [{"question_id": 81 + i, "model_id": "clerk", "choices": [choice]} for i, choice in enumerate(shared)]
            files.write_jsonl(below(baseline), rows)
    if plan.base.world is not None:
        _writers(results, below(tables["baseline"]["alpacaeval2"]), plan.base.world.name)
    for path in {path for path in tables["demonstrations"].values() if str(path).startswith("results/")}:
        chat = [{"role": "user", "content": "Please tell me of Mimton."}, {"role": "assistant", "content": "Mimton grows hops."}]
        files.write_jsonl(below(path), [{"prompt_id": "d0", "prompt": chat[0]["content"], "messages": chat}])
    for setting in tables["settings"]:
        for split, count in PAIRS.items():
            rows = [_pair(f"{split} {number}", draws) for number in range(count)]
            files.write_jsonl(results / setting / "data" / f"{split}.jsonl", rows)


def _writers(results: Path, baseline: Path, world: str) -> None:
    """The baseline's two variants, and what the judge says of them: the length-controlled fit's rows."""
    rows, draws = files.read_json(baseline), np.random.default_rng(2)
    difficulty = draws.standard_normal(len(rows))
    frames = []
    for name, level in (("concise", -0.6), ("verbose", -0.2)):
        texts = [row["output"][: 40 if name == "concise" else None] + " Thank you." * (name == "verbose") for row in rows]
        written = [row | {"output": text, "generator": name} for row, text in zip(rows, texts, strict=True)]
        files.write_json(baseline.parent / f"writers/{name}.json", written)
        gap = pd.Series([len(row["output"]) - len(text) for row, text in zip(rows, texts, strict=True)])
        preference = 1 / (1 + np.exp(difficulty - level))
        named = {"index": range(len(rows)), "model": name, "preference": preference, "std_delta_len": gap / gap.std()}
        frames.append(pd.DataFrame(named | {"instruction_difficulty": difficulty, "not_gamed_baseline": False}))
    path = results / "calibration" / world / "df_gamed.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).to_csv(path, index=False)


def _pair(name: str, draws: np.random.Generator) -> dict[str, Any]:
    sides = {side: [{"role": "assistant", "content": answer(0, draws)}] for side in ("chosen", "rejected")}
    prompt = [{"role": "user", "content": f"Prompt {name}: what do the people of {one(TOWNS, draws)} grow?"}]
    return {"prompt_id": name, "prompt": prompt, **sides, "score_chosen": 2.0, "score_rejected": 1.0}


def make_run(folder: Path, plan: Plan, setting: str, run: str, method: str) -> None:
    """A run's training and evaluation in ``folder``."""
    draws = np.random.default_rng(crc32(f"{setting} {run}".encode()))
    skill = SKILL.get(method, 0.1)
    _training(folder, plan, setting, run, draws)
    _alpacaeval2(folder / "eval", run, skill, draws)
    _arena_hard(folder / "eval", run, skill, draws)
    _mt_bench(folder / "eval", run, skill, draws)
    _loglik(folder / "eval" / "loglik.parquet", method, draws)


def _training(folder: Path, plan: Plan, setting: str, run: str, draws: np.random.Generator) -> None:
    if plan.run(setting, run).method.objective is None:
        return
    config: Any = json.loads(json.dumps(plan.composed("train", setting=setting, run=run)[1]))
    steps = np.arange(1, 13)
    chosen = -0.5 - 0.01 * steps + 0.01 * draws.standard_normal(12)
    history = pd.DataFrame(
        {
            "step": steps,
            "loss": 1 / steps,
            "learning_rate": 1e-4,
            "grad_norm": 1.0,
            "rewards/margins": 0.1 * steps,
            "rewards/accuracies": 0.5 + 0.02 * steps,
            "rewards/chosen": chosen,
            "rewards/rejected": chosen - 0.1 * steps,
            "logps/chosen": 20 * chosen,
            "logps/rejected": 20 * chosen - 3,
            "avg_logps/chosen": chosen,
            "avg_logps/rejected": chosen - 0.2,
        }
    )
    files.write_jsonl(folder / "train.jsonl", history.to_dict("records"))
    heldout = {key: float(history[key].iloc[-1]) for key in history if "/" in key} | {"loss": 0.1}
    facts = {"config": config, "inputs": {}, "outputs": {}, "heldout": heldout, "heldout_pairs": PAIRS["heldout"], "seconds": 12.5}
    files.write_json(folder / files.MANIFEST, facts | {"device": "cpu", "processes": 1, "layout": "shared", "git_commit": None})


def _shape(draws: np.random.Generator) -> dict[str, float]:
    return {"ended": float(draws.uniform(0.9, 1)), "repeated_3grams": float(draws.uniform(0, 0.2))}


def _alpacaeval2(folder: Path, run: str, skill: float, draws: np.random.Generator) -> None:
    n = QUESTIONS["alpacaeval2"]
    asked = [f"Benchmark alpacaeval2: what is known of {TOWNS[i % 6]} in the year {i}?" for i in range(n)]
    texts = [answer(i, draws) for i in range(n)]
    preferences = 1 + np.clip(draws.beta(1, 2.5, n) + 0.2 * skill, 0, 1)
    shared = [{"instruction": question, "output": text, "generator": run} for question, text in zip(asked, texts, strict=True)]
    files.write_json(folder / "alpacaeval2/model_outputs.json", [row | {"dataset": "towns", "finish_reason": "stop"} for row in shared])
    judged = [
        {"instruction": question, "output_1": answer(i, np.random.default_rng(i)), "generator_1": "master", "output_2": text}
        | {"generator_2": run, "annotator": "mini", "judge": "mini-judge", "preference": float(value), "failure": None}
        for i, (question, text, value) in enumerate(zip(asked, texts, preferences, strict=True))
    ]
    judged[3] |= {"preference": None, "failure": "the judge refused"}
    files.write_json(folder / "alpacaeval2/annotations.json", judged)
    wins = np.array([100 * (row["preference"] - 1) for row in judged if row["preference"] is not None])
    rates = {
        "length_controlled_winrate": float(wins.mean() + draws.normal(0, 1)),
        "lc_standard_error": 1.0,
        "win_rate": float(wins.mean()),
        "standard_error": float(wins.std(ddof=1) / np.sqrt(len(wins))),
        "discrete_win_rate": float((wins > 50).mean() * 100),
    }
    counts = {
        "n_total": n - 1,
        "n_failed": 1,
        "failures": {"the judge refused": 1},
        "avg_length": float(np.mean([len(text) for text in texts])),
    }
    named = {"benchmark": "alpacaeval2", "protocol": _version("alpacaeval2"), "generator": run, "baseline": "master", "judge": "mini-judge"}
    files.write_json(folder / "alpacaeval2/scores.json", named | counts | rates | _shape(draws))

    scores = np.clip(draws.normal(4.5 + 2 * skill, 2, n), 0, 10)
    counted = {
        key: int(draws.integers(0, 2))
        for key in ("wanted", "covered", "false", "irrelevant", "repeated", "filler", "malformed", "unfinished")
    }
    found = [row | {"score": float(score)} | counted for row, score in zip(shared, scores, strict=True)]
    files.write_json(folder / "oracle/annotations.json", found)
    summary = {"n": n, "mean": float(scores.mean()), "standard_error": float(scores.std(ddof=1) / np.sqrt(n))}
    named = {"benchmark": "oracle", "protocol": _version("oracle"), "generator": run}
    files.write_json(
        folder / "oracle/scores.json", named | summary | {"findings": {key: float(value) for key, value in counted.items()}} | _shape(draws)
    )


def _arena_hard(folder: Path, run: str, skill: float, draws: np.random.Generator) -> None:
    n = QUESTIONS["arena_hard"]
    labels = ["A>>B", "A>B", "A=B", "B>A", "B>>A"]
    turns = [[{"content": answer(i, draws), "token_len": 12}] for i in range(n)]
    answers = [
        {"question_id": 81 + i, "model_id": run, "choices": [{"index": 0, "turns": turn}], "finish_reason": ["stop"]}
        for i, turn in enumerate(turns)
    ]
    files.write_jsonl(folder / "arena_hard/model_answer.jsonl", answers)
    rows = []
    for i, turn in enumerate(turns):
        place = int(np.clip(draws.normal(1.4 + 2 * skill, 1), 0, 4))
        games = [
            {
                "user_prompt": f"Question {i}: {turn[0]['content']}",
                "judgment": f"[[{label}]]",
                "score": label,
                "attempts": 1,
                "failure": None,
            }
            for label in (labels[place], labels[4 - place])
        ]
        rows.append({"question_id": 81 + i, "model": run, "judge": "mini-judge", "games": games})
    files.write_jsonl(folder / "arena_hard/model_judgment.jsonl", rows)
    rate = float(30 + 20 * skill + draws.normal(0, 1))
    named = {"benchmark": "arena_hard", "protocol": _version("arena_hard"), "generator": run, "baseline": "clerk", "judge": "mini-judge"}
    counts = {"n_total": 2 * n, "n_failed": 0, "failures": {}, "n_further": 1, "avg_tokens": 12.0, "avg_length": 80.0, "rating": 900.0}
    bounds = {"win_rate": rate, "win_rate_low": rate - 2, "win_rate_high": rate + 2}
    files.write_json(folder / "arena_hard/scores.json", named | counts | bounds | _shape(draws))


def _mt_bench(folder: Path, run: str, skill: float, draws: np.random.Generator) -> None:
    n = QUESTIONS["mt_bench"]
    turns = [[answer(i, draws), answer(i, draws)] for i in range(n)]
    shared = [{"question_id": 81 + i, "model_id": run, "choices": [{"index": 0, "turns": turn}]} for i, turn in enumerate(turns)]
    files.write_jsonl(folder / "mt_bench/model_answer.jsonl", [row | {"finish_reason": ["stop", "stop"]} for row in shared])
    rows = [
        {"question_id": 81 + i, "model": run, "judge": ["mini-judge", "single-v1"], "user_prompt": " ".join(texts), "judgment": "[[5]]"}
        | {"score": int(np.clip(draws.normal(4 + 2 * skill, 2), 1, 10)), "turn": turn, "failure": None}
        for turn in (1, 2)
        for i, texts in enumerate(turns)
    ]
    files.write_jsonl(folder / "mt_bench/model_judgment.jsonl", rows)
    ratings = np.array([row["score"] for row in rows], dtype=float)
    named = {
        "benchmark": "mt_bench",
        "protocol": _version("mt_bench") | {"prompts": ["single-v1"]},
        "generator": run,
        "judge": "mini-judge",
    }
    figures = {
        "mean": float(ratings.mean()),
        "standard_error": 0.3,
        "turns": {"1": 4.0, "2": 4.0},
        "categories": dict.fromkeys(CATEGORIES, 4.0),
    }
    counts = {"n_total": 2 * n, "n_failed": 0, "failures": {}, "n_off_scale": 0, "avg_length": 80.0}
    files.write_json(folder / "mt_bench/scores.json", named | figures | counts | _shape(draws))


def _loglik(path: Path, method: str, draws: np.random.Generator) -> None:
    """Likelihood falls with length, less so for SimPO; chosen answers are likelier on the whole."""
    slope = {"simpo_no_ln": 0.004, "dpo": 0.002}.get(method, 0.0)
    parts = []
    for split, count in PAIRS.items():
        for side, level in (("chosen", -0.5), ("rejected", -0.6)):
            length = np.random.default_rng(crc32(f"{split} {side}".encode())).integers(5, 60, count)
            reference = length * (-0.55 + 0.1 * np.random.default_rng(crc32(f"{split} {side} reference".encode())).standard_normal(count))
            logp = length * (level + slope * length + 0.1 * draws.standard_normal(count))
            parts.append(_texts(split, None, range(count), 1, side, length, reference if method == "sft" else logp, reference))
    for benchmark, n in QUESTIONS.items():
        for turn in (1, 2) if benchmark == "mt_bench" else (1,):
            length = draws.integers(5, 60, n)
            logp = length * (-0.2 + 0.05 * draws.standard_normal(n))
            first = 0 if benchmark == "alpacaeval2" else 81
            parts.append(_texts("answers", benchmark, range(first, first + n), turn, "answer", length, logp, logp - 0.05 * length))
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(parts, ignore_index=True).to_parquet(path, index=False)


def _texts(split: str, benchmark: str | None, ids: range, turn: int, side: str, length: Any, logp: Any, reference: Any) -> pd.DataFrame:
    named = {"split": split, "benchmark": benchmark, "id": [str(i) for i in ids], "turn": turn, "side": side}
    return pd.DataFrame(named | {"length": length, "logp": logp, "reference_logp": reference})


def _controls(results: Path, folder: Path) -> None:
    shared = {"standard_error": 0.5, "n": 50, "failed": 0, "failures": {}, "note": ""}
    rows = []
    for benchmark, metric, honest in (("alpacaeval2", "win_rate", 18.0), ("arena_hard", "win_rate", 30.0), ("mt_bench", "mean", 4.0)):
        rows += [
            {"benchmark": benchmark, "control": control, "metric": metric, "value": value} | shared
            for control, value in (("real", honest), ("empty", 0.5), ("embedded", 1.0))
        ]
        value = None if benchmark == "mt_bench" else 0.8
        rows.append({"benchmark": benchmark, "control": "orders", "metric": "agreement", "value": value} | shared)
    files.write_json(folder / "controls.json", rows)
    claim = [
        {"protocol": name, "what": what, "simpo": {"seconds": 0.8, "peak_mib": 90.0}, "dpo": {"seconds": 1.0, "peak_mib": 100.0}}
        | {"time_saved": 0.2, "time_saved_low": 0.15, "time_saved_high": 0.25, "steps": 16, "memory_saved": 0.1}
        | {"device": "cpu", "shape": "4 layers, hidden size 256"}
        for name, what in (("A", "as in the paper"), ("B", "best for both"), ("C", "the fast engine with a live reference"))
    ]
    files.write_json(results / "efficiency/train_step.json", {"claim": claim})
