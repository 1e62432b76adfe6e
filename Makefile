# `make` alone prints the targets. Every target makes the environment first when it is absent or out of date.

PYTHON ?= python3
VENV ?= .venv
QUICK ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4
INSTALLED := $(VENV)/.installed-demo-test-lint-docs

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help demo test test-machines lint docs bench clean

help: ## print this list
	@echo "graftwork: graft many tasks onto one frozen transformer"
	@echo
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' \
		| awk -F'|' '{ printf "  make %-14s %s\n", $$1, $$2 }'
	@echo
	@echo "The first of them makes $(VENV); PYTHON=python3.12 chooses the interpreter (3.11 or later)."

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "graftwork needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: the extras then find it in place and never replace the build that was chosen.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e ".[demo,test,lint,docs]"
	@touch $@

demo: $(INSTALLED) ## see it work: three tasks tuned at once, and one mixed batch (five minutes on two cores)
	PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

test: $(INSTALLED) ## run the tests
	$(PYTEST)

# How other processors add: with narrower vectors (torch's own kernels; oneDNN's, which has no fast bfloat16 then; MKL's),
# and with the other choice of a precision.
test-machines: $(INSTALLED) ## run the tests as other processors compute, one after the other (half an hour)
	@failed=0; for machine in \
		"" \
		"ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2" \
		"ATEN_CPU_CAPABILITY=default GRAFTWORK_TEST_DTYPE=bfloat16" \
		"ONEDNN_MAX_CPU_ISA=AVX2 GRAFTWORK_TEST_DTYPE=float32" \
		"ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE"; \
	do \
		echo "== $${machine:-this processor}"; env $$machine $(PYTEST) || failed=1; \
	done; exit $$failed

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/house.py --check

# The theme speaks of its successor at each build unless it is told not to.
docs: $(INSTALLED) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(INSTALLED) ## run every benchmark and write benchmarks/RESULTS.md (QUICK=1 for fewer repetitions)
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

clean: ## remove what the tools leave behind (the environment stays)
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests $(wildcard benchmarks studies examples) -type d -name __pycache__ -prune -exec rm -rf {} +
