"""A warm process: it imports the stages' libraries once, and forks a worker for each job.

A job needs 5 to 9 seconds to import Torch, TRL and vLLM, as long as a judge's whole work at mini scale. The Snakefile starts the warm
process if ``runtime.workflow.warm`` is true, and names its socket in the environment variable ``WARM``. If a stage finds this variable
(stages/lib/files.py:run), a worker does its work. The worker has the stage's arguments, environment, folder and standard streams. It gets
the stage's signals and returns its exit status to the stage. It ends with the stage. A stage does its own work if the warm process is gone,
or if a variable that the libraries may read at import (``READ``) has another value.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

WARM = "WARM"
READ = ("ATEN_", "CUDA_", "HF_", "MKL_CBWR", "OMP_", "ONEDNN_", "PYTHON", "TQDM_", "TRANSFORMERS_")  # how they begin
THREADS = {"OMP_NUM_THREADS": "1"}  # as Snakemake sets it for a job of one thread
MODEL = ("torch", "datasets:Dataset", "pandas", "transformers:Trainer", "transformers:LlamaForCausalLM")
TRAINING, ENGINE = (*MODEL, "trl:SFTTrainer"), (*MODEL, "vllm:LLM", "vllm:SamplingParams")
# What a stage imports, by stage. It is imported when the first job of the stage comes.
LIBRARIES = {
    "stages.pretrain": TRAINING,
    "stages.sft": TRAINING,
    "stages.reward": TRAINING,
    "stages.train": MODEL,
    "stages.reference": MODEL,
    "stages.loglik": MODEL,
    "stages.answer": ENGINE,
    "stages.generate": ENGINE,
    "stages.develop": ENGINE,
    "stages.mini.greedy": ENGINE,
    "stages.judge": ("openai:OpenAI",),
    "stages.score": ("alpaca_eval.metrics",),
}


def imported_with(environment: Mapping[str, str]) -> dict[str, str]:
    """What identifies the imported libraries: the Python that has them, and the variables that they may read."""
    return {"": sys.prefix} | {name: value for name, value in environment.items() if name.startswith(READ)}


def start() -> None:
    """Start a warm process that ends with this process, and name its socket in ``WARM``. If ``WARM`` is set, do nothing."""
    if WARM not in os.environ:
        path = Path(tempfile.mkdtemp(prefix="warm")) / "socket"
        command = [sys.executable, "-m", "stages.lib.warm", str(path), str(os.getpid())]
        # A session of its own: what a terminal sends to the jobs, they get from their callers.
        subprocess.Popen(command, env=os.environ | THREADS, stdin=subprocess.DEVNULL, start_new_session=True)
        os.environ[WARM] = str(path)


def serve(path: Path, parent: int) -> None:
    """Fork a worker for each caller, until the parent process is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a worker
    libraries = imported_with(os.environ)
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"  # vLLM reads it at its import; as in stages/lib/engine.py
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(1)
        while os.getppid() == parent:
            with suppress(OSError, ValueError):  # nobody has come, or the caller is gone
                caller, _ = listener.accept()
                with caller:
                    answer(caller, libraries)
    shutil.rmtree(path.parent)
    os._exit(0)  # the libraries' own last acts print warnings


def answer(caller: socket.socket, libraries: dict[str, str]) -> None:
    """Import what the caller's stage needs, and fork its worker, if ``libraries`` are the caller's."""
    caller.setblocking(True)
    _, streams, _, _ = socket.recv_fds(caller, 1, 3)
    try:
        job = json.loads(caller.makefile().readline())
        if job["libraries"] != libraries:
            return
        for name in LIBRARIES[job["arguments"][0]]:
            with suppress(Exception):  # the stage says it better
                pkgutil.resolve_name(name)
        gc.freeze()  # what is imported stays shared with the workers
        if os.fork() == 0:
            try:
                work(job, streams, caller)
            finally:  # a worker whose caller is gone must not serve
                os._exit(1)
    finally:
        for stream in streams:
            os.close(stream)


def work(job: dict[str, Any], streams: list[int], caller: socket.socket) -> NoReturn:
    """Run the caller's stage in this process, and send the caller its exit status."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.path[0], sys.argv = job["folder"], job["arguments"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "stages"]:
        del sys.modules[name]  # the folder's are imported
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    caller.sendall(f"{os.getpid()}\n".encode())
    threading.Thread(target=end_with, args=[caller], daemon=True).start()
    status: Any = 0
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    with suppress(Exception):
        atexit._run_exitfuncs()
    if not isinstance(status, int):  # sys.exit's sentence
        print(status, file=sys.stderr)
        status = 1
    with suppress(OSError):  # nobody reads the streams
        sys.stdout.flush()
        sys.stderr.flush()
    caller.sendall(str(status).encode())
    os._exit(0)


def end_with(caller: socket.socket) -> None:
    """End this process when its caller is gone."""
    with suppress(OSError):
        caller.recv(1)  # it sends nothing
    os.kill(os.getpid(), signal.SIGKILL)


def call() -> int | None:
    """Run this command's stage in a worker of the warm process. Return its exit status, or None if the stage must run here."""
    stage = sys.modules["__main__"].__spec__
    if stage is None or stage.name not in LIBRARIES or "RANK" in os.environ or WARM not in os.environ:
        return None
    job = {
        "arguments": [stage.name, *sys.argv[1:]],
        "environment": {name: value for name, value in os.environ.items() if name != WARM},
        "folder": str(Path.cwd()),
        "libraries": imported_with(os.environ),
    }
    caller = socket.socket(socket.AF_UNIX)
    try:
        caller.connect(os.environ[WARM])
        socket.send_fds(caller, [b" "], [0, 1, 2])
        caller.sendall(f"{json.dumps(job)}\n".encode())
        said = caller.makefile()
        worker = int(said.readline())
    except (OSError, ValueError):
        return None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda sent, _: os.kill(worker, sent))
    if status := said.read():
        return int(status)
    print("error: the process of this stage was killed, perhaps for want of memory; run the command again", file=sys.stderr)
    return 128 + signal.SIGKILL


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
