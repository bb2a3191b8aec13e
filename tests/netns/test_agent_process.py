"""The agent as its real command line, on a device whose gateway does not answer."""

from __future__ import annotations

import json
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
from zgate_datapath.tun import Tun
from zgate_identity.authority import CertificateAuthority
from zgate_lab.lab import Lab, Namespace, Port
from zgate_lab.process import Process
from zgate_lab.waiting import wait_until

AGENT = Path(sys.executable).parent / "zgate-agent"
TUN = "agent0"
SOON_S = 15.0


@dataclass
class Device:
    """A device, and what its agent is given."""

    namespace: Namespace
    directory: Path

    @property
    def runtime_dir(self) -> Path:
        return self.directory / "run"

    def start(self, **changes: object) -> Process:
        """Start an agent that dials the device's router, where somebody listens and is silent."""
        file = self.configure(**changes)
        return self.namespace.spawn("agent", AGENT, "run", "--config", file)

    def configure(self, **changes: object) -> Path:
        settings = {
            "gateway": "198.18.1.1:4433",
            "ca": str(self.directory / "ca.crt"),
            "certificate": str(self.directory / "alice.crt"),
            "key": str(self.directory / "alice.key"),
            "tun": {"name": TUN},
            "runtime_dir": str(self.runtime_dir),
            "connect_timeout_s": 0.5,
        }
        file = self.directory / "agent.yaml"
        file.write_text(json.dumps(settings | changes))
        return file

    def status(self) -> dict[str, Any]:
        """What `zgate-agent status --json` prints, and its exit code."""
        done = self.namespace.run(
            *(AGENT, "status", "--json", "--runtime-dir", self.runtime_dir), check=False
        )
        return {**json.loads(done.stdout), "exit_code": done.returncode}

    def wait_for(self, state: str) -> dict[str, Any]:
        def reached() -> dict[str, Any]:
            status = self.status()
            return status if status["state"] == state else {}

        return wait_until(reached, SOON_S, f"state {state}")

    def links(self) -> str:
        return self.namespace.run("ip", "-o", "link").stdout


@pytest.fixture
def device(lab: Lab, tmp_path: Path) -> Iterator[Device]:
    namespace, isp = lab.add_namespace("device"), lab.add_namespace("isp")
    lab.connect(
        Port(namespace, "eth0", (ip_interface("198.18.1.2/24"),)),
        Port(isp, "device", (ip_interface("198.18.1.1/24"),)),
    )
    now = datetime.now(UTC)
    alice = CertificateAuthority.create(tmp_path / "pki", now).issue("alice", now=now)
    for name, content in (
        ("ca.crt", alice.ca_pem),
        ("alice.crt", alice.certificate_pem),
        ("alice.key", alice.key_pem),
    ):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    with isp.entered():
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent:
        silent.bind(("198.18.1.1", 4433))
        yield Device(namespace, tmp_path)


def test_it_says_why_it_is_not_connected_and_ends_when_told(device: Device) -> None:
    assert device.status()["state"] == "not running"
    process = device.start()
    status = device.wait_for("backoff")
    assert status["exit_code"] == 1
    assert "198.18.1.1: no answer from 198.18.1.1:4433 (UDP)" in status["reason"]
    assert TUN in device.links()
    assert process.stop() == 0
    assert TUN not in device.links()
    status = device.status()
    assert (status["state"], status["exit_code"]) == ("not running", 1)
    assert {one.name for one in device.runtime_dir.iterdir()} == {"agent.lock"}


def test_a_closed_port_is_told_at_once(device: Device) -> None:
    device.start(gateway="198.18.1.1:4434", connect_timeout_s=100)
    status = device.wait_for("backoff")
    assert "nobody listens at 198.18.1.1:4434 (UDP)" in status["reason"]


def test_sigterm_interrupts_dialling_at_once(device: Device) -> None:
    process = device.start(connect_timeout_s=100)
    device.wait_for("connecting")
    began = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - began < 5


def test_sighup_dials_again(device: Device) -> None:
    # Long enough to be seen: asking for the status takes as long as a short attempt does.
    process = device.start(connect_timeout_s=4)
    device.wait_for("backoff")
    process.signal(signal.SIGHUP)
    device.wait_for("connecting")
    assert process.is_running()


def test_sighup_reads_the_logs_level_again(device: Device) -> None:
    process = device.start(log={"level": "error", "format": "json"})
    device.wait_for("backoff")
    device.configure(log={"level": "info", "format": "json"}, on_disconnect="release")
    process.signal(signal.SIGHUP)
    process.wait_for_output('"event": "restart_needed"', SOON_S)
    assert "on_disconnect" in process.output()
    device.configure(log={"level": "nonsense"})
    process.signal(signal.SIGHUP)
    process.wait_for_output('"event": "configuration_refused"', SOON_S)
    assert process.is_running()


def test_a_second_agent_is_refused_and_the_first_is_left_alone(device: Device) -> None:
    first = device.start()
    first_status = device.wait_for("backoff")
    second = device.start()
    assert second.wait(SOON_S) == 1
    assert f"another zgate-agent (pid {first.pid}) uses {device.runtime_dir}" in second.output()
    assert "Traceback" not in second.output()
    assert device.status()["pid"] == first_status["pid"]


def test_a_killed_agent_can_be_started_again(device: Device) -> None:
    device.start().kill()
    process = device.start()
    device.wait_for("backoff")
    process.kill()
    assert device.status()["state"] == "not running"
    device.start()
    device.wait_for("backoff")


def test_a_tun_name_that_is_taken_is_one_line(device: Device) -> None:
    with device.namespace.entered():
        taken = Tun.open(TUN)
    process = device.start()
    assert process.wait(SOON_S) == 1
    (line,) = process.output().splitlines()
    assert line.startswith(f"zgate-agent: cannot make TUN device {TUN}: ")
    taken.close()


def test_a_removed_tun_ends_the_agent(device: Device) -> None:
    process = device.start()
    device.wait_for("backoff")
    device.namespace.ip(f"link del {TUN}")
    assert process.wait(SOON_S) == 1
    assert f"the interface {TUN} is gone" in process.output()


def test_bad_input_is_one_line_and_exit_code_2(device: Device) -> None:
    process = device.start(key=str(device.directory / "none.key"))
    assert process.wait(SOON_S) == 2
    (line,) = process.output().splitlines()
    assert "none.key" in line
