# Everything a person types here. `make demo` and `make test` set up what they need on a fresh Debian 12 with Rust.
#   make demo [KEEP=1]     see it work; KEEP=1 leaves the server up
#   make deb               builds a Debian package with binary, service, configuration, manual and completions
#   make test              the whole test suite
#   make test-host         tests on a host with KVM, systemd and cgroup v2, inside an emulated processor; BENCH=1: how
#                          much quicker templates and the pool start there
#   make soak              the same with the long forms of tests, and test-host
#   make schemathesis      requests made up from the OpenAPI document; part of make test
#   make test-deb          installs, upgrades and removes the package in a Debian tree; part of make test
#   make bench [QUICK=1]   measures what SPECIFICATION.md promises, compared with the run that KEEP=1 kept
#   make lint              what CI checks beside the tests
#   make advisories        asks RustSec's database for known faults of dependencies
#   make guest-kernel      builds a smaller kernel for VMs, which boots in little more than half the time
# ACCEL=kvm runs tests and demo with hardware virtualisation; without it they run under emulation, as in CI.
# KERNEL=own runs them with the kernel of `make guest-kernel` instead of Debian's.

ACCEL ?= emulation
KEEP ?=
QUICK ?=
BENCH ?=
export CADDIS_TEST_ACCELERATOR := $(ACCEL)
export KEEP BENCH

KERNEL ?= debian
ifeq ($(KERNEL),own)
export CADDIS_KERNEL := $(CURDIR)/target/guest-kernel/vmlinux
else ifeq ($(KERNEL),debian)
export CADDIS_KERNEL := $(CURDIR)/target/kernel/vmlinuz
else
$(error KERNEL is debian or own, not $(KERNEL))
endif

.PHONY: help setup kernel guest-kernel build build-tests deb test test-deb test-host soak schemathesis demo bench lint advisories

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -15

# What is missing of Debian's packages.
setup:
	@scripts/setup.sh

# The kernel of VMs: Debian's, unpacked to target/kernel, or with KERNEL=own one built in target/guest-kernel.
ifeq ($(KERNEL),own)
kernel: guest-kernel
else
kernel: setup
	@scripts/kernel.sh
endif

guest-kernel: setup
	@scripts/guest-kernel.sh

build: setup
	cargo build --release --bin caddis

deb: build
	@scripts/deb.sh

# Tests and the binaries that they run, in one build, so that they share the features of what they depend on.
build-tests: setup
	cargo build --workspace --bins --tests --examples

test: kernel build-tests
	@scripts/test.sh

test-deb: build-tests
	@scripts/test-deb.sh

# What it boots is built once; the binary is the one that would be installed.
test-host: setup
	@scripts/setup.sh cpio kmod
	cargo build --release --bin caddis --bin test-image $(if $(BENCH),--bin bench)
	@scripts/test-host/build.sh
	@scripts/test-host/run.sh

soak: kernel build-tests
	@CADDIS_SOAK=1 scripts/test.sh
	@$(MAKE) test-host

schemathesis: setup
	@scripts/schemathesis.sh

# One build of both, so that they share the features of what they depend on.
demo: kernel
	cargo build --release --bin caddis --bin test-image
	@scripts/demo.sh

# One build of both, so that they share the features of what they depend on, and nothing is built twice.
bench: kernel
	@scripts/setup.sh podman crun catatonit nginx iperf3
	cargo build --release --bin caddis --bin bench
	@target/release/bench $(if $(QUICK),--quick) $(if $(KEEP),--keep)

lint: setup
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	@scripts/check-unit.sh
	@scripts/deny.sh bans licenses sources

# Known faults of dependencies: needs to reach RustSec's database.
advisories: setup
	@scripts/deny.sh advisories
