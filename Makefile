# One command each: `make demo` runs the main job, `make test` passes the tests. Both set up what they need.

CARGO ?= cargo
# The version is pinned so that a new release cannot turn an old commit red.
CARGO_DENY_VERSION := 0.20.2

# How many random clusters `make test-packets` tries with each packet filter.
PACKET_CASES ?= 50

.PHONY: help setup build demo test test-packets bench fuzz fuzz-smoke deny lint clean

help:
	@echo 'make demo          build, then run examples/three-layers with real packets in network namespaces'
	@echo 'make test          set up, then run all tests (packet tests run in user namespaces)'
	@echo 'make test-packets  every example, trap and many random clusters, with every packet filter in every network'
	@echo 'make bench         what filtering costs and how fast it is programmed, measured on this machine'
	@echo 'make lint          format check, clippy and docs with warnings denied'
	@echo 'make fuzz          fuzz the parser and the compiler until stopped (FUZZ_SECONDS=n for n seconds each)'
	@echo 'make deny          licences, bans and sources of all dependencies'

# With nftables the binary needs no tool at run time. The tests ask the nft command to read back what was written; the
# iptables backend, and Services in the lab, use iptables and ipset.
setup:
	@./scripts/setup

build:
	$(CARGO) build --release --locked --bin ringfence

demo:
	$(CARGO) run --release --locked --bin ringfence -- lab run examples/three-layers

test: setup
	$(CARGO) test --workspace --locked

test-packets: setup
	RINGFENCE_PACKETS=all $(CARGO) test --release --locked -p ringfence --test corpus
	RINGFENCE_PACKET_CASES=$(PACKET_CASES) $(CARGO) test --release --locked -p ringfence-lab --test random
	$(CARGO) test --release --locked -p ringfence-lab --test churn -- --nocapture

bench: setup
	$(CARGO) run --release --locked -p ringfence-bench

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
