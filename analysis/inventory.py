"""The tables and figures: what each is called, what it reads, and which of them a scale can have. Planning imports it: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.lib import files
from stages.lib.errors import UserError
from stages.plan import targets as of
from stages.plan.values import nearest

if TYPE_CHECKING:
    from stages.plan import Plan

# By script of analysis/tables and analysis/figures: its name in the report.
TABLES = {
    "table1": "Table 1",
    "table2": "Table 2",
    "table3": "Table 3",
    "table4": "Table 4",
    "table5": "Table 5",
    "table6": "Table 6",
    "compare": "Comparison with the paper",
    "overlap": "Overlap of the data",
}
FIGURES = {
    "fig1_scores": "Figure 1",
    "fig2_length": "Figure 2",
    "fig3_gamma": "Figure 3",
    "fig4_dpo": "Figure 4",
    "fig5_beta": "Figure 5",
    "curves": "Training curves",
}
LIKELIHOOD = ("sft", "dpo", "simpo", "simpo_no_ln")  # the methods whose log-likelihoods the paper shows: Table 6, Figures 2 and 4
# The methods or sweeps that a table or figure is about. A scale without runs of them goes without it; Table 5 looks at ablations alone.
ABOUT = {
    "table5": ("simpo",),
    "fig2_length": ("sft", "simpo", "simpo_no_ln"),
    "fig3_gamma": ("gamma",),
    "fig4_dpo": ("dpo", "simpo"),
    "fig5_beta": ("beta_dpo", "beta_simpo"),
}
SWEPT = ("paper", "fig3_gamma", "fig5_beta", "scorecard")  # the targets that need the sweeps' runs
EFFICIENCY = "results/efficiency/train_step.json"


def needs(plan: Plan, name: str) -> list[str]:
    """What a script of analysis/ reads, besides results/tables.yaml."""
    rows, likelihood = of.runs(plan), [row[:2] for row in of.rows(plan) if row.method in LIKELIHOOD]
    chained, likely = [row[:2] for row in plan.chained], [row[:2] for row in plan.chained if row.method in LIKELIHOOD]
    trained = [row[:2] for row in of.rows(plan) if plan.method(row.setting, row.method).objective is not None]
    match name:
        case "table1":
            return of.scores(plan, of.runs(plan, "methods"))
        case "fig1_scores":
            return of.scores(plan, of.runs(plan, "methods") + chained)
        case "table4":
            return of.evaluations(plan, of.runs(plan, "methods")) + of.scores(plan, chained)
        case "compare":  # Tables 4 to 6 of the paper
            return of.scores(plan, rows) + of.logliks(likelihood)
        case "table2":
            return [of.controls(plan), *plan.upstream_manifests("tables"), *of.scores(plan, rows[:1])]
        case "table3":
            return of.trainings(trained)
        case "table5":
            return of.evaluations(plan, of.runs(plan, "ablations")) + of.scores(plan, chained)
        case "table6" | "fig2_length":
            return of.logliks(likelihood)
        case "fig3_gamma" | "fig5_beta":
            runs = [trial[:2] for sweep in ABOUT[name] for trial in plan.sweeps.get(sweep, [])]
            return of.scores(plan, runs + chained) + of.logliks(runs + likely)
        case "fig4_dpo":
            return [*of.logliks(likelihood), EFFICIENCY]
        case "curves":
            return of.scores(plan, rows) + of.trainings(trained)
        case "overlap":
            data = [f"results/{setting}/data/{files.MANIFEST}" for setting in plan.scale["settings"]]
            return [*data, *(manifest for manifest in plan.upstream_manifests("tables") if manifest != of.controls(plan))]
        case "answers":
            return of.evaluations(plan, rows) + of.logliks(rows)
        case "scorecard":
            every = list(dict.fromkeys([*rows, *of.swept(plan), *chained]))
            return [*of.evaluations(plan, every), *of.logliks(dict.fromkeys([*likelihood, *of.swept(plan), *likely])), EFFICIENCY]
    raise UserError(f"no script of analysis/ is called {name}{nearest(name, [*TABLES, *FIGURES, 'scorecard', 'answers'])}")


def lacks(plan: Plan, name: str) -> list[str]:
    """The methods and sweeps that a table or figure needs and the scale lacks."""
    if name == "table5":
        return [f"{wanted} among its ablations" for wanted in ABOUT[name] if wanted not in plan.scale["ablations"]]
    methods = (*plan.scale["methods"], *plan.scale["ablations"])
    return [wanted for wanted in ABOUT.get(name, ()) if wanted not in methods and not plan.sweeps.get(wanted)]


def targets(plan: Plan) -> list[str]:
    """The targets of `snakemake` without a target."""
    report = ["results/world_report.json"] if plan.base.world is not None else []
    tables = [f"results/{name}.csv" for name in ("table2", "table4", "table5") if not lacks(plan, name)]
    return [*tables, "results/figures/table4.png", *report]


def paper(plan: Plan) -> list[str]:
    """The targets of `snakemake paper`: every table and figure that the scale has the runs for."""
    made = [f"results/{name}.csv" for name in TABLES if not lacks(plan, name)]
    made += [f"results/figures/{name}.png" for name in FIGURES if not lacks(plan, name)]
    return list(dict.fromkeys([*targets(plan), *made, "results/scorecard.csv", "results/answers.html"]))
