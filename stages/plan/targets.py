"""The runs that a scale asks for, and the files of each: rows of the tables, sweeps of the figures, trials of the tuning.

A run is (setting, run name), and ``wanted`` is a list of runs. analysis/inventory.py says which table or figure reads what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.benchmarks import BENCHMARKS
from stages.lib import files
from stages.lib.errors import UserError
from stages.plan import compose, run_names

if TYPE_CHECKING:
    from stages.plan.planning import Plan


class Row(NamedTuple):
    """A run of the tables: a method of the scale in one of its settings, with one of its seeds."""

    setting: str
    run: str
    method: str
    seed: int


class Trial(NamedTuple):
    """A run of a sweep in a setting. ``varied`` has all values that the sweep gives it, also those that are the setting's defaults."""

    setting: str
    run: str
    method: str
    varied: dict[str, run_names.Value]


def rows(plan: Plan, *parts: str) -> list[Row]:
    """The rows of the tables, or only those of the scale's ``parts``: methods (Table 4), ablations (Table 5)."""
    methods = dict.fromkeys(method for part in parts or ("methods", "ablations") for method in plan.scale[part])
    found = []
    for setting, method in product(plan.scale["settings"], methods):
        is_trained = plan.method(setting, method).objective is not None
        for seed in plan.scale["seeds"] if is_trained else [plan.base.seed]:  # only a training depends on the seed
            found.append(Row(setting, plan.run_name(setting, method, {"seed": seed}), method, seed))
    return found


def chains(plan: Plan) -> list[Row]:
    """Every run of the scale's chains."""
    return [Row(name, method, method, seed) for name, (_, seed) in plan.chains.items() for method in plan.scale["chained"]]


def runs(plan: Plan, *parts: str) -> list[tuple[str, str]]:
    """(setting, run) of ``rows``."""
    return [row[:2] for row in rows(plan, *parts)]


def sweeps(plan: Plan) -> dict[str, list[Trial]]:
    """The runs of each figure's sweep, conf/sweep/<scale>/<name>.yaml, by the sweep's name and in its grid's order.

    A sweep runs in those of its settings that the scale has; if the scale has none of them, the sweep has no runs.
    """
    found: dict[str, list[Trial]] = {}
    for name in plan.scale["sweeps"]:
        grid = compose.sweep(f"{plan.scale['name']}/{name}")
        settings, methods = grid.pop("setting", plan.scale["settings"]), grid.pop("method")
        # A setting of conf/ that the scale leaves out is skipped; a setting that does not exist is an error.
        settings = [
            setting for setting in settings if setting in plan.scale["settings"] or not (compose.CONF / f"setting/{setting}.yaml").is_file()
        ]
        found[name] = [trial for setting, method in product(settings, methods) for trial in _trials(plan, name, setting, method, grid)]
    return found


def reported(plan: Plan) -> list[tuple[str, str]]:
    """The runs that the mini world's report is about: those of the tables; after `snakemake paper` the chains' and the sweeps' too."""
    return list(dict.fromkeys([*runs(plan), *(row[:2] for row in plan.chained), *(swept(plan) if plan.chained else [])]))


def swept(plan: Plan) -> list[tuple[str, str]]:
    """(setting, run) of all figures' sweeps, each once."""
    return list(dict.fromkeys(trial[:2] for trials in plan.sweeps.values() for trial in trials))


def trials(plan: Plan) -> list[Trial]:
    """The runs of the methods' sweeps, conf/sweep/<scale>/<method>.yaml, in the scale's settings and in the order of the grids."""
    name = plan.scale["name"]
    methods = dict.fromkeys([*plan.scale["methods"], *plan.scale["ablations"]])
    grids = {method: compose.sweep(f"{name}/{method}") for method in methods if (compose.CONF / f"sweep/{name}/{method}.yaml").is_file()}
    if not grids:
        raise UserError(f"scale {name} has no trials: write conf/sweep/{name}/<method>.yaml for methods of conf/scale/{name}.yaml")
    for method, grid in grids.items():
        if grid.pop("method") != [method] or "setting" in grid:
            raise UserError(f"conf/sweep/{name}/{method}.yaml: give method={method} and no setting: the trials run in every setting")
    return [
        trial
        for setting, method in product(plan.scale["settings"], grids)
        for trial in _trials(plan, method, setting, method, grids[method])
    ]


