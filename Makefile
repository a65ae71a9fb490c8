# matsweep: `make` lists what there is. Every target sets the environment up by itself when it has to.

PYTHON ?= python3
VENV   ?= .venv
# Extras of pyproject.toml to install, comma-separated: dev, gcp, aws, wandb, mlflow.
EXTRAS ?= dev
# What `make sweep` sweeps, and further arguments of tune/run_sweep.py or pytest.
SPACE  ?= head_finetune
ARGS   ?=

# Installed without its dependencies: it pins scipy==1.7.3 and others that no Python >= 3.11 can have.
# The versions it does run with are those of constraints.txt.
MATBENCH := matbench==0.6

# The tests of a file share what takes long to make, and stay in one process; files go in the order of conftest.py.
TWO   := -n 2 --dist loadfile --no-loadscope-reorder
OFTEN := not cluster and not faults and not slow
# Each of the two computes on one core: four threads on two cores wait for one another, which takes half as long again.
test test-all: export OMP_NUM_THREADS := 1

PY    := $(VENV)/bin/python
comma := ,
STAMP := $(VENV)/.setup-$(subst $(comma),-,$(EXTRAS))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup sweep test test-all test-faults test-cluster lint bench bench-scale bench-trials bench-commands audit format clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=$(PYTHON)  VENV=$(VENV)  EXTRAS=$(EXTRAS)  SPACE=$(SPACE)  ARGS=$(ARGS)"

setup: $(STAMP) ## create the virtual environment with the pinned dependencies

# The stamp is made last: a setup that was interrupted or failed leaves none and is done again.
$(STAMP): pyproject.toml constraints.txt Makefile
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "matsweep needs Python >= 3.11, and there is no '$(PYTHON)' here." \
	         "Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "matsweep needs Python >= 3.11, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1)." \
	         "Name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear "$(VENV)"
	$(PY) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	$(PY) -m pip install --disable-pip-version-check --no-deps '$(MATBENCH)'
	@touch $@

sweep: $(STAMP) ## run the sweep of SPACE
	$(PY) tune/run_sweep.py --space $(SPACE) $(ARGS)

test: $(STAMP) ## run the tests; 10 minutes at most on two cores
	$(PY) -m pytest $(TWO) -m 'not whole and $(OFTEN)' $(ARGS)

test-all: $(STAMP) ## run the long and repeated forms of them that `make test` leaves out; about as long again
	$(PY) -m pytest $(TWO) -m 'whole and $(OFTEN)' $(ARGS)

test-faults: $(STAMP) ## kill a sweep at 20 random moments and resume it, and the other slow tests; half an hour and more
	$(PY) -m pytest -m 'faults or slow' $(ARGS)

test-cluster: $(STAMP) ## run `ray up` and sweeps on three hosts made of namespaces; needs root, openssh-server, rsync
	$(PY) -m pytest -m cluster -rP $(ARGS)

lint: $(STAMP) ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP) ## time it against stock chgnet, about half an hour; writes benchmarks/results.json
	$(PY) -m benchmarks.speed $(ARGS)

bench-scale: $(STAMP) ## time and memory at the size of matbench_mp_e_form, about 10 minutes; writes benchmarks/scale.json
	$(PY) -m benchmarks.scale $(ARGS)

bench-trials: $(STAMP) ## time, memory and files of one more trial, about 10 minutes; writes benchmarks/trials.json
	$(PY) -m benchmarks.trials $(ARGS)

bench-commands: $(STAMP) ## time to a command's help, to predictions, to the first trial; writes benchmarks/commands.json
	$(PY) -m benchmarks.commands $(ARGS)

audit: $(STAMP) ## look the pinned packages up among the known vulnerabilities; needs the internet
	$(PY) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --disable-pip --no-deps --requirement constraints.txt

format: $(STAMP) ## format the code and mend what ruff can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove caches and build products; results and the environment stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -path './$(VENV)' -prune -o -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## clean, and remove the environment too
	rm -rf "$(VENV)" "$(VENV)-audit"
