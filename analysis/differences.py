"""Compare two results folders stage by stage, and say where they part first, and why.

    python -m analysis.differences results another_machine/results
    python -m analysis.differences results another_machine/results --all     # and each stage of each run that differs

In: of both folders the manifests, the evaluations' stage configurations, train.jsonl, answers, judgments, scores and tables. Weights are
compared by the manifests, and need not be there. Out: the first difference, with its reason as far as the manifests tell it (another
configuration, processor, version, commit), a table with a row a stage and setting, and the next command. The exit status is 0 where the
folders are equal, and 1 where they differ.

Two stages are equal if their configurations and outputs are. Another machine or commit is a reason, and no difference by itself. The
scorecard and the figures are not compared: they are drawn from what is, and some hold measured times.
"""

from __future__ import annotations

import argparse
import csv
import os.path
import sys
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stages.benchmarks import BENCHMARKS
from stages.lib import files
from stages.lib.errors import UserError
from stages.plan.values import leaves

# As the stages depend on one another; ``data`` is the folder of the stage pairs.
ORDER = ["worlds", "assets", "calibration", "pretrain", "sft", "generate", "reward", "annotate", "data", "reference", "runs", "greedy"]
ORDER += ["answers", "judgments", "scores", "controls", "loglik", "tables"]
SHARED = ("worlds", "assets", "calibration", "controls")  # the folders below results/ that belong to no setting
ANSWERS = {benchmark.format.file for benchmark in BENCHMARKS.values()}
JUDGMENTS = {benchmark.judgments for benchmark in BENCHMARKS.values()}
# The stages of a run's evaluation, which have a configuration and no manifest: its name, and the files that they make.
EVALUATION = {
    "answers": ("answer.yaml", ANSWERS),
    "judgments": ("judge.yaml", JUDGMENTS),
    "scores": ("score.yaml", {"scores.json"}),
    "loglik": ("loglik.yaml", {"loglik.parquet"}),
}
NAMES = ("step", "question_id", "instruction", "prompt_id", "id", "setting", "method", "benchmark")  # the keys that name a row
FORCED = "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2"  # docs/results.md, section Reproducibility
Values = dict[str, Any]
Key = tuple[str, str, str]  # stage, setting, and the path of its folder below results/, or of a table's file


@dataclass
class Made:
    """What one folder says of a stage: sha256 of inputs and outputs by path; ``machine``: what else may change the numbers."""

    config: Values
    inputs: Values
    outputs: Values
    machine: Values = field(default_factory=dict)


@dataclass
class Compared:
    """A stage in both folders: what differs, as texts. ``trouble``: why it cannot be compared. ``first``: the first row that differs."""

    stage: str
    setting: str
    place: str
    trouble: str = ""
    configuration: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    machine: list[str] = field(default_factory=list)
    first: str = ""

    @property
    def equal(self) -> bool:
        return not (self.trouble or self.configuration or self.outputs)


# -- reading a folder ------------------------------------------------------------------------------------------------------


def stages_of(results: Path, *, finished: bool = True) -> set[Key]:
    """The stages that a results folder has: those that are finished, or also those that planning alone has begun."""
    found = set[Key]()
    for pattern in [f"*/*/{files.MANIFEST}", *([] if finished else ["*/*/config.yaml"])]:
        for folder in (path.parent.relative_to(results) for path in results.glob(pattern)):
            first, last = folder.parts
            if first in SHARED or last in ORDER:
                found.add((first, "", str(folder)) if first in SHARED else (last, first, str(folder)))
    for run in results.glob("*/runs/*/"):
        folder, setting = run.relative_to(results), run.parts[-3]
        if (run / files.MANIFEST).is_file() or (not finished and (run / "config.yaml").is_file()):
            found.add(("runs", setting, str(folder)))
        for stage, (config, wanted) in EVALUATION.items():
            begun = [path.parent for path in run.glob(f"eval/**/{config}")]
            found |= {(stage, setting, str(path.relative_to(results))) for path in begun if not finished or hashes(path, wanted)}
    return found | {("tables", "", path.name) for path in results.glob("*.csv") if path.name != "scorecard.csv"}


