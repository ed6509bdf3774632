# make demo: set up .venv, decompose one W_K of the embedded model, print features beside their controls, write a page.
# make test: set up .venv (TransformerLens 3, sae-lens) and .venv-tl4 (TransformerLens 4), run all tests in the first and
# in the second those of the adapters and the how-tos; less than 90 % of lines covered by the first is a failure.
# make test-release: what make test leaves out, which are rarer families of models, most toys and the longest runs.
# make lint, make docs, make package: ruff and pyright; the site, warnings as errors; wheel and sdist built and compared, the
# demo run in a clean environment. All reuse what is there. PYTHON=python3.12 chooses another interpreter (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
VENV_TL4 ?= .venv-tl4
VENV_PACKAGE ?= .venv-package
TL4 ?= 4.3.0
# The CPU build of torch, from a local index where there is one, else from PyTorch's own: plain PyPI would bring CUDA.
TORCH ?= torch==2.13.0
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# One process a core, each with one thread: the tensors of most tests are too small for more.
PARALLEL = OMP_NUM_THREADS=1
PROCESSES = --numprocesses auto --maxprocesses 4 --dist worksteal --durations 25
# Each block of the documentation runs once: the how-tos, but for sae-lens', with the TransformerLens that a newcomer gets.
PAGES_TL4 = transformer-lens.md or (how-to and not sae)
TESTS_TL4 = tests/adapters tests/families tests/golden tests/development/test_in_context.py tests/test_padding.py \
	tests/test_importing.py::test_every_module_can_be_imported_under_a_name_of_its_own \
	tests/run/test_description.py tests/test_docs.py tests/test_real_models.py
# Of these, the cases whose model is a bridge: the others do not know which TransformerLens there is.
OF_BRIDGES_TL4 = test_conformance or test_families or test_padding or test_texts_and_padding or test_real_models

MAKEFLAGS += --jobs=2

# Byte code is written for what is imported, as it is imported: an environment holds 23,000 files and few are ever needed.
PIP = -m pip install --quiet --disable-pip-version-check --no-compile
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo environments test test-tl3 test-tl4 test-release lint docs package clean

demo: $(VENV)/.demo
	$(VENV)/bin/python demos/first_features.py

# What the rest waits for.
environments: $(VENV)/.test $(VENV_PACKAGE)/.torch

# The second environment is set up while the first one's tests run.
test: test-tl3 $(VENV_TL4)/.test
	$(MAKE) test-tl4

test-tl3: $(VENV)/.test
	$(PARALLEL) $(VENV)/bin/python -m pytest $(PROCESSES) -k "not (test_block_runs and ($(PAGES_TL4)))" \
		--cov=param_features --cov=adapters --cov-report=term:skip-covered --cov-fail-under=90

test-tl4: $(VENV_TL4)/.test
	$(PARALLEL) $(VENV_TL4)/bin/python -m pytest $(PROCESSES) $(TESTS_TL4) \
		--ignore tests/adapters/test_experts.py --ignore tests/adapters/test_dictionary_learning.py \
		-k "(not ($(OF_BRIDGES_TL4)) or bridge or transformer_lens_own) and (not test_block_runs or $(PAGES_TL4))"

# Before a release: what is too long for every change.
test-release: $(VENV)/.test
	$(PARALLEL) $(VENV)/bin/python -m pytest $(PROCESSES) tests -m release

lint: $(VENV)/.test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Both archives must install the same files, data included: their sums are compared.
package: $(VENV)/.test $(VENV_PACKAGE)/.torch
	rm -rf dist build $(VENV_PACKAGE)/files && mkdir -p $(VENV_PACKAGE)/files
	$(VENV)/bin/python -m build --outdir dist . > /dev/null
	for archive in dist/*.tar.gz dist/*.whl; do \
		$(VENV_PACKAGE)/bin/python $(PIP) --constraint constraints.txt --force-reinstall --no-deps "$$archive" && \
		grep -E '^param_features/|METADATA|entry_points' $(VENV_PACKAGE)/lib/python*/site-packages/param_features-*.dist-info/RECORD \
			| sort > $(VENV_PACKAGE)/files/$$(basename $$archive).txt || exit 1; \
	done
	cmp $(VENV_PACKAGE)/files/*
	$(VENV_PACKAGE)/bin/python $(PIP) --constraint constraints.txt "$$(ls dist/*.whl)[lens,plots]"
	cd $(VENV_PACKAGE) && $(PARALLEL) bin/param-features demo --quick --quiet --n-shown 2 > printed.txt
	tail -n 12 $(VENV_PACKAGE)/printed.txt

%/.torch:
	$(PYTHON) -m venv $*
	$*/bin/python $(PIP) "$(TORCH)+cpu" || $*/bin/python $(PIP) "$(TORCH)" --index-url $(CPU_INDEX)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(VENV)/bin/python $(PIP) --constraint constraints.txt --editable ".[lens,plots]"
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml constraints.txt
	$(VENV)/bin/python $(PIP) --constraint constraints.txt --editable ".[dev,sae]"
	touch $@

# The first environment's files, linked, without sae-lens, then TransformerLens 4 in place of 3.
$(VENV_TL4)/.test: $(VENV)/.test
	$(PYTHON) -m venv --clear --without-pip $(VENV_TL4)
	$(PYTHON) -c "import os, shutil; shutil.copytree('$(VENV)/lib', '$(VENV_TL4)/lib', copy_function=os.link, \
		ignore=shutil.ignore_patterns('__pycache__'), dirs_exist_ok=True)"
	$(VENV_TL4)/bin/python -m pip uninstall --quiet --yes sae-lens
	sed 's/^transformer-lens==.*/transformer-lens==$(TL4)/' constraints.txt > $(VENV_TL4)/constraints.txt
	$(VENV_TL4)/bin/python $(PIP) --constraint $(VENV_TL4)/constraints.txt --editable ".[dev]"
	touch $@

.PRECIOUS: %/.torch

clean:
	rm -rf $(VENV) $(VENV_TL4) $(VENV_PACKAGE) build dist site *.egg-info
