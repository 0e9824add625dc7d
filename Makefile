# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The tested sets: Python 3.11 with the oldest supported jax, and the newest of everything.
CONSTRAINTS := $(shell $(PYTHON) -c "import sys; print('constraints/py311.txt' if sys.version_info < (3, 12) else 'constraints/newest.txt')")

.PHONY: demo demo-text demo-clip demo-speech test lint format golden parity clean

demo: $(VENV)/.installed
	$(RUN) -m launch.local --config configs/demo.py --workdir runs/demo
	$(RUN) -m tools.report --workdir runs/demo

demo-text: $(VENV)/.installed
	$(RUN) -m launch.local --config configs/demo_text.py --workdir runs/demo_text
	$(RUN) -m tools.report --workdir runs/demo_text

demo-clip: $(VENV)/.installed
	$(RUN) -m launch.local --config configs/demo_clip.py --workdir runs/demo_clip
	$(RUN) -m tools.report --workdir runs/demo_clip

demo-speech: $(VENV)/.installed runs/demo_speech_units
	$(RUN) -m launch.local --config configs/demo_speech.py --workdir runs/demo_speech
	$(RUN) -m launch.local --config configs/demo_speech.py:ctc --workdir runs/demo_speech_ctc
	$(RUN) -m launch.local --config configs/demo_speech.py:scratch --workdir runs/demo_speech_scratch
	$(RUN) -m tools.report --workdir runs/demo_speech
	$(RUN) -m tools.report --workdir runs/demo_speech_ctc
	$(RUN) -m tools.report --workdir runs/demo_speech_scratch

runs/demo_speech_units: configs/demo_speech.py | $(VENV)/.installed
	rm -rf $@
	$(RUN) -m tools.cluster --features mfcc --rate 8000 --normalize --clusters 100 --fraction 0.25 \
	  --config configs/demo_speech.py --output $@

test: $(VENV)/.tested lint
	$(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.tested
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/.tested
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Rewrites the rendered text of every shipped config; the diff is what a change did to each.
golden: $(VENV)/.tested
	$(RUN) -m pytest tests/configs --rewrite-golden

# Compares with PyTorch directly; `make test` uses stored values and needs no PyTorch.
parity: $(VENV)/.tested
	$(VENV)/bin/pip install -q -c $(CONSTRAINTS) -e .[parity]
	$(RUN) -m pytest tests/parity -o addopts=

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/pip setup.py $(CONSTRAINTS)
	$(VENV)/bin/pip install -q -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(VENV)/bin/pip install -q -c $(CONSTRAINTS) -e .[test]
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
