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
from zgate_protocol.limits import DEFAULT_LIMITS
from zgate_protocol.service_capsule import (
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    Health,
    OfferedService,
    OfferKind,
    OfferStatus,
    RegistrationAnswer,
    RegistrationCode,
    ServicePorts,
)

IDENTITY = PeerIdentity(
    name="alice",
    groups=("staff", "räume"),
    serial=2**159 - 1,
    not_after=datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC),
    fingerprint="ab" * 32,
    path=(PathStep(1, b"\x00\xff"), PathStep(2, b"")),
    offers=("pacs", "*"),
    reaches=("wiki",),
)
WHERE = PeerPath("2001:db8::1", 4711, b"12345678", "2001:db8::2")
V4, V6 = ip_address("10.100.0.2"), ip_address("fd00::2")
CONFIGURE = messages.Configure(
    worker=1,
    workers=2,
    log_level="info",
    log_format="auto",
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
    pools=("10.100.0.0/16", "fd00::/64"),
    service_pools=("10.101.0.0/16", "fd01::/64"),
    dns_domain="zgate.internal",
    networks=("10.20.0.0/16",),
    tracing=messages.TracingSettings("http://127.0.0.1:4318", 0.1, client_addresses=False),
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
    messages.Admitted(1, "s1", (V4, V6), (1.5, 1.75, 2.0)),
    messages.Denied(2, 503, "connection_limit_reached", "no room"),
    messages.ServiceReached(3, (V4, V6)),
    messages.CloseSession("s1", "kicked"),
    messages.OffersAnswered(
        "s1",
        7,
        (
            RegistrationAnswer(OfferKind.SERVICE, "räume", RegistrationCode.ACCEPTED, "", (V4, V6)),
            RegistrationAnswer(OfferKind.ROUTE, "10.2.0.0/16", RegistrationCode.OVERLAP, "why"),
        ),
        True,
    ),
    messages.Grant("s1", (V4, V6), ("10.20.0.0/16",)),
    messages.ServiceAgent("s1", "räume", (V4, V6)),
    messages.DrainSession("s1", 30_000),
    messages.DrainAll(30_000),
    messages.Routes(("0.0.0.0/0", "10.20.0.0/16"), ("10.20.0.0/16", "fd20::/48")),
    messages.OfferServices("s1", 7, (OfferedService("pacs", (ServicePorts(6, 104, 106),)),), False),
    messages.OfferStates("s1", (OfferStatus("pacs", Health.DOWN, 1, 2, 3, 4, "refused"),)),
    messages.OfferRoutes("s1", ("10.20.0.0/16", "fd20::/48")),
    messages.ReachService(3, "s1", "räume"),
    messages.ConnectorSilent("s1", True),
    messages.ReloadTrust(),
    messages.ReloadCertificate(),
    messages.SetLogLevel("debug"),
    messages.AskReport(3, True, ("s1", "s2")),
    messages.PingSession(4, "s1"),
    messages.StopAccepting(),
    messages.Stop(),
    messages.Ready("python"),
    messages.Failed("no"),
    messages.TunLost(),
    messages.Apply(1, Applicant(IDENTITY, WHERE, "*", None)),
    messages.Apply(2, Applicant(IDENTITY, WHERE, "10.0.0.0/8", 17)),
    messages.SessionEstablished("s1"),
    messages.SessionEnded("s1", "closed"),
    messages.ClientMoved("s1", WHERE),
    messages.RequestRefused("alice", "192.0.2.1:1", 502, "dns_error", "no"),
    messages.CertificateRefused("192.0.2.1:1", "expired", "since long", 3),
    messages.SessionPinged(4, 0.025),
    messages.SessionPinged(5, None),
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
        ["AskReport", [True, True, []]],
        ["AskReport", ["1", True, []]],
        ["AskReport", [1, 1, []]],
        ["AskReport", [1, True, "s1"]],
        ["OfferStates", ["s1", [["pacs", 2, 0, 0, 0, 0, ""]]]],
        ["OfferStates", ["s1", [["pacs", True, 0, 0, 0, 0, ""]]]],
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
    path = PeerPath("f" * 45, 65535, bytes(8), "f" * 45)
    encode(messages.EndLost((path,) * messages.BATCH_ENTRIES))


def test_the_secrets_are_not_shown() -> None:
    assert "secret" not in repr(CONFIGURE)
    assert "retry_key" not in repr(CONFIGURE)


def test_the_most_that_a_connector_can_say_fits() -> None:
    name = "\N{CHECK MARK}" * (MAX_NAME_BYTES // 3)
    text = "ä" * (MAX_TEXT_BYTES // 2)
    ports = (ServicePorts(17, 65_534, 65_535),) * DEFAULT_LIMITS.max_ports_per_service
    answer = RegistrationAnswer(
        OfferKind.SERVICE,
        name,
        RegistrationCode.INVALID,
        text,
        (ip_address("f" * 4 + ":f" * 7),) * 4,
    )
    networks = ("ffff:" * 7 + "ffff/128",) * DEFAULT_LIMITS.max_routes
    for part, is_last in messages.in_parts(
        [OfferedService(name, ports)] * DEFAULT_LIMITS.max_services
    ):
        encode(messages.OfferServices("s1", 2**62 - 1, part, is_last))
    for statuses, _ in messages.in_parts(
        [OfferStatus(name, Health.UP, *([2**62 - 1] * 4), text)] * 99
    ):
        encode(messages.OfferStates("s1", statuses))
    for answers, is_last in messages.in_parts([answer] * 99):
        encode(messages.OffersAnswered("s1", 2**62 - 1, answers, is_last))
    encode(messages.OfferRoutes("s1", networks))
    encode(messages.Grant("s1", (V6,) * 2 * DEFAULT_LIMITS.max_services, networks))


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 100])
def test_parts_are_put_together(count: int) -> None:
    parts = messages.Parts[int]()
    whole = [
        parts.add("s1", part, is_last) for part, is_last in messages.in_parts(list(range(count)))
    ]
    assert whole[-1] == tuple(range(count))
    assert all(one is None for one in whole[:-1])


def test_what_a_session_has_not_finished_ends_with_it() -> None:
    parts = messages.Parts[int]()
    assert parts.add("s1", (1, 2), False) is None
    assert parts.add("s2", (3,), True) == (3,)
    parts.forget("s1")
    assert parts.add("s1", (4,), True) == (4,)
