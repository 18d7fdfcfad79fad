"""perf/: the file of lengths, the formulas, the check of losses, and every kind of arm once at a tiny size. Nothing is timed here."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perf import arms, memory, pairs, train_step
from perf.arms import Arm, World
from perf.pairs import Lengths, Shape, flops
from stages.lib.errors import UserError

TINY = Shape(64, 32, 64, 2, 4, 2)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """``arms.quiet`` is for a process of its own: what it sets does not outlive a test here."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_lengths_are_the_same_on_every_machine() -> None:
    """perf.pairs: the rows by which the first measurements were made."""
    rows = [tuple(row) for row in pairs.generate()]
    assert rows[:2] == [(435, 329, 147), (153, 268, 929)] and len(rows) == 512
    assert hashlib.sha256(repr(rows).encode()).hexdigest() == "62eb52e2ee9e6da68a78ec6df447a51910bfe8caa65a8598a643facd49eb04e8"
    assert min(map(min, pairs.generate(divisor=40))) == 2


def padded_share(rows: list[Lengths], micro_batch: int) -> float:
    """The share of padding in all tokens of padded micro-batches of ``micro_batch`` pairs taken in order, both sequences of each pair."""
    parts = [rows[start : start + micro_batch] for start in range(0, len(rows), micro_batch)]
    padded = sum(2 * len(part) * max(row.longest for row in part) for part in parts)
    return 1 - sum(row.padless for row in rows) / padded


def test_lengths_are_ultrafeedbacks() -> None:
    """perf.pairs: means, medians and padding are those published for UltraFeedback, and no sequence is too long."""
    rows = pairs.generate()
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    assert means == pytest.approx([172, 346, 314], rel=0.05)
    assert 409 <= statistics.median(row.prompt + row.chosen for row in rows) <= 437
    assert statistics.median(row.prompt / row.chosen for row in rows) == pytest.approx(0.42, abs=0.02)
    assert max(row.longest for row in rows) <= 2048
    padded = [1 / (1 - padded_share(rows, pairs)) for pairs in (1, 2, 4, 8)]
    assert padded == pytest.approx([1.17, 1.53, 1.89, 2.25], rel=0.04)


def test_padded_share_of_a_batch_made_by_hand() -> None:
    """perf.pairs: every sequence of a micro-batch has its longest one's length, so 4 x 8 tokens for the 20 of these two pairs."""
    rows = [Lengths(2, 3, 1), Lengths(3, 5, 1)]
    assert padded_share(rows, 2) == pytest.approx(1 - 20 / 32)
    assert padded_share(rows, 1) == pytest.approx(1 - 20 / (2 * 5 + 2 * 8))


@pytest.mark.parametrize(
    ("prompt", "checkpointing", "shared", "simpo", "live"),
    [(150, True, False, 53.3, 66.5), (150, False, False, 40.6, 53.9), (150, True, True, 44.8, None), (500, True, False, 93.4, 116.7)],
)
def test_flops_of_llama_3_8b(prompt: int, checkpointing: bool, shared: bool, simpo: float, live: float | None) -> None:
    """perf.pairs: TFLOP of a pair with answers of 300 tokens, computed apart for Llama-3-8B; its body has 6.979 G parameters."""
    shape = Shape(128256, 4096, 14336, 32, 32, 8)
    assert shape.body == pytest.approx(6.979e9, rel=1e-3)
    pair, options = Lengths(prompt, 300, 300), {"shared": shared, "checkpointing": checkpointing}
    assert flops(shape, pair, **options, live_reference=False) / 1e12 == pytest.approx(simpo, abs=0.06)
    if live:
        assert flops(shape, pair, **options, live_reference=True) / 1e12 == pytest.approx(live, abs=0.06)


def test_another_loss_ends_the_measurement() -> None:
    """perf.train_step: arms whose losses of one batch are 1e-4 apart are not compared; other objectives' losses may differ."""
    every = train_step.all_arms("cpu")
    same = {"ours_simpo": 2.0, "trl_simpo_2": 2.00001, "ours_dpo_live": 0.7}
    train_step.check_losses(same, every, 1e-5)
    with pytest.raises(RuntimeError, match="trl_simpo_2 has a loss of 2.0002 and ours_simpo of 2 on the same batch"):
        train_step.check_losses(same | {"trl_simpo_2": 2.0002}, every, 1e-5)
    with pytest.raises(RuntimeError, match="no ratio counts"):
        train_step.check_losses(same | {"trl_simpo_2": float("nan")}, every, 1e-5)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """perf.train_step and perf.memory: --help prints how they are run."""
    for main, name in ((train_step.main, "perf.train_step"), (memory.main, "perf.memory")):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        assert f"python -m {name} --device cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch", "6"], "--batch 6: expected a multiple of 4"),
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--arms", "trl_kto"], "--arms trl_kto: the arms on cpu are ours_simpo"),
        (["--claim", "--arms", "ours_simpo"], "--arms ours_simpo with --claim, which measures trl_simpo_2.*: give only one of the two"),
    ],
)
def test_wrong_arguments(arguments: list[str], sentence: str) -> None:
    """perf.train_step: a wrong argument ends it with one sentence that names it."""
    with pytest.raises(UserError, match=sentence):
        train_step.main(["--device", "cpu", *arguments])


