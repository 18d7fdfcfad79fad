"""stages/judging/cache.py: what was paid for is kept, what is damaged is noticed, and no process spends beyond the cap."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.judging.cache import NANO, Cache, OverBudget, stored
from stages.lib.errors import UserError

REPOSITORY = Path(__file__).parents[1]
BODY = b'{"choices": [{"message": {"content": "a text to be found in the file"}}]}'

# Reserves a dollar at a time of twenty, and settles at a dollar or is killed with the reservation in hand.
SPENDER = """
import os, sys, time
from stages.judging.cache import NANO, Cache, OverBudget
cache, made = Cache(sys.argv[1], durable=False), 0
while True:
    key = f"{os.getpid()}-{made}"
    try:
        number = cache.reserve(key, NANO, 20 * NANO, 60)
    except OverBudget:
        break
    if number is not None:
        made += 1
        print(made, flush=True)
        if len(sys.argv) > 2:
            os.kill(os.getpid(), 9)
        time.sleep(0.05)
        cache.settle(number, NANO, key, b"{}")
"""


def test_a_response_is_kept_and_a_flipped_byte_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cache.get and stored(): the bytes as they came, and none, with a line once, where one byte of them differs; the others stay."""
    path = tmp_path / "deep/judgments.sqlite"
    with Cache(path) as cache:
        for key in ("first", "second"):
            number = cache.reserve(key, 5, 100, 60)
            assert number is not None and cache.get(key) is None
            cache.settle(number, 3, key, BODY + key.encode())
            assert cache.reserve(key, 5, 100, 60) is None, "would pay for what another process has asked meanwhile"
        assert stored(path, ["first", "third"]) == [BODY + b"first", None], "not to be read while another has the file open"
    damaged = path.read_bytes()
    at = damaged.index(BODY + b"first") + len(BODY) // 2
    path.write_bytes(damaged[:at] + bytes([damaged[at] ^ 1]) + damaged[at + 1 :])
    assert stored(path, ["first", "second"]) == [None, BODY + b"second"]
    with Cache(path) as cache:
        assert cache.get("first") is None and "damaged" in (said := capsys.readouterr().err) and str(path) in said
        assert cache.get("first") is None and cache.get("second") == BODY + b"second"
        assert not capsys.readouterr().err
        assert cache.spending() == (6, 0)


def test_what_is_reserved_counts_until_it_is_known(tmp_path: Path) -> None:
    """Cache.reserve: settled at what it cost, released at nothing, kept at the worst; what is in flight is waited for."""
    with Cache(tmp_path / "c.sqlite") as cache:
        first = cache.reserve("a", 6, 10, 60)
        assert first is not None
        assert cache.reserve("b", 6, 10, 60) is None, "did not wait for what the first may leave"
        assert cache.reserve("a", 1, 10, 60) is None, "asked what is being asked"
        cache.release(first)
        second = cache.reserve("b", 6, 10, 60)
        assert second is not None and cache.spending() == (0, 6)
        cache.keep(second)
        with pytest.raises(OverBudget, match="raise judge.budget"):
            cache.reserve("c", 5, 10, 60)
        third = cache.reserve("c", 4, 10, 60)
        assert third is not None
        cache.settle(third, 1, "c", None)
        assert cache.spending() == (1, 6) and cache.get("c") is None
        assert cache.reserve("d", 0, 0, 60) is not None, "what is free needs no budget"
        assert cache.reserve("e", 10**6, None, 60) is not None, "no cap is no bound"
    with Cache(tmp_path / "c.sqlite") as cache:
        assert cache.spending() == (1, 6 + 10**6), "the process's end gave money back"


def test_a_request_is_held_while_its_process_lives_and_not_for_ever(tmp_path: Path) -> None:
    """Cache.reserve: another process's request is waited for, a dead process's and one past its time are not."""
    with Cache(tmp_path / "c.sqlite") as cache:
        database = sqlite3.connect(tmp_path / "c.sqlite")
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        for key, pid, until in (("living", os.getppid(), 60), ("dead", ended.pid, 60), ("late", os.getppid(), -1)):
            database.execute("INSERT INTO tries (key, nanodollars, pid, until) VALUES (?, 1, ?, ?)", (key, pid, time.time() + until))
        database.commit()
        assert cache.reserve("living", 1, None, 60) is None
        assert cache.reserve("dead", 1, None, 60) is not None and cache.reserve("late", 1, None, 60) is not None
        database.close()


def test_processes_that_start_at_once_and_one_that_is_killed_stay_below_the_cap(tmp_path: Path) -> None:
    """Cache: four processes, one of them killed with a dollar in hand, make exactly twenty tries of a dollar each."""
    path = tmp_path / "c.sqlite"
    command = [sys.executable, "-c", SPENDER, str(path)]
    spenders = [subprocess.Popen([*command, *more], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for more in (["killed"], [], [], [])]
    tries = [len(spender.communicate(timeout=30)[0].split()) for spender in spenders]
    killed = spenders[0].returncode == -signal.SIGKILL  # unless the others were through before it began
    assert [spender.returncode for spender in spenders[1:]] == [0, 0, 0]
    assert sum(tries) == 20
    with Cache(path) as cache:
        spent, held = cache.spending()
    assert spent + held == 20 * NANO and held == killed * NANO


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    """Cache and stored(): one sentence with the file's name and what to do, and the file as it was."""
    path = tmp_path / "c.sqlite"
    content = b"no database at all, but a text that is long enough to be taken for one" * 99
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.sqlite.*cannot be used.*moved away"):
        Cache(path)
    with pytest.raises(UserError, match=r"c\.sqlite cannot be read"):
        stored(path, ["a"])
    assert path.read_bytes() == content
    assert stored(tmp_path / "none.sqlite", ["a"]) == [None] and not (tmp_path / "none.sqlite").exists()
