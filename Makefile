# make help lists the targets. Everything runs in .venv/, made on first use with the pins of constraints.txt.
VENV := $(CURDIR)/.venv
PY   := $(VENV)/bin/python
export PATH := $(VENV)/bin:$(PATH)
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_HOME ?= $(CURDIR)/.prefect
PORT_MLFLOW ?= 5000
PORT_PREFECT ?= 4200

.DEFAULT_GOAL := help
.PHONY: help install repro test claims bench check fast ui parts pins clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(VENV)/.installed  ## the virtual environment

$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

repro: install  ## run the pipeline on the embedded default: prompts in, aligned and evaluated model out
	dvc repro
	@echo "report: data/evaluate/report.html    metrics: dvc metrics show    runs: make ui"

test: install  ## all tests, under ten minutes on two cores
	$(PY) -m pytest -n 2 --dist loadgroup

claims: install  ## what the papers' methods are claimed to do, measured over seeds: half an hour on one core
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(PY) -m pytest -m claims tests/claims -s
	$(PY) -m stages.parts > /dev/null

bench: install  ## how fast, beside TRL and model.generate in one run; writes benchmarks/RESULTS.md
	$(PY) -m pytest -m bench tests/test_benchmarks.py
	for script in dpo sampling grpo beta_sweep scaling rate startup image_caches; do \
		$(PY) -m benchmarks.$$script || exit 1; \
	done

check: install  ## lint, types, fast tests
	ruff check .
	ruff format --check .
	mypy stages flows
	$(PY) -m pytest -n 2 --dist loadgroup -m "not slow"

ui: install  ## MLflow and Prefect on 127.0.0.1 over this checkout's own stores; Ctrl-C stops both
	@echo "MLflow http://127.0.0.1:$(PORT_MLFLOW)   Prefect http://127.0.0.1:$(PORT_PREFECT)"
	@trap 'kill 0' INT TERM EXIT; \
	mlflow ui --host 127.0.0.1 --port $(PORT_MLFLOW) --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} & \
	prefect server start --host 127.0.0.1 --port $(PORT_PREFECT) & \
	wait

parts: install  ## regenerate stages/PARTS.md
	$(PY) -m stages.parts > /dev/null

pins: install  ## constraints.txt from what is installed
	(sed -n 1p constraints.txt; $(PY) -m pip freeze --exclude-editable | sed 's/+cpu//') > constraints.new
	mv constraints.new constraints.txt

clean:  ## forget half-done work; results and the cache stay
	rm -rf .scratch .pytest_cache .mypy_cache .ruff_cache
