#!/bin/sh
# What the set-up needs of this machine, looked at before anything is installed.
#
#   sh envs/check.sh cpu|cuda
#
# Prints the Python 3.11 that it found and exits 0, or says in one sentence what is missing and what to do, and exits 2.
# PYTHON names the interpreter, CXX the compiler, where they have other names than python3.11 (or python3) and g++.
set -eu

stop() {
    echo "set-up: $*" >&2
    exit 2
}

gib() {
    echo "$(($1 / 1048576)) GiB"
}

# Measured for cpu: .venv takes 4.2 GiB, the wheels on their way into it 1. Estimated for cuda from the sizes of its wheels.
case ${1-} in
cpu) needed=$((6 * 1048576)) ;;
cuda) needed=$((20 * 1048576)) ;;
*) stop "ENV=${1-} is unknown: write ENV=cpu or ENV=cuda" ;;
esac

platform=$(uname -s)-$(uname -m)
[ "$platform" = Linux-x86_64 ] || stop "this machine is $platform and the locks in envs/ hold packages for Linux-x86_64: use such a machine, or a container of it"

# A name on PATH may be a shim that does not run, or the Python of a .venv that is about to be replaced: only an answer counts,
# and what counts in it is the interpreter below any virtual environment.
python= found=
for name in ${PYTHON:-python3.11 python3}; do
    answer=$("$name" -c 'import platform, sys; print(platform.python_version(), sys._base_executable)' 2>/dev/null) || answer="not to be had"
    case $answer in
    3.11.*) python=${answer#* } && break ;;
    esac
    found="$found${found:+, }$name is ${answer%% /*}"
done
[ -n "$python" ] || stop "Python 3.11 is needed and $found: install it (Debian: apt-get install python3.11 python3.11-venv)," \
    "or name one, as in make setup PYTHON=~/python3.11/bin/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "$python has no venv with pip (modules venv and ensurepip): install it (Debian: apt-get install python3.11-venv), or name another Python with PYTHON="

# vLLM compiles its sampler's log-probs with torch's inductor when they are first asked for, on CUDA triton compiles its launchers.
command -v "${CXX:-g++}" >/dev/null ||
    stop "no C++ compiler (${CXX:-g++}), with which vLLM compiles parts of itself when it runs: install g++ (Debian: apt-get install g++), or name one with CXX="

# What they compile includes it, on CPU as on CUDA.
"$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' >/dev/null 2>&1 ||
    stop "$python has no Python.h, with which vLLM and Triton compile parts of themselves when they run: install it" \
        "(Debian: apt-get install python3.11-dev), or name another Python with PYTHON="

# A .venv that is there is replaced: what it takes is free then.
free=$(df -Pk . | awk 'NR == 2 { print $4 }')
if [ -d .venv ]; then free=$((free + $(du -sk .venv | cut -f1))); fi
[ "$free" -ge "$needed" ] || stop "$(gib "$free") are free for $(pwd) and the $1 environment needs $(gib "$needed"): free some, or move the checkout to another disk"

echo "$python"
