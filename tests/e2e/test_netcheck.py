"""zgatectl netcheck on a device: behind each kind of NAT, with UDP blocked, on a poor path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_support.world import POLICY, prepare
from zgate_lab.deployment import BIN, SERVER_NAME, Deployment
from zgate_lab.internet import Internet
from zgate_lab.second_gateway import add_second_gateway
from zgate_lab.wan import WanSettings

pytestmark = pytest.mark.privileged

GATEWAYS = ("203.0.113.10", "203.0.114.10")

#: On the device's provider's router; what a home router or a carrier does.
NAT = {
    "none": "",
    "port-restricted cone": """
        chain in {
            type filter hook input priority 0; policy accept;
            iifname "path" meta l4proto udp drop
        }
        chain post {
            type nat hook postrouting priority 100; policy accept;
            oifname "path" masquerade
        }""",
    "symmetric": """
        chain post {
            type nat hook postrouting priority 100; policy accept;
            oifname "path" meta l4proto udp masquerade to :20000-60000 fully-random
            oifname "path" masquerade
        }""",
    "udp blocked": """
        chain forward {
            type filter hook forward priority 0; policy accept;
            meta l4proto udp drop
        }""",
}


@pytest.fixture(scope="module")
def zgate(identities: Path) -> Iterator[Deployment]:
    with Internet.open() as internet:
        made = prepare(internet, identities)
        made.start_gateway()
        second = Deployment(internet, POLICY, add_second_gateway(internet))
        second.pki = made.pki
        second.issue_own()
        second.start_gateway()
        yield made


def netcheck(
    zgate: Deployment, *arguments: str, code: int = 0, **changes: Any
) -> dict[str, dict[str, Any]]:
    """What it finds on alice's device, by name; the last one of a name."""
    device = zgate.internet.device1.namespace
    file = zgate.directory / "netcheck.yaml"
    file.write_text(json.dumps({**zgate.agent_config("alice"), **changes}))
    command = [BIN / "zgatectl", "netcheck", "--config", file, "--timeout", "3", *arguments]
    done = device.run(*command, "--json", check=False)
    assert done.returncode == code, f"{done.stdout} {done.stderr}"
    found = json.loads(done.stdout)["findings"]
    for one in found:
        assert one["fix"] or one["verdict"] in {"ok", "skip"}, one
    return {one["name"]: one for one in found}


def set_nat(zgate: Deployment, kind: str) -> None:
    rules = f"table ip nat {{\n{NAT[kind]}\n}}\n"
    isp = zgate.internet.isp
    isp.run("nft", "-f", "-", stdin="flush ruleset\n" + rules.replace("; ", ";\n"))


def towards(*gateways: str) -> list[str]:
    return [word for one in gateways for word in ("--gateway", one)]


@pytest.mark.parametrize(
    ("kind", "gateways", "mapping", "verdict", "kept"),
    [
        ("none", GATEWAYS, "none", "ok", True),
        ("port-restricted cone", GATEWAYS, "endpoint-independent", "ok", True),
        ("symmetric", GATEWAYS, "address- or port-dependent", "warn", False),
        ("symmetric", GATEWAYS[:1], "unknown", "ok", False),
    ],
)
def test_nat(
    zgate: Deployment,
    kind: str,
    gateways: tuple[str, ...],
    mapping: str,
    verdict: str,
    kept: bool,
) -> None:
    set_nat(zgate, kind)
    found = netcheck(zgate, *towards(*gateways), "--probes", "5")
    nat = found["nat"]
    assert (nat["values"]["mapping"], nat["verdict"]) == (mapping, verdict), nat
    assert nat["values"]["port_kept"] is kept
    outside = "198.18.1.2" if kind == "none" else "198.18.255.1"
    assert nat["values"]["outside_address"] == outside


def test_a_good_path(zgate: Deployment) -> None:
    set_nat(zgate, "none")
    found = netcheck(zgate)
    assert {found[name]["verdict"] for name in ("udp", "mtu", "rtt", "loss", "clock")} == {"ok"}
    assert found["mtu"]["values"]["udp_payload_bytes"] == 1452
    assert found["loss"]["values"] == {"sent": 20, "lost": 0, "lost_share": 0}
    assert 0 < found["rtt"]["values"]["median_ms"] < 100
    assert found["certificate"]["values"]["days_left"] > 14
    assert found["agent"]["verdict"] == "skip"


