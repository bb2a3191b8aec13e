"""The connector as its real command line, at a host whose gateway does not answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from zgate_identity.authority import CertificateAuthority
from zgate_lab.lab import Lab, Namespace, Port
from zgate_lab.process import Process
from zgate_lab.waiting import wait_until

CONNECTOR = Path(sys.executable).parent / "zgate-connector"
SOON_S = 15.0
STOP_S = 0.5
ECHO = [{"id": "echo", "protocol": "udp", "backend": "127.0.0.1:9999"}]


@dataclass
class Site:
    """A host, and what its connector is given."""

    namespace: Namespace
    directory: Path

    @property
    def runtime_dir(self) -> Path:
        return self.directory / "run"

    @property
    def file(self) -> Path:
        return self.directory / "connector.json"

    def write(self, **changes: object) -> None:
        settings = {
            "gateway": "198.18.1.1:4433",
            "ca": str(self.directory / "ca.crt"),
            "certificate": str(self.directory / "west.crt"),
            "key": str(self.directory / "west.key"),
            "runtime_dir": str(self.runtime_dir),
            "connect_timeout_s": 0.5,
            "services": ECHO,
        }
        self.file.write_text(json.dumps(settings | changes))

    def start(self, **changes: object) -> Process:
        """Start a connector that dials the host's router, where somebody listens and is silent."""
        self.write(**changes)
        return self.namespace.spawn("connector", CONNECTOR, "--config", self.file)

    def status(self) -> dict[str, Any]:
        """What `zgate-connector status --json` prints, and its exit code."""
        done = self.namespace.run(
            *(CONNECTOR, "status", "--json", "--runtime-dir", self.runtime_dir), check=False
        )
        return {**json.loads(done.stdout), "exit_code": done.returncode}

    def wait_for(self, *states: str) -> dict[str, Any]:
        def reached() -> dict[str, Any]:
            status = self.status()
            now = [one["state"] for one in status.get("gateways", ())]
            return status if now == list(states) else {}

        return wait_until(reached, SOON_S, f"states {states}")

    def links(self) -> list[str]:
        rows = self.namespace.run("ip", "-o", "link").stdout.splitlines()
        return [one.split(":")[1].split("@")[0].strip() for one in rows]


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Iterator[Site]:
    namespace, isp = lab.add_namespace("site"), lab.add_namespace("isp")
    lab.connect(
        Port(namespace, "eth0", (ip_interface("198.18.1.2/24"),)),
        Port(isp, "site", (ip_interface("198.18.1.1/24"),)),
    )
    now = datetime.now(UTC)
    west = CertificateAuthority.create(tmp_path / "pki", now).issue("west", now=now)
    for name, content in (
        ("ca.crt", west.ca_pem),
        ("west.crt", west.certificate_pem),
        ("west.key", west.key_pem),
    ):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    with isp.entered():
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent:
        silent.bind(("198.18.1.1", 4433))
        yield Site(namespace, tmp_path)


def children(process: Process) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def test_it_says_why_it_is_not_connected_and_ends_when_told(site: Site) -> None:
    assert site.status()["state"] == "not running"
    process = site.start()
    status = site.wait_for("backoff")
    assert status["exit_code"] == 1
    (gateway,) = status["gateways"]
    assert "198.18.1.1: no answer from 198.18.1.1:4433 (UDP)" in gateway["reason"]
    assert site.links() == ["lo", "eth0"], "nothing of it is visible on the host"
    assert children(process), "the chamber's"
    assert process.stop() == 0
    status = site.status()
    assert (status["state"], status["exit_code"]) == ("not running", 1)
    assert {one.name for one in site.runtime_dir.iterdir()} == {"connector.lock"}


@pytest.mark.parametrize("when", ["connecting", "backoff"])
def test_sigterm_ends_it_within_half_a_second(site: Site, when: str) -> None:
    gateway = "198.18.1.1:4433" if when == "connecting" else "198.18.1.1:4434"
    took_s = []
    for _ in range(3):  # the machine may stand still itself
        process = site.start(gateway=gateway, connect_timeout_s=100)
        site.wait_for(when)
        inside = children(process)
        began_s = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait(SOON_S) == 0
        took_s.append(time.monotonic() - began_s)
        assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]
        assert "Traceback" not in process.output()
        if took_s[-1] < STOP_S:
            break
    assert min(took_s) < STOP_S, took_s