def read(results: Path, stage: str, place: str) -> Made:
    """What a folder says of a finished stage; UserError where something is damaged."""
    folder = results / place
    if stage == "tables":
        return Made({}, {}, {place: files.sha256(folder)})
    if stage not in EVALUATION:
        manifest = read_manifest(folder)
        outputs = {name: made["sha256"] for name, made in manifest["outputs"].items()}
        # A manifest holds times, so that its own sha256 says nothing; what it stands for is named in the configuration.
        given = {name: value for name, value in manifest["inputs"].items() if Path(name).name != files.MANIFEST}
        return Made(manifest["config"], given | named(results, place, manifest["config"]), outputs, machine_of(manifest))
    name, wanted = EVALUATION[stage]
    try:
        config = yaml.safe_load(files.read_text(folder / name))
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{folder / name} is no YAML with keys")
    inputs = named(results, place, config)
    if stage in ("judgments", "scores"):
        inputs |= hashes(folder, ANSWERS if stage == "judgments" else ANSWERS | JUDGMENTS)
    setting, _, run, *_ = Path(place).parts
    # The evaluation does not record its machine; the training of the model stands for it.
    trained = next(
        (path for path in (results / setting / "runs" / run, results / setting / "sft") if (path / files.MANIFEST).is_file()), None
    )
    return Made(config, inputs, hashes(folder, wanted), machine_of(read_manifest(trained)) if trained else {})


def read_manifest(folder: Path) -> Values:
    """The manifest of a folder. UserError names what it lacks, or a file of another size; a file may be absent."""
    path = folder / files.MANIFEST
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(key), dict) for key in ("config", "inputs", "outputs")):
        raise UserError(f"{path} is damaged: it lacks config, inputs or outputs")
    for name, made in manifest["outputs"].items():
        if not isinstance(made, dict) or not {"bytes", "sha256"} <= made.keys():
            raise UserError(f"{path} is damaged: it lacks bytes or sha256 of {name}")
        if (file := folder / name).is_file() and file.stat().st_size != made["bytes"]:
            raise UserError(f"{file} has {file.stat().st_size} bytes, {made['bytes']} in its manifest")
    return dict(manifest)


def machine_of(manifest: Values) -> Values:
    """What may change the numbers of one configuration. ``runtime`` should not, but it groups what is summed."""
    named = {key: manifest[key] for key in ("machine", "packages", "python", "version", "git_commit", "processes") if key in manifest}
    return dict(leaves(named | {"runtime": manifest["config"].get("runtime", {})}))


def named(results: Path, place: str, config: Values) -> Values:
    """The sha256 of what a stage configuration names below results/, from the manifests there, but for the stage's own files."""
    found: Values = {}
    for _, value in leaves(config):
        parts = Path(str(value)).parts
        if parts[:1] != ("results",) or len(parts) < 3 or Path(value).is_relative_to(f"results/{place}"):
            continue
        owner = Path(*parts[1 : 4 if parts[2] == "runs" else 3])
        if "eval" in parts:
            found |= hashes((results / Path(*parts[1:])).parent, {parts[-1]})
        elif (results / owner / files.MANIFEST).is_file():
            made = {f"results/{owner}/{name}": facts["sha256"] for name, facts in read_manifest(results / owner)["outputs"].items()}
            found |= {name: value_ for name, value_ in made.items() if Path(name).is_relative_to(value)}
    return found


def hashes(folder: Path, names: set[str]) -> Values:
    """The sha256 of the files below a folder that have one of the names, by their paths in it."""
    return {
        str(path.relative_to(folder)): files.sha256(path) for path in sorted(folder.rglob("*")) if path.name in names and path.is_file()
    }


# -- comparing -------------------------------------------------------------------------------------------------------------


def compare(ours: Path, theirs: Path) -> list[Compared]:
    """Every stage that both folders have, in the order in which the stages depend on one another."""
    both = sorted(stages_of(ours) & stages_of(theirs), key=lambda key: (ORDER.index(key[0]), key))
    return [compare_stage(ours, theirs, key) for key in both]


