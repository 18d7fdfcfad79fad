"""conf/sweep/, its two doors (stages/run.py, Plan.trials) and the choice among the trials (analysis/tables/tuning.py)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from analysis import inventory
from analysis.study import command_line
from analysis.tables import tuning
from stages import run as front_door
from stages.lib import files
from stages.lib.errors import UserError
from stages.plan import Plan, compose, planning, targets
from stages.plan.compose import CONF, sweep

pytestmark = pytest.mark.slow


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return Plan()


# -- the sweeps -----------------------------------------------------------------------------------------------------------


def test_every_method_that_trains_has_as_many_trials_as_the_others_at_the_same_learning_rates(plan: Plan) -> None:
    """conf/sweep/mini: none of the paper's methods is favoured by a longer search."""
    rows = dict.fromkeys(plan.scale["methods"] + plan.scale["ablations"])
    trained = {method for method in rows if plan.method("mini_base", method).objective is not None}
    counts = Counter((trial.setting, trial.method) for trial in plan.trials)
    assert counts == {(setting, method): 8 for setting in plan.scale["settings"] for method in trained}
    assert {path.stem for path in (CONF / "sweep/mini").glob("*.yaml")} == trained | set(plan.scale["sweeps"])
    assert len({tuple(sweep(f"mini/{method}")["learning_rate"]) for method in trained}) == 1


@pytest.mark.parametrize("scale", ["mini", "smoke", "paper"])
def test_every_trial_is_a_run_of_its_method_and_no_two_are_the_same(scale: str) -> None:
    """conf/sweep against the schema: Plan.run takes each name, and finds in it the values that the sweep gives."""
    plan = Plan(scale)
    plan.scale["settings"] = plan.scale["settings"][:2]
    assert len({trial[:2] for trial in plan.trials}) == len(plan.trials) > 0
    for trial in plan.trials:
        method = plan.run(trial.setting, trial.run).method
        assert method.name == trial.method
        assert {key: method[key] for key in trial.varied} == trial.varied


@pytest.mark.parametrize("scale", ["mini", "smoke", "paper"])
def test_every_sweep_is_of_a_method_that_exists_or_a_figure_s(scale: str) -> None:
    """conf/sweep: a file with a mistyped name would be left out without a word."""
    figures = Plan(scale).scale["sweeps"]
    found = {path.stem for path in (CONF / "sweep" / scale).glob("*.yaml")}
    assert set(figures) <= found <= {*figures, *(path.stem for path in (CONF / "method").glob("*.yaml"))}


def test_the_figures_sweeps_are_as_wide_as_the_figures_need(plan: Plan) -> None:
    """Figure 3: six margins from 0 on; Figure 5: five strengths of each method. paper: three seeds of DPO and SimPO."""
    grids = {name: {tuple(trial.varied.items()) for trial in trials} for name, trials in plan.sweeps.items()}
    assert len(grids["gamma"]) >= 6 and 0 in {trial.varied["gamma"] for trial in plan.sweeps["gamma"]}
    assert len(grids["beta_simpo"]) >= 5 and len(grids["beta_dpo"]) >= 5
    seeds = Plan("paper").sweeps["seeds"]
    assert {tuple(trial.varied.items()) for trial in seeds} == {(("seed", seed),) for seed in (42, 0, 1)}
    assert {trial[:2] for trial in seeds} > {
        (setting, method) for setting in ("mistral_base", "llama3_base") for method in ("dpo", "simpo")
    }
    for trials in plan.sweeps.values():
        for trial in trials:
            method, seed = plan.run(trial.setting, trial.run)
            assert {**method, "seed": seed}.items() >= trial.varied.items()


def test_a_smaller_scale_has_what_it_can_be_made_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan: a sweep is of the scale's settings; paper goes without what the scale has no runs for, and says so; the rest of it stays."""
    assert not any(inventory.lacks(Plan("mini"), name) for name in inventory.ABOUT)
    less = Plan("mini")
    less.scale |= {"settings": ["mini_base"], "methods": ["sft", "dpo"], "ablations": []}
    assert less.sweeps["gamma"] == less.sweeps["beta_dpo"] == []
    left = {name for name in inventory.ABOUT if inventory.lacks(less, name)}
    assert left == {"table5", "fig2_length", "fig3_gamma", "fig4_dpo", "fig5_beta"}
    assert {PurePosixPath(path).stem for path in {*inventory.paper(Plan("mini"))} - {*inventory.paper(less)}} == left
    assert "results/table5.csv" not in inventory.targets(less) and "results/table4.csv" in inventory.targets(less)
    assert inventory.lacks(less, "fig5_beta") == ["beta_dpo", "beta_simpo"]

    monkeypatch.setattr(planning, "Plan", lambda scale: less)
    monkeypatch.setattr(less, "write", lambda named: None)
    planning.plan("mini", ["snakemake", "paper"])
    assert "paper goes without fig4_dpo: scale mini has no runs of simpo\n" in capsys.readouterr().err
    planning.plan("mini", ["snakemake", "results/table4.csv"])
    assert capsys.readouterr().err == ""

    wrong = Plan("mini")
    wrong.scale["settings"] = ["mini_base"]
    monkeypatch.setattr(compose, "sweep", lambda name: {"setting": ["mini_bas"], "method": ["dpo"], "seed": [1]})
    with pytest.raises(UserError, match="conf/sweep/mini/gamma.yaml, in mini_bas: .*did you mean 'mini_base'"):
        wrong.sweeps  # noqa: B018


