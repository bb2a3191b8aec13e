"""What is noted of a set-up."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from zgate_gateway.admission import Admission, Refusal
from zgate_gateway.tracing.setup import Mark, Result, SetupTrace
from zgate_protocol.structured_field import ProxyError


@pytest.fixture
def over() -> list[SetupTrace]:
    return []


@pytest.fixture
def trace(over: list[SetupTrace]) -> SetupTrace:
    return SetupTrace("198.51.100.7:40000", over.append)


def test_a_set_up_ends_with_the_first_packet(trace: SetupTrace, over: list[SetupTrace]) -> None:
    trace.verified(trace.marks[Mark.BEGUN])
    trace.proved("alice", "connect-ip")
    trace.mark(Mark.REQUESTED)
    trace.mark(Mark.APPLIED)
    trace.answered(Admission("s1", (IPv4Address("10.100.0.2"),), (1.0, 2.0, 3.0)))
    trace.first_packet()
    assert over == [], "a packet before the session is none of it"
    trace.established()
    trace.first_packet(trace.marks[Mark.RESPONDED] + 0.5)
    assert over == [trace]
    assert (trace.client, trace.session_id, trace.result) == ("alice", "s1", Result.ESTABLISHED)
    assert (trace.marks[Mark.LEASED], trace.marks[Mark.ADMITTED]) == (2.0, 3.0)
    before = dict(trace.marks)
    trace.ended("closed")
    trace.mark(Mark.REQUESTED)
    assert (over, trace.marks, trace.reason) == ([trace], before, "")


def test_a_session_without_a_packet_is_established(
    trace: SetupTrace, over: list[SetupTrace]
) -> None:
    trace.established()
    trace.ended("closed by the client")
    assert (over, trace.result, trace.reason) == ([trace], Result.ESTABLISHED, "")
    assert Mark.PACKET not in trace.marks


def test_the_first_refusal_counts(trace: SetupTrace, over: list[SetupTrace]) -> None:
    trace.answered(Refusal(503, ProxyError.CONNECTION_LIMIT_REACHED, "no room"))
    assert trace.session_id == ""
    trace.refused(Result.REFUSED, "no room", 503)
    trace.refused(Result.REFUSED, "another", 400)
    trace.ended("gone")
    assert over == [trace]
    assert (trace.result, trace.reason, trace.status) == (Result.REFUSED, "no room", 503)


def test_a_connection_that_ends_has_failed(trace: SetupTrace, over: list[SetupTrace]) -> None:
    trace.ended("the handshake took too long")
    assert over == [trace]
    assert (trace.result, trace.reason) == (Result.FAILED, "the handshake took too long")
