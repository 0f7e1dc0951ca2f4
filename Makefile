# From a clean checkout to tables and figures: `make all`. Every target: `make help`.
#
#   STUDY        a study in studies/, or the path of a TOML file; shortened: paper@12-steps-4-rows
#   RANDOMNESS   the study's profile: as-published, seeded or bitwise (docs/explanation/method.md)
#   TRIAL        one trial, as model/optimizer/number (default: all trials)
#   ONLY, TRIALS some models or arms (model/optimizer), and the first N trials of each arm, for a first look
#   OPTIONS      more options for `verify` and `submit`, such as "--stages evaluate"
#   COMPARE      what `tables` compares the results with: published (the paper's numbers), a study, or a results file
#   JOBS         how many trials `run` and `attribute` run in parallel
#   MODEL, OPTIMIZER, SOURCES, REPLICATES
#                the arm and the sources that `attribute` examines, and the number of trials for each source
#   DEVICE       cpu: run on the CPU, even if there is a GPU or the study asks for one (`rehearsal` does)
#   GPU, GPUS    the GPU that `plan` plans for (a100-80gb, or GB of memory), and the number of GPUs
#   REHEARSAL    the folder of `make rehearsal`: its hub, its cache, its results, its tables
#   OUT          the folder of tables and figures (default: paper/build/STUDY)
#   ACCELERATOR  the build of torch in .venv: cpu, cuda, or auto (cuda where nvidia-smi works)
#   PYTHON       the Python for .venv, or several to try in order
#   ENGINE, IMAGE, SIF, BASE_IMAGE, SNAPSHOT, RESULTS, CACHE, BUILD_OPTIONS, CONTAINER_OPTIONS
#                how images are built and run (docs/howto/run-on-a-cluster.md)
#   KIT_PYTHON   the full path of a Python that has the kit installed; make uses it instead of .venv
STUDY ?= pocket
REHEARSAL ?= $(CURDIR)/runs/rehearsal
ACCELERATOR ?= auto
PYTHON ?= python3.11 python3.12 python3.13 python3.14 python3

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL: # targets run one after the other; `run` runs trials in parallel
.DEFAULT_GOAL := all

BIN := $(dir $(or $(KIT_PYTHON),.venv/bin/python))
KIT := $(BIN)qlora-repeat
NAMED = $(STUDY)$(if $(RANDOMNESS),@$(RANDOMNESS))
TO = $(if $(OUT),--out "$(OUT)")
ON = $(if $(filter cpu,$(DEVICE)),--cpu)
RUN = $(KIT) $(if $(TRIAL),trial $(TRIAL) --study "$(NAMED)",run "$(NAMED)" $(if $(JOBS),--jobs $(JOBS)) $(SOME)) $(ON)
SOME = $(foreach each,$(ONLY),--only $(each)) $(if $(TRIALS),--trials $(TRIALS))
ARM = $(if $(MODEL),--model $(MODEL)) $(if $(OPTIMIZER),--optimizer $(OPTIMIZER))
FREED = $(if $(SOURCES),--sources $(SOURCES)) $(if $(REPLICATES),--replicates $(REPLICATES))
INSIDE = make all STUDY="$(STUDY)" $(foreach each,RANDOMNESS TRIAL ONLY TRIALS JOBS COMPARE DEVICE,$(if $($(each)),$(each)="$($(each))"))
COMPARED = $(if $(COMPARE),--compare "$(COMPARE)")

.PHONY: all setup plan doctor selftest fetch finetune merge evaluate time run collect tables figures report paper
.PHONY: verify attribute status check list rehearsal bench architectures test lint types lm-eval lock web clean help
.PHONY: image sif docker-all apptainer-all image-test sif-test base-image submit

##@ Run a study
all: setup $(if $(TRIAL),run collect tables figures report) ## run the whole study: trials, results, tables, figures, report
	$(if $(TRIAL),,$(RUN) $(TO) $(COMPARED))

