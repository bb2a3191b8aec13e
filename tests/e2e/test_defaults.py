"""A gateway without a configuration file, as after an installation; and with a bad one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zgate_lab.deployment import BIN
from zgate_lab.internet import Internet
from zgate_lab.namespace import run_in
from zgate_lab.process import Process
from zgate_lab.traffic import ping

START_TIMEOUT_S = 30.0
# Folders of the host are hidden behind empty ones, in a mount namespace of the gateway's own.
EMPTY_HOST = """\
set -e
for folder in /var/lib /run /etc/zgate; do
    if [ -d $folder ]; then mount -t tmpfs -o mode=755 empty $folder; fi
done
exec "$@"
"""


class BareHost:
    """The gateway host as it is right after the installation of the package."""

    def __init__(self, internet: Internet) -> None:
        self.internet = internet
        argv = ("unshare", "--mount", "--propagation", "private", "sh", "-c", EMPTY_HOST, "sh")
        self.gateway: Process = internet.gateway.namespace.spawn(
            "gateway", *argv, BIN / "zgate-gateway"
        )

    def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command where the gateway's files are."""
        command = ["nsenter", f"--target={self.gateway.pid}", "--mount", "--net", "--", *argv]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, timeout=30
        )

    def ask(self, *arguments: str) -> Any:
        """zgatectl, with nothing but its defaults."""
        done = self.run(BIN / "zgatectl", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def copy_out(self, name: str, target: Path) -> Path:
        """A file from the gateway's side, as an administrator would carry it to a device."""
        target.write_text(self.run("cat", name).stdout)
        target.chmod(0o600)
        return target


@pytest.fixture(scope="module")
def bare() -> Iterator[BareHost]:
    with Internet.open() as internet:
        host = BareHost(internet)
        host.gateway.wait_for_output(r"ready: UDP", START_TIMEOUT_S)
        yield host


def test_it_starts_and_denies_everything(bare: BareHost) -> None:
    status = bare.ask("status")
    assert status["state"] == "ready"
    assert status["listen"] == ["[::]:443"]
    assert status["policy"]["source"] is None
    assert status["policy"]["default_action"] == "deny"
    assert (status["policy"]["clients"], status["policy"]["rules"]) == (0, 0)
    assert [pool["network"] for pool in status["pools"]] == [
        "10.100.0.0/16",
        "fd7a:7a67:6174:65::/64",
    ]
    assert status["audit"]["path"] == "/var/lib/zgate/audit.jsonl"


def test_its_secrets_are_its_own(bare: BareHost) -> None:
    listing = bare.run("find", "/var/lib/zgate", "-printf", "%m %u %y %p\n").stdout.splitlines()
    modes = {line.split(" ", 3)[3]: line.split(" ", 3)[:3] for line in listing}
    keys = {path: mode for path, mode in modes.items() if path.endswith(".key")}
    assert {"/var/lib/zgate/pki/ca.key", "/var/lib/zgate/pki/gateway.key"} <= set(keys)
    assert all(mode == ["600", "root", "f"] for mode in keys.values())
    assert all(int(mode, 8) & 0o002 == 0 for mode, _, _ in modes.values())
    assert "/var/lib/zgate/zgate.db" in modes


def test_its_own_authority_lets_a_client_in_and_the_policy_nothing_through(
    bare: BareHost, tmp_path: Path
) -> None:
    """README's way: issue on the gateway, carry three files to the device, run the agent."""
    issued = bare.run(BIN / "zgatectl", "pki", "issue", "alice")
    assert issued.returncode == 0, issued.stderr
    folder = "/var/lib/zgate/pki/issued/alice"
    ca, certificate, key = (
        bare.copy_out(f"{folder}/{name}", tmp_path / name)
        for name in ("ca.crt", "alice.crt", "alice.key")
    )
    device = bare.internet.device1.namespace
    agent = device.spawn(
        "alice",
        *(BIN / "zgate-agent", "run", "--gateway", str(bare.internet.gateway.ipv4)),
        *("--server-name", "zgate-gateway", "--ca", ca, "--cert", certificate, "--key", key),
        *("--route", "10.20.0.0/24", "--runtime-dir", tmp_path / "run"),
    )
    agent.wait_for_output("network set up", START_TIMEOUT_S)
    [session] = bare.ask("sessions")["sessions"]
    assert session["client"] == "alice"
    assert ping(device.name, bare.internet.office.ipv4, count=2, timeout_s=0.3).received == 0
    why = bare.ask("why", "alice", str(bare.internet.office.ipv4))
    assert (why["kernel"]["action"], why["kernel"]["reason"]) == ("deny", "POLICY_DEFAULT")
    assert bare.ask("status")["drops"]["POLICY_DEFAULT"] >= 2
    assert agent.stop() == 0


def test_sigterm_ends_it(bare: BareHost) -> None:
    assert bare.gateway.stop() == 0


# A configuration that is no good.


BAD_CONFIGURATIONS = {
    "unknown key": ("lisen: {port: 443}", ":1: lisen:"),
    "bad CIDR": ("pool:\n  ipv4: 10.100.0.0/33", ":2: pool.ipv4:"),
    "host bits": ("routes:\n  - 10.20.0.0/24\n  - 10.66.0.1/24", ":3: routes[1]:"),
    "missing file": ("policy_file: /nowhere/policy.yaml", ":1: policy_file:"),
    "wrong type": ("listen:\n  port: many", ":2: listen.port:"),
    "out of range": ("tun:\n  mtu_bytes: 900", ":2: tun.mtu_bytes:"),
    "no YAML": ("listen: [", ":2: "),
    "twice": ("routes: []\nroutes: []", ":2: routes:"),
    "no mapping": ("just a word", ":1: "),
}


@pytest.mark.parametrize("name", BAD_CONFIGURATIONS)
def test_a_bad_configuration_is_one_clear_line(
    internet: Internet, tmp_path: Path, name: str
) -> None:
    text, said = BAD_CONFIGURATIONS[name]
    config = tmp_path / "gateway.yaml"
    config.write_text(text + "\n")
    ended = run_in(
        internet.gateway.namespace.name, [BIN / "zgate-gateway", "--config", config], check=False
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert f"{config}{said}" in line
    assert ended.stdout == ""


def test_a_configuration_that_is_not_there(internet: Internet, tmp_path: Path) -> None:
    missing = tmp_path / "nothing.yaml"
    ended = run_in(
        internet.gateway.namespace.name, [BIN / "zgate-gateway", "--config", missing], check=False
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert str(missing) in line
