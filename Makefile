# make install, make demo, make test, make docs: each sets up everything it needs; a second call reuses it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
LOWEST_VENV ?= .venv-lowest
LOWEST_STAMP := $(LOWEST_VENV)/.installed

.PHONY: install demo test test-slow test-lowest reproduce-small docs lint format clean

install: $(STAMP)

# The paper's FCN, trained and scored; then one of its test clips through the shipped default network,
# with the scores of both.
DEMO_CLIP := typing/FEL0/5db

demo: $(STAMP)
	$(BIN)/python timit_fcn_mse.py --gpu 0 --out runs/demo
	$(BIN)/python -m speech.enhance runs/demo/test/noisy/$(DEMO_CLIP) -o runs/demo/denoise/$(DEMO_CLIP)
	$(BIN)/python -m eval.run --clean runs/demo/test/clean --noisy runs/demo/test/noisy/$(DEMO_CLIP) \
		--enhanced fcn=runs/demo/FCN_TIMIT_MSE_wav/$(DEMO_CLIP) \
		denoise=runs/demo/denoise/$(DEMO_CLIP) --metrics pesq_wb stoi --out runs/demo/clip

# Test files share the cores; each worker takes about 1.2 GB.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

test: $(STAMP) lint
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

# The suite with the oldest packages that setup.py allows; these may warn of newer ones they meet.
test-lowest: $(LOWEST_STAMP)
	$(LOWEST_VENV)/bin/python -m pytest $(PARALLEL) -W ignore::DeprecationWarning

# A reduced version of everything in RESULTS.md; the same call goes on where it was.
reproduce-small: $(STAMP)
	$(BIN)/python -m benchmarks.reproduce --small --out runs/reproduce_small

# The guides, the results and the API as a site: open site/index.html.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python $(LOWEST_VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; say make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(@:/bin/python=)
	$@ -m pip install --quiet --upgrade pip

$(STAMP): requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $(STAMP)

$(DOCS_STAMP): requirements-docs.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	@touch $(DOCS_STAMP)

$(LOWEST_STAMP): setup.py | $(LOWEST_VENV)/bin/python
	$(LOWEST_VENV)/bin/python -m pip install --quiet uv==0.13.9
	$(LOWEST_VENV)/bin/uv pip install --quiet --python $(LOWEST_VENV)/bin/python \
		--upgrade --resolution lowest-direct -r setup.py --extra test --extra tfmot
	@touch $(LOWEST_STAMP)

clean:
	rm -rf $(VENV) $(LOWEST_VENV) build site *.egg-info .pytest_cache .ruff_cache .mypy_cache
