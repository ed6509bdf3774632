# make demo: set up .venv, decompose one W_K of the embedded model, print features beside their controls, draw a picture.
# make test: set up .venv, run the tests. Both reuse .venv. PYTHON=python3.12 chooses another interpreter (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
# The CPU build of torch, from a local index where there is one, else from PyTorch's own: plain PyPI would bring CUDA.
TORCH ?= torch==2.13.0
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(VENV)/bin/python demos/first_features.py

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)+cpu" || $(PIP) "$(TORCH)" --index-url $(CPU_INDEX)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable ".[lens,plots]"
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