def test_several_gateways_are_dialled_independently(site: Site) -> None:
    site.start(gateway=None, gateways=["198.18.1.1:4433", "198.18.1.1:4434"], connect_timeout_s=100)
    status = site.wait_for("connecting", "backoff")
    assert "nobody listens at 198.18.1.1:4434" in status["gateways"][1]["reason"]


def test_sighup_reads_the_configuration_again(site: Site) -> None:
    process = site.start(connect_timeout_s=100)
    site.wait_for("connecting")
    site.write(gateway="198.18.1.1:4434")
    process.signal(signal.SIGHUP)
    assert "nobody listens" in site.wait_for("backoff")["gateways"][0]["reason"]
    site.file.write_text("{")
    process.signal(signal.SIGHUP)
    process.wait_for(
        lambda: "the configuration is not taken: " in process.output(), SOON_S, "the complaint"
    )
    assert site.wait_for("backoff")
    assert process.stop() == 0


def test_sighup_takes_the_logs_level_and_goes_on(site: Site) -> None:
    process = site.start(log={"level": "error", "format": "json"}, connect_timeout_s=100)
    before = site.wait_for("connecting")["gateways"]
    site.write(log={"level": "info", "format": "json"}, connect_timeout_s=100)
    process.signal(signal.SIGHUP)
    process.wait_for_output("the configuration has not changed", SOON_S)
    assert site.status()["gateways"][0]["state"] == before[0]["state"]
    log = {"level": "warning", "format": "auto"}
    site.write(log=log, connect_timeout_s=100, runtime_dir=str(site.directory / "other"))
    process.signal(signal.SIGHUP)
    process.wait_for_output('"event": "restart_needed"', SOON_S)


def test_a_killed_chamber_is_made_anew(site: Site) -> None:
    process = site.start(gateway="198.18.1.1:4434")
    site.wait_for("backoff")
    (inside,) = children(process)
    os.kill(inside, signal.SIGKILL)
    wait_until(
        lambda: [pid for pid in children(process) if pid != inside], SOON_S, "another chamber"
    )
    assert process.stop() == 0


def test_a_killed_connector_leaves_nothing_running(site: Site) -> None:
    process = site.start()
    site.wait_for("backoff")
    inside = children(process)
    process.kill()
    wait_until(
        lambda: not [pid for pid in inside if Path(f"/proc/{pid}").exists()],
        SOON_S,
        "the chamber to end",
    )
    site.start()
    site.wait_for("backoff")


def test_a_second_connector_is_refused_and_the_first_is_left_alone(site: Site) -> None:
    first = site.start()
    site.wait_for("backoff")
    second = site.start()
    assert second.wait(SOON_S) == 1
    assert f"another zgate-connector (pid {first.pid}) uses {site.runtime_dir}" in second.output()
    assert site.status()["pid"] == first.pid


def host_state(site: Site) -> list[str]:
    run = site.namespace.run
    return [
        *site.links(),
        run("nft", "list", "tables").stdout,
        run("ip", "rule").stdout,
        run("ip", "route", "show", "table", "all").stdout,
        site.namespace.sysctl("net.ipv4.ip_forward"),
    ]


@pytest.mark.parametrize("services", [[], ECHO], ids=["networks", "both"])
def test_networks_make_the_host_a_router_until_it_ends(
    site: Site, services: list[dict[str, str]]
) -> None:
    before = host_state(site)
    process = site.start(networks=["10.20.0.0/24"], services=services)
    site.wait_for("backoff")
    expected = ["zgate-conn0", "zgate-conn0s"] if services else ["zgate-conn0"]
    assert [one for one in site.links() if one.startswith("zgate")] == expected
    assert site.namespace.sysctl("net.ipv4.ip_forward") == "1"
    process.kill()
    assert host_state(site) != before
    process = site.start(networks=["10.20.0.0/24"], services=services)
    site.wait_for("backoff")
    assert process.stop() == 0
    assert host_state(site) == before


def test_a_tun_name_that_is_taken_is_one_line(site: Site) -> None:
    site.namespace.ip("link add zgate-conn0 type veth peer name other")
    process = site.start(networks=["10.20.0.0/24"], services=[])
    assert process.wait(SOON_S) == 1
    assert "zgate-connector: cannot make TUN device zgate-conn0" in process.output()
    assert "Traceback" not in process.output()
    assert site.namespace.sysctl("net.ipv4.ip_forward") == "0"


def test_bad_input_is_one_line_and_exit_code_2(site: Site) -> None:
    process = site.start(key=str(site.directory / "none.key"))
    assert process.wait(SOON_S) == 2
    (line,) = process.output().splitlines()
    assert "none.key" in line