def compare_stage(ours: Path, theirs: Path, key: Key) -> Compared:
    stage, _, place = key
    found, trouble = [], []
    for results in (ours, theirs):
        try:
            found.append(read(results, stage, place))
        except UserError as error:
            trouble.append(str(error))
    if trouble:
        return Compared(*key, trouble="; ".join(trouble))
    one, other = found
    configs = [dict(leaves({name: value for name, value in made.config.items() if name != "runtime"})) for made in found]
    outputs = _differing(one.outputs, other.outputs)
    first = _first_row(ours, theirs, stage, place, outputs)
    inputs, machine = _differing(one.inputs, other.inputs), _texts(one.machine, other.machine)
    return Compared(*key, configuration=_texts(*configs), inputs=inputs, outputs=outputs, machine=machine, first=first)


def _differing(ours: Values, theirs: Values) -> list[str]:
    """The keys whose values differ, or that only one side has."""
    return [key for key in dict.fromkeys([*ours, *theirs]) if (key in ours, ours.get(key)) != (key in theirs, theirs.get(key))]


def _texts(ours: Values, theirs: Values) -> list[str]:
    """``key (ours / theirs)`` of each key whose values differ; of long texts, the part where they do."""

    def text(values: Values, key: str) -> str:
        if key not in values:
            return "nothing"
        whole = str(values[key])
        start = max(0, len(os.path.commonprefix([str(side.get(key)) for side in (ours, theirs)])) - 20) if len(whole) > 60 else 0
        return f"{'…' if start else ''}{whole[start : start + 60]}{'…' if len(whole) > start + 60 else ''}"

    return [f"{key} ({text(ours, key)} / {text(theirs, key)})" for key in _differing(ours, theirs)]


def _first_row(ours: Path, theirs: Path, stage: str, place: str, outputs: list[str]) -> str:
    """``train.jsonl: step 3: loss (0.69 / 0.7)``: of the first output that both have and that has rows; empty if there is none."""
    folder = Path() if stage == "tables" else Path(place)
    readable = [
        name for name in sorted(outputs, key=lambda name: name != "train.jsonl") if Path(name).suffix in (".jsonl", ".json", ".csv")
    ]
    name = next((name for name in readable if all((results / folder / name).is_file() for results in (ours, theirs))), None)
    if name is None:
        return ""
    try:
        rows = [_rows(results / folder / name) for results in (ours, theirs)]
    except UserError as error:
        return str(error)
    for number, (one, other) in enumerate(zip_longest(*rows), start=1):
        if one is None or other is None:
            return f"{name}: row {number} is in one folder alone"
        if differing := _texts(dict(leaves(one)), dict(leaves(other))):
            known = [f"{key} {str(one[key])[:60]}" for key in NAMES if key in one]
            return f"{name}: {', '.join(known) or f'row {number}'}: {differing[0]}"
    return f"{name}: the same rows in other bytes"


def _rows(path: Path) -> list[files.Row]:
    if path.suffix == ".csv":
        return list(csv.DictReader(files.read_text(path).splitlines()))
    whole = files.read_json(path) if path.suffix == ".json" else None
    return [whole] if isinstance(whole, dict) else files.parse_rows(path)


# -- telling ---------------------------------------------------------------------------------------------------------------


def reasons(at: Compared) -> list[str]:
    """Why a stage differs, while all before it are equal."""
    if at.trouble:
        return [at.trouble]
    told = [f"another configuration: {', '.join(at.configuration)}"] if at.configuration else []
    told += [f"other inputs: {', '.join(at.inputs)}"] if at.inputs else []
    kinds = {"machine.": "another machine", "packages.": "other packages", "git_commit": "another commit", "": "also"}
    for start, kind in kinds.items():
        mine = [text for text in at.machine if text.startswith(start) and (start or not text.startswith(tuple(kinds)[:-1]))]
        told += [f"{kind}: {', '.join(text.removeprefix('machine.').removeprefix('packages.') for text in mine)}"] if mine else []
    return told or ["the manifests name no reason; manifests of version 0.2.0 and before do not record the processor and its kernels"]