def test_it_does_not_disturb_the_agent(zgate: Deployment) -> None:
    set_nat(zgate, "none")
    session = zgate.start_agent("alice", zgate.internet.device1)
    found = netcheck(zgate, "--probes", "5")
    assert found["agent"]["verdict"] == "ok"
    assert found["dns"]["verdict"] == "ok", found["dns"]
    assert zgate.sessions()["alice"]["session_id"] == session["session_id"]
    answer = zgate.ask("ping", "alice", "-c", "2", "-i", "0.1")
    assert (answer["sent"], answer["received"]) == (2, 2)
    assert 0 < answer["max_ms"] < 1000
    zgate.agents["alice"].stop()


def test_udp_is_blocked(zgate: Deployment) -> None:
    set_nat(zgate, "udp blocked")
    udp = netcheck(zgate, *towards(GATEWAYS[0]), code=1)["udp"]
    set_nat(zgate, "none")
    assert udp["verdict"] == "fail"
    assert "its host answers to TCP" in udp["text"]
    assert "another network" in udp["fix"]


def test_nobody_is_there(zgate: Deployment) -> None:
    udp = netcheck(zgate, *towards(f"{GATEWAYS[0]}:4433"), code=1)["udp"]
    assert "nobody listens" in udp["text"]
    udp = netcheck(zgate, *towards("203.0.113.77"), code=1)["udp"]
    assert udp["verdict"] == "fail"
    resolve = netcheck(zgate, *towards("no-such-name.invalid"), code=1)["resolve"]
    assert "cannot resolve no-such-name.invalid" in resolve["text"]


def test_a_small_path(zgate: Deployment) -> None:
    zgate.internet.set_path_mtu(1400)
    mtu = netcheck(zgate, "--probes", "2")["mtu"]
    zgate.internet.set_path_mtu(1300)
    small = netcheck(zgate, "--probes", "2", code=1)["mtu"]
    zgate.internet.set_path_mtu(1500)
    zgate.internet.device1.namespace.ip("route flush cache")  # which remembers for ten minutes
    assert (mtu["verdict"], mtu["values"]["path_mtu_bytes"]) == ("warn", 1400)
    assert (small["verdict"], "no tunnel" in small["text"]) == ("fail", True)


def test_a_lossy_and_slow_path(zgate: Deployment) -> None:
    zgate.internet.shape_path(WanSettings(delay_ms=100, loss=0.15, seed=7))
    found = netcheck(zgate, "--probes", "150", "--timeout", "20", code=1)
    zgate.internet.unshape_path()
    assert found["loss"]["verdict"] == "fail"
    # Of the way there: a later acknowledgement stands in for one that is lost on the way back.
    assert 0.05 < found["loss"]["values"]["lost_share"] < 0.35
    assert found["rtt"]["verdict"] == "warn"
    assert 200 <= found["rtt"]["values"]["median_ms"] < 260


def test_certificates_that_are_no_good(zgate: Deployment) -> None:
    found = netcheck(zgate, server_name="other.example", code=1)
    assert found["udp"]["verdict"] == "ok"
    assert found["gateway_certificate"]["verdict"] == "fail"
    assert "server_name" in found["gateway_certificate"]["fix"]
    # Without a key that can be read, the path is looked at all the same.
    found = netcheck(zgate, key=str(zgate.directory / "none.key"), code=1)
    assert found["certificate"]["verdict"] == "fail"
    assert (found["udp"]["verdict"], "admission" in found) == ("ok", False)
    # A gateway's certificate is none for a client.
    own = zgate.directory / "gateway"
    found = netcheck(
        zgate, certificate=str(own / "gateway.crt"), key=str(own / "gateway.key"), code=1
    )
    assert "not for a client" in found["certificate"]["text"]


def test_what_people_see(zgate: Deployment) -> None:
    device, own = zgate.internet.device1.namespace, zgate.directory / "alice"
    done = device.run(
        BIN / "zgatectl", "netcheck", "--gateway", GATEWAYS[0], "--server-name", SERVER_NAME,
        "--ca", zgate.pki / "ca.crt", "--cert", own / "alice.crt", "--key", own / "alice.key",
    )  # fmt: skip
    for word in ("udp", "mtu", "rtt", "jitter", "loss", "nat", "clock", "own certificate"):
        assert f" {word} " in done.stdout, done.stdout
    assert "\x1b" not in done.stdout
