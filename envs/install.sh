#!/bin/sh
# Builds .venv from a lock; does nothing where .venv was built from the same files in the same place.
#
#   sh envs/install.sh cpu|cuda        (or: make setup, make setup ENV=cuda)
#
# In: envs/torch.txt (torch's version), envs/<ENV>.txt (every other package, pinned and hashed). Out: .venv.
# The last thing written is .venv/.built, which says what it was built from. Without it, or with another one, .venv is made
# anew: an interrupted installation, a changed lock or a moved checkout leaves nothing behind.
set -eu
cd "$(dirname "$0")/.."

env=${1-}
built="$env $(cat envs/torch.txt "envs/$env.txt" envs/install.sh 2>/dev/null | sha256sum | cut -c1-16) $(pwd -P)"
if [ "$(cat .venv/.built 2>/dev/null)" = "$built" ] && .venv/bin/python -c '' 2>/dev/null; then exit 0; fi

python=$(sh envs/check.sh "$env")
echo "set-up: building .venv for $env with $python"
rm -rf .venv # and not what a link points to
"$python" -m venv .venv
pip() {
    .venv/bin/python -m pip --disable-pip-version-check install "$@"
}

# torch's wheel differs by machine, so that no lock can hold it. For CUDA it is the registry's own build (=== takes no other),
# whose libraries the lock pins. For CPU the plain release comes last: it brings CUDA libraries that nothing here uses.
torch=$(cat envs/torch.txt)
if [ "$env" = cuda ]; then
    pip --no-deps "torch===${torch#torch==}"
elif echo "set-up: $torch+cpu, as this machine's pip is set up to find it" && pip --no-deps "$torch+cpu"; then
    :
elif echo "set-up: not found there; $torch+cpu from PyTorch's own index" &&
    pip --no-deps --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu "$torch+cpu"; then
    :
else
    echo "set-up: not found there either; plain $torch, 3 GiB more on the disk"
    pip "$torch"
fi

# setuptools first: it builds the two packages that come as source, so that nothing unhashed is fetched to build them.
lock=envs/$env.txt
sed -n '/^setuptools==/,/[^\\]$/p' "$lock" >.venv/setuptools.txt
pip --no-deps --require-hashes -r .venv/setuptools.txt
pip --no-deps --require-hashes --no-build-isolation --use-pep517 -r "$lock"
.venv/bin/python -c 'import torch; print("set-up: .venv is ready, torch", torch.__version__)'
echo "$built" >.venv/.built
