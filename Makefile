# make demo        the whole loop in at most 15 minutes on two cores (after set-up)
# make demo-full   the measured proof: experiments/demo/plan.json, at most two hours on two cores
# make demo-simpler  the proof in SIMPLER under the committed plan experiments/demo/plan_simpler.json; needs grape assets simpler
# make test        linters, layers, types and tests
# make setup       the virtual environment alone; the others do it by themselves
#
# Variables: VENV=.venv  PYTHON=python3.11  CONSTRAINTS=constraints.txt  DEMO_FLAGS="--num_workers 4"

VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS      ?= train,libero,simpler,rlds,vlm,wandb,ray,quantization,dev
DEMO_FLAGS  ?=
PYTEST_FLAGS ?=
# They render in their own process, which must not have loaded TensorFlow (grape/envs/libero/rendering.py).
SIMULATOR_TESTS := tests/envs tests/rollouts

PY    := $(VENV)/bin/python
STAMP := $(VENV)/.grape-setup

export MUJOCO_GL ?= egl
export TF_CPP_MIN_LOG_LEVEL ?= 2
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo demo-full demo-simpler test lint setup clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	$(PY) -m grape.cli.main demo --profile quick $(DEMO_FLAGS)

demo-full: $(STAMP)
	$(PY) -m grape.cli.main demo --profile full --result_file experiments/demo/result.json $(DEMO_FLAGS)

demo-simpler: $(STAMP)
	$(PY) -m grape.cli.main demo --profile simpler --result_file experiments/demo/result_simpler.json $(DEMO_FLAGS)

test: lint
	$(PY) -m pytest $(SIMULATOR_TESTS) --durations=10 $(PYTEST_FLAGS)
	$(PY) -m pytest $(addprefix --ignore=,$(SIMULATOR_TESTS)) -n 2 --dist loadfile --durations=15 $(PYTEST_FLAGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(PY) -m mypy

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS) .ci/setup .ci/lavapipe
	VENV="$(VENV)" CONSTRAINTS="$(CONSTRAINTS)" EXTRAS="$(EXTRAS)" bash .ci/setup
	@touch $@

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
