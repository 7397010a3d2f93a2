# Every target makes what it needs: `make demo` and `make test` work in a fresh checkout with only Python >= 3.10.
PYTHON ?= python3
BIN := .venv/bin

# Real task data and text beside the checkout, used where they exist and no other place is named.
DATA := $(shell cd ../shared/data 2>/dev/null && pwd)
ifneq ($(DATA),)
MINIPEFT_DATA ?= $(DATA)
export MINIPEFT_DATA
endif
CORPUS := $(shell cd ../shared/corpus 2>/dev/null && pwd)
ifneq ($(CORPUS),)
MINIPEFT_CORPUS ?= $(CORPUS)
export MINIPEFT_CORPUS
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint lessons bench lab site clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## tune the small GPT-2 that ships with the package; results in demo/
	$(BIN)/minipeft demo --out demo

test: lint ## lint, then the whole test suite
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
		$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: .venv/.installed-test ## formatting, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy minipeft

lessons: .venv/.installed-test ## make the notebooks from lessons/src, and run the solved ones
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python lessons/build.py

bench: .venv/.installed-test ## long tests; speed and memory beside transformers and peft: keep the machine idle, about an hour
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -m long
	for each in loading allocator loss packing attention plan communication decode; do HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/$$each.py || exit 1; done
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/train.py --cases ragged-8,e2e-8,e2e-16 --out runs/bench

lab: .venv/.installed-test ## open the lessons in JupyterLab
	cd lessons && ../$(BIN)/python -m jupyter lab

site: .venv/.installed-site ## make the site, the lessons, guides and reference as pages: docs/_build/html/index.html
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -d docs/_build/doctrees docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean: ## remove demo/, dist/ and caches (.venv/, build/ and runs/ stay)
	rm -rf demo dist docs/_build docs/lessons docs/cards docs/command_line.md docs/contributing.md .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-compile: Python compiles what is imported, and most of these libraries never is.
.venv/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	@touch $@

.venv/.installed-test: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[test]"
	@touch .venv/.installed $@

.venv/.installed-site: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[site]"
	@touch .venv/.installed $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "minipeft needs Python 3.10 or newer, and $(PYTHON) is older or missing: name one with 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv .venv
