# README's commands; everything else is for those who build zgate.

# The system's own CPython: Debian's bcc and nftables modules live there.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
# Ansible's requirements are not ours.
ANSIBLE := build/appliance-venv
PACKAGES := protocol bpf datapath identity config gateway host agent connector control cli lab bench
# The demo and the bench make network namespaces. Root's bytecode would be in the way of `git clean`.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo env PYTHONDONTWRITEBYTECODE=1)

.PHONY: help demo test check lint types bench bench-policy fuzz-policy fuzz-datapath soak soak-certificates test-vm test-appliance vagrant-box vagrant-up deb man screenshots root venv packages-deb packages-image packages-appliance packages-vagrant-box packages-vagrant packages-test packages-bench packages-vm clean

help:
	@echo "make demo    see a gateway and two agents work, in namespaces of this machine"
	@echo "make test    run all tests"
	@echo "make check   lint, types and tests"
	@echo "make bench   measure against OpenVPN and WireGuard"
	@echo "make bench-policy  what a decision costs in the kernel, by the number of rules"
	@echo "make fuzz-policy SECONDS=60  the kernel's verdicts against a reference evaluator's"
	@echo "make fuzz-datapath SECONDS=60  the native engine's parsers, with sanitizers"
	@echo "make soak SECONDS=300  bulk both ways over a bad path, new keys, new addresses"
	@echo "make soak-certificates RENEWALS=1440  a day of certificates that live for a minute"
	@echo "make deb     a Debian package, in build/deb"
	@echo "make man     manual pages, in build/man"
	@echo "make screenshots  docs/images, from a gateway in namespaces of this machine"
	@echo "make image   a container image of the gateway, in the host's store"
	@echo "make test-appliance  packages, units and playbooks, on machines with systemd"
	@echo "make vagrant-box, make vagrant-up  the Vagrant lab without KVM (vagrant/README.md)"
	@echo "make test-vm  the kernel's part on Debian 12's own kernel, in a virtual machine"

demo: root venv
	$(AS_ROOT) $(BIN)/python -m zgate_lab.demo

test: venv packages-test
	$(BIN)/pytest

check: lint types test

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: venv
	$(BIN)/mypy $(PACKAGES)

bench: root venv packages-bench
	$(AS_ROOT) $(BIN)/python -m bench

root:
	@test "$(AS_ROOT)" = '' || command -v sudo >/dev/null || \
		{ echo "this makes network namespaces: it needs root, and there is no sudo" >&2; exit 1; }

bench-policy: root venv
	$(AS_ROOT) $(BIN)/python -m bench.policy

SECONDS ?= 60
fuzz-policy: root venv
	$(AS_ROOT) $(BIN)/python tests/bpf/fuzz_policy.py $(SECONDS)

fuzz-datapath: venv packages-test
	$(BIN)/python tests/fuzz/native/run.py --seconds $(SECONDS)

soak: SECONDS := $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),300)
soak: root venv packages-test
	$(AS_ROOT) $(BIN)/python tests/soak/soak.py $(SECONDS)

soak-certificates: RENEWALS := $(if $(filter command line environment,$(origin RENEWALS)),$(RENEWALS),1440)
soak-certificates: root venv packages-test
	$(AS_ROOT) $(BIN)/python tests/soak/certificates.py $(RENEWALS)

# All of the file system is root's; the clone is only read.
test-vm: root venv packages-vm
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(BIN)/python tests/vm/run.py

# Machines of systemd, in the lab's namespaces; their file system is made once.
test-appliance: root venv packages-appliance $(ANSIBLE)/.installed
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(BIN)/pytest tests/appliance

$(ANSIBLE)/.installed: tools/requirements-appliance.txt
	$(PYTHON) -m venv $(ANSIBLE)
	$(ANSIBLE)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Emulated machines, in namespaces of their own.
vagrant-box: root venv packages-vagrant-box
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(BIN)/python vagrant/box.py build/vagrant

vagrant-up: root packages-vagrant $(ANSIBLE)/.installed
	$(AS_ROOT) vagrant/emulated.sh ./up.sh

packages-vagrant-box:
	@tools/install-packages.sh packages-vagrant-box.txt

packages-vagrant: packages-vagrant-box
	@tools/install-packages.sh packages-vagrant.txt

man: venv
	$(BIN)/python -m zgate_cli.manual_pages build/man

screenshots: root venv
	$(AS_ROOT) $(BIN)/python tools/screenshots.py

deb: venv packages-deb
	tools/build-deb.sh

# The image stays in this host's store (`podman images`).
IMAGE ?= localhost/zgate
BASE ?= docker.io/library/debian:12-slim
image: packages-image
	buildah bud --format docker --isolation chroot --layers --tag $(IMAGE) --build-arg BASE=$(BASE) \
		--build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BUILD_FLAGS) \
		--ignorefile deploy/container/ignore --file deploy/container/Containerfile .

packages-deb:
	@tools/install-packages.sh packages-deb.txt

packages-image:
	@tools/install-packages.sh packages-image.txt

packages-appliance: packages-deb packages-image
	@tools/install-packages.sh packages-appliance.txt

packages-test:
	@tools/install-packages.sh packages-test.txt

packages-vm:
	@tools/install-packages.sh packages-vm.txt

packages-bench:
	@tools/install-packages.sh packages-bench.txt

venv: $(VENV)/.built

$(VENV)/.installed: requirements.txt requirements-run.txt requirements-otel.txt tools/packages-run.txt
	@tools/install-packages.sh packages-run.txt
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# zgate itself, in place; its native engine is compiled here.
$(VENV)/.built: $(VENV)/.installed pyproject.toml setup.py $(wildcard datapath/native/*.[ch])
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
