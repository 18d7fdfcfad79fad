"""The warm process (stages/lib/warm.py): a worker is to its caller what the stage's own process would be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stages.lib import warm
from stages.lib.files import TERMINATED
from stages.plan.compose import ROOT

pytestmark = pytest.mark.slow
# A stage of a known name that says who runs it, and how it ends.
STAGE = """
import os, sys, time
from stages.lib import files

def main():
    print(*sys.argv[1:], os.environ.get("SAID"), os.getcwd(), os.getppid() == int(os.environ["TEST"]), os.environ.get("WARM"), flush=True)
    print(input(), os.getpid(), file=sys.stderr, flush=True)
    try:
        if "wait" in sys.argv:
            time.sleep(600)
        raise files.UserError("no such thing")
    finally:
        print("finally", flush=True)

if __name__ == "__main__":
    files.run(main)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a package ``stages`` of its own, in which stages.judge is ``STAGE``."""
    for part in ("lib", "plan"):
        shutil.copytree(ROOT / "stages" / part, tmp_path / "stages" / part)
    (tmp_path / "stages/judge.py").write_text(STAGE)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def begin(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    given = os.environ | {"OMP_NUM_THREADS": "1", "TEST": str(os.getpid())} | environment
    command = [sys.executable, "-m", "stages.judge", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=given, text=True, **dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE))
    assert process.stdin is not None
    process.stdin.write("hello\n")
    process.stdin.close()
    process.stdin = None
    return process


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The process that does the work, once it does."""
    assert process.stderr is not None
    return psutil.Process(int(process.stderr.readline().split()[1]))


def test_a_worker_has_what_its_caller_has_and_the_caller_its_status(folder: Path) -> None:
    process = begin(folder, "a", "b c", SAID="yes")
    out, err = process.communicate()
    assert out == f"a b c yes {folder} False None\nfinally\n"  # the worker is not this process's child
    assert err.startswith("hello ") and err.endswith("\nerror: no such thing\n") and "Traceback" not in err
    assert process.returncode == 1


@pytest.mark.parametrize(
    "other",
    [
        {"ATEN_CPU_CAPABILITY": "avx2"},
        {"OMP_NUM_THREADS": "2"},
        {"HF_HOME": "x"},
        {"TQDM_DISABLE": "1"},
        {warm.WARM: "gone"},
        {"RANK": "0"},
    ],
)
def test_a_stage_that_reads_other_variables_or_finds_no_warm_process_runs_itself(folder: Path, other: dict[str, str]) -> None:
    process = begin(folder, **other)
    out, _ = process.communicate()
    assert out.startswith(f"None {folder} True") and out.endswith("\nfinally\n")
    assert process.returncode == 1


def test_signals_reach_the_worker_and_no_worker_outlives_its_caller(folder: Path) -> None:
    process = begin(folder, "wait")
    worker = worker_of(process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert out.endswith("finally\n") and process.returncode == TERMINATED and not worker.is_running()

    process = begin(folder, "wait")
    worker = worker_of(process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    worker.wait(timeout=10)

    process = begin(folder, "wait")
    worker_of(process).kill()
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGKILL and "was killed" in err


def test_the_warm_process_outlives_a_caller_that_is_gone_or_speaks_nonsense(folder: Path) -> None:
    path = Path(os.environ[warm.WARM])
    libraries = warm.imported_with(os.environ | {"OMP_NUM_THREADS": "1"})
    job = {"arguments": ["stages.judge"], "environment": {}, "folder": str(folder / "gone"), "libraries": libraries}
    for said in ("", "no JSON\n", f"{json.dumps(job)}\n"):  # the last one's worker fails before it says who it is
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            socket.send_fds(caller, [b" "], [0, 1, 2])
            caller.sendall(said.encode())
            caller.shutdown(socket.SHUT_WR)
            assert caller.makefile().read() == ""
    time.sleep(1.5)  # a worker that served would have found its parent to be another by now, and removed the socket
    out, _ = begin(folder).communicate()
    assert " False " in out and path.exists()


def test_the_warm_process_ends_with_the_one_that_started_it_and_leaves_nothing() -> None:
    start = "import os, sys, time; from stages.lib import warm; warm.start(); print(os.environ['WARM'], flush=True); sys.stdin.read()"
    environment = {name: value for name, value in os.environ.items() if name != warm.WARM}
    with subprocess.Popen(
        [sys.executable, "-c", start], cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        (server,) = psutil.Process(process.pid).children()
    server_ended = time.monotonic() + 30
    while path.parent.exists() and time.monotonic() < server_ended:
        time.sleep(0.1)
    assert not path.parent.exists()
    server.wait(timeout=10)
