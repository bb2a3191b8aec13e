"""Round trips and path probes, against a gateway over loopback, with both packet engines."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from zgate_datapath.client import ClientCertificateRefused, ClientConfig, GatewayCertificateRefused
from zgate_datapath.connection import _MAX_PINGS, Connection
from zgate_datapath.path_probe import PathProbe, PathReport

from ...loopback import HOST, WAIT_S, Gateway, Lab, eventually  # noqa: TID252


def probe(lab: Lab, gateway: Gateway, **changes: Any) -> PathProbe:
    identity = lab.pki.client("alice")
    settings: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": gateway.port,
        "server_name": HOST,
        "ca_file": str(lab.pki.ca_file),
        "certificate_file": str(identity.certificate),
        "key_file": str(identity.key),
        "engine": "python",
    }
    return PathProbe(ClientConfig(**(settings | changes)))


async def measure(lab: Lab, gateway: Gateway, probes: int = 5, **changes: Any) -> PathReport:
    made = probe(lab, gateway, **changes)
    return await made.measure(probes=probes, interval_s=0.01, timeout_s=WAIT_S)


def end_of(gateway: Gateway) -> Connection:
    """The gateway's end of its only connection."""
    (connection,) = gateway.endpoint.connections
    return connection


# Round trips of a session's connection: `zgatectl ping`.


async def test_a_round_trip_is_measured_while_packets_pass(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    connection, took_s = end_of(gateway), list[float]()
    for _ in range(3):
        connection.measure_round_trip(took_s.append, asyncio.get_running_loop().time())
        gateway.endpoint.flush(connection)
    await eventually(lambda: len(took_s) == 3)
    assert all(0 < one < WAIT_S for one in took_s)


async def test_round_trips_that_nobody_waits_for_are_forgotten(lab: Lab) -> None:
    gateway = lab.gateway()
    await lab.connect(gateway)
    connection, answered = end_of(gateway), list[int]()
    for number in range(_MAX_PINGS + 10):
        connection.measure_round_trip(lambda _, n=number: answered.append(n), 0.0)  # type: ignore[misc]
        assert len(connection._pings) <= _MAX_PINGS
    last = connection.measure_round_trip(lambda _: answered.append(-1), 0.0)
    connection.forget_round_trip(last)
    gateway.endpoint.flush(connection)
    await eventually(lambda: not connection._pings)
    assert -1 not in answered and 0 not in answered
    assert answered[-1] == _MAX_PINGS + 9


# The probe.


async def test_a_probe_measures_and_leaves_no_session(lab: Lab) -> None:
    gateway = lab.gateway()
    report = await measure(lab, gateway)
    assert (report.sent, report.lost, len(report.rtts_s)) == (5, 0, 5)
    assert 0 < report.handshake_s < WAIT_S
    assert (report.udp_payload_bytes, report.is_mtu_final) == (1452, True)
    assert report.gateway_address == ("127.0.0.1", gateway.port)
    assert report.observed is not None
    assert (str(report.observed.address), report.observed.port) == report.local_address
    assert report.gateway_time is not None
    assert abs((report.gateway_time - report.own_time).total_seconds()) <= 2
    assert abs((datetime.now(UTC) - report.own_time).total_seconds()) < 30
    assert gateway.record.up == [] and gateway.record.refused == []
    await eventually(lambda: not gateway.endpoint.connections)


async def test_a_probe_does_not_take_the_clients_session(lab: Lab) -> None:
    gateway = lab.gateway()
    client, _ = await lab.connect(gateway)
    await measure(lab, gateway, 1)
    assert not client.connection.is_terminated
    assert gateway.record.down == []


async def test_the_same_port_can_be_used_twice(lab: Lab) -> None:
    gateway = lab.gateway()
    first = await measure(lab, gateway, 1)
    second = await measure(lab, gateway, 1, local_port=first.local_address[1])
    assert second.local_address[1] == first.local_address[1]


async def test_who_is_refused_knows_by_whom(lab: Lab) -> None:
    gateway = lab.gateway()
    with pytest.raises(ClientCertificateRefused):
        await measure(lab, gateway, certificate_file="", key_file="")
    with pytest.raises(GatewayCertificateRefused):
        await measure(lab, gateway, server_name="other.test")
    await eventually(lambda: not gateway.endpoint.connections)
