"""The README's numbers: what stands between its two marks is written from results/, never by hand.

    python -m analysis.readme --results results            writes README.md
    python -m analysis.readme --results results --check    exit status 1 where README.md says something else

In: table4.csv and scorecard.csv of the results folder, and tables.yaml. Out: README.md, its part between the marks.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pandas as pd

from analysis.study import METHODS, SETTINGS, Study, name_of
from stages.lib import files
from stages.lib.errors import UserError

README = Path("README.md")
BEGIN, END = "<!-- from results/, by `make readme` -->", "<!-- until here -->"
SHOWN = {"lc_win_rate": ("LC", 1), "win_rate": ("WR", 1), "oracle": ("oracle", 2)}
VERDICTS = ("reproduced", "contradicted", "undecided", "not measured")


def read(study: Study, name: str) -> pd.DataFrame:
    """A table of the results folder; UserError names the command that makes it."""
    path = study.results / name
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: snakemake --cores all paper")
    return pd.read_csv(path)


def models(table: pd.DataFrame, settings: list[str]) -> list[str]:
    """Table 4 in short: a row a method, for each setting the columns of SHOWN, bold the best."""
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
    """The scorecard in short: a row a verdict, the parts of claims that have it, by setting where they differ."""
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


def block(study: Study) -> str:
    """What stands between the marks."""
    table, card = read(study, "table4.csv"), read(study, "scorecard.csv")
    lines = [f"{len(table)} models, scale `{study.config['name']}`, judge `{study.config['judge']}`:", ""]
    lines += [
        *models(table, study.config["settings"]),
        "",
        f"Of {len(card)} verdicts on the papers' claims (`results/scorecard.csv` has each as a sentence):",
        "",
        *claims(card),
    ]
    return "\n".join(lines)


def replaced(text: str, new: str) -> str:
    """``text`` with ``new`` between the marks; UserError where they are not there once."""
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise UserError(f"{README} must have the marks {BEGIN} and {END} once, in this order")
    return pattern.sub(lambda _: f"{BEGIN}\n{new}\n{END}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder to read")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where the README says something else")
    args = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    new = replaced(text, block(Study(args.results)))
    if not args.check:
        files.write_text(README, new)
    elif new != text:
        raise UserError(f"{README} does not say what {args.results} says; write it with: make readme")


if __name__ == "__main__":
    files.run(main)