setup: $(if $(KIT_PYTHON),,.venv/.kit) ## make .venv, if it is older than the lock files or pyproject.toml

plan: setup ## estimate memory, disk and hours without fetching anything (GPU=a100-80gb)
	@$(KIT) plan "$(NAMED)" $(if $(GPU),--gpu "$(GPU)") $(if $(GPUS),--gpus "$(GPUS)")

fetch: setup ## fetch the study's models and data, and verify them
	$(KIT) fetch "$(NAMED)"

finetune: setup ## fetch, then train the adapters
merge: finetune ## merge the adapters into the base models
evaluate: merge ## measure perplexity and record responses
time: evaluate ## measure the time of responses to the prompts
finetune merge evaluate time:
	$(KIT) $@ $(or $(TRIAL),--all) --study "$(NAMED)" $(ON)

run: setup ## fetch, then run the missing trials in parallel
	$(RUN) $(if $(TRIAL),,--no-report)

rehearsal: setup ## run the paper's whole study on miniature models, offline, in minutes
	@export HF_HOME="$(REHEARSAL)/hub" HF_HUB_OFFLINE=1 QLORA_REPEAT_CACHE="$(REHEARSAL)/cache"
	export QLORA_REPEAT_RUNS="$(REHEARSAL)" QLORA_REPEAT_LOCK="$(REHEARSAL)/paper.lock"
	$(KIT) miniature paper --out "$$HF_HOME"
	$(MAKE) --no-print-directory all STUDY=paper@12-steps-4-rows RANDOMNESS=$(RANDOMNESS) TRIAL= OUT="$(REHEARSAL)/tables" \
		DEVICE=$(or $(DEVICE),cpu)

##@ Look at results
collect: setup ## collect the trials' records in one results file
tables: setup ## write the paper's tables (STUDY=published takes the paper's numbers)
figures: setup ## draw the paper's Figure 4
report: setup ## write one HTML file that opens offline
paper: tables ## make one PDF of the tables and the figure; needs LaTeX
	@$(KIT) figures "$(NAMED)" $(TO) || [ $$? -eq 3 ] # results without loss curves have tables only
	$(KIT) paper "$(NAMED)" $(TO)
##@ Inspect and compare
attribute: setup ## run an experiment that finds which source of randomness makes trials differ
	$(KIT) attribute "$(NAMED)" $(ARM) $(FREED) $(if $(JOBS),--jobs $(JOBS)) $(TO) $(ON)
doctor: setup ## check whether the study can run on this machine
	@$(KIT) doctor "$(NAMED)" $(ON)
selftest: setup ## test whether fine-tuning repeats on this machine (OPTIONS=--full: models of the paper's size)
	@$(KIT) selftest $(OPTIONS) $(ON)
status: setup ## show which trials are done, stale, damaged or missing
check: setup ## hash every file again, and name the damaged ones
verify: setup ## run TRIAL again, and compare it with its record (OPTIONS="--steps 10")
	@$(KIT) verify "$(or $(TRIAL),$(error verify needs TRIAL=model/optimizer/number))" --study "$(NAMED)" $(OPTIONS) $(ON)
list: setup ## show the study and its trials
	@$(KIT) show "$(NAMED)"
collect status check:
	$(KIT) $@ "$(NAMED)"
tables figures report:
	$(KIT) $@ "$(NAMED)" $(TO) $(if $(filter tables,$@),$(COMPARED))

##@ Clusters and containers
image: ## build the image for Docker or Podman
	@container/build.sh docker $(BUILD_OPTIONS)
sif: ## build the image for Apptainer
	@container/build.sh apptainer $(BUILD_OPTIONS)
docker-all: ## run `make all` in the image of Docker or Podman
	@container/run.sh docker $(INSIDE)
apptainer-all: ## run `make all` in Apptainer's image
	@container/run.sh apptainer $(INSIDE)
image-test: ## test the image offline: import its packages, run one trial of the pocket study
	@container/try.sh docker $(TRIAL)
