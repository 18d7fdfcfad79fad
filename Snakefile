"""The experiments of SimPO (arXiv 2405.14734): `snakemake --cores all results/table4.csv`; `-n` shows what would run and why.

Hydra owns the values (conf/), this file owns the files: one rule a stage. `plan` writes each rule's `config`, the stage's part of the
configuration, only if it changed. `PLAN.upstream_manifests` are the manifests of the stages that a `config` names. `PLAN.knobs` change only
the speed."""

import os
import sys
from functools import partial
from pathlib import Path

from snakemake.exceptions import WorkflowError

from analysis import inventory
from analysis.inventory import EFFICIENCY, FIGURES, TABLES
from stages.lib import warm
from stages.lib.errors import UserError
from stages.plan import plan, targets

# The rules' `python` is this one. Snakemake gives each job as many threads as its rule says: one.
shell.prefix(f'export PATH="{os.path.dirname(sys.executable)}:$PATH"; ')
try:
    PLAN = plan(config.get("scale"), named=sys.argv)
except UserError as error:  # the user's mistake in conf/ or on the command line: a sentence, no traceback
    raise WorkflowError(str(error)) from None
RUN = "results/{setting}/runs/{run}"
# For `snakemake --report`: the texts of the page are in report/ and read `config`. The page has what is `shown`, with its inputs.
shown = partial(report, caption="report/result.rst")
config |= {"plan": PLAN, "rows": targets.rows(PLAN), "read": lambda path: Path(path).read_text(encoding="utf-8")}


report: "report/workflow.rst"


wildcard_constraints:
    benchmark=r"\w+",
    setting=r"[\w+=]+",
    method=r"\w+",
    run=r"[\w+=.-]+",
    table="|".join(TABLES),
    figure="|".join(FIGURES),


onstart:
    if PLAN.warm:
        warm.start()


rule all:
    input:
        inventory.targets(PLAN),


rule paper:
    input:
        inventory.paper(PLAN),


rule assets:
    input:
        config="results/assets/{benchmark}/config.yaml",
    output:
        shown("results/assets/{benchmark}/manifest.json", category="Stages"),
    log:
        "results/assets/{benchmark}/stage.log",
    shell:
        "python -m stages.assets --config {input.config} 2> {log}"


rule world:
    input:
        config="results/worlds/{world}/config.yaml",
    output:
        shown("results/worlds/{world}/manifest.json", category="Stages"),
    log:
        "results/worlds/{world}/stage.log",
    shell:
        "python -m stages.mini.world --config {input.config} 2> {log}"


rule calibrate:
    input:
        config="results/calibration/{world}/config.yaml",
        made="results/worlds/{world}/manifest.json",
    output:
        shown("results/calibration/{world}/manifest.json", category="Stages"),
    log:
        "results/calibration/{world}/stage.log",
    shell:
        "python -m stages.mini.calibrate --config {input.config} 2> {log}"


# The stages that a setting has once, for all of its runs: rules of one shape.
for stage in ("pretrain", "sft", "generate", "reward", "annotate", "reference"):

    rule:
        name:
            stage
        input:
            config=f"results/{{setting}}/{stage}/config.yaml",
            made=lambda w, stage=stage: PLAN.upstream_manifests(stage, **w),
        output:
            shown(f"results/{{setting}}/{stage}/manifest.json", category="Stages"),
        log:
            f"results/{{setting}}/{stage}/stage.log",
        resources:
            knobs=PLAN.knobs[stage],
            stage=stage,
        shell:
            "python -m stages.{resources.stage} --config {input.config} {resources.knobs} 2> {log}"


rule pairs:
    input:
        config="results/{setting}/data/config.yaml",
        made=lambda w: PLAN.upstream_manifests("pairs", **w),
    output:
        shown("results/{setting}/data/manifest.json", category="Stages"),
    log:
        "results/{setting}/data/stage.log",
    shell:
        "python -m stages.pairs --config {input.config} 2> {log}"


rule train:
    input:
        config=f"{RUN}/config.yaml",
        made=lambda w: PLAN.upstream_manifests("train", **w),
    output:
        shown(f"{RUN}/manifest.json", category="Runs", subcategory="{setting}", labels={"run": "{run}", "file": "training"}),
    log:
        f"{RUN}/stage.log",
    resources:
        knobs=PLAN.knobs["train"],
        launcher=PLAN.launcher,
    shell:
        "python -m {resources.launcher}stages.train --config {input.config} {resources.knobs} 2> {log}"


rule answer:
    input:
        config=f"{RUN}/eval/answer.yaml",
        made=lambda w: PLAN.upstream_manifests("answer", **w),
    output:
        [f"{RUN}/eval/{targets.answers(PLAN, benchmark)}" for benchmark in PLAN.answered],
    log:
        f"{RUN}/eval/answer.log",
    shell:
        "python -m stages.answer --config {input.config} 2> {log}"


rule judge:
    input:
        config=f"{RUN}/eval/judge.yaml",
        made=lambda w: PLAN.upstream_manifests("judge", **w),
        answers=rules.answer.output,
    output:
        [f"{RUN}/eval/{targets.judgments(PLAN, benchmark)}" for benchmark in PLAN.benchmarks],
    log:
        f"{RUN}/eval/judge.log",
    resources:
        knobs=PLAN.knobs["judge"],
    shell:
        "python -m stages.judge --config {input.config} {resources.knobs} 2> {log}"


rule score:
    input:
        config=f"{RUN}/eval/score.yaml",
        made=lambda w: PLAN.upstream_manifests("score", **w),
        answers=rules.answer.output,
        judgments=rules.judge.output,
    output:
        [
            shown(f"{RUN}/eval/{name}/scores.json", category="Runs", subcategory="{setting}", labels={"run": "{run}", "file": name})
            for name in PLAN.benchmarks
        ],
    log:
        f"{RUN}/eval/score.log",
    shell:
        "python -m stages.score --config {input.config} 2> {log}"