@pytest.mark.slow
def test_one_step_of_every_kind_of_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """perf.train_step: ours and TRL's have one loss in every kind of arm, whatever the micro-batches; a table and a report come out."""
    monkeypatch.setitem(arms.SHAPES, "cpu", TINY)
    monkeypatch.setitem(train_step.DIVISOR, "cpu", 40)
    monkeypatch.setattr(train_step, "matmul_ceiling", lambda device: 1e9)
    names = ["ours_simpo", "ours_dpo_cached", "ours_dpo_live", "trl_simpo_2", "trl_simpo_2_rebalanced", "trl_dpo_live_2"]
    names += ["trl_dpo_cached_4", "vanilla_dpo_live_2", "trl_dpo_live_2_shipped"]
    options = ["--batch", "4", "--steps", "1", "--rounds", "2", "--no-memory", "--out", str(tmp_path)]
    train_step.main(["--device", "cpu", *options, "--arms", *names])
    report: dict[str, Any] = json.loads((tmp_path / "train_step.json").read_text())
    assert [len(report["seconds"][name]) for name in names] == [2] * 8 + [1]
    dpo = {report["losses"][name] for name in names if "dpo" in name}
    assert max(dpo) - min(dpo) <= 1e-5 * min(dpo)
    assert abs(min(dpo) - 0.6931) > 1e-3, "a reference like the policy would make every DPO loss ln 2"
    padded = {row["arm"]: row["padded"] for row in report["arms"]}
    rows = pairs.generate(divisor=40)[:8]
    assert padded["trl_simpo_2"] == f"{padded_share(rows, 2):.1%}"
    assert {row["comparison"] for row in report["comparisons"]} >= {"SimPO, TRL at 2 pairs", "DPO cached, TRL live at 2 pairs"}
    assert [entry["protocol"] for entry in report["claim"]] == ["A", "B", "C"]
    assert {entry["memory_saved"] for entry in report["claim"]} == {None}
    printed = capsys.readouterr().out
    assert re.search(r"^ *trl_simpo_2 ", printed, re.MULTILINE)
    assert report["configurations"]["trl_simpo_2"]["simpo_gamma"] == 1.375


