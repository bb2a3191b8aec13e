"""Names of services with the system's own resolver (glibc), by resolv.conf.

    [device] lo: 10.100.0.1 the gateway's responder   192.0.2.53 the host's own name server

The device has a mount namespace of its own, so /etc/resolv.conf and /sys are its own, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_support.name_server import NameServer, serving
from zgate_lab.lab import Lab, Namespace

GATEWAY, OWN = "10.100.0.1", "192.0.2.53"
SERVICE, OTHER = "pacs.zgate.internal", "www.example.org"
HOST = f"nameserver {OWN}\noptions timeout:5\n"

# Entered with a network namespace only: mounts come here, and the order of things is the test's.
DEVICE = """
import json, subprocess, sys, time
from ipaddress import ip_address
from pathlib import Path
from zgate_agent.config import DnsMode
from zgate_agent.split_dns import SplitDns
from zgate_protocol.dns_capsule import DnsAssign

def look_up(name):
    began = time.monotonic()
    done = subprocess.run(["getent", "ahostsv4", name], capture_output=True, text=True)
    words = done.stdout.split()
    return {"address": words[0] if words else "", "took_s": time.monotonic() - began}

def state():
    path = Path("/etc/resolv.conf")
    return {"is_link": path.is_symlink(), "text": path.read_text(), "beside":
            sorted(one.name for one in path.parent.glob("resolv.conf*"))}

said = {"before": state()}
names = SplitDns(DnsMode.AUTO, None, "tun0")
dns = DnsAssign((ip_address("10.100.0.1"),), ("zgate.internal",))
said["notes"] = names.apply(dns, (4,)).notes
said["during"] = state()
said["service"], said["other"] = look_up(sys.argv[1]), look_up(sys.argv[2])
if sys.argv[3] == "end":
    names.withdraw()
else:
    # As after a SIGKILL: another agent finds what this one left.
    said["found"] = SplitDns(DnsMode.AUTO, None, "tun0").clean_up_leftovers()
said["after"] = state()
print(json.dumps(said))
"""
_MOUNTS = {
    # An /etc of its own, in which the file can be replaced.
    "folder": 'mount -t tmpfs none /mnt && cp -a /etc/. /mnt/ && cp "$0" /mnt/resolv.conf'
    " && mount --bind /mnt /etc",
    "link": "mount -t tmpfs none /mnt && cp -a /etc/. /mnt/ && rm -f /mnt/resolv.conf"
    ' && ln -s "$0" /mnt/resolv.conf && mount --bind /mnt /etc',
    # As in containers: the file is a mount, and can only be written where it is.
    "mounted": "mount -t tmpfs none /mnt && cp -a /etc/. /mnt/ && touch /mnt/resolv.conf"
    ' && mount --bind /mnt /etc && mount --bind "$0" /etc/resolv.conf',
}


@pytest.fixture
def device(lab: Lab) -> Namespace:
    namespace = lab.add_namespace("device")
    namespace.ip(
        "link set lo up",
        f"addr add {GATEWAY}/32 dev lo",
        f"addr add {OWN}/32 dev lo",
        "link add tun0 type veth peer name other",  # it only has to be there
    )
    return namespace


@pytest.fixture
def servers(device: Namespace) -> Iterator[tuple[NameServer, NameServer]]:
    gateway = NameServer(device, GATEWAY, SERVICE, "10.101.0.1")
    own = NameServer(device, OWN, OTHER, "198.51.100.80")
    with serving(gateway), serving(own):
        yield gateway, own


def run(device: Namespace, tmp_path: Path, mounts: str, how: str) -> dict[str, Any]:
    file = tmp_path / "host-resolv.conf"
    file.write_text(HOST)
    script = f'mount -t sysfs none /sys && {_MOUNTS[mounts]} && exec "$@"'
    shell = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, file]
    done = device.run(*shell, sys.executable, "-c", DEVICE, SERVICE, OTHER, how)
    assert file.read_text() == HOST
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("how", ["end", "killed"])
@pytest.mark.parametrize("mounts", ["folder", "link", "mounted"])
def test_services_are_found_and_all_else_as_before(
    device: Namespace,
    servers: tuple[NameServer, NameServer],
    tmp_path: Path,
    mounts: str,
    how: str,
) -> None:
    said = run(device, tmp_path, mounts, how)
    assert said["notes"] == []
    assert said["service"]["address"] == "10.101.0.1"
    assert said["other"]["address"] == "198.51.100.80"
    # The next server is asked because ours refuses, not because it is silent.
    assert said["other"]["took_s"] < 4
    gateway, own = servers
    assert set(gateway.asked) == {SERVICE, OTHER}
    assert set(own.asked) == {OTHER}, "names of services are told to nobody else"
    assert said["during"]["text"].endswith(HOST)
    assert said["after"] == said["before"]
    assert said.get("found", True)


def test_a_device_that_shares_its_files_has_them_left_alone(
    device: Namespace, servers: tuple[NameServer, NameServer]
) -> None:
    """A network namespace of its own, and no more: /etc/resolv.conf is another's."""
    before = Path("/etc/resolv.conf").read_text()
    said = json.loads(device.run(sys.executable, "-c", DEVICE, SERVICE, OTHER, "end").stdout)
    assert "belongs to another network namespace" in said["notes"][0]
    assert said["before"] == said["during"] == said["after"]
    assert Path("/etc/resolv.conf").read_text() == before