rule loglik:
    input:
        config=f"{RUN}/eval/loglik.yaml",
        made=lambda w: PLAN.upstream_manifests("loglik", **w),
        answers=rules.answer.output,
    output:
        f"{RUN}/eval/loglik.parquet",
    log:
        f"{RUN}/eval/loglik.log",
    resources:
        knobs=PLAN.knobs["loglik"],
    shell:
        "python -m stages.loglik --config {input.config} {resources.knobs} 2> {log}"


rule controls:
    input:
        config="results/controls/{judge}/config.yaml",
        made=lambda w: PLAN.upstream_manifests("controls", **w),
        answers=lambda w: targets.control_answers(PLAN),
    output:
        shown("results/controls/{judge}/manifest.json", category="Stages"),
    log:
        "results/controls/{judge}/stage.log",
    resources:
        knobs=PLAN.knobs["judge"],
    shell:
        "python -m stages.controls --config {input.config} {resources.knobs} 2> {log}"


# The trials of a method's sweep on the development questions.
rule develop:
    input:
        config="results/{setting}/tuning/{method}/config.yaml",
        made=lambda w: PLAN.upstream_manifests("develop", **w),
    output:
        shown("results/{setting}/tuning/{method}/manifest.json", category="Stages"),
    log:
        "results/{setting}/tuning/{method}/stage.log",
    resources:
        knobs=PLAN.knobs["judge"],
    shell:
        "python -m stages.develop --config {input.config} {resources.knobs} 2> {log}"


rule efficiency:
    output:
        shown(EFFICIENCY, category="Stages"),
    log:
        "results/efficiency/stage.log",
    threads: 1024  # all that there are, so that no other job runs while it measures
    resources:
        knobs=PLAN.efficiency,
    shell:
        "python -m perf.train_step --claim --out results/efficiency {resources.knobs} > {log} 2>&1"


rule table:
    input:
        config="results/tables.yaml",
        made=lambda w: inventory.needs(PLAN, w.table),
    output:
        shown("results/{table}.csv", category="Numbers (CSV)", labels=lambda w: {"of": TABLES[w.table]}),
        shown("results/{table}.html", category="Tables", labels=lambda w: {"number": TABLES[w.table]}),
        "results/{table}.txt",
    log:
        "results/{table}.log",
    shell:
        "python -m analysis.tables.{wildcards.table} --results results --out results 2> {log}"


rule figure:
    input:
        config="results/tables.yaml",
        made=lambda w: inventory.needs(PLAN, w.figure),
    output:
        shown("results/figures/{figure}.png", category="Figures", labels=lambda w: {"number": FIGURES[w.figure]}),
        shown("results/figures/{figure}.csv", category="Numbers (CSV)", labels=lambda w: {"of": FIGURES[w.figure]}),
        "results/figures/{figure}.pdf",
        "results/figures/{figure}.txt",
    log:
        "results/figures/{figure}.log",
    shell:
        "python -m analysis.figures.{wildcards.figure} --results results --out results 2> {log}"


rule scorecard:
    input:
        config="results/tables.yaml",
        made=lambda w: inventory.needs(PLAN, "scorecard"),
    output:
        shown("results/scorecard.csv", category="Numbers (CSV)", labels={"of": "Scorecard"}),
        shown("results/scorecard.html", category="Scorecard", labels={"shown as": "table"}),
        shown("results/figures/scorecard.png", category="Scorecard", labels={"shown as": "figure"}),
        multiext("results/figures/scorecard", ".pdf", ".csv"),
        "results/scorecard.txt",
        "results/figures/scorecard.txt",
    log:
        "results/scorecard.log",
    shell:
        "python -m analysis.scorecard --results results --out results 2> {log}"


rule answers:
    input:
        config="results/tables.yaml",
        made=inventory.needs(PLAN, "answers"),
    output:
        shown("results/answers.html", category="Answers", labels={"page": "Two runs side by side"}),
    log:
        "results/answers.log",
    shell:
        "python -m analysis.answers.page --results results --out results 2> {log}"


rule tuning:
    input:
        config="results/tuning.yaml",
        made=lambda w: PLAN.upstream_manifests("tuning"),
        trials=lambda w: targets.trainings(trial[:2] for trial in PLAN.trials),
        developed=lambda w: targets.developments(PLAN),
    output:
        "results/tuning.csv",
    log:
        "results/tuning.log",
    shell:
        "python -m analysis.tables.tuning --results results --out results 2> {log}"


rule table4_picture:
    input:
        config="results/tables.yaml",
        table="results/table4.csv",
    output:
        shown("results/figures/table4.png", category="Figures", labels={"number": "Table 4, drawn"}),
    log:
        "results/figures/table4.log",
    shell:
        "python -m analysis.figures.table4_picture --results results --out results 2> {log}"


rule greedy:
    input:
        config="results/{setting}/greedy/config.yaml",
        made=lambda w: PLAN.upstream_manifests("greedy", **w),
    output:
        shown("results/{setting}/greedy/manifest.json", category="Stages"),
    log:
        "results/{setting}/greedy/stage.log",
    shell:
        "python -m stages.mini.greedy --config {input.config} 2> {log}"


rule world_report:
    input:
        config="results/world_report.yaml",
        made=lambda w: PLAN.upstream_manifests("report"),
        scores=lambda w: targets.scores(PLAN, targets.reported(PLAN)),
    output:
        shown("results/world_report.json", category="Stages"),
    log:
        "results/world_report.log",
    shell:
        "python -m stages.mini.report --config {input.config} 2> {log}"