CLAIMED = ["trl_simpo_2", "vanilla_dpo_live_2", "ours_simpo", "ours_dpo_cached", "ours_dpo_live"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_claim_explained(device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """perf.train_step: --claim measures the five arms of the protocols, 12 steps each, on a GPU where torch sees one; a dry-run says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    train_step.main(["--claim", "--dry-run"])
    said = capsys.readouterr().out
    assert re.findall(r"^  (\w+): Arm", said, re.MULTILINE) == CLAIMED
    assert re.findall(r"^  ([A-Z]), .*: (\w+) by (\w+)$", said, re.MULTILINE) == [
        ("A", "trl_simpo_2", "vanilla_dpo_live_2"),
        ("B", "ours_simpo", "ours_dpo_cached"),
        ("C", "ours_simpo", "ours_dpo_live"),
    ]
    [(rounds, steps)] = re.findall(rf"5 arms on {device}, (\d+) rounds of \d \+ (\d+) steps", said)
    assert int(rounds) % 2 == 0 and int(rounds) * int(steps) == 12
    train_step.main(["--dry-run"])
    assert re.findall(r"^  (\w+): Arm", capsys.readouterr().out, re.MULTILINE) == list(train_step.all_arms(device))


def test_the_claims_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """perf.train_step: only the protocols' arms are trained, ABBA, and each entry follows, by numpy, from the raw seconds and bytes.

    The seconds are drawn, with each step's own length, instead of measured.
    """
    draw, trained = random.Random(1), list[Arm]()
    peaks = dict(zip(CLAIMED, (900, 1000, 300, 300, 400), strict=True))

    def train(arm: Arm, world: World, pairs: list[Any], sums: list[Any], **_: Any) -> arms.Run:
        trained.append(arm)
        steps = len(pairs) // world.batch_size
        seconds = [step + draw.uniform(1, 2) for step in range(1, steps)]
        return arms.Run(0.5 + (arm.objective == "dpo"), [100] * (steps + 1), seconds, configuration={"trainer": "PreferenceTrainer"})

    monkeypatch.setattr(arms, "train", train)
    monkeypatch.setattr(arms, "reference_sums", lambda world, pairs: [(0.0, 0.0)] * len(pairs))
    monkeypatch.setattr(train_step, "matmul_ceiling", lambda device: 1e9)
    measured = {name: {"peak": 2.0**20 * peak, "step": 1.0} for name, peak in peaks.items()}
    monkeypatch.setattr(train_step, "measured_memory", lambda names, *_: {name: measured[name] for name in names})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train_step.main(["--claim", "--out", str(tmp_path)])
    wanted = [train_step.all_arms("cpu")[name] for name in CLAIMED]
    assert trained == wanted + 2 * (wanted + wanted[::-1]), "the check of losses, and four rounds"
    report: dict[str, Any] = json.loads((tmp_path / "train_step.json").read_text())
    assert list(report["seconds"]) == CLAIMED and {len(values) for values in report["seconds"].values()} == {12}
    assert [entry["protocol"] for entry in report["claim"]] == ["A", "B", "C"]
    printed = re.findall(r"^ +[ABC] .*", capsys.readouterr().out, re.MULTILINE)
    for entry, memory_saved, row in zip(report["claim"], (0.1, 0.0, 0.25), printed, strict=True):
        simpo, dpo = (np.array(report["seconds"][entry[side]["arm"]]) for side in ("simpo", "dpo"))
        saved = 1 - simpo / dpo
        assert entry["steps"] == len(saved) == 12
        assert [entry["simpo"]["seconds"], entry["dpo"]["seconds"]] == pytest.approx([np.median(simpo), np.median(dpo)])
        assert [entry["simpo"]["peak_mib"], entry["dpo"]["peak_mib"]] == [peaks[entry[side]["arm"]] for side in ("simpo", "dpo")]
        found = [*entry["time_saved_quartiles"], entry["time_saved"]]
        assert found == pytest.approx([*np.quantile(saved, [0.25, 0.75]), np.median(saved)])
        assert entry["memory_saved"] == pytest.approx(memory_saved)
        assert saved.min() <= entry["time_saved_low"] <= entry["time_saved"] <= entry["time_saved_high"] <= saved.max()
        assert entry["device"].startswith("cpu: ")
        assert entry["shape"] == "4 layers, hidden size 256, vocabulary 32,768, fp32, 8 pairs a step"
        assert row.split()[0] == entry["protocol"]
        assert f"{entry['time_saved']:z.1%} [{entry['time_saved_low']:z.1%}, {entry['time_saved_high']:z.1%}]" in row
    assert report["comparisons"] == [], "the claim is SimPO's against DPO's, not ours against TRL's"


def test_interval_of_a_median() -> None:
    """perf.train_step: 95 % of the bootstrap's medians, as their exact distribution has it; the same each time, and a point for one value.

    The median of an odd number n of distinct values is at most the k-th smallest where at least (n + 1) / 2 of n draws fall among the first
    k: a binomial's tail.
    """
    values = [float(value) for value in range(31)]

    def tail(k: int) -> float:
        share = k / 31
        return sum(math.comb(31, draws) * share**draws * (1 - share) ** (31 - draws) for draws in range(16, 32))

    below = next(k for k in range(1, 32) if tail(k) >= 0.025) - 1  # the exact 2.5 percentile, as a value
    assert train_step.interval(values) == (below, 30 - below) == train_step.interval(values)
    assert train_step.interval([0.2]) == (0.2, 0.2)


@pytest.mark.parametrize("main", [train_step.main, memory.main])
def test_without_a_gpu(main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """perf.train_step, perf.memory: where no GPU is visible nothing is measured on one, and a sentence says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: torch sees no GPU here"):
        main(["--device", "cuda", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_memory_of_a_step() -> None:
    """perf.arms: a step's peak is over its beginning; the tests' process has freed too much before to say more."""
    world = World("cpu", TINY, batch_size=4, token_budget=512, bf16=False)
    ids = pairs.token_ids(pairs.generate(divisor=8)[:4], TINY.vocab_size)
    run = arms.train(Arm("trl", "simpo", None, 4), world, ids, [(0.0, 0.0)] * 4, epochs=2, memory=True)
    assert set(run.memory) == {"peak", "step"} and run.memory["step"] >= 0


def test_slopes_of_memory() -> None:
    """perf.memory: bytes a token, between a line's ends."""
    points = [memory.Point("trl", tokens, words, 5.0 + 4 * tokens * words) for tokens in (1, 2, 8) for words in (10, 30)]
    assert memory.slopes(points) == {"trl": {10: pytest.approx(40), 30: pytest.approx(120)}}
