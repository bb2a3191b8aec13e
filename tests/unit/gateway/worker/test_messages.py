"""Messages come out as they went in, and nothing else comes out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_gateway.admission import Applicant, PeerPath
from zgate_gateway.worker import messages
from zgate_gateway.worker.messages import Message, MessageError, decode, encode
from zgate_identity.revocation import PathStep
from zgate_identity.verifier import PeerIdentity

IDENTITY = PeerIdentity(
    name="alice",
    groups=("staff", "räume"),
    serial=2**159 - 1,
    not_after=datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC),
    fingerprint="ab" * 32,
    path=(PathStep(1, b"\x00\xff"), PathStep(2, b"")),
)
WHERE = PeerPath("2001:db8::1", 4711, b"12345678")
V4, V6 = ip_address("10.100.0.2"), ip_address("fd00::2")
CONFIGURE = messages.Configure(
    worker=1,
    workers=2,
    log_level="info",
    secret=bytes(32),
    retry_key=bytes(16),
    certificate_file=Path("/etc/zgate/gateway.crt"),
    key_file=Path("/etc/zgate/gateway.key"),
    ca_file=Path("/etc/zgate/ca.crt"),
    crl_file=None,
    engine="auto",
    congestion="cubic",
    idle_timeout_s=30.0,
    max_udp_payload_bytes=1452,
    tun_name="zgate0",
    routes=("0.0.0.0/0", "::/0"),
    gateway_ipv4=ip_address("10.100.0.1"),  # type: ignore[arg-type]
    gateway_ipv6=ip_address("fd00::1"),  # type: ignore[arg-type]
)
REPORT = messages.Report(
    3,
    True,
    (messages.SessionReport("s1", 0.01, 1420, 5.5, {"TOO_BIG": 1}),),
    {"a": 1},
    {},
    {},
    True,
)
ALL: list[Any] = [
    CONFIGURE,
    messages.EndLost((WHERE, WHERE)),
    messages.Admitted(1, "s1", (V4, V6)),
    messages.Denied(2, 503, "connection_limit_reached", "no room"),
    messages.CloseSession("s1", "kicked"),
    messages.ReloadTrust(),
    messages.ReloadCertificate(),
    messages.AskReport(3, True),
    messages.StopAccepting(),
    messages.Stop(),
    messages.Ready("python"),
    messages.Failed("no"),
    messages.TunLost(),
    messages.Apply(1, Applicant(IDENTITY, WHERE, "*", None)),
    messages.Apply(2, Applicant(IDENTITY, WHERE, "10.0.0.0/8", 17)),
    messages.SessionEnded("s1", "closed"),
    messages.ClientMoved("s1", WHERE),
    messages.RequestRefused("alice", "192.0.2.1:1", 502, "dns_error", "no"),
    messages.CertificateRefused("192.0.2.1:1", "expired", "since long", 3),
    REPORT,
]


def test_there_is_an_example_of_each() -> None:
    assert {type(one) for one in ALL} == set(get_args(Message))


@pytest.mark.parametrize("message", ALL, ids=lambda one: type(one).__name__)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        "Stop",
        ["Stop"],
        ["Stop", [1]],
        ["Nothing", []],
        ["CloseSession", ["s1"]],
        ["CloseSession", ["s1", 1]],
        ["CloseSession", {"session_id": "s1", "cause": ""}],
        ["AskReport", [True, True]],
        ["AskReport", ["1", True]],
        ["AskReport", [1, 1]],
        ["Admitted", [1, "s1", ["10.0.0"]]],
        ["Admitted", [1, "s1", "10.0.0.1"]],
        ["EndLost", [[["h", 1, "xy"]]]],
        ["EndLost", [[["h", 1]]]],
        ["Report", [1, True, [], {"a": "1"}, {}, {}, False]],
        ["Report", [1, True, [], [], {}, {}, False]],
    ],
    ids=json.dumps,
)
def test_what_does_not_fit_exactly_is_refused(plain: Any) -> None:
    with pytest.raises(MessageError):
        decode(json.dumps(plain).encode())


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


def test_what_is_too_large_is_not_sent() -> None:
    with pytest.raises(MessageError, match="at most"):
        encode(messages.Failed("x" * messages.MAX_MESSAGE_BYTES))


def test_a_full_batch_fits() -> None:
    drops = {f"REASON_{number}": 2**40 for number in range(20)}
    one = messages.SessionReport("s12345678", 0.123456789, 1420, 123456.789, drops)
    report = messages.Report(1, False, (one,) * messages.BATCH_ENTRIES, drops, drops, drops, False)
    assert decode(encode(report)) == report
    encode(messages.EndLost((PeerPath("f" * 45, 65535, bytes(8)),) * messages.BATCH_ENTRIES))


def test_the_secrets_are_not_shown() -> None:
    assert "secret" not in repr(CONFIGURE)
    assert "retry_key" not in repr(CONFIGURE)