def tuned(plan: Plan) -> list[tuple[str, str]]:
    """(setting, method) of ``trials``."""
    return list(dict.fromkeys((trial.setting, trial.method) for trial in plan.trials))


def check_budgets(plan: Plan) -> None:
    """UserError unless all methods of a setting have the same number of trials: a longer search is an advantage."""
    for setting in plan.scale["settings"]:
        counts = Counter(trial.method for trial in plan.trials if trial.setting == setting)
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"conf/sweep/{plan.scale['name']}/{method}.yaml {count}" for method, count in counts.items())
            raise UserError(f"the methods have different numbers of trials in {setting}: {listed}; give each method as many as the others")


def _trials(plan: Plan, name: str, setting: str, method: str, grid: Mapping[str, list[Any]]) -> list[Trial]:
    """The runs of the sweep ``name`` in a setting; UserError names the sweep's file."""
    varied = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    try:
        return [Trial(setting, plan.run_name(setting, method, values), method, values) for values in varied]
    except UserError as error:
        raise UserError(f"conf/sweep/{plan.scale['name']}/{name}.yaml, in {setting}: {error}") from None


# -- files ----------------------------------------------------------------------------------------------------------------


def trainings(wanted: Iterable[tuple[str, str]]) -> list[str]:
    """The manifests of trained runs."""
    return [f"results/{setting}/runs/{run}/{files.MANIFEST}" for setting, run in wanted]


def logliks(wanted: Iterable[tuple[str, str]]) -> list[str]:
    """The log-likelihoods of runs."""
    return [f"results/{setting}/runs/{run}/eval/loglik.parquet" for setting, run in wanted]


def answers(plan: Plan, benchmark: str) -> str:
    """The file of the answers that a benchmark judges, in the folder eval/ of a run."""
    answered = plan.base.benchmarks[benchmark].answers
    return f"{answered}/{BENCHMARKS[plan.base.benchmarks[answered].protocol].format.file}"


def judgments(plan: Plan, benchmark: str) -> str:
    """The file of a benchmark's judgments, in the folder eval/ of a run."""
    return f"{benchmark}/{BENCHMARKS[plan.base.benchmarks[benchmark].protocol].judgments}"


def scores(plan: Plan, wanted: Iterable[tuple[str, str]]) -> list[str]:
    """The scores.json of runs on every benchmark."""
    return [f"results/{setting}/runs/{run}/eval/{benchmark}/scores.json" for setting, run in wanted for benchmark in plan.benchmarks]


def evaluations(plan: Plan, wanted: list[tuple[str, str]]) -> list[str]:
    """The scores of runs, with the answers and judgments."""
    names = dict.fromkeys(of(plan, name) for name in plan.benchmarks for of in (answers, judgments))
    return scores(plan, wanted) + [f"results/{setting}/runs/{run}/eval/{name}" for setting, run in wanted for name in names]


def developments(plan: Plan) -> list[str]:
    """The manifests of the judged trials."""
    return [f"results/{setting}/tuning/{method}/{files.MANIFEST}" for setting, method in tuned(plan)]


def controls(plan: Plan) -> str:
    """The manifest of the judge's controls."""
    return f"results/controls/{plan.base.judge.name}/{files.MANIFEST}"


def control_answers(plan: Plan) -> list[str]:
    """The answers of the tables' first run, which the controls judge."""
    (setting, run), *_ = runs(plan, "methods")
    return [f"results/{setting}/runs/{run}/eval/{answers(plan, name)}" for name in plan.answered]
