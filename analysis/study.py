"""What the scripts of analysis/ share: how they read results/, and how they write a table or a figure.

A script has a function ``make(study)``. Its last line is its command line: ``study.table(__doc__, "table5", make)`` or
``study.figure(__doc__, "fig3_gamma", make)``, with ``--results`` for the folder to read and ``--out`` for the one to write to. Planning
writes results/tables.yaml, which lists the scale's settings, methods and benchmarks, the tables' runs (``rows``), the runs of the figures'
sweeps (``sweeps``), the runs of further chains (``chains``) and the rule by which claims are judged (``analysis``). A chain repeats
pretraining, fine-tuning, pairs and trainings of a setting with another seed. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import html
import json
import math
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.style
import pandas as pd
import pyarrow as pa
import yaml
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis import stats
from stages.benchmarks import BENCHMARKS
from stages.benchmarks.benchmark import Benchmark
from stages.benchmarks.rows import as_number
from stages.lib import files
from stages.lib.errors import UserError

STYLE = Path(__file__).with_name("style.mplstyle")
PNG = {"Software": None}  # the metadata of a png: no version of matplotlib
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


LOGLIK = "loglik.parquet"
TEXT, NUMBERS = ("split", "benchmark", "id", "turn", "side"), ("length", "logp", "reference_logp")  # its columns
RATES = ("length_controlled_winrate", "win_rate", "win_rate_low", "win_rate_high")  # of scores.json, in percent
PLANNED = "remove it and run snakemake -n, which writes it again"
GREEK = {"beta": "β", "gamma": "γ", "tau": "τ", "alpha": "α", "delta": "δ"}  # the papers' letters for hyperparameters


class Run(NamedTuple):
    """A run of a setting. ``varied`` holds the values that its sweep gives it; it is empty for a row of the tables."""

    setting: str
    run: str
    method: str
    seed: int | None
    varied: dict[str, Any]


class Study:
    """A results folder. Where a file is missing, every method raises UserError with its name and the command that makes it."""

    def __init__(self, results: Path) -> None:
        self.results = results

    @cached_property
    def config(self) -> dict[str, Any]:
        """results/tables.yaml, the scale's part of the configuration that the analysis reads."""
        path = self.results / "tables.yaml"
        if not path.is_file():
            raise UserError(f"{path} does not exist; planning writes it: snakemake -n {path.parent}/table4.csv")
        try:
            config: Any = OmegaConf.to_container(OmegaConf.load(path))
        except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:  # ValueError: not UTF-8
            raise UserError(f"{path} is no YAML that can be read ({str(error).splitlines()[0]}); {PLANNED}") from None
        if not isinstance(config, dict) or "name" not in config:
            raise UserError(f"{path} does not hold the keys of tables.yaml; {PLANNED}")
        return config

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark that conf/ calls ``name``."""
        protocol = (self.config.get("protocols") or {}).get(name, name)
        if protocol not in BENCHMARKS:
            raise UserError(f"tables.yaml: benchmark {name}: stages/benchmarks has {', '.join(BENCHMARKS)}, and no {protocol}")
        return BENCHMARKS[protocol]

    def rows(self, *methods: str) -> list[Run]:
        """The tables' runs in order of setting, method and seed: all of them, or those of ``methods`` where any is named."""
        rows = [Run(**row, varied={}) for row in self.config["rows"]]
        return [row for row in rows if not methods or row.method in methods]

    def chains(self, setting: str) -> list[dict[str, Run]]:
        """The runs of a setting by method, a dict for each chain, the tables' own first. Empty where there is no other."""
        found: dict[str, dict[str, Run]] = {}
        for row in self.config.get("chains") or []:
            if row["chain_of"] == setting:
                run = Run(**{key: row[key] for key in ("setting", "run", "method", "seed")}, varied={})
                found.setdefault(run.setting, {})[run.method] = run
        if not found:
            return []
        own = {row.method: row for row in reversed(self.rows()) if row.setting == setting}  # the first seed's
        shared = [method for method in own if all(method in runs for runs in found.values())]
        return [{method: runs[method] for method in shared} for runs in (own, *found.values())] if shared else []

    @property
    def n_chains(self) -> int:
        """The largest number of chains that a setting has."""
        return max([1, *(len(self.chains(row["chain_of"])) for row in self.config.get("chains") or [])])

    def between_chains(
        self, setting: str, figure: Callable[[Run], float], methods: Iterable[str] = (), minus: str = ""
    ) -> stats.Noise | None:
        """The noise of a figure between the chains of a setting, pooled over methods. None where it has one chain.

        figure:  computes it from a run
        methods: the methods to pool, of those that the chains have; by default all of them
        minus:   a method. If given, the figure is the difference to this method's in the same chain
        """
        chains = self.chains(setting)
        if not chains or (minus and minus not in chains[0]):
            return None
        wanted = set(methods) or set(chains[0])

        def value(runs: dict[str, Run], method: str) -> float:
            return figure(runs[method]) - (figure(runs[minus]) if minus else 0.0)

        return stats.pooled([value(runs, method) for runs in chains] for method in chains[0] if method in wanted - {minus})

    def sweep(self, name: str) -> list[Run]:
        """The runs of the sweep conf/sweep/<scale>/<name>.yaml in the grid's order; none where the scale has no such sweep."""
        return [Run(**trial, seed=None) for trial in self.config["sweeps"].get(name, [])]

    def path(self, named: str) -> Path:
        """The path of a file that tables.yaml names. A name below results/ is looked up in this results folder."""
        return self.results / named.removeprefix("results/") if named.startswith("results/") else Path(named)

    def folder(self, run: Run) -> Path:
        return self.results / run.setting / "runs" / run.run

    def is_trained(self, run: Run) -> bool:
        """Whether the run is a training of ours, which has a configuration. SFT's run and a user's checkpoint have none."""
        return any((self.folder(run) / name).is_file() for name in ("config.yaml", files.MANIFEST))

    def evaluated(self, run: Run, name: str) -> Path:
        """The path of a file of a run's evaluation."""
        return self.folder(run) / "eval" / name

    def scores(self, run: Run, benchmark: str) -> dict[str, Any]:
        """A run's scores.json on a benchmark."""
        return read_object(self.evaluated(run, f"{benchmark}/scores.json"))

    def score(self, run: Run, benchmark: str, key: str) -> float:
        """One number of a run's scores.json; NaN where it is null."""
        scores, path = self.scores(run, benchmark), self.evaluated(run, f"{benchmark}/scores.json")
        if key not in scores:
            raise UserError(f"{path} has no {key!r}; {files.again(path)}")
        value = as_number(scores[key], f"{path}: {key!r}")
        if key in RATES and not (math.isnan(value) or 0 <= value <= 100):
            raise UserError(f"{path}: {key!r} is {value}; expected 0 to 100, in percent; {files.again(path)}")
        return value

    def annotations(self, run: Run, benchmark: str) -> Path:
        """The annotations.json of AlpacaEval 2 or the oracle, which has one value an instruction (stages/benchmarks/paired.py reads it)."""
        return require(self.evaluated(run, f"{benchmark}/annotations.json"))

    def manifest(self, run: Run) -> dict[str, Any]:
        """A training's manifest: its whole configuration and its metrics on held-out pairs."""
        path = self.folder(run) / files.MANIFEST
        manifest = read_object(path)
        if not isinstance(manifest.get("config"), dict):
            raise UserError(f"{path} has no 'config' with a training's configuration; {files.again(path)}")
        return manifest

    def training(self, run: Run) -> pd.DataFrame:
        """A training's history, a row a logged step (stages/preference/trainer.py)."""
        return pd.read_json(require(self.folder(run) / "train.jsonl"), lines=True)

    def loglik(self, run: Run) -> pd.DataFrame:
        """A run's log-likelihoods, one row a text, as stages/loglik.py writes them.

        Columns: ``split`` (train, heldout, answers), ``benchmark``, ``id``, ``turn``, ``side`` (chosen, rejected, answer), ``length``
        (tokens), ``logp`` and ``reference_logp`` (sums over the tokens).
        """
        path = require(self.evaluated(run, LOGLIK))
        try:
            texts = pd.read_parquet(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is no Parquet file that can be read ({str(error).splitlines()[0]}); {files.again(path)}") from None
        if missing := [name for name in (*TEXT, *NUMBERS) if name not in texts]:
            raise UserError(f"{path} has no column {missing[0]!r}; {files.again(path)}")
        if wrong := [name for name in NUMBERS if not pd.api.types.is_numeric_dtype(texts[name])]:
            raise UserError(f"{path}: the column {wrong[0]!r} holds something that is not a number; {files.again(path)}")
        if texts.empty or texts.duplicated(list(TEXT)).any():
            raise UserError(f"{path} holds {'no texts' if texts.empty else 'a text twice'}; {files.again(path)}")
        return texts

    def log_ratio(self, run: Run, split: str) -> pd.Series:
        """log π(y|x) - log π_ref(y|x) of a run's texts by id, in nats a sequence. Its mean over answers drawn from π estimates KL(π‖π_ref).

        split: ``heldout`` takes the chosen responses, ``answers`` the run's own answers to AlpacaEval 2.
        """
        texts = self.loglik(run)
        taken = texts["side"] == "chosen" if split == "heldout" else texts["benchmark"].eq("alpacaeval2")
        texts = texts[(texts["split"] == split) & taken].set_index("id")
        return texts["logp"] - texts["reference_logp"]

    def pairs(self, run: Run, split: str, rewarded_as: Run | None = None) -> pd.DataFrame:
        """A run's pairs of a split, one row a pair.

        split:       ``train`` or ``heldout``
        rewarded_as: the run whose objective and β define the rewards; by default ``run`` itself

        Columns: for each side (chosen_…, rejected_…) ``length`` in tokens, ``logp``, ``reference_logp`` and ``average``, the
        log-probability a token; ``longer``, |y_w| - |y_l| in tokens; and ``likelihood_right``, whether ``average`` ranks the pair right.
        Where DPO or SimPO defines rewards there are also each side's ``reward``, ``margin``, r(y_w) - r(y_l), and ``reward_right``. A tie
        is ranked wrong.
        """
        texts = self.loglik(run)
        texts = texts[texts["split"] == split]
        sides = ("chosen", "rejected")
        of_side = {side: texts[texts["side"] == side].set_index("id") for side in sides}
        if not len(of_side["chosen"]) or list(of_side["chosen"].index) != list(of_side["rejected"].index):
            path = self.evaluated(run, LOGLIK)
            raise UserError(f"{path} does not hold both responses of each {split} pair; {files.again(path)}")
        pairs = pd.concat([of_side[side][list(NUMBERS)].add_prefix(f"{side}_") for side in sides], axis=1)
        for side in sides:
            pairs[f"{side}_average"] = pairs[f"{side}_logp"] / pairs[f"{side}_length"]
        pairs["longer"] = pairs["chosen_length"] - pairs["rejected_length"]
        pairs["likelihood_right"] = pairs["chosen_average"] > pairs["rejected_average"]
        if self.is_trained(rewarded_as := rewarded_as or run):
            path, method = self.folder(rewarded_as) / files.MANIFEST, self.manifest(rewarded_as)["config"].get("method")
            if not isinstance(method, dict) or not isinstance(method.get("objective", 0), str | None):
                raise UserError(f"{path}: 'config' has no 'method' with its 'objective'; {files.again(path)}")
            if reward := REWARDS.get(method["objective"]):
                values = method.get("hyperparameters")
                if not isinstance(values, dict) or not HYPERPARAMETERS[method["objective"]] <= values.keys():
                    raise UserError(f"{path}: 'hyperparameters' lack one of {method['objective']}; {files.again(path)}")
                as_number(values["beta"], f"{path}: 'beta'")
                for side in sides:
                    pairs[f"{side}_reward"] = reward(pairs, side, values)
                pairs["margin"] = pairs["chosen_reward"] - pairs["rejected_reward"]
                pairs["reward_right"] = pairs["chosen_reward"] > pairs["rejected_reward"]
        return pairs

    def caption(self, what: str, runs: Iterable[Run], *more: str) -> str:
        """The caption of a figure or table.

        what: the first sentence
        runs: the runs shown, whose settings and seeds the second sentence names, with scale and judge
        more: further sentences
        """
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
HYPERPARAMETERS = {"dpo": {"beta"}, "simpo": {"beta", "length_normalization"}}  # that a reward needs


def name_of(key: str, known: dict[str, str]) -> str:
    """The name to print for a setting or method: the ``known`` one, or one made of the key's parts (``my_setting`` is My-Setting)."""
    return known.get(key, "-".join(part[:1].upper() + part[1:] for part in key.split("_")))


def require(path: Path, target: Path | str | None = None) -> Path:
    """``path`` itself; UserError where it is not a file. ``target``: the target for Snakemake that makes it, by default ``path``."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: snakemake --cores all {target or path}")
    return path


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where the file is missing or holds something else."""
    found = files.read_json(require(path))
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {json.dumps(found)[:60]}; expected an object with keys; {files.again(path)}")
    return found


# -- writing ---------------------------------------------------------------------------------------------------------------

Table = tuple[pd.DataFrame, str]
Drawn = tuple[Figure, pd.DataFrame, str]


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """A parser of --results and --out. ``docstring``: the script's, shown by --help."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder to read")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder to write to")
    return parser


def command_line(docstring: str | None, make: Callable[[Study, Path], None]) -> None:
    """Parse --results and --out, and run ``make(study, out)``. A UserError is printed as one sentence, with exit status 1."""
    args = parser_of(docstring).parse_args()
    files.run(lambda: make(Study(args.results), args.out))


def table(docstring: str | None, name: str, make: Callable[[Study], Table], float_format: str | None = None) -> None:
    """The command line of a table: it prints the table and writes the files of ``save_table``.

    docstring:    the script's, shown by --help
    name:         the files' name without suffix
    make:         the table and its caption
    float_format: as in pandas' to_csv
    """

    def write(study: Study, out: Path) -> None:
        frame, caption = make(study)
        save_table(out / name, frame, caption, float_format)
        print(frame.to_string(index=False, float_format="%.2f"))

    command_line(docstring, write)


def figure(docstring: str | None, name: str, make: Callable[[Study], Drawn]) -> None:
    """The command line of a figure. It writes <out>/figures/<name>.png and .pdf, the drawn numbers as .csv and the caption as .txt."""

    def write(study: Study, out: Path) -> None:
        with mpl.style.context(STYLE):
            drawn, frame, caption = make(study)
            save(out / "figures" / name, drawn, frame, caption)

    command_line(docstring, write)


def save_table(path: Path, frame: pd.DataFrame, caption: str, float_format: str | None = None) -> None:
    """Write ``path`` with .csv, its caption as .txt and both as .html: one page that opens offline, rounded to four digits."""
    write_csv(path.with_suffix(".csv"), frame, float_format)
    files.write_text(path.with_suffix(".txt"), caption + "\n")
    style = "body { font: 14px sans-serif; margin: 2em } table { border-collapse: collapse } "
    style += "td, th { padding: .2em .6em; text-align: right; border-bottom: 1px solid #ddd }"
    head = f'<!doctype html><meta charset="utf-8"><title>{path.name}</title><style>{style}</style><p>{html.escape(caption)}</p>'
    shown = frame.rename(columns=lambda column: column.replace("_", " "))
    files.write_text(path.with_suffix(".html"), head + shown.to_html(index=False, border=0, na_rep="", float_format="{:.4g}".format) + "\n")


def save(path: Path, drawn: Figure, frame: pd.DataFrame, caption: str) -> None:
    """Write ``path`` with .png, .pdf, .csv and .txt. No file holds a date, so the same figure gives the same bytes."""
    for suffix, metadata in ((".png", PNG), (".pdf", {"CreationDate": None, "Producer": None, "Creator": None})):
        with files.atomic(path.with_suffix(suffix)) as partial:
            drawn.savefig(partial, format=suffix[1:], metadata=metadata)
    write_csv(path.with_suffix(".csv"), frame)
    files.write_text(path.with_suffix(".txt"), caption + "\n")
    print(f"{path}: {caption}")


def write_csv(path: Path, frame: pd.DataFrame, float_format: str | None = None) -> None:
    """Write a table at full precision, so that it can be drawn again, or in ``float_format``."""
    with files.atomic(path) as partial:
        frame.to_csv(partial, index=False, float_format=float_format)
