# Everything a fresh machine needs: Python 3.11+, make and git. `make demo` and `make test` set themselves up.
.DEFAULT_GOAL := help
.PHONY: help demo experiment drift test test-slow check clean
VENV := .venv
PY := $(VENV)/bin/python
# Where this is set, nothing imported is kept compiled, and each of the many processes compiles it all again (20 s).
unexport PYTHONDONTWRITEBYTECODE
# The GPU and the CPU set differ in the vLLM wheel alone.
EXTRA := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

help:        ## show this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

$(VENV)/ready: pyproject.toml
	@echo "setting up $(VENV) with the $(EXTRA) wheels (about two minutes, 4 GB)"
	@python3 -m venv $(VENV)
	@$(PY) -m pip install -qq --upgrade pip "setuptools>=77"
	@# what is imported is compiled then; pip would compile all of it, for a minute
	@$(PY) -m pip install -qq --no-compile -e ".[$(EXTRA),dev]"
	@touch $@

demo: $(VENV)/ready       ## the whole job on the planted benchmark; ends with a table and a page
	@$(PY) stages/demo/demo.py

experiment: $(VENV)/ready ## four variants on three seeds, written to docs/results.md (over an hour on 2 cores)
	@$(PY) stages/demo/demo.py --experiment

drift: $(VENV)/ready      ## when the order matters: the experiment on drift, written to docs/drift.md (many hours)
	@$(PY) stages/demo/drift.py

test: $(VENV)/ready       ## the tests, on two workers (10 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/ready  ## the tests that take minutes each
	@$(PY) -m pytest -q -m slow

check: $(VENV)/ready      ## formatting, lint and types
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

clean:       ## remove runs, caches and the environment
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
