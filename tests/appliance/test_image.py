"""The container image: built, and a gateway in it that is not root carries an agent's traffic."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from bed.files import CACHE, ROOT, made_once, step
from zgate_lab.deployment import BIN
from zgate_lab.errors import LabError
from zgate_lab.internet import Internet
from zgate_lab.lab import Namespace
from zgate_lab.process import Process
from zgate_lab.waiting import wait_until

pytestmark = pytest.mark.timeout(1800)

FOLDER = ROOT / "deploy/container"
IMAGE = "localhost/zgate"
BASE = "localhost/debian:12-slim"
STORE = CACHE / "containers"
USER = 10001
OFFICE = "10.20.0.5"
READY_WITHIN_S = 60.0
# What docs/install.md lists, and nothing else.
CAPABILITIES = ("NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE", "BPF", "PERFMON")
POLICY = """\
version: "1.0"
clients:
  laptop:
    rules:
      - {id: allow-office, type: ip_cidr, action: allow, destinations: [10.20.0.0/24]}
"""
# Where this host's systemd is not the first process, podman can make no cgroups.
_RUN = """
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
exec podman "$@"
"""


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The environment of podman and buildah: a store of the tests' own, not the host's."""
    STORE.mkdir(parents=True, exist_ok=True)
    file = STORE / "storage.conf"
    file.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{STORE / "root"}"\n'
        f'runroot = "{STORE / "run"}"\n'
    )
    environment = {"CONTAINERS_STORAGE_CONF": str(file)}
    yield environment
    # What the layers' cache would otherwise collect: the images that this one replaces.
    podman(environment, "image", "prune", "--force", check=False)


