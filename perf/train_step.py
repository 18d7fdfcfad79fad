"""The time and memory of a training step, for our trainer and TRL's, and the paper's claim that SimPO takes less of both than DPO.

    python -m perf.train_step --device cpu     4 layers, hidden size 256, vocabulary 32,768, fp32, lengths divided by four; minutes
    python -m perf.train_step --device cuda    Llama-3.2-1B's shape, random weights in fp32, bf16 autocast
    python -m perf.train_step --claim          the paper's claim alone (section 4.4, Figure 4d): the five arms of its protocols

Out: tables on standard output; in --out train_step.csv with a row an arm, and train_step.json with every measured second and each arm's
whole configuration. ``claim`` in the json has an entry a protocol: SimPO's and DPO's median seconds a step, their peak MiB, and the shares
that SimPO saves. The share of time is the median over the steps of 1 - t_SimPO / t_DPO for the same batch, with quartiles and a bootstrap
interval.

All arms must first have the same loss on the same global batch (1e-5 relative in fp32, 5e-3 in bf16), or nothing is measured. Then they
run one after another in one process, in their order and back (ABBA), each round from the same weights on the same global batches. A ratio
is the median over the steps of both arms' seconds for the same batch; the brackets have the quartiles. A CPU's seconds are processor time
on one thread. Memory is measured in a process for each arm, in a step on the global batch with the longest pair. ``peak`` is over the
process before its models were made (resident memory on a CPU, allocated on a GPU), ``step`` over weights, optimizer state and reference.
The process has trained the arm on this batch before, so that no arm counts the libraries' own buffers.

On a CPU TRL has one DPO head, a kernel that projects every position if there is no Triton. The arm with it is called ``shipped``. The other
arms of TRL's DPO have the plain head of perf/arms.py on a CPU. It is no setting of TRL's, but several times faster, and so a harder bar.
"TRL at its best" is its fastest arm, including those with ``batch_rebalance``. FLOP/s count the least work: shared prompts, trained
positions, no recomputation, one pass of a live reference. The ceiling is a matrix product's in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from perf import arms, pairs
from perf.arms import Arm, Run, World
from perf.pairs import Lengths, flops
from stages.lib import files
from stages.lib.errors import UserError

MIB = 2**20
TOLERANCE = {"cpu": 1e-5, "cuda": 5e-3}
DEFAULTS = {
    "cpu": {"batch": 8, "steps": 2, "warmup": 1, "rounds": 2, "token_budget": 1024},
    "cuda": {"batch": 32, "steps": 5, "warmup": 3, "rounds": 2, "token_budget": 16384},
}
CLAIM = {"steps": 3, "rounds": 4}  # with --claim, on either device: 12 steps of each arm, five to six minutes on two cores
OPTIONS = {
    "batch": "pairs of a global batch, a multiple of 4",
    "steps": "timed steps a round",
    "warmup": "steps before them, at least 1",
    "rounds": "an even number runs the arms as often forwards as backwards",
    "token_budget": "tokens of our packs",
}
DIVISOR = {"cpu": 4, "cuda": 1}  # of the lengths
LEVEL, RESAMPLES, SEED = 0.95, 2000, 0  # of the bootstrap: those of `analysis` in conf/config.yaml

OURS = {"ours_simpo": Arm("ours", "simpo"), "ours_dpo_cached": Arm("ours", "dpo", "cached"), "ours_dpo_live": Arm("ours", "dpo", "live")}
TRL = {
    "trl_simpo_2": Arm("trl", "simpo", None, 2),
    "trl_simpo_4": Arm("trl", "simpo", None, 4),
    "trl_simpo_2_rebalanced": Arm("trl", "simpo", None, 2, rebalance=True),
    "trl_simpo_4_rebalanced": Arm("trl", "simpo", None, 4, rebalance=True),
    "trl_dpo_live_2": Arm("trl", "dpo", "live", 2),
    "trl_dpo_live_4": Arm("trl", "dpo", "live", 4),
    "trl_dpo_cached_2": Arm("trl", "dpo", "cached", 2),
    "trl_dpo_cached_4": Arm("trl", "dpo", "cached", 4),
    "trl_dpo_cached_2_rebalanced": Arm("trl", "dpo", "cached", 2, rebalance=True),
}
VANILLA = {"vanilla_dpo_live_2": Arm("vanilla", "dpo", "live", 2)}
SHIPPED = "trl_dpo_live_2_shipped"  # on a CPU; it runs in the first round alone, because it is several times slower
# (what is compared, our arm, the arms of TRL): ours is compared with the fastest of TRL's that were run.
COMPARISONS = (
    ("SimPO, TRL at 2 pairs", "ours_simpo", ["trl_simpo_2"]),
    ("SimPO, TRL at 4 pairs", "ours_simpo", ["trl_simpo_4"]),
    ("SimPO, TRL at its best", "ours_simpo", [name for name in TRL if "simpo" in name]),
    ("DPO cached, TRL live at 2 pairs", "ours_dpo_cached", ["trl_dpo_live_2"]),
    ("DPO cached, TRL live at 4 pairs", "ours_dpo_cached", ["trl_dpo_live_4"]),
    ("DPO cached, TRL cached at 2 pairs", "ours_dpo_cached", ["trl_dpo_cached_2"]),
    ("DPO cached, TRL cached at its best", "ours_dpo_cached", [name for name in TRL if "cached" in name]),
    ("DPO live, TRL live at 2 pairs", "ours_dpo_live", ["trl_dpo_live_2"]),
    ("DPO cached, TRL live at 2 pairs, shipped", "ours_dpo_cached", [SHIPPED]),
)


class Protocol(NamedTuple):
    """A way to measure the paper's claim (section 4.4): SimPO takes about 20 % less time and 10 % less memory per GPU than DPO."""

    what: str
    simpo: str  # the arms
    dpo: str


