"""Write the numbers of README.md and docs/results.md from results/, between two marks in each file.

    python -m analysis.readme --results results

In: table4.csv and scorecard.csv of the results folder, and tables.yaml. Out: the part between the marks: in README.md Table 4 in short, in
docs/results.md the same and the verdicts on the papers' claims.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pandas as pd

from analysis.study import METHODS, SETTINGS, Study, name_of, require
from stages.lib import files
from stages.lib.errors import UserError

README, RESULTS = Path("README.md"), Path("docs/results.md")
BEGIN, END = "<!-- from results/, by `make readme` -->", "<!-- until here -->"
SHOWN = {"lc_win_rate": ("LC", 1), "win_rate": ("WR", 1), "oracle": ("oracle", 2)}
VERDICTS = ("reproduced", "contradicted", "undecided", "not measured")


def models(table: pd.DataFrame, settings: list[str]) -> list[str]:
    """Table 4 in short: one row a method with the columns of SHOWN for each setting. The best of a setting is bold."""
    shown = {key: column for key, column in SHOWN.items() if key in table}
    heads = [f"{name_of(setting, SETTINGS)} {head}" for setting in settings for head, _ in shown.values()]
    lines = [f"| | {' | '.join(heads)} |", f"|---{'|--:' * len(heads)}|"]
    best = {setting: table[table["setting"] == setting][list(shown)].max() for setting in settings}
    for method in dict.fromkeys(table["method"]):
        cells = []
        for setting in settings:
            row = table[(table["setting"] == setting) & (table["method"] == method)].iloc[0]
            for key, (_, digits) in shown.items():
                text = f"{row[key]:.{digits}f}"
                cells.append(f"**{text}**" if row[key] == best[setting][key] else text)
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


def blocks(study: Study) -> dict[Path, str]:
    """What stands between the marks of each file."""
    table, card = (pd.read_csv(require(study.results / name, "paper")) for name in ("table4.csv", "scorecard.csv"))
    head = f"{len(table)} models, scale `{study.config['name']}`, judge `{study.config['judge']}`:"
    short = "\n".join([head, "", *models(table, study.config["settings"])])
    told = f"Of {len(card)} verdicts on the papers' claims (`results/scorecard.csv` has each as a sentence):"
    return {README: short, RESULTS: "\n".join([short, "", told, "", *claims(card)])}


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
