"""Ask all trials of a method the development questions, and have the judge compare their answers with the baseline's.

    python -m stages.develop --config results/mini_base/tuning/simpo/config.yaml --runtime concurrency=16 timeout=60 max_retries=5
    python -m stages.develop --config results/mini_base/tuning/simpo/config.yaml --estimate    # prints the cost, and calls nothing

In: the trials' models, which are of one shape; questions and a baseline in AlpacaEval's format; the judge. The trials answer as
AlpacaEval's questions are answered, by one vLLM engine that swaps weights, and are judged by AlpacaEval's protocol.
analysis/tables/tuning.py chooses among them. Out: the manifest and ``development.json``, a row a trial: {"run", "n_total", "n_failed",
"win_rate", "standard_error"}, where ``win_rate`` is the mean over the ``n_total`` judged questions, in percent, and the error is over
questions. Beside them a folder for each trial with its model_outputs.json and annotations.json, and with identity.json, which says what
they are made of.

If the stage is killed, the same command goes on with the trials that are not finished. A trial that is made of something else now (its
model, the questions, the configuration) is answered and judged again. Runtime knobs, local server, cache and budget are the judge stage's.
The estimate takes the baseline's answers where a trial has none yet.
"""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from stages.answer import answer_turns, longest, read_questions
from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import Conf
from stages.benchmarks.paired import values
from stages.benchmarks.rows import Row, read_rows
from stages.judging.session import estimate, judgments, read_stage_config
from stages.lib import files, models
from stages.lib.engine import start_engine, swap_model
from stages.lib.errors import UserError

NAME = "development"  # of the questions, among the configuration's benchmarks
READ = ("questions", "baseline", "template")  # its keys that name a file
NO_IDENTITY = ("trials", "runtime", "dry")  # keys of the configuration that do not say what a trial's files are made of


def begin(folder: Path, wanted: dict[str, Any]) -> None:
    """Make a folder for each trial. Remove the folders that are made of something else, and those of trials that are no more."""
    shared = {key: value for key, value in wanted.items() if key not in NO_IDENTITY}
    read = {key: files.sha256(wanted["benchmarks"][NAME][key]) for key in READ}
    identities = {}
    for run, model in wanted["trials"].items():
        made = files.read_manifest(Path(models.checked_model(model)).parent)["outputs"]
        weights = {name: facts["sha256"] for name, facts in made.items() if name.startswith("model/")}
        identities[run] = {"config": shared, "read": read, "model": weights}
    for made_before in (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        path = made_before / "identity.json"
        if not path.is_file() or files.read_json(path) != identities.get(made_before.name):
            shutil.rmtree(made_before)
    for run, identity in identities.items():
        files.write_json(folder / run / "identity.json", identity)


def answer(config: DictConfig, folder: Path, runs: list[str]) -> None:
    """Write the answers of ``runs``, each as soon as it is done."""
    format = BENCHMARKS[config.benchmarks[NAME].protocol].format
    engine = None
    for number, run in enumerate(runs, start=1):
        model = config.trials[run]
        tokenizer = models.load_tokenizer(model)
        asked = read_questions(NAME, config.benchmarks[NAME])
        if engine is None:
            engine = start_engine(OmegaConf.create({"model": model, "revision": None}), longest(tokenizer, asked, config))
        else:
            swap_model(engine, model)
        print(f"develop: {config.setting} {run}, trial {number} of {len(runs)}, {len(asked)} questions", flush=True)
        answer_turns(engine, tokenizer, asked, config)
        files.write_rows(folder / run / format.file, [format.answer_row(one.question, one.turns, run, NAME) for one in asked])


def measure(run: str, annotations: Path, protocol: str) -> Row:
    """A trial's row of development.json."""
    wins = values(annotations, protocol)[1]
    judged = wins[~np.isnan(wins)]
    if judged.size < 2:
        raise UserError(
            f"{annotations}: {judged.size} of {wins.size} judgments are left, and a standard error needs two; `failure` says why"
        )
    error = float(judged.std(ddof=1)) / math.sqrt(judged.size)
    counts = {"n_total": judged.size, "n_failed": wins.size - judged.size}
    return {"run": run, **counts, "win_rate": float(judged.mean()), "standard_error": error}


def judging_of(conf: Conf, judge: Conf) -> Any:
    """The protocol, ready to judge answers to the development questions."""
    controls = BENCHMARKS[conf["protocol"]].controls
    assert controls is not None
    return controls.prepare({**conf, "answers": conf["baseline"]}, judge, None)


def main() -> None:
    config, folder = files.stage_config(__doc__, dry="estimate")
    wanted, cache = read_stage_config(config)
    conf, judge = wanted["benchmarks"][NAME], wanted["judge"]
    benchmark, judging = BENCHMARKS[conf["protocol"]], judging_of(conf, judge)
    answers = {run: folder / run / benchmark.format.file for run in wanted["trials"]}
    annotations = {run: folder / run / benchmark.judgments for run in wanted["trials"]}

    if config.dry:
        # The baseline's own answer would be a draw without a call.
        stand_in = [{**row, "output": f"{row['output']}\n", "generator": "a trial"} for row in judging.answers]
        given = {run: read_rows(path, benchmark.format.keys) if path.is_file() else stand_in for run, path in answers.items()}
        works = {run: (benchmark.tokens, partial(judging.annotate, given[run])) for run in given}
        print(f"estimate: trials of {wanted['method']} in {wanted['setting']}, by {judge['model']}\n{estimate(works, judge, cache)}")
        return

    begin(folder, wanted)
    answer(config, folder, [run for run, path in answers.items() if not path.is_file()])
    left = {run: read_rows(answers[run], benchmark.format.keys) for run, path in annotations.items() if not path.is_file()}
    works = {run: (benchmark.tokens, partial(judging.annotate, rows)) for run, rows in left.items()}
    for run, rows in judgments(works, wanted, cache, folder / "config.yaml", f"develop: {wanted['setting']}") if works else ():
        files.write_rows(annotations[run], rows)
    table = [measure(run, path, benchmark.form_of or conf["protocol"]) for run, path in annotations.items()]
    files.write_json(folder / "development.json", table)
    trained = [str(Path(model).parent / files.MANIFEST) for model in wanted["trials"].values()]
    files.write_manifest(folder, config, inputs=[*dict.fromkeys(conf[key] for key in READ), *trained])
    for row in table:
        print("develop: {run}: win rate {win_rate:.1f} ± {standard_error:.1f}, {n_total} judged, {n_failed} failed".format(**row))


if __name__ == "__main__":
    files.run(main)
