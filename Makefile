# Short names for the commands of CONTRIBUTING.md. Everything runs in .venv, which `make setup` makes.
BIN := .venv/bin

.PHONY: default setup test check fix docs demo all

default: check test

setup:            ## .venv with the engine (built once, minutes), the checkout and the tools
	./install.sh --dev

test:             ## the fast tests
	$(BIN)/pytest

check:            ## style, types, shell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources --check-sourced install.sh .ci/run

fix:              ## what can be mended by machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs:             ## docs/cli.md from the command line's own help
	$(BIN)/python -m ggufdeploy.cli.reference > docs/cli.md

demo:             ## install for this user and ask a small model one question
	./install.sh --demo

all:              ## what .ci/run does
	./install.sh --test
