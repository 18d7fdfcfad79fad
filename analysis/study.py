"""What the scripts of analysis/ share: how they read results/, and how they write a table or a figure.

A script is ``make(study)`` and one line, ``study.table(__doc__, "table5", make)`` or ``study.figure(__doc__, "fig3_gamma", make)``, which
is its command line: ``--results`` the folder to read, ``--out`` the one to write to. results/tables.yaml, which planning writes, says what
there is: the scale's settings, methods and benchmarks, the runs (``rows``), the runs of the figures' sweeps (``sweeps``) and the rule that
claims are judged by (``analysis``). Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from stages.lib import files
from stages.lib.errors import UserError

STYLE = Path(__file__).with_name("style.mplstyle")
COLUMN, PAGE = 3.3, 6.9  # inches: a figure as wide as a paper's column, and as its text
SETTINGS = {
    "mini_base": "Mini-Base",
    "mini_instruct": "Mini-Instruct",
    "mistral_base": "Mistral-Base (7B)",
    "mistral_instruct": "Mistral-Instruct (7B)",
    "llama3_base": "Llama-3-Base (8B)",
    "llama3_instruct": "Llama-3-Instruct (8B)",
    "llama3_instruct_v02": "Llama-3-Instruct v0.2 (8B)",
    "gemma2_it": "Gemma-2-it (9B)",
}
METHODS = {
    "sft": "SFT",
    "rrhf": "RRHF",
    "slic_hf": "SLiC-HF",
    "dpo": "DPO",
    "ipo": "IPO",
    "cpo": "CPO",
    "kto": "KTO",
    "orpo": "ORPO",
    "rdpo": "R-DPO",
    "simpo": "SimPO",
    "simpo_no_ln": "SimPO w/o LN",
    "simpo_no_margin": "SimPO, γ = 0",
}
BENCHMARKS = {"alpacaeval2": "AlpacaEval 2", "arena_hard": "Arena-Hard", "mt_bench": "MT-Bench", "oracle": "Oracle"}


class Run(NamedTuple):
    """A run of a setting; ``varied``: what its sweep gives it, empty for a row of the tables."""

    setting: str
    run: str
    method: str
    seed: int | None
    varied: dict[str, Any]


class Study:
    """A results folder. Every method raises UserError with the file that is missing and the command that makes it."""

    def __init__(self, results: Path) -> None:
        self.results = results

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.results / "tables.yaml"
        if not path.is_file():
            raise UserError(f"{path} does not exist; planning writes it: snakemake -n {path.parent}/table4.csv")
        config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
        return config

    def rows(self, *methods: str) -> list[Run]:
        """The tables' runs, all settings, methods and seeds in their order; those of ``methods`` alone, where any is named."""
        rows = [Run(**row, varied={}) for row in self.config["rows"]]
        return [row for row in rows if not methods or row.method in methods]

    def sweep(self, name: str) -> list[Run]:
        """The runs of a figure's sweep, conf/sweep/<scale>/<name>.yaml, in the grid's order; none where the scale has no such sweep."""
        return [Run(**trial, seed=None) for trial in self.config["sweeps"].get(name, [])]

    def path(self, named: str) -> Path:
        """A file that tables.yaml names: below this results folder where it lies below results/."""
        return self.results / named.removeprefix("results/") if named.startswith("results/") else Path(named)

    def folder(self, run: Run) -> Path:
        return self.results / run.setting / "runs" / run.run

    def is_trained(self, run: Run) -> bool:
        """Whether it is a training of ours, for which planning writes a configuration; SFT's and a checkpoint of the user's are none."""
        return any((self.folder(run) / name).is_file() for name in ("config.yaml", files.MANIFEST))

    def _file(self, path: Path) -> Path:
        if not path.is_file():
            raise UserError(f"{path} does not exist; make it with: snakemake --cores all {path}")
        return path

    def scores(self, run: Run, benchmark: str) -> dict[str, Any]:
        """A run's scores.json on a benchmark."""
        scores: dict[str, Any] = files.read_json(self._file(self.folder(run) / "eval" / benchmark / "scores.json"))
        return scores

    def score(self, run: Run, benchmark: str, key: str) -> float:
        """One figure of it."""
        scores = self.scores(run, benchmark)
        if key not in scores:
            path = self.folder(run) / "eval" / benchmark / "scores.json"
            raise UserError(f"{path} has no {key!r}; {files.again(path)}")
        return float("nan") if scores[key] is None else float(scores[key])

    def annotations(self, run: Run, benchmark: str) -> Path:
        """The annotations.json of AlpacaEval 2 or of the oracle: a value an instruction, for stages/benchmarks/paired.py."""
        return self._file(self.folder(run) / "eval" / benchmark / "annotations.json")

    def manifest(self, run: Run) -> dict[str, Any]:
        """A training's manifest: its whole configuration and its figures on held-out pairs."""
        manifest: dict[str, Any] = files.read_json(self._file(self.folder(run) / files.MANIFEST))
        return manifest

    def training(self, run: Run) -> pd.DataFrame:
        """A training's history, a row a logged step (stages/preference/trainer.py)."""
        return pd.read_json(self._file(self.folder(run) / "train.jsonl"), lines=True)

    def loglik(self, run: Run) -> pd.DataFrame:
        """A run's log-likelihoods, a row a text (stages/loglik.py): ``split`` (train, heldout, answers), ``benchmark``, ``id``, ``turn``,
        ``side`` (chosen, rejected, answer), ``length`` (tokens), ``logp`` and ``reference_logp`` (sums)."""
        return pd.read_parquet(self._file(self.folder(run) / "eval" / "loglik.parquet"))

    def pairs(self, run: Run, split: str) -> pd.DataFrame:
        """A run's pairs of a split, a row a pair: (chosen and rejected)_(length, logp, reference_logp, average, reward).

        ``average``: log-probability a token. ``reward``: the implicit one of the run's objective, where it is trained by DPO or SimPO.
        """
        texts = self.loglik(run)
        texts = texts[texts["split"] == split]
        sides = ("chosen", "rejected")
        pairs = pd.concat(
            [texts[texts["side"] == side].set_index("id")[["length", "logp", "reference_logp"]].add_prefix(f"{side}_") for side in sides],
            axis=1,
        )
        for side in sides:
            pairs[f"{side}_average"] = pairs[f"{side}_logp"] / pairs[f"{side}_length"]
        if self.is_trained(run):
            method = self.manifest(run)["config"]["method"]
            reward = REWARDS.get(method["objective"])
            if reward is not None:
                for side in sides:
                    pairs[f"{side}_reward"] = reward(pairs, side, method["hyperparameters"])
        return pairs

    def caption(self, what: str, runs: Iterable[Run], *more: str) -> str:
        """``what`` a figure or table shows; then settings, scale, seeds and judge, and ``more`` sentences."""
        runs = list(runs)
        settings = ", ".join(dict.fromkeys(name_of(run.setting, SETTINGS) for run in runs))
        seeds = sorted({run.seed for run in runs if run.seed is not None and self.is_trained(run)})
        parts = [f"Setting: {settings}"] if settings else []
        parts += [f"scale: {self.config['name']}", f"judge: {self.config['judge']}"]
        if seeds:
            parts.append(f"training seed{'s' if len(seeds) > 1 else ''}: {', '.join(map(str, seeds))}")
        return " ".join([what, f"{'; '.join(parts)}.", *more])