def next_command(at: Compared, ours: Path, theirs: Path) -> str:
    """What to do about the first difference."""
    name = EVALUATION[at.stage][0] if at.stage in EVALUATION else "config.yaml"
    if at.trouble:
        return f"make that stage again: {files.again(Path('results', at.place, files.MANIFEST)).removeprefix('make it again with: ')}"
    if at.configuration:
        return f"diff {ours / at.place / name} {theirs / at.place / name}"
    if any(text.startswith(("packages.", "python")) for text in at.machine):
        return "make setup in both checkouts: it installs the locked versions"
    if any(text.startswith("machine.") for text in at.machine):
        return f"{FORCED} snakemake --cores all on both machines; docs/results.md, Reproducibility, says what is then equal"
    if commits := [text for text in at.machine if text.startswith("git_commit")]:
        return f"git diff {commits[0].removeprefix('git_commit (').removesuffix(')').replace(' / ', ' ')} -- stages conf envs"
    return f"python -m analysis.differences {ours} {theirs} --all"


def summary(compared: list[Compared]) -> pd.DataFrame:
    """A row a stage and setting: how many stages there are in both folders, how many are equal, and how many differ in what."""
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for at in compared:
        row = rows.setdefault((at.stage, at.setting), dict.fromkeys(("both", "equal", "configuration", "inputs", "outputs", "machine"), 0))
        row["both"] += 1
        for column in list(row)[1:]:
            row[column] += bool(getattr(at, column))
    return pd.DataFrame([{"stage": stage, "setting": setting or "-"} | row for (stage, setting), row in rows.items()])


def details(at: Compared) -> str:
    """All that differs in a stage, a line a kind."""
    parts = {name: "; ".join(getattr(at, name)) for name in ("configuration", "inputs", "outputs", "machine")}
    lines = [f"  {name}: {text}" for name, text in ({"not compared": at.trouble} | parts | {"first": at.first}).items() if text]
    return "\n".join([f"{at.stage} {at.place}", *lines])


def alone(ours: Path, theirs: Path, shown: int | None) -> list[str]:
    """A line for each folder on what it alone has: at most ``shown`` places, or all of them."""
    lines = []
    for results, other in ((ours, theirs), (theirs, ours)):
        begun = {place for *_, place in stages_of(other, finished=False)}
        found = sorted({place for *_, place in stages_of(results) - stages_of(other)})
        told = [f"{place} (unfinished in {other})" if place in begun else place for place in found]
        more = f", and {len(told) - shown} more: --all" if shown is not None and len(told) > shown else ""
        lines += [f"Only {results} has {', '.join(told[:shown])}{more}."] if told else []
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path, help="a results folder")
    parser.add_argument("theirs", type=Path, help="another one")
    parser.add_argument("--all", action="store_true", help="print every stage that differs, not the first alone")
    args = parser.parse_args()
    both = (args.ours, args.theirs)
    for results in both:
        if not stages_of(results):
            raise UserError(f"{results} is no results folder, or nothing there is finished: it has no {files.MANIFEST} and no table")
    compared = compare(*both)
    differing = [at for at in compared if not at.equal]
    if differing:
        at = differing[0]
        print(f"They part first at {at.stage}, {at.place}:", *reasons(at), *([f"first: {at.first}"] if at.first else []), sep="\n  ")
        print(f"Next: {next_command(at, *both)}")
    else:
        print(f"{len(compared)} stages are in both folders, and they are equal.")
    if compared:
        print("", summary(compared).to_string(index=False), sep="\n")
    if args.all:
        print("", *map(details, differing), sep="\n")
    print(*alone(*both, shown=None if args.all else 5), sep="\n")
    sys.exit(bool(differing) or stages_of(args.ours) != stages_of(args.theirs))


if __name__ == "__main__":
    files.run(main)