def test_several_seeds_repeat_what_depends_on_them(plan: Plan) -> None:
    """conf/scale, ``seeds``: each training of the tables once a seed, under its name; SFT, whose model none of them trains, once."""
    plan.scale["seeds"] = [0, 1, 42]
    rows = [row for row in targets.rows(plan, "methods") if row.setting == "mini_base" and row.method in ("sft", "dpo")]
    assert [(row.run, row.seed) for row in rows] == [("sft", 42), ("dpo+seed=0", 0), ("dpo+seed=1", 1), ("dpo", 42)]
    assert plan.run("mini_base", "dpo+seed=1").seed == 1
    assert len(targets.runs(plan)) == 2 * (1 + 3 * 11)
    _, reported = plan.composed("report")
    assert [(setting, run) for setting, runs in reported["runs"].items() for run in runs] == targets.runs(plan)


# -- the front door -------------------------------------------------------------------------------------------------------


@pytest.fixture
def snakemake_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``python -m stages.run`` in this process: what it would have Snakemake make."""

    def call(*arguments: str) -> list[str]:
        commands: list[list[str]] = []

        def snakemake(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["stages.run", *arguments])
        with monkeypatch.context() as patch:
            patch.setattr(front_door.subprocess, "run", snakemake)
            front_door.main()
        assert len(commands) == 1
        return [word for word in commands[0] if word.startswith(("results/", "scale="))]

    return call


@pytest.mark.parametrize("arguments", [["+sweep=mini/dpo"], ["-m", "+sweep=mini/kto"]])
def test_both_doors_name_the_same_runs_and_ask_for_their_trainings_alone(snakemake_gets: Any, plan: Plan, arguments: list[str]) -> None:
    """Hydra's multirun and Plan.trials, with -m and without."""
    plan.scale["methods"], plan.scale["ablations"] = [arguments[-1].partition("/")[2]], []
    wanted = targets.trainings(trial[:2] for trial in plan.trials)
    got = snakemake_gets(*arguments, "setting=mini_base,mini_instruct")
    assert sorted(got) == sorted([*wanted, "scale=mini"])
    assert len(wanted) == 16


@pytest.mark.parametrize("name", ["gamma"])
def test_both_doors_name_the_same_runs_of_a_figure_s_sweep(snakemake_gets: Any, plan: Plan, name: str) -> None:
    """Hydra's multirun and Plan.sweeps; the sweep names its settings itself, and its runs are evaluated."""
    got = snakemake_gets(f"+sweep=mini/{name}")
    assert sorted(got) == sorted([*targets.scores(plan, [trial[:2] for trial in plan.sweeps[name]]), "scale=mini"])


def test_the_command_line_s_value_takes_the_place_of_the_sweep_s(snakemake_gets: Any) -> None:
    """stages/run.py with hydra.sweeper.params: of a key given twice the command line's."""
    got = snakemake_gets("+sweep=mini/dpo", "setting=mini_base", "method.beta=0.3", "method.learning_rate=1e-5,1e-4")
    runs = [f"results/mini_base/runs/dpo+beta=0.3+learning_rate={rate}/manifest.json" for rate in ("1e-5", "0.0001")]
    assert got == [*runs, "scale=mini"]


