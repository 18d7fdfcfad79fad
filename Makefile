# Set-up, the demonstration and the tests; `make` lists them. Everything runs in .venv, which envs/install.sh builds from a lock.

# cpu, or what .venv was built for. A variable ENV in the shell's environment is another thing (sh has one) and is not read.
ENV := $(or $(word 1,$(shell cat .venv/.built 2>/dev/null)),cpu)
# Snakemake's rules and the tests call `python` and `snakemake`: inside, those are .venv's.
INSIDE := env PATH="$(CURDIR)/.venv/bin:$(PATH)"
export PYTHON CXX UPGRADE

.PHONY: help setup .venv demo readme check test lint lock
.DEFAULT_GOAL := help

help:
	@echo "make demo            the mini world from nothing to its tables, results/table4.csv among them"
	@echo "make readme          the README's numbers from results/: after snakemake --cores all paper"
	@echo "make check           ruff, and the tests that are not marked slow: less than a minute on two quiet cores"
	@echo "make test            linters and all tests: about 20 minutes on two cores"
	@echo "make lint            linters alone"
	@echo "make setup           .venv for CPU; ENV=cuda for NVIDIA GPUs; PYTHON=… names a Python 3.11, CXX=… a C++ compiler"
	@echo "make lock            the pinned locks from envs/*.in, versions kept; UPGRADE=1 takes the newest"

setup: .venv

# Not a file's rule: times of files change with each git checkout. envs/install.sh compares contents and ends at once when .venv is right.
.venv:
	@sh envs/install.sh $(ENV)

demo: .venv
	$(INSIDE) snakemake --cores all
	@.venv/bin/python -c "import pandas, glob; print(*(pandas.read_csv(name).to_string(index=False) for name in sorted(glob.glob('results/table[45].csv'))), sep='\n\n')"
	@.venv/bin/python -c "import pandas; shown = ['real', 'empty', 'embedded', 'orders_agree', 'first_shown']; \
	print('', 'The judge:', pandas.read_csv('results/table2.csv')[['benchmark', 'control_metric', *shown]].to_string(index=False), sep='\n')"
	@.venv/bin/python -c "from stages.lib import files; from stages.mini import report; print('', report.as_text(files.read_json('results/world_report.json')), sep='\n')"

readme: .venv
	$(INSIDE) python -m analysis.readme --results results

# The fast loop. A test that takes half a second of a processor is marked slow; the imports of torch and Transformers take ten seconds.
check: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(INSIDE) OMP_NUM_THREADS=1 python -m pytest -m "not slow"

# One thread a job, as everywhere: two jobs of two threads on two cores are many times slower than two of one.
test: lint
	$(INSIDE) OMP_NUM_THREADS=1 python -m pytest

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/snakefmt --check Snakefile
	.venv/bin/mypy stages analysis perf
	@echo 'snakemake --lint: every finding but "conda environment", which envs/ stands for'
	@! .venv/bin/snakemake --lint 2>&1 | grep '^    \* ' | grep -v 'conda environment'

lock:
	sh envs/lock.sh
