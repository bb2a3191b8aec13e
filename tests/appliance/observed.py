"""What the tests of the appliance ask its machines, and the traffic that they send meanwhile."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance import Appliance
from bed import Machine
from zgate_lab.stream import TcpStream
from zgate_lab.traffic import parse_ping

STREAM_PORT = 9000
STREAM_BYTES_PER_S = 500_000
PING_INTERVAL_S = 0.1
# What an upgrade may cost: the gateway's restart, and until its agents are back.
MOST_LOST_S = 10.0


def addresses(appliance: Appliance, gateway: str = "gateway") -> dict[str, list[str]]:
    """The virtual IPs of all clients that have a session, as a gateway says."""
    machine = appliance.gateways[gateway]
    answer = json.loads(machine.run("zgatectl", "sessions", "--json").stdout)
    return {one["client"]: one["addresses"] for one in answer["sessions"]}


def installed(appliance: Appliance) -> set[str]:
    """The versions of zgate on all machines; "" where there is none, or only what is kept of it."""
    form = "--showformat=${db:Status-Status} ${Version}"
    answers = [
        machine.output("dpkg-query", "--show", form, "zgate").split()
        for machine in appliance.machines.values()
    ]
    return {answer[1] if answer[:1] == ["installed"] else "" for answer in answers}


def files_of_zgate(appliance: Appliance, host: str) -> list[str]:
    """What is on a machine in places where zgate, or the roles, put files."""
    return (
        appliance.machines[host]
        .shell(
            "find /etc /usr /var /run /lib/systemd -xdev -name '*zgate*' -not -path '/var/log/*' "
            "-not -path '/run/systemd/*' -not -path '/var/lib/dpkg/*' 2>/dev/null | sort; "
            "find /var/lib/zgate* /etc/zgate /var/cache/zgate 2>/dev/null | sort || true"
        )
        .splitlines()
    )


@contextmanager
def traffic(appliance: Appliance) -> Iterator[None]:
    """A ping and a TCP transfer from agent1 to the office, from before the block until after it.

    The transfer arrives unchanged in one connection, and at most MOST_LOST_S of pings are lost.
    """
    office = appliance.office.host
    device = appliance.internet.device1.namespace
    stream = TcpStream(
        device.name, office, office.ipv4, STREAM_PORT, upload=True, bytes_per_s=STREAM_BYTES_PER_S
    )
    with pinged(appliance, MOST_LOST_S), stream:
        stream.wait_for_more(1000, 10)
        yield
        stream.wait_for_more(100_000, 30)
        stream.finish()


@contextmanager
def pinged(appliance: Appliance, most_lost_s: float) -> Iterator[None]:
    """agent1 pings the office from before the block until after it; little of that is lost."""
    device = appliance.internet.device1.namespace
    office = str(appliance.office.host.ipv4)
    pings = device.spawn("pings", "ping", "-n", "-i", str(PING_INTERVAL_S), office)
    yield
    pings.signal(signal.SIGINT)
    assert pings.wait(10) in (0, 1)
    result = parse_ping(pings.output())
    assert result.received > 0
    assert result.lost * PING_INTERVAL_S < most_lost_s, result.output[-300:]


def ports(machine: Machine) -> set[str]:
    """The UDP addresses and ports at which a machine listens, but those in its tunnel."""
    lines = machine.output("ss", "-Hlun").splitlines()
    return {line.split()[3] for line in lines if "%zgate" not in line.split()[3]}


def wiki(appliance: Appliance, agent: str) -> str:
    """What the service behind the connector answers to an agent; empty: nothing."""
    answer = json.loads(appliance.gateway.run("zgatectl", "services", "--json").stdout)
    (addresses,) = (one["addresses"] for one in answer["services"] if one["name"] == "wiki")
    machine, address = appliance.agents[agent], min(addresses)
    return machine.output("curl", "--silent", "--max-time", "3", f"http://{address}/")


def issue(appliance: Appliance, folder: Path, name: str, *words: str) -> dict[str, str]:
    """Files of a certificate of the gateway's authority, on the controller."""
    machine, there = appliance.gateway, f"/run/{name}"
    user = ("runuser", "-u", "zgate-gateway", "--")
    machine.run("install", "-d", "-o", "zgate-gateway", there)
    command = ("zgatectl", "pki", "issue", name, "--out", there, "--replace", *words)
    machine.run(*user, *command)
    files = {"certificate": f"{name}.crt", "key": f"{name}.key", "ca": "ca.crt"}
    for file in files.values():
        (folder / file).write_text(machine.read(f"{there}/{file}"))
    machine.run("rm", "-r", there)
    return {kind: str(folder / file) for kind, file in files.items()}
