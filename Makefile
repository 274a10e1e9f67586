# make env        .venv with the pinned stack; instant when it is there, continues when interrupted
# make demo       train, test and draw EVA + cascade Mask R-CNN on a generated LVIS data set
# make test       all tests                         (make test ARGS='tests/test_vit.py -k shape')
#                 JOBS=2 processes share them, each of about 3 GB
# make lint       ruff
# make clean-demo start the demo over; make clean-env start the environment over

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.10 python3,$(shell command -v $(name) 2>/dev/null)))
VENV ?= .venv
RUN = $(VENV)/bin/python
ARGS ?=
JOBS ?= 2

.PHONY: help env demo test lint clean-demo clean-env

help:
	@sed -n 's/^# //p' Makefile

env:
	@test -n "$(PYTHON)" || { echo '[env] no Python found: install Python 3.11 (3.10 and 3.12 do too)'; exit 1; }
	@"$(PYTHON)" tools/setup_env.py --venv "$(VENV)"

demo: env
	@$(RUN) tools/demo.py

test: env
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: env
	@$(RUN) -m pip install -q -r requirements/lint.txt
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

clean-demo:
	rm -rf data/demo/lvis work_dirs/demo/lvis

clean-env:
	rm -rf "$(VENV)"
