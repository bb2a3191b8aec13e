"""What netcheck makes of what it has measured; the real paths are in tests/e2e/test_netcheck.py."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from zgate_cli.answers import Verdict
from zgate_cli.netcheck import judge
from zgate_cli.netcheck.command import netcheck
from zgate_cli.netcheck.judge import (
    Reach,
    judge_certificate_life,
    judge_clock,
    judge_failure,
    judge_path,
)
from zgate_cli.netcheck.nat import NatKind, Observation, judge_nat, kind_of
from zgate_datapath.client import (
    ClientCertificateRefused,
    ConnectionLost,
    ConnectTimeout,
    GatewayCertificateRefused,
    TunnelError,
)
from zgate_datapath.path_probe import PathReport
from zgate_protocol.service_capsule import ObservedAddress

NOW = datetime(2026, 3, 1, tzinfo=UTC)
INSIDE, OUTSIDE = ("192.168.1.7", 5000), ("198.51.100.1", 5000)
ONE, OTHER = ("203.0.113.10", 443), ("203.0.113.11", 443)
NO_ANSWER = ConnectTimeout("no answer from x:443 (UDP) in 5 s: is UDP open on the way, and ...")


def report(**changes: Any) -> PathReport:
    values: dict[str, Any] = {
        "gateway_address": ONE,
        "local_address": INSIDE,
        "observed": ObservedAddress(0, ip_address(OUTSIDE[0]), OUTSIDE[1]),
        "handshake_s": 0.05,
        "sent": 20,
        "lost": 0,
        "rtts_s": (0.02, 0.021, 0.02),
        "udp_payload_bytes": 1452,
        "is_mtu_final": True,
        "gateway_time": NOW,
        "own_time": NOW,
    }
    return PathReport(**(values | changes))


@pytest.mark.parametrize(
    ("seen", "kind", "verdict"),
    [
        ([Observation(INSIDE, ONE, INSIDE)], NatKind.NONE, Verdict.OK),
        ([Observation(INSIDE, ONE, OUTSIDE)], NatKind.UNKNOWN, Verdict.OK),
        (
            [Observation(INSIDE, ONE, OUTSIDE), Observation(INSIDE, OTHER, OUTSIDE)],
            NatKind.ENDPOINT_INDEPENDENT, Verdict.OK,
        ),
        (
            [Observation(INSIDE, ONE, OUTSIDE), Observation(INSIDE, OTHER, ("198.51.100.1", 9))],
            NatKind.DEPENDENT, Verdict.WARN,
        ),
        (
            [Observation(INSIDE, ONE, OUTSIDE),
             Observation(("192.168.1.7", 6), ONE, ("198.51.100.2", 6))],
            NatKind.UNKNOWN, Verdict.WARN,
        ),
    ],
    ids=["none", "one address", "cone", "symmetric", "several addresses"],
)  # fmt: skip
def test_nat(seen: list[Observation], kind: NatKind, verdict: Verdict) -> None:
    assert kind_of(seen) is kind
    found = judge_nat(seen)
    assert (found.verdict, found.values["mapping"]) == (verdict, kind.value)
    assert bool(found.fix) is (verdict is Verdict.WARN)


def test_a_gateway_that_does_not_say() -> None:
    assert judge_nat([]).verdict is Verdict.SKIP


@pytest.mark.parametrize(
    ("error", "tcp", "name", "words"),
    [
        (NO_ANSWER, "refused", "udp", "its host answers to TCP"),
        (NO_ANSWER, "open", "udp", "its host answers to TCP"),
        (NO_ANSWER, "timeout", "udp", "nor to TCP (timeout)"),
        (ConnectionLost("nobody listens at x:443"), "refused", "udp", "nobody listens"),
        (ConnectionLost("cannot reach x: No route"), "timeout", "udp", "No route"),
        (ConnectTimeout("x:443 (UDP) answered but gave no session"), "open", "udp", "answered but"),
        (GatewayCertificateRefused("expired"), "open", "gateway_certificate", "expired"),
        (ClientCertificateRefused("revoked"), "open", "admission", "revoked"),
    ],
)
def test_failures(error: TunnelError, tcp: str, name: str, words: str) -> None:
    found = {one.name: one for one in judge_failure("x:443", error, Reach(tcp))}
    assert found[name].verdict is Verdict.FAIL
    assert words in found[name].text and found[name].fix
    if name != "udp":  # somebody has answered
        assert found["udp"].verdict is Verdict.OK


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({}, "udp", Verdict.OK),
        ({}, "mtu", Verdict.OK),
        ({"udp_payload_bytes": 1372}, "mtu", Verdict.WARN),
        ({"udp_payload_bytes": 0}, "mtu", Verdict.FAIL),
        ({"udp_payload_bytes": 0, "is_mtu_final": False}, "mtu", Verdict.WARN),
        ({"rtts_s": (0.2,) * 9}, "rtt", Verdict.WARN),
        ({"rtts_s": (0.5,) * 9}, "rtt", Verdict.FAIL),
        ({"rtts_s": ()}, "rtt", Verdict.FAIL),
        ({"rtts_s": (0.02, 0.1) * 5}, "jitter", Verdict.WARN),
        ({"rtts_s": (0.02,)}, "jitter", Verdict.OK),
        ({"lost": 1}, "loss", Verdict.WARN),
        ({"lost": 3}, "loss", Verdict.FAIL),
        ({"sent": 0}, "loss", Verdict.OK),
    ],
)
def test_paths(changes: dict[str, Any], name: str, verdict: Verdict) -> None:
    found = {one.name: one for one in judge_path("x:443", report(**changes), is_ipv6=False)}
    assert found[name].verdict is verdict
    assert all(one.fix for one in found.values() if one.verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("offset_s", "verdict"),
    [(0, Verdict.OK), (20, Verdict.OK), (-60, Verdict.WARN), (600, Verdict.FAIL)],
)
def test_clocks(offset_s: float, verdict: Verdict) -> None:
    found = judge_clock([report(own_time=NOW + timedelta(seconds=offset_s))])
    assert found.verdict is verdict
    assert abs(float(found.values["offset_s"] or 0) + offset_s) <= 1


def test_a_gateway_without_a_clock() -> None:
    assert judge_clock([report(gateway_time=None)]).verdict is Verdict.SKIP


@pytest.mark.parametrize(
    ("left_h", "lifetime_h", "verdict"),
    [
        (24 * 60, 24 * 365, Verdict.OK), (24 * 10, 24 * 365, Verdict.WARN),
        (12, 24, Verdict.OK), (3, 24, Verdict.WARN),
    ],
)  # fmt: skip
def test_certificates(left_h: int, lifetime_h: int, verdict: Verdict) -> None:
    left, lifetime = timedelta(hours=left_h), timedelta(hours=lifetime_h)
    assert judge_certificate_life(left, lifetime).verdict is verdict


def test_the_configuration_is_no_good(zgatectl: Any, tmp_path: Any) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("gateway: [oh]\n")
    assert "gateway" in zgatectl("netcheck", "--config", str(config), code=2).stderr
    assert "ca" in zgatectl("netcheck", "--gateway", "x.test", code=2).stderr


def test_without_anything(zgatectl_json: Any, tmp_path: Any) -> None:
    """No certificate, no agent, no gateway: findings, and no exception."""
    files = [word for one in ("ca", "cert", "key") for word in (f"--{one}", str(tmp_path / one))]
    found = zgatectl_json(
        "netcheck", "--gateway", "127.0.0.1:9", *files, "--timeout", "1", "--probes", "1", code=1
    )["findings"]
    verdicts = {one["name"]: one["verdict"] for one in found}
    assert (verdicts["agent"], verdicts["certificate"]) == ("skip", "fail")
    assert verdicts["udp"] == "fail"


def test_what_a_finding_says_to_type_can_be_typed() -> None:
    """The options of the command are bounded."""
    text = Path(judge.__file__).read_text()
    most = next(one.type.max for one in netcheck.params if one.name == "probes")
    assert set(re.findall(r"--probes (\d+)", text)) == {str(most)}
