# One command each: `make demo` runs the main job, `make test` passes the tests. Both set up what they need.

CARGO ?= cargo
# The version is pinned so that a new release cannot turn an old commit red.
CARGO_DENY_VERSION := 0.20.2

# How many random clusters `make test-packets` tries with each packet filter.
PACKET_CASES ?= 50

# Where `make install-docs` writes.
PREFIX ?= /usr/local

.PHONY: help setup build static image install-docs manifests demo test test-packets bench soak fuzz fuzz-smoke deny lint clean

help:
	@echo 'make demo          build, then run examples/three-layers with real packets in network namespaces'
	@echo 'make test          set up, then run all tests (packet tests run in user namespaces)'
	@echo 'make test-packets  every example, trap and many random clusters, with every packet filter in every network'
	@echo 'make static        the release binary without shared libraries, for any Linux of this architecture'
	@echo 'make image         a container image from Containerfile, with podman, buildah or docker'
	@echo 'make manifests     deploy/ringfence.yaml from the Helm chart (needs helm)'
	@echo 'make install-docs  manual pages and completions below PREFIX (/usr/local)'
	@echo 'make bench         what filtering costs and how fast it is programmed, measured on this machine'
	@echo 'make soak          half an hour of churn in a large cluster, with checks all along (SOAK_SECONDS=n, SOAK_ARGS=...)'
	@echo 'make lint          format check, clippy and docs with warnings denied'
	@echo 'make fuzz          fuzz the parser and the compiler until stopped (FUZZ_SECONDS=n for n seconds each)'
	@echo 'make deny          licences, bans and sources of all dependencies'

# With nftables the binary needs no tool at run time. The tests ask the nft command to read back what was written; the
# iptables backend, and Services in the lab, use iptables and ipset.
setup:
	@./scripts/setup

build:
	$(CARGO) build --release --locked --bin ringfence

static:
	./scripts/build-static

# No engine of its own: whichever of these is there.
IMAGE ?= localhost/ringfence:$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
image:
	$(or $(shell command -v podman || command -v buildah || command -v docker),$(error needs podman, buildah or docker)) \
	    build --build-arg RINGFENCE_COMMIT=$$(git rev-parse --short=12 HEAD) --file Containerfile --tag $(IMAGE) .

manifests:
	./scripts/manifests

install-docs: build
	$(CARGO) run --release --locked --quiet --bin ringfence -- man --dir $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions \
	    $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(CARGO) run --release --locked --quiet --bin ringfence -- completions bash \
	    > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/ringfence
	$(CARGO) run --release --locked --quiet --bin ringfence -- completions zsh \
	    > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_ringfence
	$(CARGO) run --release --locked --quiet --bin ringfence -- completions fish \
	    > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/ringfence.fish

demo:
	$(CARGO) run --release --locked --bin ringfence -- lab run examples/three-layers

test: setup
	$(CARGO) test --workspace --locked

test-packets: setup
	RINGFENCE_PACKETS=all $(CARGO) test --release --locked -p ringfence --test corpus
	RINGFENCE_PACKET_CASES=$(PACKET_CASES) $(CARGO) test --release --locked -p ringfence-lab --test random
	$(CARGO) test --release --locked -p ringfence-lab --test churn -- --nocapture

bench: setup
	$(CARGO) build --release --locked --bin ringfence
	$(CARGO) run --release --locked -p ringfence-bench

# How long `make soak` goes on, and more arguments for it (see --help of ringfence-bench).
SOAK_SECONDS ?= 1800
SOAK_ARGS ?=
soak: setup
	$(CARGO) build --release --locked --bin ringfence
	$(CARGO) run --release --locked -p ringfence-bench -- --parts soak --soak-seconds $(SOAK_SECONDS) $(SOAK_ARGS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet

fuzz:
	./scripts/fuzz parse $${FUZZ_SECONDS:-0}
	./scripts/fuzz engine $${FUZZ_SECONDS:-0}

fuzz-smoke:
	./scripts/fuzz parse 20
	./scripts/fuzz engine 20

deny: target/tools/bin/cargo-deny
	target/tools/bin/cargo-deny --locked check licenses bans sources

target/tools/bin/cargo-deny:
	$(CARGO) install cargo-deny --version $(CARGO_DENY_VERSION) --locked --root target/tools --target-dir target/tools/build

clean:
	$(CARGO) clean
