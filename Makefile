# make run      the whole job of the spec SPEC, as the run NAME
# make test     the tests, two files at a time, in order, so that the longest files (faults) do not come last; PYTEST_ARGS goes to pytest (-n 0: one at a time)
# make test-slow  the slow tests: real kills, hangs, lost nodes, full disks
# make check    format, lint, types, layering
# make bench    mnist-ray benchmark (half an hour), into docs/performance.md
# make gpu      check and measure a GPU in some minutes, into docs/performance.md; GPU_ARGS='--device cpu' rehearses
# make chaos    kill a real job a hundred times (over half an hour) and write the losses into docs/reliability.md
# make outside  run a small real job in the surroundings that outsiders tried (quarter of an hour), into docs/reliability.md
# make lock     pin the requirements again; LOCK_ARGS=--upgrade takes the newest versions
# make clean    remove caches, builds and .venv; never results/
#
# The first of these commands sets up .venv with PYTHON (3.11 to 3.14). Later ones install something only after
# a requirements file or pyproject.toml changed.

PYTHON ?= python3
SPEC ?= jobs/quickstart.yaml
NAME ?= quickstart
PYTEST_ARGS ?=
LOCK_ARGS ?=
OUTSIDE_ARGS ?=
GPU_ARGS ?=
CHAOS_ARGS ?= --kills 100 --seed 1

BIN := .venv/bin
UV := .venv/uv/bin/uv

.PHONY: help run test test-slow check bench gpu chaos outside lock clean
.NOTPARALLEL:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

run: .venv/installed-runtime
	@$(BIN)/mnist-ray run "$(SPEC)" --name "$(NAME)"

test: .venv/installed-dev
	@$(BIN)/python -m pytest -rs -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: .venv/installed-dev
	@$(BIN)/python -m pytest -rs -m slow $(PYTEST_ARGS)

check: .venv/installed-dev
	@$(BIN)/ruff format --check --quiet || { echo "Not formatted: run $(BIN)/ruff format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo

bench: .venv/installed-runtime
	@$(BIN)/mnist-ray benchmark --page docs/performance.md

gpu: .venv/installed-runtime
	@mkdir -p results
	@$(BIN)/python -m mnist_ray.benchmarks.gpu $(GPU_ARGS) --out results/gpu.json --page docs/performance.md

chaos: .venv/installed-dev
	@$(BIN)/python -m tools.chaos $(CHAOS_ARGS) --control --json results/chaos.json --page docs/reliability.md

# The development file takes every shared version from the runtime one, so that tests run on what users get.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(LOCK_ARGS)
lock: .venv/installed-dev
	@$(COMPILE) --extra s3 --extra gcs --extra onnx --group build --output-file requirements.txt pyproject.toml
	@$(COMPILE) --all-extras --group build --group dev --constraints requirements.txt --output-file requirements-dev.txt pyproject.toml
	@printf '%s\n' boto3 google-api-python-client | \
	  $(COMPILE) --constraints requirements.txt --output-file requirements-clouds.txt -
	@echo uv | $(COMPILE) --output-file requirements-uv.txt -

outside: .venv/installed-dev
	@$(BIN)/python -m tools.outside $(OUTSIDE_ARGS) --page docs/reliability.md

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -path ./results -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Setting up is done by uv, which unpacks wheels while it downloads: .venv never needs more than 6.4 GB. (pip would keep
# 3.2 GB of wheels beside them.) uv itself is installed in .venv/uv, because `uv pip sync` removes what it finds in
# .venv that is not in the requirements. The cache of uv is in .venv, because hard links need one file system, and is
# removed at the end. Bytecode is compiled once (a minute on two cores): Ray starts many processes, and each would compile
# everything anew where PYTHONDONTWRITEBYTECODE is set.
#
# A set-up that was killed leaves .venv/unfinished. uv takes a half-linked package for an installed one, so the next
# command installs again, without a second download.
define set_up
	@set -eu; \
	fresh() { [ -e .venv/unfinished ] || ! [ -x $(BIN)/python ]; }; \
	if fresh; then \
	  "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null || { \
	    echo "$(PYTHON) is $$("$(PYTHON)" --version 2>/dev/null || echo missing); mnist_ray needs Python 3.11 to 3.14: name one with 'make $(MAKECMDGOALS) PYTHON=python3.12'" >&2; exit 1; }; \
	  "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }; \
	fi; \
	mkdir -p .venv; exec 9>.venv/lock; \
	if command -v flock >/dev/null; then flock 9; fi; \
	if [ -e $@ ] && [ -z "$$(find $^ -newer $@)" ]; then exit 0; fi; \
	if fresh; then \
	  echo "Setting up .venv for $(1): 3.2 GB to download, 6.4 GB on disk, about two minutes on a fast line"; \
	  : >.venv/unfinished; \
	  find .venv -mindepth 1 -maxdepth 1 ! -name lock ! -name unfinished ! -name cache -exec rm -rf {} +; \
	  rm -rf .venv/cache/.tmp*; \
	  "$(PYTHON)" -m venv .venv; \
	else \
	  echo "Bringing .venv up to date for $(1): only what changed, mostly seconds"; \
	fi; \
	: >.venv/unfinished; rm -f .venv/installed-*; \
	if ! [ $(UV) -nt requirements-uv.txt ]; then \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
	    --upgrade --target .venv/uv --requirement requirements-uv.txt; \
	  touch $(UV); \
	fi; \
	export UV_CACHE_DIR=.venv/cache UV_LINK_MODE=hardlink UV_COMPILE_BYTECODE=1; \
	index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}}; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes $(2); \
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	rm -rf .venv/cache .venv/unfinished; \
	touch $(3)
endef

.venv/installed-runtime: requirements-uv.txt requirements.txt pyproject.toml
	$(call set_up,running,requirements.txt,$@)

.venv/installed-dev: requirements-uv.txt requirements-dev.txt requirements.txt pyproject.toml
	$(call set_up,running and testing,requirements-dev.txt,.venv/installed-runtime $@)
