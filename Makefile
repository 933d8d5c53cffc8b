# reki-ray: `make demo` shows the whole system, `make test` checks it. Both set up .venv first.
#
#   PYTHON        interpreter, 3.11 or newer
#   CONFIG        configuration of the demo
#   TORCH_INDEX   index of PyTorch's CPU wheels, if pip does not find them by itself
#   EXTRAS        cpu,dev on a machine without GPU; gpu,dev on one with CUDA

PYTHON      ?= python3
CONFIG      ?= configs/movielens-100k.yaml
TORCH_INDEX ?=
EXTRAS      ?= cpu,dev
VENV        := .venv
READY       := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-avx2 test-cluster lint slow bench reference docs clean

help:  ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY)  ## Create .venv with the tested versions, unless it is up to date

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "reki-ray needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo 'Setting up $(VENV): about 3 minutes and 5 GB'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[$(EXTRAS)]'
	@# They do not import with a CPU build of torch, and break transformers.
	@$(if $(findstring cpu,$(EXTRAS)),$(VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

demo: setup  ## All stages on MovieLens-100K with a real LLM on the CPU; on a terminal keep serving
	@$(VENV)/bin/reki run --config $(CONFIG)
	@if [ -t 1 ]; then exec $(VENV)/bin/reki serve --config $(CONFIG); fi

lint: setup  ## Format, lint, types and the direction of imports
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy --no-error-summary
	@$(VENV)/bin/lint-imports --no-cache >/dev/null || $(VENV)/bin/lint-imports --no-cache

test: lint  ## Lint, types and all tests but the slow ones
	@$(VENV)/bin/python -m pytest

# Limits the instructions that torch, oneDNN, MKL, OpenBLAS and numpy use to AVX2.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"

FAST := not ray and not serve and not chaos and not slow

test-avx2: setup  ## The tests without Ray as on an x86 processor without AVX512: one thread, two hash seeds
	@for seed in 1 2; do env $(AVX2) OMP_NUM_THREADS=1 PYTHONHASHSEED=$$seed \
		$(VENV)/bin/python -m pytest -m "$(FAST)" || exit 1; done

slow: setup  ## The tests that take too long for `make test`
	@$(VENV)/bin/python -m pytest -m "slow and not cluster"

test-cluster: setup  ## A cluster on hosts made of namespaces (Linux, root), about 10 minutes
	@$(VENV)/bin/python -m pytest -x -m cluster tests/cluster

bench: setup  ## The benchmarks, each writing benchmarks/out/<name>.json; then docs/results/benchmarks.md
	@$(VENV)/bin/reki bench extract
	@$(VENV)/bin/reki bench cluster
	@$(VENV)/bin/reki bench train
	@$(VENV)/bin/reki bench accuracy
	@$(VENV)/bin/reki bench serve
	@$(VENV)/bin/reki bench storage
	@$(VENV)/bin/python docs/render_benchmarks.py

reference: setup  ## The generated pages of docs/reference
	@for page in cli config http metrics python workspace; do $(VENV)/bin/python docs/render_$$page.py || exit 1; done

docs: setup  ## The documentation as a site in build/site
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@$(VENV)/bin/mkdocs build --strict --quiet

clean:  ## Remove the environment and the demo's output; the cache of downloads stays
	rm -rf $(VENV) runs build *.egg-info
