# make demo, make test, make test-long, make test-hostile, make test-peers, make test-pages, make test-cuda-compile, make test-cluster, make test-faults: each makes its own .venv with what it needs, from Python >= 3.11 and pip.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= $$($(PYTHON) .ci/constraints.py)
BIN := $(VENV)/bin

EXTRAS ?= dev
TESTS ?=

# As users run it; `make test` compiles with few optimisations (tests/conftest.py).
OPTIMISED := JAX_DISABLE_MOST_OPTIMIZATIONS=0

.PHONY: demo test test-long test-hostile test-peers test-pages test-cuda-compile test-cluster test-faults lint clean

demo: $(VENV)/.installed
	$(BIN)/vit train --config=digits.py --workdir=runs/digits

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile --ignore=tests/hostile --ignore=tests/faults $(TESTS)

# Jobs of several processes, killed and continued runs, every mesh and every kind of optimiser.
test-long: $(VENV)/.installed
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile --ignore=tests/faults $(TESTS)

# Damaged and hostile files, each in a process that is watched: docs/security.md.
test-hostile: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/hostile

test-peers:
	$(MAKE) VENV=.venv-peers EXTRAS=dev,peers,onnx,tf,tpu CONSTRAINTS="$(CONSTRAINTS) -c .ci/constraints-peers.txt" .venv-peers/.installed
	$(OPTIMISED) .venv-peers/bin/python -m pytest tests/peers/test_tfds_builds.py  # TensorFlow, apart from PyTorch
	$(OPTIMISED) .venv-peers/bin/python -m pytest -n 2 --dist loadfile --ignore=tests/peers/test_tfds_builds.py tests/peers tests/pretrained/test_references.py tests/models/test_resnet_peer.py tests/pretrained/test_catalog.py
	mkdir -p .venv-trackio
	grep -v '^pillow==' $(CONSTRAINTS) > .venv-trackio/constraints.txt  # Trackio takes no Pillow 13
	$(MAKE) VENV=.venv-trackio EXTRAS=dev,trackio CONSTRAINTS=".venv-trackio/constraints.txt -c .ci/constraints-peers.txt" .venv-trackio/.installed
	$(OPTIMISED) .venv-trackio/bin/python -m pytest tests/peers/test_trackers.py

# Pages in a real browser: needs Chromium (apt-get install chromium).
test-pages: $(VENV)/.installed
	TEST_PAGES=1 $(BIN)/python -m pytest tests/pages

# Steps compiled for GPUs that are not here; the CUDA wheels take 6 GB.
test-cuda-compile:
	$(MAKE) VENV=.venv-cuda EXTRAS=dev,cuda .venv-cuda/.installed
	JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 $(OPTIMISED) .venv-cuda/bin/python -m pytest tests/cuda

# On SLURM, which it starts itself: as root, after apt-get install slurm-wlm munge; and on one machine.
test-cluster: $(VENV)/.installed
	$(OPTIMISED) TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster tests/launch/test_local.py

# Jobs that are killed, stopped or starved, many rounds of each.
FAULTS ?= tests/faults tests/parallel/test_jobs.py
test-faults: $(VENV)/.installed
	$(OPTIMISED) FAULT_ROUNDS=$${FAULT_ROUNDS:-20} FAULT_TABLE=$${FAULT_TABLE-docs/results/faults.csv} $(BIN)/python -m pytest -n 2 --dist load $(FAULTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed: setup.py $(wildcard .ci/constraints-*.txt)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("make: vit_jax needs Python 3.11 or newer, %s is %d.%d: make PYTHON=python3.11" % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .[$(EXTRAS)] -c $(CONSTRAINTS)
	@touch $@

clean:
	rm -rf $(VENV) runs
