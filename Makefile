# make demo: see it work. make test: see that it works. Nothing else is needed on a machine with Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo
# Where it is set, every process compiles anew what it imports: ten seconds each.
unexport PYTHONDONTWRITEBYTECODE

# $(EXTRAS), by uv, in a minute; by pip, in five, where pip is told of packages elsewhere, which uv would not ask, or where uv fails.
define install
if $(BIN)/python -m pip config list | grep -qE "no-index|https?://" || ! { \
    $(BIN)/python -m pip install --quiet --constraint constraints.txt uv && \
    $(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable ".[$(EXTRAS)]"; }; then \
    $(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable ".[$(EXTRAS)]"; fi
endef

.PHONY: demo test test-all lint benchmark container clean

demo: $(VENV)/.installed
	rm -rf $(DEMO)
	$(BIN)/apps.pranet train --cfg configs/pranet/demo.yaml
	$(BIN)/apps.pranet data phantom --output $(DEMO)/phantoms-test --count 40 --seed 1000
	$(BIN)/apps.pranet evaluate --model $(DEMO)/run/model --data $(DEMO)/phantoms-test --output $(DEMO)/evaluation
	$(BIN)/apps.pranet infer --model $(DEMO)/run/model --input $(DEMO)/phantoms-test/images --output $(DEMO)/predictions
	@echo
	@echo "The demo is done. Look at:"
	@echo "  $(DEMO)/evaluation/report.html    scores beside trivial answers, the worst frames first"
	@echo "  $(DEMO)/predictions/              masks, overlays and measurements of the held-out frames"
	@echo "  $(DEMO)/run/model                 the bundle: $(BIN)/apps.pranet serve --model $(DEMO)/run/model"

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# With the tests marked as thorough: every attention block compiled with its sizes left open and run by ONNX Runtime, every promise of every app.
test-all: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "thorough or not thorough"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(VENV)/.installed-dev
	$(BIN)/pytest tests/benchmarks --benchmark-only

container: $(VENV)/.installed $(DEMO)/run/model
	$(BIN)/python docker/container.py

$(DEMO)/run/model:
	$(MAKE) demo

clean:
	rm -rf $(VENV) $(DEMO)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Fovea needs Python 3.11 or later: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: EXTRAS := all
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(install)
	touch $@

$(VENV)/.installed-dev: EXTRAS := all,dev
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(install)
	touch $@ $(VENV)/.installed