sif-test: ## test Apptainer's image offline
	@container/try.sh apptainer $(TRIAL)
submit: setup ## submit the study to Slurm (OPTIONS="--partition gpu --image qlora-repeat.sif")
	@$(KIT) submit "$(NAMED)" $(TO) $(SOME) $(OPTIONS)

##@ Develop
test: setup ## run the tests
	$(BIN)python -m pytest --numprocesses 2

lint: setup ## check style, formatting, and the imports between layers
	$(BIN)python -m ruff check
	$(BIN)python -m ruff format --check
	$(BIN)lint-imports --no-cache

types: setup ## check types
	$(BIN)python -m mypy src

bench: setup ## compare the speed of the kit and a plain script; half an hour on two cores
	@lockfiles/pip.sh $(BIN)python install -qq --no-deps --require-hashes -r lockfiles/bench.txt
	$(BIN)python benchmarks/speed.py

lm-eval: setup ## install lm-evaluation-harness, for studies with benchmarks and their tests
	@lockfiles/pip.sh $(BIN)python install -qq --no-deps --no-build-isolation --require-hashes -r lockfiles/lm-eval.txt

architectures: setup ## try out miniatures of all architectures, and write the table in docs/; minutes
	@HF_HUB_DISABLE_PROGRESS_BARS=1 PYTHONPATH=tests $(BIN)python -m support.architecture_table

lock: setup ## write the lock files (UPGRADE=--upgrade takes newer versions)
	$(BIN)python lockfiles/refresh.py $(UPGRADE)

base-image: ## check the pinned digest of the base image (UPDATE=--update pins the new one)
	@$(firstword $(foreach python,$(PYTHON),$(shell command -v $(python)))) container/base_image.py $(UPDATE)

web: ## bundle the report's scripts from lockfiles/web; needs npm
	cd lockfiles/web && npm ci --silent && npm run --silent build

clean: ## remove build output and caches; results and .venv stay
	rm -rf build dist paper/build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -prune -exec rm -r {} +

help: ## show this list
	@awk -F ':.*## ' '/^##@ / { printf "%s%s\n", separator, substr($$0, 5); separator = "\n" }
	/^[a-z-]+:.*## / { printf "  make %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The environment. Each stamp file is written last, so an interrupted setup starts over. .packages holds the name of
# the installed torch build; asking for another build makes .venv again, and `auto` accepts the installed one.

# Run this in each candidate: it fails where a module is missing, or where the name is a shim for an absent version.
FITS := import ensurepip, sys, venv; sys.exit(not (3, 11, 1) <= sys.version_info < (3, 15))

ifeq ($(filter auto cpu cuda,$(ACCELERATOR)),)
$(error ACCELERATOR is auto, cpu or cuda, not "$(ACCELERATOR)")
endif
ifeq ($(filter auto $(shell cat .venv/.packages 2>/dev/null),$(ACCELERATOR)),)
.PHONY: .venv/.packages
endif

.venv/.packages: lockfiles/install.sh $(wildcard lockfiles/*.txt)
	@for python in $(PYTHON) none; do "$$python" -c '$(FITS)' 2>/dev/null && break; done
	if [ "$$python" = none ]; then
		echo "No Python 3.11.1 to 3.14 with venv (Debian: python3-venv); tried $(PYTHON)." \
			"Name one: make PYTHON=/path/to/python3" >&2
		exit 1
	fi
	accelerator=$(ACCELERATOR)
	if [ $$accelerator = auto ]; then
		if nvidia-smi >/dev/null 2>&1; then accelerator=cuda; else accelerator=cpu; fi
	fi
	echo "Making .venv with $$python, torch for $$accelerator, packages from lockfiles/ (some minutes)"
	lockfiles/install.sh .venv "$$python" $$accelerator runtime dev pocket
	echo $$accelerator > $@

.venv/.kit: pyproject.toml .venv/.packages
	@lockfiles/pip.sh .venv/bin/python install -qq --no-deps --no-build-isolation --editable .
	touch $@