def podman(
    store: dict[str, str], *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["podman", "--cgroup-manager", "cgroupfs", *arguments],
        env={**os.environ, **store},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def _debian(folder: Path) -> None:
    """What the public image holds, made where no registry of images can be reached."""
    step(
        *("unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork"),
        *("--kill-child", "mmdebstrap", "--mode=root", "--variant=minbase", "bookworm"),
        str(folder / "debian.tar"),
    )


@pytest.fixture(scope="module")
def image(store: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, by `make image` on a base made here, with this host's way to PyPI.

    `ZGATE_IMAGE` in the environment is one in the tests' store to test instead.
    """
    if given := os.environ.get("ZGATE_IMAGE"):
        return given
    debian = made_once("debian", ("bookworm", "minbase"), _debian)
    podman(store, "import", str(debian / "debian.tar"), BASE)
    pip = tmp_path_factory.mktemp("pip") / "pip.conf"
    pip.write_text("[global]\ncert = /mnt/ca.crt\n")
    volumes = (
        "--volume /etc/ssl/certs/ca-certificates.crt:/mnt/ca.crt:ro",
        f"--volume {pip}:/etc/pip.conf:ro",
    )
    done = subprocess.run(
        ["make", "-C", ROOT, "image", f"BASE={BASE}", f"BUILD_FLAGS={' '.join(volumes)}"],
        env={**os.environ, **store},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return IMAGE


def inside(image: str, store: dict[str, str], script: str) -> str:
    """What a shell script prints in the image, with no rights and no network."""
    arguments = ("run", "--rm", "--no-healthcheck", "--network", "none", "--cgroups", "disabled")
    limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--cap-drop", "all")
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _RUN, "sh"]
    command += ["--cgroup-manager", "cgroupfs", *arguments, *limits]
    done = subprocess.run(
        [*command, "--entrypoint", "sh", image, "-euc", script],
        env={**os.environ, **store},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_containerfile_is_clean() -> None:
    linter = ROOT / "build/appliance-venv/bin/hadolint"
    done = subprocess.run(
        [linter, FOLDER / "Containerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_base_is_debians_public_image() -> None:
    text = (FOLDER / "Containerfile").read_text()
    assert "ARG BASE=docker.io/library/debian:12-slim\n" in text
    assert text.count("FROM ${BASE}") == text.count("FROM ") == 2


def group(name: str) -> set[str]:
    """The system calls of one of systemd's groups, with those of the groups in it."""
    found = set[str]()
    for line in step("systemd-analyze", "syscall-filter", name).splitlines()[1:]:
        word = line.strip()
        if word and not word.startswith("#"):
            found |= group(word) if word.startswith("@") else {word}
    return found


def test_system_calls_are_those_of_the_unit() -> None:
    allowed = set[str]()
    for line in (ROOT / "systemd/zgate-gateway.service").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            words = value.removeprefix("~").split()
            named = set[str]().union(
                *(group(word) if word.startswith("@") else {word} for word in words)
            )
            allowed = allowed - named if value.startswith("~") else allowed | named
    profile = json.loads((FOLDER / "seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    (rule,) = profile["syscalls"]
    assert set(rule["names"]) == allowed | group("@default")


def test_the_documents_list_its_capabilities() -> None:
    text = (ROOT / "docs/install.md").read_text()
    assert f"--cap-add {','.join(CAPABILITIES)}" in text


def test_what_is_in_the_image(image: str, store: dict[str, str]) -> None:
    (config,) = json.loads(podman(store, "image", "inspect", image).stdout)
    assert config["User"] == str(USER)
    assert config["Config"]["ExposedPorts"] == {"443/udp": {}}
    assert config["HealthCheck" if "HealthCheck" in config else "Healthcheck"]["Test"] == [
        "CMD",
        "zgatectl",
        "status",
    ]
    found = inside(
        image,
        store,
        "id -u; for tool in gcc cc make pip pip3 dpkg-buildpackage; do"
        " if command -v $tool; then exit 1; fi; done; zgatectl --version;"
        " find /usr/lib/zgate -perm /6000",
    )
    assert found.splitlines()[0] == str(USER)
    assert len(found.splitlines()) == 2


@dataclass
class Container:
    """A running gateway in its image."""

    name: str
    process: Process
    store: dict[str, str]

    def zgatectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return podman(self.store, "exec", self.name, "zgatectl", *arguments, check=False)

    def is_ready(self) -> bool:
        done = self.zgatectl("status", "--json")
        return done.returncode == 0 and json.loads(done.stdout)["state"] == "ready"


@contextmanager
def running(internet: Internet, image: str, store: dict[str, str]) -> Iterator[Container]:
    """A gateway as docs/install.md starts it, on the internet's gateway host."""
    lab, namespace = internet.lab, internet.gateway.namespace
    etc, state, tun = (lab.directory / name for name in ("etc", "state", "tun"))
    etc.mkdir()
    etc.chmod(0o755)
    for folder in (lab.run.directory, lab.directory):
        folder.chmod(0o755)
    (etc / "gateway.yaml").write_text(
        f"server_names: [{internet.gateway.ipv4}]\npolicy_file: policy.yaml\n"
        "routes: [10.20.0.0/24]\n"
    )
    (etc / "policy.yaml").write_text(POLICY)
    state.mkdir(mode=0o700)
    os.chown(state, USER, USER)
    # As udev makes it; another host's root may have taken everybody's right to use its own.
    step("mknod", "-m", "666", str(tun), "c", "10", "200")
    name = namespace.name
    arguments = [
        *("run", "--rm", "--name", name, "--no-healthcheck", "--cgroups", "disabled"),
        *("--network", f"ns:/run/netns/{name}", "--device", f"{tun}:/dev/net/tun"),
        *("--cap-drop", "all", "--cap-add", ",".join(CAPABILITIES)),
        *("--security-opt", "no-new-privileges", "--security-opt", "unmask=/proc/sys"),
        *("--security-opt", f"seccomp={FOLDER / 'seccomp.json'}"),
        *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"),
        *("--read-only", "--tmpfs", "/run/zgate"),
        *("--volume", f"{etc}:/etc/zgate:ro", "--volume", f"{state}:/var/lib/zgate", image),
    ]
    process = namespace.spawn(
        "container",
        *("unshare", "--mount", "--propagation", "private", "sh", "-euc", _RUN, "sh"),
        *("--cgroup-manager", "cgroupfs", *arguments),
        environment=store,
    )
    container = Container(name, process, store)
    try:
        process.wait_for(container.is_ready, READY_WITHIN_S, "ready")
        yield container
    finally:
        podman(store, "rm", "--force", "--time", "0", name, check=False)


def test_a_gateway_in_a_container_carries_traffic(image: str, store: dict[str, str]) -> None:
    with Internet.open() as internet, running(internet, image, store) as gateway:
        pid = podman(store, "inspect", "--format", "{{.State.Pid}}", gateway.name).stdout.strip()
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == [str(USER)] * 4
        assert fields["NoNewPrivs"] == "1"
        for which in ("CapEff", "CapPrm", "CapBnd"):
            assert capabilities(fields[which]) == {f"cap_{one.lower()}" for one in CAPABILITIES}

        issued = gateway.zgatectl("pki", "issue", "laptop", "--usage", "client")
        assert issued.returncode == 0, issued.stderr
        own = internet.lab.directory / "state/pki/issued/laptop"
        agent = start_agent(internet, own)
        device = internet.device1.namespace
        agent.wait_for(lambda: reaches(device), READY_WITHIN_S, "a ping through the tunnel")
        sessions = json.loads(gateway.zgatectl("sessions", "--json").stdout)["sessions"]
        assert [one["client"] for one in sessions] == ["laptop"]
        assert agent.stop() == 0
        podman(store, "stop", gateway.name)
        assert gateway.process.wait(20) == 0
        wait_until(
            lambda: "zgate" not in internet.gateway.namespace.run("ip", "link").stdout,
            5,
            "the TUN to go",
        )


def capabilities(mask: str) -> set[str]:
    """Their names, by capsh's own table."""
    text = step("capsh", f"--decode={mask}").strip().partition("=")[2]
    return set(text.split(",")) - {""}


def start_agent(internet: Internet, own: Path) -> Process:
    """The clone's agent on device1."""
    config = internet.lab.directory / "agent.yaml"
    config.write_text(
        json.dumps(
            {
                "gateway": f"{internet.gateway.ipv4}:443",
                "ca": str(own / "ca.crt"),
                "certificate": str(own / "laptop.crt"),
                "key": str(own / "laptop.key"),
                "runtime_dir": str(internet.lab.directory / "agent-run"),
                "dns": "off",
            }
        )
    )
    return internet.device1.namespace.spawn("agent", BIN / "zgate-agent", "run", "--config", config)


def reaches(device: Namespace) -> bool:
    try:
        return device.run("ping", "-c1", "-W1", OFFICE, check=False).returncode == 0
    except LabError:
        return False
