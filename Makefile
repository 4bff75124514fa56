# Two commands on a fresh machine: `make finetune` and `make test`. Both set .venv up first, once.
.DEFAULT_GOAL := help
.PHONY: help setup finetune test lint types tests fast docs crash fuzz same format constraints clean

METHOD ?= ppo
ARGS ?=
JOBS ?= 2
SEED ?= 0
ONLY ?=
CASE ?=
BIN := .venv/bin
STAMP := .venv/.set-up

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv; does nothing the second time

$(STAMP): pyproject.toml constraints.txt setup.sh
	@./setup.sh
	@touch $@

finetune: setup ## Fine-tune the shipped base on the new task (METHOD=ppo|bc, ARGS="--seed 1")
	$(BIN)/robo-razor finetune --method $(METHOD) $(ARGS)

test: setup ## Lint, types, the documentation and tests
	@$(MAKE) --no-print-directory --jobs=2 --output-sync lint types docs
	@$(MAKE) --no-print-directory tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

tests: setup ## Tests only, file by file in JOBS=2 processes (JOBS=0: in this one, for a debugger)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

fast: setup ## For every save of a file: no OpenGL, no LeRobot policy, nothing slow (ARGS="-k law")
	$(BIN)/python -m pytest --fast -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

crash: setup ## Stop a small run at every operation on its files, go on, compare (N=40: a sample)
	$(BIN)/python -W ignore tests/crash/crash.py --jobs $(JOBS) $(if $(N),--sample $(N)) $(ARGS)

fuzz: setup ## Try N=500 damaged and hostile files (SEED=0, ONLY=archive, CASE=archive-17)
	PYTHONPATH=tests $(BIN)/python -m fuzz -n $(or $(N),500) --seed $(SEED) --only "$(ONLY)" --case "$(CASE)"

docs: setup ## Build the documentation site into site/, without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

same: setup ## Compare what REV=<revision> makes with what this tree makes, bit for bit (ONLY=ppo,vla)
	$(BIN)/python tests/same/same.py --jobs $(JOBS) $(if $(ONLY),--only "$(ONLY)") $(ARGS) $(REV)

format: setup ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: setup ## Write the versions of .venv to constraints.txt
	@uv=uv; uv --version >/dev/null 2>&1 || uv=$(BIN)/uv; \
	$$uv pip freeze --python $(BIN)/python --exclude-editable > constraints.txt

clean: ## Remove .venv and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
