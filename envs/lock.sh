#!/bin/sh
# Makes the locks envs/cpu.txt and envs/cuda.txt from envs/*.in: every package with ==, and the sha256 of each of its files.
#
#   sh envs/lock.sh                    (or: make lock, make lock UPGRADE=1)
#
# Versions in the locks stay where the .in files allow them; UPGRADE=1 takes the newest. The resolver (uv) is installed into
# a throw-away environment; it reads none of pip's settings: another index than PyPI is named by UV_DEFAULT_INDEX.
set -eu
cd "$(dirname "$0")/.."

python=$(sh envs/check.sh cpu)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/uv"
"$scratch/uv/bin/python" -m pip --disable-pip-version-check install uv==0.13.9

# Reads envs/$1.in, and versions to keep from $scratch/$1.txt; the options differ by environment.
compile() {
    env=$1
    shift
    "$scratch/uv/bin/uv" pip compile --quiet --no-header --python "$python" --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --generate-hashes --no-strip-extras "$@" "envs/$env.in" --output-file "$scratch/$env.txt" >/dev/null
    {
        echo "# The $env environment for Python 3.11 on Linux-x86_64, made by \`make lock\` from envs/$env.in; torch comes from envs/torch.txt."
        cat "$scratch/$env.txt"
    } >"envs/.$env.partial"
    mv "envs/.$env.partial" "envs/$env.txt"
}

[ -n "${UPGRADE-}" ] || cp envs/cpu.txt "$scratch/cpu.txt" 2>/dev/null || true
compile cpu --excludes envs/cpu.exclude
# The versions of cpu.txt first, so that the two environments differ only where they must.
cp envs/cpu.txt "$scratch/cuda.txt"
[ -n "${UPGRADE-}" ] || cat envs/cuda.txt >>"$scratch/cuda.txt" 2>/dev/null || true
compile cuda --no-emit-package torch