def test_a_multirun_of_one_s_own_goes_to_the_scores_and_a_sweep_where_it_is_told(snakemake_gets: Any) -> None:
    """stages/run.py: hydra.callbacks.snakemake.until."""
    got = snakemake_gets("-m", "setting=mini_base", "method=dpo", "method.beta=0.3")
    assert {Path(path).name for path in got} == {"scores.json"}
    got = snakemake_gets("setting=mini_base", "method=dpo", "method.beta=0.3", "hydra.callbacks.snakemake.until=train")
    assert got == ["results/mini_base/runs/dpo+beta=0.3/manifest.json"]
    got = snakemake_gets("+sweep=smoke/simpo", "setting=smoke", "hydra.callbacks.snakemake.until=score")
    assert {Path(path).name for path in got} == {"scores.json", "scale=smoke"}
    with pytest.raises(SystemExit, match="until=trian: expected train or score"):
        snakemake_gets("setting=mini_base", "hydra.callbacks.snakemake.until=trian")


def test_two_sweeps_in_one_call_are_an_error_and_not_two_default_runs(snakemake_gets: Any) -> None:
    """stages/run.py: Hydra composes a sweep's values for all jobs or for none."""
    with pytest.raises(SystemExit, match=r"\+sweep=mini/dpo: .*give one sweep in a call"):
        snakemake_gets("-m", "+sweep=mini/dpo,mini/simpo", "setting=mini_base")


# -- the plan -------------------------------------------------------------------------------------------------------------


