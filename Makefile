# The commands of the project. `make help` lists them.
PREFIX  ?= /usr/local
DESTDIR ?=
BIN     ?= bin

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: setup
setup: ## install what building needs (Debian, as root), or say what is missing
	@scripts/setup build

.PHONY: build
build: setup ## build the three programs into bin/
	@scripts/build $(BIN)

.PHONY: demo
demo: build ## a private daemon imports an image and runs a container; nothing is left behind
	@scripts/demo $(BIN)

.PHONY: test
test: ## every test that this machine can run
	@scripts/test

.PHONY: lint
lint: ## formatting, vet, golangci-lint when it is installed
	@scripts/lint

.PHONY: bench
bench: build ## the Go benchmarks of the hot paths
	@scripts/bench

.PHONY: install
install: ## install programs, systemd unit and completions (PREFIX, DESTDIR)
	@[ -x $(BIN)/containerd ] || $(MAKE) --no-print-directory build
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" scripts/install $(BIN)

.PHONY: uninstall
uninstall: ## remove what install put in place
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" scripts/install --remove

.PHONY: clean
clean: ## remove bin/
	rm -rf $(BIN)
