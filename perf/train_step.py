"""The time and memory of a training step, for our trainer and TRL's, and the paper's claim that SimPO takes less of both than DPO.

    python -m perf.train_step --device cpu     4 layers, hidden size 256, vocabulary 32,768, fp32, lengths divided by four; minutes
    python -m perf.train_step --device cuda    Llama-3.2-1B's shape, random weights in fp32, bf16 autocast
    python -m perf.train_step --claim          the paper's claim alone (section 4.4, Figure 4d): the five arms of its protocols

Out: tables on standard output; in --out train_step.csv, and train_step.json with every measured second and TRL's full configurations.
``claim`` in the json has an entry for each measured protocol: SimPO's and DPO's median seconds a step, their peak MiB, and the shares that
SimPO saves. The share of time is the median over the steps of 1 - t_SimPO / t_DPO for the same batch, with quartiles and a bootstrap
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
import csv
import json
import platform
import random
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from perf import arms, lengths
from perf.arms import Arm, Run, World
from perf.cost import flops, matmul_ceiling
from perf.lengths import Lengths
from stages.lib import files
from stages.lib.errors import UserError

NOT_MEASURED = "not measured"
TOLERANCE = {"cpu": 1e-5, "cuda": 5e-3}
DEFAULTS = {
    "cpu": {"batch": 8, "steps": 2, "warmup": 1, "rounds": 2, "token_budget": 1024},
    "cuda": {"batch": 32, "steps": 5, "warmup": 3, "rounds": 2, "token_budget": 16384},
}
CLAIM = {"steps": 3, "rounds": 4}  # with --claim, on either device: 12 steps of each arm, five to six minutes on two cores
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


class Comparison(NamedTuple):
    """Our arm against the fastest of some arms of TRL."""

    label: str
    ours: str
    trl: tuple[str, ...]
    bar: float | None = None  # the least ratio of speed
    memory: float | None = None  # the highest ratio of memory


COMPARISONS = [
    Comparison("SimPO, TRL at 2 pairs", "ours_simpo", ("trl_simpo_2",), 2.0, 0.6),
    Comparison("SimPO, TRL at 4 pairs", "ours_simpo", ("trl_simpo_4",)),
    Comparison("SimPO, TRL at its best", "ours_simpo", tuple(name for name in TRL if "simpo" in name), 1.4),
    Comparison("DPO cached, TRL live at 2 pairs", "ours_dpo_cached", ("trl_dpo_live_2",), 2.4, 0.6),
    Comparison("DPO cached, TRL live at 4 pairs", "ours_dpo_cached", ("trl_dpo_live_4",)),
    Comparison("DPO cached, TRL cached at 2 pairs", "ours_dpo_cached", ("trl_dpo_cached_2",)),
    Comparison("DPO cached, TRL cached at its best", "ours_dpo_cached", tuple(name for name in TRL if "cached" in name)),
    Comparison("DPO live, TRL live at 2 pairs", "ours_dpo_live", ("trl_dpo_live_2",)),
    Comparison("DPO cached, TRL live at 2 pairs, shipped", "ours_dpo_cached", (SHIPPED,), 2.4, 0.6),
]


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
    """RuntimeError where two arms of one objective have different losses on the same batch."""
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
    """Median, and the quartiles around it."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The bootstrap interval of the median, from seeded samples of ``values``."""
    draw = random.Random(SEED)
    medians = [statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    bounds = statistics.quantiles(medians, n=round(2 / (1 - LEVEL)), method="inclusive")
    return bounds[0], bounds[-1]


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """One arm's seconds divided by another's for the same steps; an arm with fewer rounds is compared on these."""
    return [a / b for a, b in zip(of, to, strict=False)]


class Bench:
    """The arms' pairs, their measured steps, and the tables of them."""

    def __init__(self, world: World, names: Sequence[str], steps: int, warmup: int, rounds: int) -> None:
        self.world, self.names, self.steps, self.warmup, self.rounds = world, names, steps, warmup, rounds
        self.every = all_arms(world.device)
        self.lengths = lengths.read(divisor=DIVISOR[world.device])
        self.pairs = lengths.token_ids(self.lengths, world.shape.vocab_size)
        self.sums: dict[int, tuple[float, float]] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.tokens: dict[str, list[int]] = {name: [] for name in names}
        self.memory: dict[str, dict[str, float]] = {}
        self.losses: dict[str, float] = {}
        self.configurations: dict[str, dict[str, Any]] = {}

    def run(self, name: str, rows: Sequence[int], **options: Any) -> Run:
        """Train an arm on these rows of the file."""
        arm = self.every[name]
        if arm.reference == "cached" and (missing := [row for row in rows if row not in self.sums]):
            self.sums |= zip(missing, arms.reference_sums(self.world, [self.pairs[row] for row in missing]), strict=True)
        sums = [self.sums.get(row, (0.0, 0.0)) for row in rows]
        return arms.train(arm, self.world, [self.pairs[row] for row in rows], sums, **options)

    def batches(self, number: int) -> list[int]:
        """The rows of a round: those of the warm-up from the end of the file, the timed ones from its beginning.

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
        """The rows of the global batch with the longest pair of the file."""
        longest = max(range(len(self.lengths)), key=lambda row: self.lengths[row].longest)
        start = longest - longest % self.world.batch_size
        return list(range(start, start + self.world.batch_size))

    def rows_of(self, name: str) -> list[Lengths]:
        """The lengths of an arm's timed pairs."""
        rounds = 1 if name == SHIPPED else self.rounds
        return [self.lengths[row] for number in range(rounds) for row in self.batches(number)[self.warmup * self.world.batch_size :]]

    def table(self, ceiling: float) -> list[dict[str, Any]]:
        """A row an arm."""
        table = []
        for name in self.names:
            if not (seconds := self.seconds[name]):
                table.append({"arm": name} | dict.fromkeys(COLUMNS[1:], NOT_MEASURED))
                continue
            rows, (middle, low, high) = self.rows_of(name), quartiles(seconds)
            layout = self.configurations[name].get("layout")
            needed = sum(row.shared if layout == "shared" else row.padless for row in rows)
            live = self.every[name].reference == "live"
            least = sum(flops(self.world.shape, row, shared=True, checkpointing=False, live_reference=live, head=3) for row in rows)
            total = sum(seconds)
            memory = self.memory.get(name, {})
            table.append(
                {
                    "arm": name,
                    "s/step": f"{middle:.3f} [{low:.3f}, {high:.3f}]",
                    "pairs/s": f"{len(rows) / total:.2f}",
                    "tokens/s": f"{sum(row.padless for row in rows) / total:.0f}",
                    "padded": f"{max(0.0, 1 - needed / sum(self.tokens[name])):.1%}",
                    "peak MiB": f"{memory['peak'] / 2**20:.0f}" if memory else NOT_MEASURED,
                    "step MiB": f"{memory['step'] / 2**20:.0f}" if memory else NOT_MEASURED,
                    "GFLOP/s": f"{least / total / 1e9:.1f}",
                    "of ceiling": f"{least / total / ceiling:.1%}",
                }
            )
        return table

    def comparisons(self) -> list[dict[str, str]]:
        """A row for speed and then for memory, for each comparison whose arms were run."""
        rows = []
        for label, ours, against, bar, memory_bar in COMPARISONS:
            against = tuple(name for name in against if name in self.names)
            if ours not in self.names or not against:
                continue
            if not self.seconds[ours]:
                rows.append({"comparison": label, "against": ", ".join(against), "ours is": NOT_MEASURED, "bar": _bar(bar)})
                continue
            fastest = min(against, key=lambda name: statistics.median(ratios(self.seconds[name], self.seconds[ours])))
            middle, low, high = quartiles(ratios(self.seconds[fastest], self.seconds[ours]))
            met = "" if bar is None else ", met" if middle >= bar else ", not met"
            row = {"comparison": label, "against": fastest, "ours is": f"{middle:.2f}x [{low:.2f}, {high:.2f}] as fast"}
            rows.append(row | {"bar": _bar(bar) + met})
            if memory_bar is None or ours not in self.memory or fastest not in self.memory:
                continue
            for kind in ("peak", "step"):
                share = self.memory[ours][kind] / self.memory[fastest][kind]
                met = f"at most {memory_bar}x, {'met' if share <= memory_bar else 'not met'}"
                rows.append({"comparison": label, "against": fastest, "ours is": f"{share:.2f}x its {kind} memory", "bar": met})
        return rows

    def claim(self, device: str) -> list[dict[str, Any]]:
        """An entry for each measured protocol: both arms, and the shares that SimPO saves. Memory that was not measured is None."""
        world, sizes, entries = self.world, self.world.shape, []
        shape = f"{sizes.num_hidden_layers} layers, hidden size {sizes.hidden_size}, vocabulary {sizes.vocab_size:,}"
        shape += f", {'bf16' if world.bf16 else 'fp32'}, {world.batch_size} pairs a step"
        for letter, (what, simpo, dpo) in PROTOCOLS.items():
            if not (self.seconds.get(simpo) and self.seconds.get(dpo)):
                continue
            saved = [1 - ratio for ratio in ratios(self.seconds[simpo], self.seconds[dpo])]
            (middle, *around), (low, high) = quartiles(saved), interval(saved)
            ours, theirs = (self.memory[name]["peak"] / 2**20 if name in self.memory else None for name in (simpo, dpo))
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


def claim_table(claim: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each protocol: the time and memory that SimPO saves, with the interval of the median in brackets."""
    measured, rows = {entry["protocol"]: entry for entry in claim}, []
    for letter, protocol in PROTOCOLS.items():
        row = {"protocol": f"{letter}: {protocol.what}", "arms": f"{protocol.simpo}, {protocol.dpo}", "steps": "0"}
        row |= dict.fromkeys(("less time", "less peak memory"), NOT_MEASURED)
        if entry := measured.get(letter):
            low, high = entry["time_saved_low"], entry["time_saved_high"]
            row |= {"steps": str(entry["steps"]), "less time": f"{entry['time_saved']:z.1%} [{low:z.1%}, {high:z.1%}]"}
            if entry["memory_saved"] is not None:
                row["less peak memory"] = f"{entry['memory_saved']:z.1%}"
        rows.append(row)
    return rows


COLUMNS = ("arm", "s/step", "pairs/s", "tokens/s", "padded", "peak MiB", "step MiB", "GFLOP/s", "of ceiling")


def _bar(bar: float | None) -> str:
    return "" if bar is None else f"at least {bar}x"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with its columns aligned."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)


def measured_memory(names: Sequence[str], arguments: Sequence[str], device: str) -> dict[str, dict[str, float]]:
    """The memory of each arm, in a process of its own; two at a time on a CPU."""

    def one(name: str) -> dict[str, float]:
        found: dict[str, float] = arms.in_a_process("perf.train_step", "--arm", name, *arguments)
        say(f"{name}: peak {found['peak'] / 2**20:.0f} MiB, of it the step {found['step'] / 2**20:.0f}")
        return found

    with ThreadPoolExecutor(2 if device == "cpu" else 1) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def differences(configurations: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """The full configuration of the first arm of each TRL trainer, and the other arms' differences from it."""
    first: dict[str, str] = {}
    for name, configuration in configurations.items():
        trainer = configuration["trainer"]
        if trainer == "PreferenceTrainer":
            continue
        base = configurations[first[trainer]] if trainer in first else {}
        known = f", else as {first[trainer]}" if base else ""
        changed = {key: value for key, value in configuration.items() if key not in base or base[key] != value}
        yield f"{name} ({trainer}{known}): {json.dumps(changed, sort_keys=True, default=str)}"
        first.setdefault(trainer, name)


def environment(device: str) -> dict[str, Any]:
    """Device and versions, on which the numbers depend besides the arguments."""
    import transformers
    import trl

    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else _processor()
    return {"device": name, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="perf.train_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where torch sees a GPU, else cpu, by default")
    parser.add_argument("--claim", action="store_true", help="measure the paper's claim alone: the arms of its protocols")
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    parser.add_argument("--arms", nargs="+", metavar="ARM", help=f"some of {', '.join(all_arms('cpu'))}; all of the device by default")
    for name, text in (
        ("batch", "pairs of a global batch, a multiple of 4"),
        ("steps", "timed steps a round"),
        ("warmup", "steps before them, at least 1"),
        ("rounds", "an even number runs the arms as often forwards as backwards"),
        ("token-budget", "tokens of our packs"),
    ):
        defaults = " and ".join(f"{DEFAULTS[device][name.replace('-', '_')]} on {device}" for device in DEFAULTS)
        defaults += f", {CLAIM[name]} with --claim," if name in CLAIM else ""
        parser.add_argument(f"--{name}", type=int, help=f"{text}; {defaults} by default")
    parser.add_argument("--no-checkpointing", action="store_true", help="in no arm; TRL and the paper have it on")
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
    for name in ("steps", "warmup", "rounds", "token_budget"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(given, name)}: expected at least 1")
    given.arms = given.arms or (claimed_arms() if given.claim else list(all_arms(given.device)))
    for name in [*given.arms, *([given.arm] if given.arm else [])]:
        if name not in all_arms(given.device):
            raise UserError(f"--arms {name}: the arms on {given.device} are {', '.join(all_arms(given.device))}")
    return given


def measure(given: argparse.Namespace, world: World) -> None:
    """Check, time, measure memory, write and print."""
    bench = Bench(world, given.arms, given.steps, given.warmup, given.rounds)
    ceiling = float("nan")
    if world.device == "cuda" and not torch.cuda.is_available():
        say("no GPU is visible: every row is 'not measured'; run this where torch.cuda.is_available()")
    else:
        bench.check()
        ceiling = matmul_ceiling(world.device)
        bench.time()
        if not given.no_memory:
            passed = ["--device", given.device, "--batch", str(given.batch), "--token-budget", str(given.token_budget)]
            bench.memory = measured_memory(given.arms, passed + ["--no-checkpointing"] * given.no_checkpointing, given.device)
    found = environment(given.device)
    table, comparisons = bench.table(ceiling), [] if given.claim else bench.comparisons()
    claim = bench.claim(f"{given.device}: {found['device']}" + ", one thread" * (given.device == "cpu"))
    report = {
        "environment": found,
        "world": asdict(world),
        "matmul_ceiling": None if ceiling != ceiling else ceiling,
        "arms": table,
        "comparisons": comparisons,
        "claim": claim,
        "losses": bench.losses,
        "seconds": bench.seconds,
        "tokens": bench.tokens,
        "memory": bench.memory,
        "configurations": bench.configurations,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "train_step.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    with (given.out / "train_step.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(*differences(bench.configurations), sep="\n", end="\n\n")
    print(f"{world}; matrix products reach {ceiling / 1e9:.0f} GFLOP/s; {found}")
    print(*(markdown(rows) for rows in (table, comparisons, claim_table(claim)) if rows), sep="\n\n")


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    if given.dry_run:
        if given.claim:
            print("The paper's claim that SimPO takes less time and memory than DPO:")
            print(*(f"  {letter}, {what}: {simpo} by {dpo}" for letter, (what, simpo, dpo) in PROTOCOLS.items()), sep="\n")
        print(
            f"The losses of {len(given.arms)} arms on {given.device}, {given.rounds} rounds of {given.warmup} + {given.steps} steps of"
            f" {given.batch} pairs each, then the memory of each in a process of its own; results in {given.out}:\n"
            f"{chr(10).join(f'  {name}: {all_arms(given.device)[name]}' for name in given.arms)}\nThis was a dry-run."
        )
        return
    arms.quiet()
    if given.device == "cpu":
        torch.set_num_threads(1)
    checkpointing, bf16 = not given.no_checkpointing, given.device == "cuda"
    world = World(given.device, arms.SHAPES[given.device], given.batch, given.token_budget, checkpointing, bf16)
    if given.arm:
        bench = Bench(world, [given.arm], 1, 1, 1)
        bench.run(given.arm, bench.longest_batch())
        print(json.dumps(bench.run(given.arm, bench.longest_batch(), epochs=2, memory=True).memory))
    else:
        measure(given, world)


if __name__ == "__main__":
    files.run(main)