def test_trials_are_planned_where_their_table_is_asked_for_and_only_there(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan.write: for another target the figures' sweeps alone are read; for this one every training is written, no evaluation is; one
    method's judged trials are a target too."""
    figures = {f"mini/{name}" for name in plan.scale["sweeps"]}
    with monkeypatch.context() as patch:
        patch.setattr(compose, "sweep", lambda name: sweep(name) if name in figures else pytest.fail(f"{name} was read"))
        plan.write(["results/table4.csv"])
    assert not Path("results/tuning.yaml").exists()
    plan.scale["methods"], plan.scale["ablations"] = ["sft", "dpo"], ["simpo"]
    plan.write(["results/mini_base/tuning/dpo/manifest.json"])
    assert [str(path) for path in Path("results").glob("*/tuning/*/config.yaml")] == ["results/mini_base/tuning/dpo/config.yaml"]
    plan.write(["results/tuning.csv"])
    assert len(list(Path("results").glob("*/tuning/*/config.yaml"))) == len(targets.developments(plan)) == 2 * 2
    wanted: Any = OmegaConf.load("results/tuning.yaml")
    assert len(wanted.trials) == 2 * 2 * 8
    for trial in wanted.trials:
        folder = Path(f"results/{trial.setting}/runs/{trial.run}")
        assert (folder / "config.yaml").is_file()
        assert (folder / "eval").exists() == (trial.run in ("dpo", "simpo"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method.beta:", "method.bta:", r"conf/sweep/mini/dpo\.yaml, in mini_base: bta: .*did you mean 'beta'"),
        ("method.beta: 0.05", "method.beta: -0.05", r"mini/dpo\.yaml, in mini_base: method\.beta=-0\.05: expected more than 0"),
        (
            "method.beta:",
            "setting.training.epochs:",
            r"mini/dpo\.yaml: .*setting\.training\.epochs: a sweep can vary setting, method, method\.\* and seed",
        ),
        ("method: dpo", "method: ipo", r"mini/dpo\.yaml: give method=dpo and no setting"),
        ("sweeper:", "sweper:", r"mini/dpo\.yaml: hydra\.sweeper\.params\.method is missing"),
        ("method.beta: 0.05", "method.beta: ${seed}", r"mini/dpo\.yaml: .*'seed' not found"),
        ("method.beta: 0.05", "method.beta: choice(0.05", r"mini/dpo\.yaml: "),
        ("params:", "params: [", r"mini/dpo\.yaml: "),
    ],
)
def test_a_mistake_in_a_sweep_is_an_error_that_names_the_file_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    """targets.trials and compose.sweep."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    monkeypatch.setattr(compose, "CONF", conf)
    path = conf / "sweep/mini/dpo.yaml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        _ = Plan("mini").trials


def test_a_method_with_more_trials_than_another_is_an_error_that_names_the_files(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """targets.check_budgets, when the table is planned: before anything is trained."""
    plan.scale |= {"settings": ["mini_base"], "methods": ["sft", "dpo"], "ablations": ["simpo"]}
    rates = {"mini/dpo": [1e-5, 3e-5, 1e-4], "mini/simpo": [1e-5, 1e-4]}
    grids = {name: {"method": [name.removeprefix("mini/")], "learning_rate": given} for name, given in rates.items()}
    monkeypatch.setattr(compose, "sweep", lambda name: dict(grids[name]))
    with pytest.raises(
        UserError, match=r"in mini_base: conf/sweep/mini/dpo.yaml 3, conf/sweep/mini/simpo.yaml 2; give each method as many"
    ):
        plan.composed("tuning")
    plan.scale["ablations"] = []
    del plan.trials
    assert len(plan.composed("tuning")[1]["trials"]) == 3


def test_a_scale_without_sweeps_says_where_they_would_be(plan: Plan) -> None:
    """targets.trials: no empty table."""
    plan.scale["methods"], plan.scale["ablations"] = ["sft"], []
    with pytest.raises(UserError, match=r"scale mini has no trials: write conf/sweep/mini/<method>\.yaml"):
        _ = plan.trials


# -- the choice -----------------------------------------------------------------------------------------------------------


Trial = tuple[float, float] | tuple[float, float, float]


def made_up(results: Path, trials: dict[str, list[Trial]], error: float = 2.0) -> None:
    """tuning.yaml and what it leads to. By method: learning rate, win rate and, if it is not ``error``, its standard error, of each trial
    in the order of the grid. The start model's log-probability is -0.5 a token."""
    named = []
    sums = {"split": ["train", "heldout", "heldout"], "chosen_logps": [-90.0, -1.5, -2.5], "chosen_length": [3, 3, 5]}
    (results / "s/reference").mkdir(parents=True)
    pd.DataFrame(sums).to_parquet(results / "s/reference/logps.parquet")
    for method, given in trials.items():
        judged = []
        for number, (rate, win_rate, *own) in enumerate(given):
            varied = {"learning_rate": rate, "beta" if method == "dpo" else "gamma": number}
            named.append({"setting": "s", "run": f"{method}{number}", "method": method, "varied": varied})
            heldout = {"rewards/accuracies": 1 - win_rate / 100, "rewards/margins": 0.1, "loss": 0.5, "avg_logps/chosen": -0.6}
            files.write_json(results / f"s/runs/{method}{number}/manifest.json", {"heldout": heldout, "heldout_pairs": 200})
            counts = {"n_total": 199, "n_failed": 1}
            judged.append({"run": f"{method}{number}", **counts, "win_rate": win_rate, "standard_error": (*own, error)[0]})
        files.write_json(results / f"s/tuning/{method}/development.json", judged)
    OmegaConf.save(OmegaConf.create({"references": {"s": "results/s/reference"}, "trials": named}), results / "tuning.yaml")


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([(1e-4, 30.0), (3e-5, 27.9)], 0),  # more than one standard error below the best
        ([(1e-4, 30.0), (3e-5, 28.0)], 1),  # at most one: the smaller learning rate
        ([(1e-4, 30.0, 1.0), (3e-5, 28.0, 9.0)], 0),  # the best one's standard error counts
        ([(3e-5, 28.0), (3e-5, 29.0), (1e-4, 30.0)], 1),  # at the same learning rate the better one
        ([(1e-4, 29.0), (3e-5, 29.0), (3e-5, 29.0)], 1),  # and of equals the first
        ([(1e-5, 20.0), (3e-5, 29.0), (1e-4, 30.0), (3e-4, 29.5)], 1),
        ([(3e-4, 30.0), (1e-4, 25.0), (3e-5, 24.0)], 0),  # held-out accuracy, here the other way round, decides nothing
        ([(1e-4, 30.0, 0.0), (3e-5, 30.0, 0.0)], 1),
        ([(1e-4, 0.0, 0.0)], 0),
    ],
)
def test_the_smallest_learning_rate_within_one_standard_error_of_the_best_is_chosen(trials: list[Trial], chosen: int) -> None:
    """tuning.choose: the rule of the module's docstring, by hand."""
    table = [
        {"varied": {"learning_rate": rate}, "win_rate": win_rate, "standard_error": (*own, 2.0)[0], "accuracy": 1 - win_rate / 100}
        for rate, win_rate, *own in trials
    ]
    assert tuning.choose(table) == chosen


@pytest.mark.parametrize(
    ("grid", "chosen", "edges"),
    [
        ([{"beta": 1}, {"beta": 2}, {"beta": 3}], 1, []),
        ([{"beta": 3}, {"beta": 1}, {"beta": 2}], 0, ["beta"]),  # by size, whatever the order of the grid
        ([{"beta": b, "gamma": 5} for b in (1, 2, 3)], 0, ["beta"]),  # what is not varied has no edge
        ([{"beta": 1}, {"beta": 2}], 0, []),  # two values are two edges
        ([{"beta": b, "gamma": g} for b in (1, 2, 3) for g in (0, 1, 2)], 4, []),
        ([{"beta": b, "gamma": g} for b in (1, 2, 3) for g in (0, 1, 2)], 2, ["beta", "gamma"]),
        ([{"loss_type": "hinge"}, {"loss_type": "sigmoid"}], 0, []),  # a word has none, and neither have true and false
        ([{"flag": True}, {"flag": False}], 0, []),
    ],
)
def test_a_chosen_value_at_the_edge_of_its_grid_is_named(grid: list[dict[str, Any]], chosen: int, edges: list[str]) -> None:
    """tuning.edges."""
    assert tuning.edges([{"varied": varied} for varied in grid], chosen) == edges


