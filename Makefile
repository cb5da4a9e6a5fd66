# Each target makes .venv and installs what it needs, once; later calls start within seconds.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DOCS := .venv-docs/bin
# Uses .venv with other versions of two packages, which S3 clients need; .venv itself is not changed.
CLUSTER := .venv-cluster/bin/python

.PHONY: demo docs test test-slow test-faults test-cluster test-gpu test-node wheel audit sbom lint format lock clean

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "recame needs Python >= 3.11, found " + sys.version.split()[0] + ": run make with PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[train,export,tensorboard,lift]' --group dev
	touch $@

demo: $(READY)  ## generate a set, train a baseline and ReCAME-Net on it, compare them in a report
	$(BIN)/python examples/demo.py

test: $(READY) lint  ## what CI runs, together with `make wheel`
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not gpu and not node"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(READY)  ## tests that train for minutes
	$(BIN)/python -m pytest -q -m slow --timeout 1800

test-faults: $(READY)  ## tests of kills, power cuts, full disks: half an hour; needs strace and gcc (apt install)
	$(BIN)/python -m pytest -q tests/faults -m "slow or not slow" --timeout 3600

test-cluster: $(READY)  ## bench and predict on two Ray nodes, one of which is killed; an S3 bucket
	test -x $(CLUSTER) || $(PYTHON) -m venv .venv-cluster
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
		> "$$($(CLUSTER) -c 'import site; print(site.getsitepackages()[0])')/dev.pth"
	grep -v -e '^fsspec==' -e '^python-dateutil==' requirements.lock > .venv-cluster/constraints.txt
	$(CLUSTER) -m pip install --quiet --constraint .venv-cluster/constraints.txt \
		--editable '.[cluster]' 's3fs>=2025.3' 'moto[s3]>=5.1,<6' flask flask-cors
	$(CLUSTER) -m pytest -q -m slow --timeout 600 \
		tests/bench/queue/test_cluster.py tests/runtime/test_two_nodes.py tests/runtime/test_s3.py

test-gpu: $(READY)  ## tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

test-node: $(READY)  ## a client in another language; needs node and npm (apt install), downloads from the npm registry
	$(BIN)/python -m pytest -q -s -m node

wheel:  ## the wheel in dist/, tested on a bundle in .venv-runtime with the runtime extra
	PYTHON=$(PYTHON) .ci/wheel

.venv-docs/.ready: pyproject.toml requirements.lock
	test -x $(DOCS)/python || $(PYTHON) -m venv .venv-docs
	$(DOCS)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(DOCS)/python -m pip install --quiet --constraint requirements.lock --editable . --group docs
	touch $@

docs: .venv-docs/.ready  ## the site in dist/docs; needs no torch
	$(DOCS)/python docs/making/build_site.py

audit:  ## known vulnerabilities of the locked versions, from PyPI's service: dist/audit.json
	PYTHON=$(PYTHON) .ci/audit

sbom: $(READY) wheel  ## bills of materials: dist/sbom-runtime.json, dist/sbom-development.json
	PYTHON=$(PYTHON) .ci/sbom

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY) .venv-docs/.ready  ## record the installed versions of .venv, and of docs packages that .venv lacks
	for python in $(BIN)/python $(DOCS)/python; do \
		$$python -m pip list --format freeze --exclude recame --exclude pip --exclude setuptools; \
	done | sort --ignore-case --unique --stable --field-separator '=' --key 1,1 > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv .venv-runtime .venv-audit .venv-cluster .venv-docs demo dist
