# Every target sets itself up in .venv first; when nothing has changed, that is one look at a file's date.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
BROWSER := $(VENV)/browser-ready
WIDGETS7 := .venv-widgets7
SITE := .venv-site

# OpenMP's threads spin for a moment while they wait, and then sleep. Spinning on, libgomp's default, starves other
# processes on few cores; sleeping at once can nearly double the time of an update where waking up is slow.
export GOMP_SPINCOUNT ?= 10000

.DEFAULT_GOAL := help
.PHONY: help tutorial test lab explorer site format lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

tutorial: $(READY) ## run every notebook; copies, HTML and pictures go to build/tutorial
	@echo "Running the tutorial, about 8 minutes on two cores."
	@HF_HUB_OFFLINE=1 $(BIN)/python scripts/run_tutorial.py

# The three environments of the tests are set up at the same time.
ifneq (,$(filter test,$(MAKECMDGOALS)))
MAKEFLAGS += --jobs=3
endif

# All checks always happen, and each one fails the target. Tests and notebooks run two at a time, the longest file among the first,
# and then, alone, the notebooks that launch processes; on the CPU, to whose bits they compare. Where there is a GPU, its own tests follow.
LAUNCHING := notebooks/04_steps.ipynb notebooks/07_multi_gpu.ipynb notebooks/08_traps.ipynb
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=600
test: export HF_HUB_OFFLINE = 1
test: export LORA_KIT_OUTPUT_DIR = $(CURDIR)/build/test-runs
test: $(READY) $(BROWSER) $(WIDGETS7)/ready $(SITE)/ready ## style, unit tests, every notebook
	@echo "Checking style, then tests and notebooks; under 20 minutes in all."
	@status=0; \
	$(BIN)/ruff check || status=1; \
	$(BIN)/ruff format --check || status=1; \
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(NBVAL) \
	$(filter-out $(LAUNCHING),$(wildcard notebooks/*.ipynb)) tests || status=1; \
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest $(NBVAL) $(LAUNCHING) || status=1; \
	! command -v nvidia-smi >/dev/null || $(BIN)/python -m pytest tests/test_gpu.py || status=1; \
	exit $$status

# A kernel's messages go to the browser at once; a reader's own settings come before these.
PROMPT := JUPYTER_CONFIG_PATH="$(CURDIR)/scripts/jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}"

lab: $(READY) ## open the notebooks in JupyterLab
	@echo "Opening JupyterLab; Ctrl-C here ends it."
	@$(PROMPT) $(BIN)/jupyter lab notebooks $$([ "$$(id -u)" != 0 ] || echo --allow-root)

explorer: $(READY) ## open the explorer alone, as a page; NO_BROWSER=1 only says where it is
	@echo "Opening the explorer; Ctrl-C here ends it."
	@$(PROMPT) $(BIN)/voila scripts/explorer.ipynb --KernelManager.transport_encryption=auto $(if $(NO_BROWSER),--no-browser)

site: $(SITE)/ready ## build the notebooks as a site in build/site; NOTEBOOKS=build/tutorial takes those that were run here
	@$(SITE)/bin/python scripts/build_site.py $(if $(NOTEBOOKS),--notebooks $(NOTEBOOKS))

format: $(READY) ## mend style where ruff can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

# torch stays at the release that the tutorial's figures were measured on.
MEASURED := torch==2.13.0
# From 3 on it wants Python 3.11.5; Debian 12 has 3.11.2.
OLD_PYTHON := soupsieve<3

lock: ## refresh requirements.lock from the ranges in pyproject.toml
	@$(find-python); \
	echo "Resolving the ranges in build/lock, 2 to 5 minutes."; \
	$$python -m venv --clear build/lock && \
	build/lock/bin/pip install -qq --disable-pip-version-check -e ".[lab,test]" "$(MEASURED)" "$(OLD_PYTHON)"
	@{ echo "# Exact versions of all that the kit, its lab and its tests need. Not for editing: 'make lock' refreshes it"; \
	echo "# from the ranges in pyproject.toml. CUDA's packages are left to torch: it pins its own where it has them."; \
	build/lock/bin/pip freeze --exclude-editable > build/lock/freeze.txt && \
	sed -E -e '/^(nvidia|cuda|triton)/d' -e 's/\+[a-z0-9.]+$$//' build/lock/freeze.txt; } > build/lock/requirements.lock
	@mv build/lock/requirements.lock requirements.lock
	@echo "requirements.lock is new; 'make test' installs and tries it."

clean: ## remove all that make made: .venv, .venv-widgets7, .venv-site, build, caches
	@echo "Removing .venv, .venv-widgets7, .venv-site, build and caches."
	@rm -rf $(VENV) $(WIDGETS7) $(SITE) build .pytest_cache .ruff_cache *.egg-info
	@find lora_kit notebooks scripts tests -name __pycache__ -prune -exec rm -rf {} + \
	-o -name .ipynb_checkpoints -prune -exec rm -rf {} +

# The lock holds from Python 3.11 on; the package itself also takes 3.10.
define find-python
for python in python3.11 python3 ""; do \
	[ -z "$$python" ] || ! $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || break; \
done; \
[ -n "$$python" ] || { echo "Python 3.11 or newer is needed, as python3.11 or python3."; exit 1; }
endef

$(READY): requirements.lock pyproject.toml
	@$(find-python); \
	echo "Setting up $(VENV) with $$($$python --version); this takes 2 to 5 minutes the first time."; \
	$$python -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

# The explorer is tested in a real browser, with the ipywidgets of the lock and with Colab's.
$(BROWSER): tests/browser/chromium.py | $(READY)
	@$(BIN)/python tests/browser/chromium.py
	@touch $@

# An environment of its own for a list of exact versions, the target's one prerequisite.
define small-environment
	@$(find-python); \
	echo "Setting up $(@D), half a minute."; \
	$$python -m venv --clear $(@D)
	@$(@D)/bin/pip install -qq --disable-pip-version-check --no-compile --no-deps -r $<
	@touch $@
endef

$(WIDGETS7)/ready: tests/browser/widgets7.txt
	$(small-environment)

$(SITE)/ready: docs/site/requirements.txt
	$(small-environment)