def test_the_table_has_a_row_a_trial_and_the_lines_for_conf_are_the_chosen_values(tmp_path: Path) -> None:
    """tuning: each method chooses among its own trials; a key that a method does not vary is empty, and in no line of it."""
    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    made_up(
        tmp_path, {"dpo": list(zip(rates, (20.0, 30.0, 31.0), strict=True)), "simpo": list(zip(rates, (25.0, 26.0, 24.0), strict=True))}
    )
    table = tuning.tuning(tmp_path)
    assert list(table)[:6] == ["setting", "method", "run", "learning_rate", "beta", "gamma"]
    assert table["run"].tolist() == ["dpo0", "dpo1", "dpo2", "simpo0", "simpo1", "simpo2"]
    assert table["chosen"].tolist() == [False, True, False, True, False, False]
    assert table["edge"].tolist() == ["", "", "", "learning_rate gamma", "", ""]
    assert table["gamma"].isna().tolist() == [True, True, True, False, False, False]
    assert set(table["start_logp"]) == {-0.5} and set(table["chosen_logp"]) == {-0.6} and table["accuracy"][1] == pytest.approx(0.7)
    said = tuning.for_conf(table)
    read: Any = OmegaConf.create(said)
    assert read == {"tuned": {"dpo": {"learning_rate": 3e-5, "beta": 1}, "simpo": {"learning_rate": 1e-5, "gamma": 0}}}
    assert said.startswith("# conf/setting/s.yaml")
    assert (
        "    learning_rate: 3.0e-5 # of 1.0e-5, 3.0e-5 and 1.0e-4: development win rate 30.0 ± 2.0\n    beta: 1 # of 0, 1 and 2\n" in said
    )
    assert said.endswith("    gamma: 0 # of 0, 1 and 2, at the edge")


def test_numbers_are_in_the_file_as_in_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """analysis/tables/tuning.py through its command line: 2.0e-5, and not 2.0000000000000002e-05."""
    made_up(tmp_path, {"dpo": [(2e-5, 20.0), (1e-4, 30.0), (0.25, 25.0)]})
    monkeypatch.setattr(sys, "argv", ["python", "--results", str(tmp_path), "--out", str(tmp_path)])
    command_line(None, tuning.write)
    cells = [line.split(",")[3] for line in (tmp_path / "tuning.csv").read_text().splitlines()]
    assert cells == ["learning_rate", "2.0e-5", "1.0e-4", "0.25"]


def test_a_missing_file_and_one_without_a_figure_are_named_with_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """analysis/tables/tuning.py: no choice among what happens to be there."""
    monkeypatch.chdir(tmp_path)
    made_up(Path("results"), {"dpo": [(2e-5, 20.0), (1e-4, 30.0)]})
    path, judged = Path("results/s/runs/dpo1/manifest.json"), Path("results/s/tuning/dpo/development.json")
    made = "results/s/tuning/dpo/manifest.json"
    whole = files.read_json(path)
    files.write_json(path, {"heldout": whole["heldout"]})
    with pytest.raises(UserError, match=rf"{path} has no 'heldout_pairs'; make it again with: snakemake .*--forcerun {path}"):
        tuning.tuning(Path("results"))
    del whole["heldout"]["loss"]
    files.write_json(path, whole)
    with pytest.raises(UserError, match=rf"{path} has no 'loss'"):
        tuning.tuning(Path("results"))
    path.unlink()
    with pytest.raises(UserError, match=rf"{path} does not exist; make it with: snakemake --cores all {path}"):
        tuning.tuning(Path("results"))
    files.write_json(judged, files.read_json(judged)[1:])
    with pytest.raises(UserError, match=rf"{judged} has no trial dpo0; make it again with: snakemake .*--forcerun {made}"):
        tuning.tuning(Path("results"))
    judged.unlink()
    with pytest.raises(UserError, match=rf"{judged} does not exist; make it with: snakemake --cores all {made}"):
        tuning.tuning(Path("results"))
    Path("results/s/reference/logps.parquet").unlink()
    with pytest.raises(
        ValueError, match="logps.parquet does not exist; make it with: snakemake --cores all results/s/reference/manifest.json"
    ):
        tuning.tuning(Path("results"))
