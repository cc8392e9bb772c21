.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

bootstrap: ## Make sure of uv, the environment, a Docker Engine and Kafka's jars
	@deploy/bootstrap.sh

demo: ## Set up everything, start the whole system, train a real model through the REST API, stop everything
	@deploy/bootstrap.sh python3.11
	@$(BIN)/runyard demo

up: ## Start the whole system on this machine and keep it running (Ctrl-C stops it)
	@deploy/bootstrap.sh
	@$(BIN)/runyard up

test: ## Set up everything and run all tests
	@deploy/bootstrap.sh python3.10 python3.11 python3.12
	@$(BIN)/pytest

test-compose: ## Bring compose.yaml up for real, run the end-to-end tests against it, take it down without a trace
	@deploy/bootstrap.sh compose python3.10 python3.11 python3.12
	@$(BIN)/python -m deploy.composed $(BIN)/pytest tests/e2e -m "not own_parts" --system-at .runyard/composed

lint: ## Check style, types, import rules, house style and the committed contract documents
	@deploy/bootstrap.sh
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m schemas.export --check
	$(BIN)/python -m services.api.openapi --check
	$(BIN)/pytest -q tests/test_house_style.py

format: ## Put the code into the project's format
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format

crash-points: ## Kill every service at every named crash point, five times each, and check every promise
	@deploy/bootstrap.sh python3.11
	@$(BIN)/python -m tests.chaos.crash_points --kills 5

benchmark: ## Measure speed against limits of this machine (needs about two minutes)
	@deploy/bootstrap.sh python3.11
	$(BIN)/python -m benchmarks.submissions

broker-loss: ## Lose the whole broker three times with 200 open runs, then reset every consumer group, and check
	@deploy/bootstrap.sh python3.11
	$(BIN)/python -m tests.chaos.broker_loss

chaos: ## Break a whole system for MINUTES (10) from a SEED while clients submit, then check every promise
	@deploy/bootstrap.sh python3.11
	$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

security: ## Play the whole hostile suite on every OCI runtime of this host, and the HTTP suite
	@deploy/bootstrap.sh python3.11
	@$(BIN)/python -m tests.security.suite

.PHONY: help bootstrap demo up test test-compose lint format benchmark broker-loss chaos crash-points security
