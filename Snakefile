"""The experiments of SimPO (arXiv 2405.14734): `snakemake --cores all results/table4.csv`; `-n` says what would run and why.

Hydra owns the values (conf/), this file the files: one rule a stage. `plan` writes for each stage the part of the configuration that
the stage depends on, its `config`, only when it changed; `PLAN.made` are the results of other stages that this part names.
"""

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
    world=r"\w+",
    benchmark=r"\w+",
    setting=r"\w+",
    run=r"[\w+=.-]+",


rule all:
    input:
        "results/table4.csv",


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
        micro_batch=PLAN.runtime["pretrain"]["micro_batch"],
    shell:
        "python -m stages.pretrain --config {input.config} --runtime micro_batch={resources.micro_batch} 2> {log}"


rule sft:
    input:
        config="results/{setting}/sft/config.yaml",
        made=lambda w: PLAN.made("sft", **w),
    output:
        "results/{setting}/sft/manifest.json",
    log:
        "results/{setting}/sft/stage.log",
    resources:
        micro_batch=PLAN.runtime["sft"]["micro_batch"],
    shell:
        "python -m stages.sft --config {input.config} --runtime micro_batch={resources.micro_batch} 2> {log}"


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
        micro_batch=PLAN.runtime["reference"]["micro_batch"],
    shell:
        "python -m stages.reference --config {input.config} --runtime micro_batch={resources.micro_batch} 2> {log}"


rule train:
    input:
        config=f"{RUN}/config.yaml",
        made=lambda w: PLAN.made("train", **w),
    output:
        f"{RUN}/manifest.json",
    log:
        f"{RUN}/stage.log",
    resources:
        micro_batch=PLAN.runtime["train"]["micro_batch"],
    shell:
        "python -m stages.train --config {input.config} --runtime micro_batch={resources.micro_batch} 2> {log}"


rule answer:
    input:
        config=f"{RUN}/eval/answer.yaml",
        made=lambda w: PLAN.made("answer", **w),
    output:
        expand(f"{RUN}/eval/{{benchmark}}/model_outputs.json", benchmark=PLAN.answered, allow_missing=True),
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
        expand(f"{RUN}/eval/{{benchmark}}/annotations.json", benchmark=PLAN.benchmarks, allow_missing=True),
    log:
        f"{RUN}/eval/judge.log",
    resources:
        **PLAN.runtime["judge"],
    shell:
        "python -m stages.judge --config {input.config} --runtime concurrency={resources.concurrency}"
        " timeout={resources.timeout} max_retries={resources.max_retries} 2> {log}"


rule score:
    input:
        config=f"{RUN}/eval/{{benchmark}}/score.yaml",
        made=lambda w: PLAN.made("score", **w),
        answers=lambda w: f"{RUN}/eval/{PLAN.base.benchmarks[w.benchmark].answers}/model_outputs.json".format(**w),
        judgments=f"{RUN}/eval/{{benchmark}}/annotations.json",
    output:
        f"{RUN}/eval/{{benchmark}}/scores.json",
    log:
        f"{RUN}/eval/{{benchmark}}/score.log",
    params:
        gamed=lambda w: f"--gamed {gamed}" if (gamed := PLAN.base.benchmarks[w.benchmark].gamed) else "",
    shell:
        "python -m stages.score --benchmark {wildcards.benchmark} --answers {input.answers}"
        " --judgments {input.judgments} {params.gamed} --out {output} 2> {log}"


rule table4:
    input:
        config="results/tables.yaml",
        scores=PLAN.scores(),
    output:
        "results/table4.csv",
    log:
        "results/table4.log",
    shell:
        "python -m analysis.table4 --results results --out results 2> {log}"