PROTOCOLS = {
    "A": Protocol("as in the paper (padded, full logits, live reference, 2 pairs)", "trl_simpo_2", "vanilla_dpo_live_2"),
    "B": Protocol("best for both (packed, shared prompts, cached reference)", "ours_simpo", "ours_dpo_cached"),
    "C": Protocol("the fast engine with a live reference", "ours_simpo", "ours_dpo_live"),
}


def all_arms(device: str) -> dict[str, Arm]:
    """The arms of a device. On a CPU TRL's DPO has the plain head, and there is one more arm without it."""
    if device == "cuda":
        return OURS | TRL | VANILLA
    plain = {name: replace(arm, plain_head=arm.objective == "dpo") for name, arm in TRL.items()}
    return OURS | plain | VANILLA | {SHIPPED: TRL["trl_dpo_live_2"]}


def claimed_arms() -> list[str]:
    """The arms that the protocols name, once each."""
    return list(dict.fromkeys(name for protocol in PROTOCOLS.values() for name in (protocol.simpo, protocol.dpo)))


def check_losses(losses: Mapping[str, float], every: Mapping[str, Arm], tolerance: float) -> None:
    """RuntimeError where two arms of one objective have different losses on the same batch.

    losses:    an arm's loss by its name
    every:     the arms by name
    tolerance: the relative difference that rounding may leave
    """
    for objective in ("simpo", "dpo"):
        names = [name for name in losses if every[name].objective == objective]
        for name in names[1:]:
            first, other = losses[names[0]], losses[name]
            if not abs(first - other) <= tolerance * abs(first):
                raise RuntimeError(
                    f"{name} has a loss of {other:.8g} and {names[0]} of {first:.8g} on the same batch, more than {tolerance:g} apart:"
                    " they compute different things, and no ratio counts"
                )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile)."""
    middle, low, high = np.quantile(values, [0.5, 0.25, 0.75]).tolist()
    return middle, low, high


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The bootstrap interval of the median, from seeded samples of ``values``."""
    draw = random.Random(SEED)
    medians = [statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    bounds = statistics.quantiles(medians, n=round(2 / (1 - LEVEL)), method="inclusive")
    return bounds[0], bounds[-1]


def matmul_ceiling(device: str, seconds: float = 2.0) -> float:
    """FLOP/s of the fastest square matrix product: bf16 on a GPU, fp32 on a CPU with torch's number of threads."""
    best, sizes = 0.0, (4096, 8192) if device == "cuda" else (512, 1024, 2048)
    for size in sizes:
        a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
        torch.mm(a, b)
        arms.wait(device)
        began, products = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / len(sizes):
            for _ in range(10 if device == "cuda" else 1):
                torch.mm(a, b)
                products += 1
            arms.wait(device)
        best = max(best, products * 2 * size**3 / (time.perf_counter() - began))
    return best


class Bench:
    """The arms' pairs, their measured steps, and the tables of them."""

    def __init__(self, world: World, names: Sequence[str], steps: int = 1, warmup: int = 1, rounds: int = 1) -> None:
        self.world, self.names, self.steps, self.warmup, self.rounds = world, names, steps, warmup, rounds
        self.every = all_arms(world.device)
        self.lengths = pairs.generate(DIVISOR[world.device])
        self.pairs = pairs.token_ids(self.lengths, world.shape.vocab_size)
        self.sums: dict[int, tuple[float, float]] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.tokens: dict[str, list[int]] = {name: [] for name in names}
        self.memory: dict[str, dict[str, float]] = {}
        self.losses: dict[str, float] = {}
        self.configurations: dict[str, dict[str, Any]] = {}

    def run(self, name: str, rows: Sequence[int], **options: Any) -> Run:
        """Train an arm on the pairs with these numbers."""
        arm = self.every[name]
        if arm.reference == "cached" and (missing := [row for row in rows if row not in self.sums]):
            self.sums |= zip(missing, arms.reference_sums(self.world, [self.pairs[row] for row in missing]), strict=True)
        sums = [self.sums.get(row, (0.0, 0.0)) for row in rows]
        return arms.train(arm, self.world, [self.pairs[row] for row in rows], sums, **options)

    def batches(self, number: int) -> list[int]:
        """The numbers of a round's pairs: for the warm-up from the end of the list, for the timed steps from its beginning.

        A CPU warms up on the shortest pairs, which cost least: its arms do not depend on cached shapes.
        """
        size, rows = self.world.batch_size, range(len(self.pairs))
        order = sorted(rows, key=lambda row: -self.lengths[row].longest) if self.world.device == "cpu" else rows
        timed = range(number * self.steps * size, (number + 1) * self.steps * size)
        return [*order[-self.warmup * size :], *(row % len(rows) for row in timed)]

    def check(self) -> None:
        """One step of each arm on the first global batch, and its configuration."""
        for name in self.names:
            run = self.run(name, range(self.world.batch_size))
            self.losses[name], self.configurations[name] = run.loss, run.configuration
            say(f"{name}: loss {run.loss:.8g}")
        check_losses(self.losses, self.every, TOLERANCE[self.world.device])

    def time(self) -> None:
        for number in range(self.rounds):
            for name in self.names if number % 2 == 0 else reversed(self.names):
                if name == SHIPPED and number:
                    continue
                run = self.run(name, self.batches(number))
                self.seconds[name] += run.seconds[self.warmup - 1 :]
                self.tokens[name] += run.tokens[self.warmup : self.warmup + self.steps]
                say(f"round {number + 1} of {self.rounds}, {name}: {statistics.median(run.seconds[self.warmup - 1 :]):.3f} s a step")

    def longest_batch(self) -> list[int]:
        """The pairs of the global batch with the longest one."""
        longest = max(range(len(self.lengths)), key=lambda row: self.lengths[row].longest)
        start = longest - longest % self.world.batch_size
        return list(range(start, start + self.world.batch_size))

    def rows_of(self, name: str) -> list[Lengths]:
        """The lengths of an arm's timed pairs."""
        rounds = 1 if name == SHIPPED else self.rounds
        return [self.lengths[row] for number in range(rounds) for row in self.batches(number)[self.warmup * self.world.batch_size :]]

    def ratios(self, of: str, to: str) -> list[float]:
        """One arm's seconds divided by another's for the same steps; an arm with fewer rounds is compared on these."""
        return [a / b for a, b in zip(self.seconds[of], self.seconds[to], strict=False)]

    def table(self, ceiling: float) -> pd.DataFrame:
        """A row an arm. ``ceiling``: FLOP/s of a matrix product."""
        table = []
        for name in self.names:
            rows, total, (middle, low, high) = self.rows_of(name), sum(self.seconds[name]), quartiles(self.seconds[name])
            needed = sum(row.shared if self.configurations[name].get("layout") == "shared" else row.padless for row in rows)
            live = self.every[name].reference == "live"
            least = sum(flops(self.world.shape, row, shared=True, checkpointing=False, live_reference=live, head=3) for row in rows)
            row = {
                "arm": name,
                "s/step": f"{middle:.3f} [{low:.3f}, {high:.3f}]",
                "pairs/s": f"{len(rows) / total:.2f}",
                "tokens/s": f"{sum(row.padless for row in rows) / total:.0f}",
                "padded": f"{max(0.0, 1 - needed / sum(self.tokens[name])):.1%}",
            }
            row |= {f"{kind} MiB": f"{found / MIB:.0f}" for kind, found in self.memory.get(name, {}).items()}
            table.append(row | {"GFLOP/s": f"{least / total / 1e9:.1f}", "of ceiling": f"{least / total / ceiling:.1%}"})
        return pd.DataFrame(table)

    def comparisons(self) -> pd.DataFrame:
        """A row for each comparison whose arms were run: how many times as fast ours is, and its share of the other's memory."""
        rows = []
        for label, ours, trl in COMPARISONS:
            against = [name for name in trl if name in self.names]
            if ours not in self.names or not against:
                continue
            fastest = min(against, key=lambda name: statistics.median(self.ratios(name, ours)))
            middle, low, high = quartiles(self.ratios(fastest, ours))
            row = {"comparison": label, "against": fastest, "as fast": f"{middle:.2f}x [{low:.2f}, {high:.2f}]"}
            for kind, found in self.memory.get(fastest, {}).items():
                row[f"{kind} memory"] = f"{self.memory[ours][kind] / found:.2f}x"
            rows.append(row)
        return pd.DataFrame(rows)

    def claim(self, device: str) -> list[dict[str, Any]]:
        """An entry for each measured protocol: both arms, and the shares that SimPO saves. Memory that was not measured is None."""
        sizes, entries = self.world.shape, []
        shape = f"{sizes.num_hidden_layers} layers, hidden size {sizes.hidden_size}, vocabulary {sizes.vocab_size:,}"
        shape += f", {'bf16' if self.world.bf16 else 'fp32'}, {self.world.batch_size} pairs a step"
        for letter, (what, simpo, dpo) in PROTOCOLS.items():
            if not {simpo, dpo} <= set(self.names):
                continue
            saved = [1 - ratio for ratio in self.ratios(simpo, dpo)]
            (middle, *around), (low, high) = quartiles(saved), interval(saved)
            ours, theirs = (self.memory[name]["peak"] / MIB if name in self.memory else None for name in (simpo, dpo))
            entries.append(
                {
                    "protocol": letter,
                    "what": what,
                    "simpo": {"arm": simpo, "seconds": statistics.median(self.seconds[simpo]), "peak_mib": ours},
                    "dpo": {"arm": dpo, "seconds": statistics.median(self.seconds[dpo]), "peak_mib": theirs},
                    "time_saved": middle,
                    "time_saved_low": low,
                    "time_saved_high": high,
                    "time_saved_quartiles": around,
                    "steps": len(saved),
                    "memory_saved": None if ours is None or theirs is None else 1 - ours / theirs,
                    "device": device,
                    "shape": shape,
                }
            )
        return entries


def claim_table(claim: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each measured protocol: the time and memory that SimPO saves, with the interval of the median in brackets."""
    rows = []
    for entry in claim:
        row = {"protocol": entry["protocol"], "arms": f"{entry['simpo']['arm']}, {entry['dpo']['arm']}", "steps": entry["steps"]}
        row["less time"] = f"{entry['time_saved']:z.1%} [{entry['time_saved_low']:z.1%}, {entry['time_saved_high']:z.1%}]"
        row["less peak memory"] = "not measured" if entry["memory_saved"] is None else f"{entry['memory_saved']:z.1%}"
        rows.append(row)
    return pd.DataFrame(rows)


def measured_memory(names: Sequence[str], given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The memory of each arm in bytes, in a process of its own; two at a time on a CPU."""

    def one(name: str) -> dict[str, float]:
        options = ("--device", given.device, "--batch", str(given.batch), "--token-budget", str(given.token_budget))
        found: dict[str, float] = arms.in_a_process("perf.train_step", "--arm", name, *options)
        say(f"{name}: peak {found['peak'] / MIB:.0f} MiB, of it the step {found['step'] / MIB:.0f}")
        return found

    with ThreadPoolExecutor(2 if given.device == "cpu" else 1) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def environment(device: str) -> dict[str, Any]:
    """Device and versions, on which the numbers depend besides the arguments."""
    import transformers
    import trl

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    name = torch.cuda.get_device_name() if device == "cuda" else processor
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    return {"device": name, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="perf.train_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where torch sees a GPU, else cpu, by default")
    parser.add_argument("--claim", action="store_true", help="measure the paper's claim alone: the arms of its protocols")
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    parser.add_argument("--arms", nargs="+", metavar="ARM", help=f"some of {', '.join(all_arms('cpu'))}; all of the device by default")
    for name, text in OPTIONS.items():
        defaults = " and ".join(f"{values[name]} on {device}" for device, values in DEFAULTS.items())
        defaults += f", {CLAIM[name]} with --claim," if name in CLAIM else ""
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{text}; {defaults} by default")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    parser.add_argument("--arm", help="the memory of one arm alone, in this process, as a line of JSON")
    given = parser.parse_args(arguments)
    if given.claim and given.arms:
        raise UserError(f"--arms {' '.join(given.arms)} with --claim, which measures {', '.join(claimed_arms())}: give only one of the two")
    given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name, value in (DEFAULTS[given.device] | (CLAIM if given.claim else {})).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if given.batch < 4 or given.batch % 4:
        raise UserError(f"--batch {given.batch}: expected a multiple of 4, which is TRL's larger micro-batch")
    for name in OPTIONS:
        if getattr(given, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(given, name)}: expected at least 1")
    every = all_arms(given.device)
    given.arms = [given.arm] if given.arm else given.arms or (claimed_arms() if given.claim else list(every))
    if unknown := [name for name in given.arms if name not in every]:
        raise UserError(f"--arms {unknown[0]}: the arms on {given.device} are {', '.join(every)}")
    return given


def measure(given: argparse.Namespace, world: World) -> None:
    """Check, time, measure memory, write and print."""
    bench = Bench(world, given.arms, given.steps, given.warmup, given.rounds)
    bench.check()
    ceiling = matmul_ceiling(world.device)
    bench.time()
    if not given.no_memory:
        bench.memory = measured_memory(given.arms, given)
    found = environment(given.device)
    table, comparisons = bench.table(ceiling), pd.DataFrame() if given.claim else bench.comparisons()
    claim = bench.claim(f"{given.device}: {found['device']}" + ", one thread" * (given.device == "cpu"))
    report = {
        "environment": found,
        "world": asdict(world),
        "matmul_ceiling": ceiling,
        "arms": table.to_dict("records"),
        "comparisons": comparisons.to_dict("records"),
        "claim": claim,
        "losses": bench.losses,
        "seconds": bench.seconds,
        "tokens": bench.tokens,
        "memory": bench.memory,
        "configurations": bench.configurations,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "train_step.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    table.to_csv(given.out / "train_step.csv", index=False)
    print(f"{world}; matrix products reach {ceiling / 1e9:.0f} GFLOP/s; {found}")
    for made in (table, comparisons, claim_table(claim)):
        if not made.empty:
            print("", made.to_string(index=False), sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    if given.dry_run:
        if given.claim:
            print("The paper's claim that SimPO takes less time and memory than DPO:")
            print(*(f"  {letter}, {what}: {simpo} by {dpo}" for letter, (what, simpo, dpo) in PROTOCOLS.items()), sep="\n")
        print(
            f"The losses of {len(given.arms)} arms on {given.device}, {given.rounds} rounds of {given.warmup} + {given.steps} steps of"
            f" {given.batch} pairs each, then the memory of each in a process of its own; results in {given.out}:"
        )
        print(*(f"  {name}: {all_arms(given.device)[name]}" for name in given.arms), "This was a dry-run.", sep="\n")
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; run this where it does, or give --device cpu")
    arms.quiet()
    if given.device == "cpu":
        torch.set_num_threads(1)
    world = World(given.device, arms.SHAPES[given.device], given.batch, given.token_budget, bf16=given.device == "cuda")
    if given.arm:
        bench = Bench(world, given.arms)
        bench.run(given.arm, bench.longest_batch())
        print(json.dumps(bench.run(given.arm, bench.longest_batch(), epochs=2, memory=True).memory))
    else:
        measure(given, world)


if __name__ == "__main__":
    files.run(main)
