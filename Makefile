# The two commands to know: `make demo` and `make test`.
#
# Variables: PYTHON (interpreter that makes .venv), COMFYD_PORT and every other COMFYD_* setting for `make demo`,
# TEST_PROCESSES (how many tests run at once), ARGS (more arguments for pytest); for `make reliability` TIER (light or
# heavy), SEED (repeats a run), KILLS (of the heavy tier) and SECONDS (of the light one).

PYTHON ?= python3
TEST_PROCESSES ?= 2
ARGS ?=
BIN := .venv/bin
RUN_READY := .venv/.ready-run
TEST_READY := .venv/.ready-test
SHELL_SCRIPTS := git ls-files -z -- '*.sh' .ci/run
export PYTHON TIER SEED KILLS SECONDS

.DEFAULT_GOAL := help
.PHONY: help demo demo-real test check lint test-unit test-slow test-postgres reliability test-real test-image clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

demo: $(RUN_READY) ## run the daemon on examples/quickstart (no GPU needed)
	@exec $(BIN)/comfyd run --root examples/quickstart

demo-real: $(RUN_READY) ## install and run a real ComfyUI on the CPU in .demo-real (1.8 GB)
	@exec scripts/dev/demo_real.sh .demo-real

test: $(TEST_READY) ## run the tests (a few minutes)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) -m "not real and not slow and not image and not reliability and not postgres" $(ARGS)

check: lint test-unit ## format, lint, types, walls, scripts, image files and unit tests (under a minute)

lint: $(TEST_READY) ## everything static
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(SHELL_SCRIPTS) | xargs -0 $(BIN)/shellcheck
	$(BIN)/hadolint Dockerfile
	$(BIN)/python scripts/dev/check_bake.py

test-unit: $(TEST_READY)
	$(BIN)/python -m pytest tests/unit $(ARGS)

test-slow: $(TEST_READY) ## the slower tests
	$(BIN)/python -m pytest -m "slow and not real and not reliability and not postgres" $(ARGS)

reliability: $(TEST_READY) ## kill the daemon at every durable step and at random; TIER=heavy: 200 kills under load
	@scripts/dev/install_tools.sh strace
ifeq ($(TIER),heavy)
	$(BIN)/python -m pytest -m reliability $(ARGS)
else
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) -m reliability $(ARGS)
endif

test-postgres: $(TEST_READY) ## the tests with a queue in PostgreSQL (which they start)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) -m "postgres and not real" $(ARGS)

test-real: $(TEST_READY) ## the tests against a real ComfyUI on the CPU (minutes, 1.8 GB)
	$(BIN)/python -m pytest -m real $(ARGS)

test-image: $(TEST_READY) ## build the image and run it in namespaces (as root; a few minutes)
	@scripts/dev/install_tools.sh buildah debootstrap
	$(BIN)/python -m pytest -m image $(ARGS)

clean: ## remove what make built (never the workspaces)
	rm -rf .venv .cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache dist
	find comfyd tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_READY): pyproject.toml
	@scripts/dev/make_venv.sh
	@touch $@

$(TEST_READY): pyproject.toml
	@scripts/dev/make_venv.sh test,lint
	@touch $(RUN_READY) $@
