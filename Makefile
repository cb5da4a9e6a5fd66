# Each target makes .venv and installs what it needs, once; a second call starts within seconds.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow test-cluster test-gpu lint format lock clean

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "recame needs Python >= 3.11, found " + sys.version.split()[0] + ": run make with PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

demo: $(READY)  ## generate a set, train a baseline and ReCAME-Net on it, compare them in a report
	$(BIN)/python examples/demo.py

test: $(READY) lint  ## what CI runs
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not gpu"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(READY)  ## minutes of training
	$(BIN)/python -m pytest -q -m slow --timeout 1800

test-cluster: $(READY)  ## the bench on a Ray cluster of two nodes, one of which is killed
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev,cluster]'
	$(BIN)/python -m pytest -q -m slow --timeout 600 tests/bench/queue/test_cluster.py

test-gpu: $(READY)  ## needs a CUDA device
	$(BIN)/python -m pytest -q -m gpu

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY)  ## record the installed versions
	$(BIN)/python -m pip list --format freeze --exclude recame --exclude pip --exclude setuptools > requirements.lock

clean:
	rm -rf .venv demo
