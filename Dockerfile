# The CUDA environment and the project, by the project's own scripts. No test builds it: tests/test_setup.py reads it.
#
#   docker build --tag simpo .
#   docker run --rm --gpus all --ipc host --volume "$PWD/results:/simpo/results" simpo snakemake --cores all --config scale=paper
#   apptainer build simpo.sif docker-daemon://simpo:latest        where Slurm runs no Docker
#
# Needs an NVIDIA driver for CUDA 13. The CUDA libraries come from envs/cuda.txt, so that the smallest base is enough.
FROM nvidia/cuda:13.0.0-base-ubi9

# What envs/check.sh asks for; Python's headers, with which Triton compiles its launchers; git, for the commit in each manifest.
RUN dnf install -y python3.11 python3.11-devel gcc-c++ make git && dnf clean all

WORKDIR /simpo
# Only what the installation reads: these layers stay in Docker's cache until a lock changes.
COPY Makefile ./
COPY envs/ envs/
ENV PIP_NO_CACHE_DIR=1
RUN make setup ENV=cuda

COPY . .
ENV PATH=/simpo/.venv/bin:$PATH
CMD ["snakemake", "--cores", "all", "--dry-run"]
