# `make up` and `make test` are all that a new user types; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNS := $(VENV)/.runs

# Containers often forbid it: each process that starts would compile all of onecopy anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install tools up check types fast test sim mutants faults long soak health bench bench-check fmt clean

install: $(STAMP)

# pip's own lines are many or none: one for each package that it takes up says that it goes on.
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check
SHOW = sed -un 's/^Collecting \([A-Za-z0-9._-]*\).*/  \1/p'

# What running needs: `make up` waits for no more.
$(RUNS): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "onecopy needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Making $(VENV), and installing in it what running onecopy needs (once, about half a minute):"
	@$(PYTHON) -m venv $(VENV)
	@rm -f $@; { $(PIP_INSTALL) -e '.[server]' && touch $@; } | $(SHOW); test -e $@

# And what checks, tests and benchmarks need.
$(STAMP): $(RUNS) pyproject.toml
	@echo "Installing what checks, tests and benchmarks need (once, a minute or two):"
	@rm -f $@; { $(PIP_INSTALL) -e '.[server,dev,bench]' && touch $@; } | $(SHOW); test -e $@

# The tests' programs in Go, built once into a cache; and Go itself where there is none.
tools: install
	@$(BIN)/python -m tests.support.go_tools install build

up: $(RUNS)
	$(BIN)/onecopy up

fmt: install
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

check: tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory -j 2 types fast

# mypy takes one core, for a minute in a fresh clone: the fast tests go on beside it.
types:
	$(BIN)/mypy
	$(BIN)/lint-imports

fast:
	$(BIN)/python -m pytest -n 4 --dist loadfile -m 'not slow'

test: check
	$(BIN)/python -m pytest -n 4 --dist loadfile -m 'slow and not long'

# The replica, consensus, both together and placement (a tenth of the seeds), under seeded simulators:
# make sim SEEDS=100000 [JOBS=n] [SEED=n] (the replica's)
SEEDS ?= 200
sim: install
	$(BIN)/python -m tests.sim --seeds $(SEEDS) $(if $(JOBS),--jobs $(JOBS)) $(if $(SEED),--seed $(SEED) -v)
	$(if $(SEED),,$(BIN)/python -m tests.sim.consensus --seeds $(SEEDS) $(if $(JOBS),--jobs $(JOBS)))
	$(if $(SEED),,$(BIN)/python -m tests.sim.joint --seeds $$(( ($(SEEDS) + 9) / 10 )) $(if $(JOBS),--jobs $(JOBS)))
	$(if $(SEED),,$(BIN)/python -m tests.sim.groups --seeds $$(( ($(SEEDS) + 9) / 10 )) $(if $(JOBS),--jobs $(JOBS)))

# Each rule's guards taken out one by one: who notices? ALL=1: then each condition of the protocol.
mutants: install
	$(BIN)/python -m tests.sim.mutants
	$(if $(ALL),$(BIN)/python -m tests.sim.guards $(if $(JOBS),--jobs $(JOBS)))

# All tests against cut networks, broken processes and disks; make test runs a slice of them.
faults: tools
	$(BIN)/python -m pytest tests/nodes -m fault -n 2 --dist loadfile

# What make test leaves out: `make faults` has its share of it, this has the rest.
long: tools
	$(BIN)/python -m pytest tests -n 2 --dist loadfile -m 'long and not fault'

# Real nodes under load and random faults, one verdict: make soak MINUTES=60 [SEED=n] [ARGS=--witness]
MINUTES ?= 60
soak: tools
	$(BIN)/python -m tests.nodes.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Real nodes in health, and a real Prometheus with the alerts of deploy/: none may fire.
# make health MINUTES=60
health: tools
	$(BIN)/python -m tests.nodes.health --minutes $(MINUTES)

# What it costs, beside etcd and Redis where they are installed: 15 minutes. One by name:
# .venv/bin/python -m bench --list
bench: tools
	$(BIN)/python -m bench tour

# Whether the headline is worse than in bench/results, by ratios to the peers: three minutes.
bench-check: tools
	$(BIN)/python -m bench check

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
