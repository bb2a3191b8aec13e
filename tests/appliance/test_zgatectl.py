"""zgatectl on machines with systemd: what doctor, netcheck and bundle see of units."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
from bed import Machine
from units_support import AGENT, GATEWAY, Units, wait_active

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def units() -> Iterator[Units]:
    with Units.open() as made:
        wait_active(made.gateway, GATEWAY)
        made.device.run("systemctl", "enable", "--now", AGENT)
        made.wait_session("alice")
        yield made


def findings(machine: Machine, *command: str, code: int = 0) -> dict[str, dict[str, Any]]:
    done = machine.run("zgatectl", *command, "--json", check=False)
    assert done.returncode == code, f"{done.stdout} {done.stderr}"
    return {one["name"]: one for one in json.loads(done.stdout)["findings"]}


def test_doctor_has_nothing_against_an_appliance(units: Units) -> None:
    found = findings(units.gateway, "doctor")
    assert (found["unit"]["verdict"], found["unit"]["text"]) == ("ok", "active (running), enabled")
    assert found["socket_unit"]["verdict"] == "ok"
    assert found["configuration"]["text"] == "/etc/zgate/gateway.yaml is in order"
    for name in ("gateway", "certificate", "chain", "key_mode", "state_dir", "socket", "udp_port"):
        assert found[name]["verdict"] == "ok", found[name]


def test_doctor_says_what_has_ended_the_gateway(units: Units) -> None:
    gateway = units.gateway
    text = gateway.read("/etc/zgate/gateway.yaml")
    gateway.write("/etc/zgate/gateway.yaml", json.dumps({**json.loads(text), "workers": "many"}))
    gateway.run("systemctl", "restart", GATEWAY, check=False)
    try:
        found = findings(gateway, "doctor", code=1)
        assert found["configuration"]["verdict"] == "fail"
        assert "workers" in found["configuration"]["text"]
        assert found["unit"]["verdict"] == "fail"
        assert found["gateway"]["verdict"] == "fail"
    finally:
        gateway.write("/etc/zgate/gateway.yaml", text)
        gateway.run("systemctl", "reset-failed", GATEWAY, check=False)
        gateway.run("systemctl", "restart", GATEWAY)
        wait_active(gateway, GATEWAY)
        units.wait_session("alice")


def test_netcheck_finds_the_only_agent(units: Units) -> None:
    found = findings(units.device, "netcheck", "--probes", "5", "--timeout", "15")
    assert found["agent"]["text"].startswith("connected to ")
    for name in ("certificate", "udp", "mtu", "loss"):
        assert found[name]["verdict"] == "ok", found[name]


def test_a_bundle_has_the_journal_and_no_key(units: Units) -> None:
    gateway = units.gateway
    gateway.run("zgatectl", "bundle", "-o", "/root/b.tar.gz")
    data = gateway.run("base64", "-w0", "/root/b.tar.gz").stdout
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(data))) as archive:
        texts = {}
        for one in archive.getmembers():
            inner = archive.extractfile(one)
            assert inner is not None
            texts[one.name] = inner.read().decode()
    key = gateway.read("/var/lib/zgate/pki/gateway.key").splitlines()[1]
    assert "zgate" in texts["b/journal.txt"]
    assert "ActiveState=active" in texts["b/unit.txt"]
    assert "prog_type" in texts["b/bpf.txt"]
    for name, text in texts.items():
        assert key not in text, name
        assert str(gateway.address) not in text, name
