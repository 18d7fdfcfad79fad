"""The judges' responses and their cost, in one SQLite file that several processes share.

A response is committed when it arrives. The highest cost of a try is committed before the try. A process that is killed pays again for
the tries in flight at most, and their cost stays reserved. Money is in whole nanodollars.

    spent          the cost of finished tries
    held           reserved for tries in flight, and permanently for tries with an unknown outcome (a time-out, a kill)
    spent + held   never above the cap

The file is in WAL mode, so it must not be on a network file system.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from stages.lib.errors import UserError

NANO = 10**9
BUSY_SECONDS = 60
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, body BLOB NOT NULL, sha256 TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS spending (id INTEGER PRIMARY KEY CHECK (id = 1), nanodollars INTEGER NOT NULL)",
    # Until ``until``, and while its process lives, a try keeps others from paying for the same request.
    "CREATE TABLE IF NOT EXISTS tries"
    " (id INTEGER PRIMARY KEY, key TEXT NOT NULL, nanodollars INTEGER NOT NULL, pid INTEGER NOT NULL, until REAL NOT NULL)",
    "INSERT OR IGNORE INTO spending VALUES (1, 0)",
)


class OverBudget(UserError):
    """The next try may cost more than is left, and no try in flight can return money."""


class Cache:
    """The file at ``path``, created if it does not exist. UserError where it is no cache or cannot be written.

    durable: whether a commit survives a failure of the machine, which takes a few milliseconds. It always survives a kill of the process.
    """

    def __init__(self, path: str | Path, *, durable: bool = True) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._named():
            self._db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        self._use_wal()
        with self._named():
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        with self._transaction():
            for statement in SCHEMA:
                self._db.execute(statement)
            # In containers an earlier process may have had our process id.
            self._db.execute("UPDATE tries SET until = 0 WHERE pid = ?", (os.getpid(),))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def get(self, key: str) -> bytes | None:
        """The response to a request, or None. A damaged one is removed, with a line on standard error."""
        with self._named():
            row = self._db.execute("SELECT body, sha256 FROM responses WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if hashlib.sha256(row[0]).hexdigest() == row[1]:
            return bytes(row[0])
        print(f"{self.path}: the response {key[:12]}… is damaged (its sha256 differs); removed, and asked for again", file=sys.stderr)
        self.remove(key)
        return None

    def remove(self, key: str) -> None:
        """Remove a response, so that its request is asked again."""
        with self._transaction():
            self._db.execute("DELETE FROM responses WHERE key = ?", (key,))

    def reserve(self, key: str, worst: int, cap: int | None, seconds: float) -> int | None:
        """Reserve money for a try; the try's number, for ``settle``, ``release`` or ``keep``.

        None where the response is there already, or where the caller must wait: another process asks the same, or a try in flight may turn
        out cheaper. OverBudget where waiting cannot help.

        key: the request's, see client.py:request_keys
        worst: nanodollars that the try may cost
        cap: nanodollars that all tries may cost together; None for no limit
        seconds: the try ends within this time
        """
        with self._transaction():
            rows = self._db.execute("SELECT key, pid FROM tries WHERE until > ?", (time.time(),)).fetchall()
            in_flight = {asked for asked, pid in rows if _alive(pid)}
            if key in in_flight or self._db.execute("SELECT 1 FROM responses WHERE key = ?", (key,)).fetchone():
                return None
            spent, held = self.spending()
            if cap is not None and worst and spent + held + worst > cap:
                if in_flight:
                    return None
                raise OverBudget(
                    f"the budget is used up: ${spent / NANO:.2f} of ${cap / NANO:.2f} are spent and ${held / NANO:.2f} reserved for calls"
                    f" with an unknown outcome, and the next call may cost ${worst / NANO:.4f} ({self.path}). Nothing is lost: raise"
                    " judge.budget (conf/judge, or --runtime budget=DOLLARS) and run the same command again; it continues there"
                )
            values = (key, worst, os.getpid(), time.time() + seconds)
            return self._db.execute("INSERT INTO tries (key, nanodollars, pid, until) VALUES (?, ?, ?, ?)", values).lastrowid

    def settle(self, number: int, cost: int, key: str, body: bytes | None) -> None:
        """Record a try that brought a response: its cost in nanodollars, and ``body`` if it is to be kept."""
        with self._transaction():
            self._db.execute("DELETE FROM tries WHERE id = ?", (number,))
            self._db.execute("UPDATE spending SET nanodollars = nanodollars + ?", (cost,))
            if body is not None:
                self._db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?)", (key, body, hashlib.sha256(body).hexdigest()))

    def release(self, number: int) -> None:
        """Record a try that certainly cost nothing."""
        with self._transaction():
            self._db.execute("DELETE FROM tries WHERE id = ?", (number,))

    def keep(self, number: int) -> None:
        """Record a try that may have cost something: its money stays reserved, and others may ask its request."""
        with self._transaction():
            self._db.execute("UPDATE tries SET until = 0 WHERE id = ?", (number,))

    def spending(self) -> tuple[int, int]:
        """Nanodollars spent and held."""
        query = "SELECT (SELECT nanodollars FROM spending), (SELECT COALESCE(SUM(nanodollars), 0) FROM tries)"
        spent, held = self._db.execute(query).fetchone()
        return int(spent), int(held)

    def _use_wal(self) -> None:
        """Switch to WAL. SQLite does not wait for a lock here, and two processes may create the file at once."""
        end = time.monotonic() + BUSY_SECONDS
        while True:
            with self._named():
                try:
                    self._db.execute("PRAGMA journal_mode=WAL")
                    return
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error) or time.monotonic() > end:
                        raise
            time.sleep(0.02)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}, the judge's cache, cannot be used ({error}); check that its folder is writable and has room. A damaged"
                " file must be moved away: then a new one is created, answers are paid for again, and the budget starts at zero"
            ) from None


def stored(path: str | Path, keys: list[str]) -> list[bytes | None]:
    """The response to each key in the file at ``path``, or None. Nothing is written, and no file is created."""
    path = Path(path)
    if not path.is_file():
        return [None] * len(keys)
    # Without a -wal file no process has the database open, and the file is complete. ``immutable`` keeps SQLite from creating files.
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
    database = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=BUSY_SECONDS)
    try:
        rows = [database.execute("SELECT body, sha256 FROM responses WHERE key = ?", (key,)).fetchone() for key in keys]
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be read as the judge's cache ({error})") from None
    finally:
        database.close()
    return [bytes(row[0]) if row and hashlib.sha256(row[0]).hexdigest() == row[1] else None for row in rows]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        pass
    return True
