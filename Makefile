# Every target sets itself up in .venv first; when nothing has changed, that is one look at a file's date.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
BROWSER := $(VENV)/browser-ready
WIDGETS7 := .venv-widgets7
SITE := .venv-site
UV := $(BIN)/python scripts/uv.py

# OpenMP's threads spin for a moment while they wait, and then sleep. Spinning on, libgomp's default, starves other
# processes on few cores; sleeping at once can nearly double the time of an update where waking up is slow.
export GOMP_SPINCOUNT ?= 10000

.DEFAULT_GOAL := help
.PHONY: help tutorial test lab explorer site format lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

tutorial: $(READY) ## run every notebook; copies, HTML and pictures go to build/tutorial
	@echo "Running the tutorial, about 10 minutes on two cores."
	@HF_HUB_OFFLINE=1 $(BIN)/python scripts/run_tutorial.py

# All checks always happen, and each one fails the target. Tests and notebooks run three at a time, since each often waits, the
# longest files first; on the CPU, to whose bits they compare. Where there is a GPU, its own tests follow.
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=600
LONGEST := $(wildcard notebooks/05*.ipynb notebooks/07*.ipynb) $(addprefix tests/,browser/test_explorer.py test_launch.py \
	browser/test_web_page.py test_machines.py output/test_faults.py test_colab.py test_reference.py explorer/test_trials.py \
	output/test_resume.py browser/test_site.py) $(wildcard notebooks/06*.ipynb notebooks/08*.ipynb)
test: export HF_HUB_OFFLINE = 1
test: export LORA_KIT_OUTPUT_DIR = $(CURDIR)/build/test-runs
test: BEGUN := $(shell date +%s)
test: $(READY) $(BROWSER) $(WIDGETS7)/ready $(SITE)/ready ## style, unit tests, every notebook
	@status=0; ready=$$(date +%s); \
	echo "Set up in $$((ready - $(BEGUN))) s. Checking style, then tests and notebooks; 15 to 20 minutes in all."; \
	$(BIN)/ruff check || status=1; \
	$(BIN)/ruff format --check || status=1; \
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(NBVAL) \
	$(LONGEST) $(wildcard notebooks/*.ipynb) tests || status=1; \
	! command -v nvidia-smi >/dev/null || $(BIN)/python -m pytest tests/test_gpu.py || status=1; \
	echo "Set-up took $$((ready - $(BEGUN))) s; style, tests and notebooks took $$(($$(date +%s) - ready)) s."; \
	exit $$status

# A kernel's messages go to the browser at once; a reader's own settings come before these.
PROMPT := JUPYTER_CONFIG_PATH="$(CURDIR)/scripts/jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}"

lab: $(READY) ## open the notebooks in JupyterLab
	@echo "Opening JupyterLab; Ctrl-C here ends it."
	@$(PROMPT) $(BIN)/jupyter lab notebooks $$([ "$$(id -u)" != 0 ] || echo --allow-root)

explorer: $(SITE)/ready ## open the explorer alone, as a page; NO_BROWSER=1 only says where it is
	@echo "Building the explorer's page; Ctrl-C here ends its server."
	@$(SITE)/bin/python scripts/build_explorer.py --serve $(if $(NO_BROWSER),--no-browser)

site: $(SITE)/ready ## build the notebooks and the explorer as a site in build/site; NOTEBOOKS=build/tutorial takes those that were run here
	@$(SITE)/bin/python scripts/build_site.py $(if $(NOTEBOOKS),--notebooks $(NOTEBOOKS))

format: $(READY) ## mend style where ruff can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

# torch stays at the release that the tutorial's figures were measured on.
MEASURED := torch==2.13.0
# Hashes are of every platform's files, which the main index has; further ones, left out here, may have only some of them.
compile = UV_INDEX= UV_FIND_LINKS= $(UV) pip compile -q --upgrade --universal --python-version 3.11.2 --fork-strategy fewest \
	--generate-hashes --no-annotate --custom-compile-command "make lock"

# CUDA's packages are left to torch: it pins its own where it has them. It stays without hashes, as each index has other builds.
# ipywidgets 7.7 also wants its scripts for the pages of notebook and JupyterLab, which bring all of both and aren't used.
lock: $(BIN)/uv ## refresh the locks of the three environments from the ranges in pyproject.toml
	@mkdir -p build/lock
	@echo "$(MEASURED)" > build/lock/measured.txt
	@printf '%s\n' jupyterlab-widgets widgetsnbextension > build/lock/pages.txt
	@$(compile) --extra test --constraint build/lock/measured.txt pyproject.toml -o build/lock/all.txt
	@$(compile) --group widgets7 --excludes build/lock/pages.txt -o build/lock/widgets7.txt
	@$(compile) --group site -o build/lock/site.txt
	@{ sed -E '/^(cuda|nvidia|torch|triton)/,/[^\\]$$/d' build/lock/all.txt; echo "$(MEASURED)"; } > requirements.lock
	@cp build/lock/widgets7.txt tests/browser/widgets7.txt
	@cp build/lock/site.txt docs/site/requirements.txt
	@echo "The locks are new; 'make test' installs and tries them."

clean: ## remove all that make made: .venv, .venv-widgets7, .venv-site, build, caches
	@echo "Removing .venv, .venv-widgets7, .venv-site, build and caches."
	@rm -rf $(VENV) $(WIDGETS7) $(SITE) build .pytest_cache .ruff_cache *.egg-info
	@find lora_kit notebooks scripts tests -name __pycache__ -prune -exec rm -rf {} + \
	-o -name .ipynb_checkpoints -prune -exec rm -rf {} +

# pip brings uv, and uv the rest, in less than half the time. The locks hold from Python 3.11.2 on, which Debian 12 has; the
# package itself also takes 3.10.
$(BIN)/uv:
	@for python in python3.11 python3 ""; do \
	[ -z "$$python" ] || ! $$python -c 'import sys; sys.exit(sys.version_info < (3, 11, 2))' 2>/dev/null || break; \
	done; \
	[ -n "$$python" ] || { echo "Python 3.11.2 or newer is needed, as python3.11 or python3."; exit 1; }; \
	$$python -m venv $(VENV) && $(BIN)/pip install -qq --disable-pip-version-check uv==0.13.9

$(READY): requirements.lock pyproject.toml | $(BIN)/uv
	@echo "Setting up $(VENV) with $$($(BIN)/python --version); this takes 1 to 5 minutes the first time."
	@$(UV) pip install -q --python $(BIN)/python --compile-bytecode -r requirements.lock -e .
	@touch $@

# The explorer is tested in a real browser, with the ipywidgets of the lock and with Colab's.
$(BROWSER): tests/browser/chromium.py | $(READY)
	@$(BIN)/python tests/browser/chromium.py
	@touch $@

$(WIDGETS7)/ready: tests/browser/widgets7.txt
$(SITE)/ready: docs/site/requirements.txt
$(WIDGETS7)/ready $(SITE)/ready: | $(BIN)/uv
	@echo "Setting up $(@D), some seconds."
	@$(UV) venv -q --clear --python $(BIN)/python $(@D)
	@$(UV) pip sync -q --python $(@D) $<
	@touch $@