def _dpo(pairs: pd.DataFrame, side: str, values: dict[str, Any]) -> pd.Series:
    """β log(π / π_ref): arXiv 2305.18290, Eq. 5 without its constant."""
    return values["beta"] * (pairs[f"{side}_logp"] - pairs[f"{side}_reference_logp"])


def _simpo(pairs: pd.DataFrame, side: str, values: dict[str, Any]) -> pd.Series:
    """β / |y| log π: arXiv 2405.14734, Eq. 4; without length normalisation β log π."""
    return values["beta"] * pairs[f"{side}_{'average' if values['length_normalization'] else 'logp'}"]


REWARDS: dict[str, Callable[[pd.DataFrame, str, dict[str, Any]], pd.Series]] = {"dpo": _dpo, "simpo": _simpo}


def name_of(key: str, known: dict[str, str]) -> str:
    """How a setting or method is called; one that is not ``known`` by its parts: ``my_setting`` is My-Setting."""
    return known.get(key, "-".join(part[:1].upper() + part[1:] for part in key.split("_")))


def over_seeds(values: Iterable[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of a figure over training seeds, the interval Student's t on n - 1 degrees of freedom; NaN bounds for one seed."""
    from scipy import stats

    found = np.asarray(list(values), dtype=float)
    mean = float(found.mean())
    if len(found) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return mean, mean - half, mean + half


# -- writing ---------------------------------------------------------------------------------------------------------------

Table = tuple[pd.DataFrame, str]
Drawn = tuple[Figure, pd.DataFrame, str]


def command_line(docstring: str | None, make: Callable[[Study, Path], None]) -> None:
    """Run ``make(study, out)``; what the user can mend is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder to read")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder to write to")
    args = parser.parse_args()
    files.run(lambda: make(Study(args.results), args.out))


def table(docstring: str | None, name: str, make: Callable[[Study], Table], float_format: str | None = None) -> None:
    """The command line of a table: <out>/<name>.csv, printed too, its caption <name>.txt, and both as a page, <name>.html.

    ``float_format``: as pandas' to_csv has it.
    """

    def write(study: Study, out: Path) -> None:
        frame, caption = make(study)
        write_csv(out / f"{name}.csv", frame, float_format)
        files.write_text(out / f"{name}.txt", caption + "\n")
        files.write_text(out / f"{name}.html", as_page(name, frame, caption))
        print(frame.to_string(index=False, float_format="%.2f"))

    command_line(docstring, write)


def figure(docstring: str | None, name: str, make: Callable[[Study], Drawn]) -> None:
    """The command line of a figure: <out>/figures/<name>.png and .pdf, the numbers drawn as .csv, the caption as .txt."""

    def write(study: Study, out: Path) -> None:
        with mpl.style.context(STYLE):
            drawn, frame, caption = make(study)
            save(out / "figures" / name, drawn, frame, caption)

    command_line(docstring, write)


def save(path: Path, drawn: Figure, frame: pd.DataFrame, caption: str) -> None:
    """``path`` with .png, .pdf, .csv and .txt. The same figure gives the same bytes: no file holds a date."""
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None, "Producer": None, "Creator": None})):
        with files.atomic(path.with_suffix(suffix)) as partial:
            drawn.savefig(partial, format=suffix[1:], metadata=metadata)
    write_csv(path.with_suffix(".csv"), frame)
    files.write_text(path.with_suffix(".txt"), caption + "\n")
    print(f"{path}: {caption}")


def write_csv(path: Path, frame: pd.DataFrame, float_format: str | None = None) -> None:
    """At full precision, so that what is drawn can be computed again; or as ``float_format`` says."""
    with files.atomic(path) as partial:
        frame.to_csv(partial, index=False, float_format=float_format)


def as_page(name: str, frame: pd.DataFrame, caption: str) -> str:
    """A table to be read in a browser, rounded to four digits, below its caption. It asks no network for anything."""
    style = "body { font: 14px sans-serif; margin: 2em } table { border-collapse: collapse } "
    style += "td, th { padding: .2em .6em; text-align: right; border-bottom: 1px solid #ddd }"
    made = frame.rename(columns=lambda name: name.replace("_", " ")).to_html(index=False, border=0, na_rep="", float_format="{:.4g}".format)
    return f'<!doctype html><meta charset="utf-8"><title>{name}</title><style>{style}</style><p>{html.escape(caption)}</p>{made}\n'
