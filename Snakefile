"""The experiments of SimPO (arXiv 2405.14734): `snakemake --cores all results/table4.csv`; `-n` says what would run and why.

Hydra owns the values (conf/), this file the files: one rule a stage. `plan` writes each stage's part of the configuration, its `config`,
only when it changed; `PLAN.made` are the results of other stages that this part names, `PLAN.knobs` what changes nothing but the speed."""

import os
import sys

from snakemake.exceptions import WorkflowError

from stages.config import plan

# The rules' `python` is this one. Snakemake gives each job as many threads as its rule says: one.
shell.prefix(f'export PATH="{os.path.dirname(sys.executable)}:$PATH"; ')
try:
    PLAN = plan(config.get("scale"), named=sys.argv)
except ValueError as error:  # the user's mistake in conf/ or on the command line: a sentence, no traceback
    raise WorkflowError(str(error)) from None
RUN = "results/{setting}/runs/{run}"


wildcard_constraints:
    benchmark=r"\w+",
    setting=r"\w+",
    run=r"[\w+=.-]+",
    table=r"table[45]",


rule all:
    input:
        PLAN.targets(),


rule assets:
    input:
        config="results/assets/{benchmark}/config.yaml",
    output:
        "results/assets/{benchmark}/manifest.json",
    log:
        "results/assets/{benchmark}/stage.log",
    shell:
        "python -m stages.assets --config {input.config} 2> {log}"


rule world:
    input:
        config="results/worlds/{world}/config.yaml",
    output:
        "results/worlds/{world}/manifest.json",
    log:
        "results/worlds/{world}/stage.log",
    shell:
        "python -m stages.world --config {input.config} 2> {log}"


rule calibrate:
    input:
        config="results/calibration/{world}/config.yaml",
        made="results/worlds/{world}/manifest.json",
    output:
        "results/calibration/{world}/manifest.json",
    log:
        "results/calibration/{world}/stage.log",
    shell:
        "python -m stages.calibrate --config {input.config} 2> {log}"


rule pretrain:
    input:
        config="results/{setting}/pretrain/config.yaml",
        made=lambda w: PLAN.made("pretrain", **w),
    output:
        "results/{setting}/pretrain/manifest.json",
    log:
        "results/{setting}/pretrain/stage.log",
    resources:
        knobs=PLAN.knobs["pretrain"],
    shell:
        "python -m stages.pretrain --config {input.config} {resources.knobs} 2> {log}"


rule sft:
    input:
        config="results/{setting}/sft/config.yaml",
        made=lambda w: PLAN.made("sft", **w),
    output:
        "results/{setting}/sft/manifest.json",
    log:
        "results/{setting}/sft/stage.log",
    resources:
        knobs=PLAN.knobs["sft"],
    shell:
        "python -m stages.sft --config {input.config} {resources.knobs} 2> {log}"


rule generate:
    input:
        config="results/{setting}/generate/config.yaml",
        made=lambda w: PLAN.made("generate", **w),
    output:
        "results/{setting}/generate/manifest.json",
    log:
        "results/{setting}/generate/stage.log",
    shell:
        "python -m stages.generate --config {input.config} 2> {log}"


rule reward:
    input:
        config="results/{setting}/reward/config.yaml",
        made=lambda w: PLAN.made("reward", **w),
    output:
        "results/{setting}/reward/manifest.json",
    log:
        "results/{setting}/reward/stage.log",
    resources:
        knobs=PLAN.knobs["reward"],
    shell:
        "python -m stages.reward --config {input.config} {resources.knobs} 2> {log}"


rule annotate:
    input:
        config="results/{setting}/annotate/config.yaml",
        made=lambda w: PLAN.made("annotate", **w),
    output:
        "results/{setting}/annotate/manifest.json",
    log:
        "results/{setting}/annotate/stage.log",
    shell:
        "python -m stages.annotate --config {input.config} 2> {log}"


rule pairs:
    input:
        config="results/{setting}/data/config.yaml",
        made=lambda w: PLAN.made("pairs", **w),
    output:
        "results/{setting}/data/manifest.json",
    log:
        "results/{setting}/data/stage.log",
    shell:
        "python -m stages.pairs --config {input.config} 2> {log}"


rule reference:
    input:
        config="results/{setting}/reference/config.yaml",
        made=lambda w: PLAN.made("reference", **w),
    output:
        "results/{setting}/reference/manifest.json",
    log:
        "results/{setting}/reference/stage.log",
    resources:
        knobs=PLAN.knobs["reference"],
    shell:
        "python -m stages.reference --config {input.config} {resources.knobs} 2> {log}"


rule train:
    input:
        config=f"{RUN}/config.yaml",
        made=lambda w: PLAN.made("train", **w),
    output:
        f"{RUN}/manifest.json",
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
        made=lambda w: PLAN.made("answer", **w),
    output:
        [f"{RUN}/eval/{PLAN.answers(benchmark)}" for benchmark in PLAN.answered],
    log:
        f"{RUN}/eval/answer.log",
    shell:
        "python -m stages.answer --config {input.config} 2> {log}"


rule judge:
    input:
        config=f"{RUN}/eval/judge.yaml",
        made=lambda w: PLAN.made("judge", **w),
        answers=rules.answer.output,
    output:
        [f"{RUN}/eval/{PLAN.judgments(benchmark)}" for benchmark in PLAN.benchmarks],
    log:
        f"{RUN}/eval/judge.log",
    resources:
        knobs=PLAN.knobs["judge"],
    shell:
        "python -m stages.judge --config {input.config} {resources.knobs} 2> {log}"


rule score:
    input:
        config=f"{RUN}/eval/{{benchmark}}/score.yaml",
        made=lambda w: PLAN.made("score", **w),
        answers=lambda w: f"{RUN}/eval/{PLAN.answers(w.benchmark)}".format(**w),
        judgments=lambda w: f"{RUN}/eval/{PLAN.judgments(w.benchmark)}".format(**w),
    output:
        f"{RUN}/eval/{{benchmark}}/scores.json",
    log:
        f"{RUN}/eval/{{benchmark}}/score.log",
    params:
        options=lambda w: PLAN.score_options(w.benchmark),
    shell:
        "python -m stages.score {params.options} --answers {input.answers} --judgments {input.judgments} --out {output} 2> {log}"


rule table:
    input:
        config="results/tables.yaml",
        scores=lambda w: PLAN.scores(PLAN.runs({"table4": "methods", "table5": "ablations"}[w.table])),
    output:
        "results/{table}.csv",
    log:
        "results/{table}.log",
    shell:
        "python -m analysis.{wildcards.table} --results results --out results 2> {log}"


rule tuning:
    input:
        config="results/tuning.yaml",
        made=lambda w: PLAN.made("tuning"),
        trials=lambda w: PLAN.trainings(trial[:2] for trial in PLAN.trials),
    output:
        "results/tuning.csv",
    log:
        "results/tuning.log",
    shell:
        "python -m analysis.tuning --results results --out results 2> {log}"


rule table4_picture:
    input:
        config="results/tables.yaml",
        table="results/table4.csv",
    output:
        "results/figures/table4.png",
    log:
        "results/figures/table4.log",
    shell:
        "python -m analysis.table4_picture --results results --out results 2> {log}"


rule world_report:
    input:
        config="results/world_report.yaml",
        made=lambda w: PLAN.made("report"),
        scores=PLAN.scores(PLAN.runs()),
    output:
        "results/world_report.json",
    log:
        "results/world_report.log",
    shell:
        "python -m stages.report --config {input.config} 2> {log}"
