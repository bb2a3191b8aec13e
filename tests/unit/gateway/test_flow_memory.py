"""What clients had open before: asked for once for all who come together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from zgate_gateway.flow_memory import MAX_PER_ADDRESS, FlowMemory
from zgate_gateway.net.conntrack import TCP, Connection
from zgate_gateway.net.errors import NetError

from ...loopback import eventually  # noqa: TID252

POOLS = (ip_network("10.100.0.0/16"), ip_network("fd7a::/64"))
REMOTE = ip_address("10.20.0.5")


def connection(client: object, port: int = 40000) -> Connection:
    return Connection(ip_address(str(client)), REMOTE, TCP, port, 443)


class Record:
    """The kernel's record and its flow table."""

    def __init__(self, *connections: Connection) -> None:
        self.connections = connections
        self.asked: list[list[object]] = []
        self.restored: list[tuple[object, ...]] = []
        self.fails: Exception | None = None

    def read(self, clients: Sequence[object]) -> Iterable[Connection]:
        self.asked.append(list(clients))
        if self.fails is not None:
            raise self.fails
        return self.connections

    def restore_flow(self, *flow: object) -> bool:
        self.restored.append(flow)
        return True


def memory(record: Record) -> FlowMemory:
    return FlowMemory(record, POOLS, read=record.read)  # type: ignore[arg-type]


async def test_a_clients_connections_are_known_again_and_no_others() -> None:
    record = Record(connection("10.100.0.2"), connection("10.100.0.3"))
    subject = memory(record)
    subject.recall([ip_address("10.100.0.2"), ip_address("fd7a::2")])
    await eventually(lambda: subject.restored)
    assert record.asked == [[ip_address("10.100.0.2"), ip_address("fd7a::2")]]
    assert record.restored == [(ip_address("10.100.0.2"), REMOTE, TCP, (40000, 443))]


async def test_many_that_come_together_are_asked_for_at_once() -> None:
    addresses = [IPv4Address("10.100.0.2") + n for n in range(1000)]
    record = Record(*(connection(one) for one in addresses))
    subject = memory(record)
    for one in addresses:
        subject.recall([one])
    await eventually(lambda: subject.restored == 1000)
    assert record.asked == [list(POOLS)]


async def test_who_comes_one_after_the_other_is_asked_for_together_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zgate_gateway.flow_memory._PAUSE_S", 0.5)
    addresses = [IPv4Address("10.100.0.2") + n for n in range(5)]
    record = Record(*(connection(one) for one in addresses))
    subject = memory(record)
    subject.recall(addresses[:1])
    await eventually(lambda: subject.restored)
    for one in addresses[1:]:
        subject.recall([one])
        await asyncio.sleep(0)
    await eventually(lambda: len(record.asked) == 2)
    assert [sorted(map(str, asked)) for asked in record.asked] == [
        ["10.100.0.2"],
        [str(one) for one in addresses[1:]],
    ]
    await subject.close()


async def test_one_client_fills_no_table() -> None:
    record = Record(*(connection("10.100.0.2", port % 65536) for port in range(5000)))
    subject = memory(record)
    subject.recall([ip_address("10.100.0.2")])
    await eventually(lambda: subject.restored >= MAX_PER_ADDRESS)
    await asyncio.sleep(0.01)
    assert subject.restored == MAX_PER_ADDRESS


async def test_a_record_that_cannot_be_read_costs_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = Record(connection("10.100.0.2"))
    subject = memory(record)

    async def recall(fails: Exception | None) -> None:
        record.fails = fails
        before = len(record.asked)
        subject.recall([ip_address("10.100.0.2")])
        await eventually(lambda: len(record.asked) > before)
        assert subject._task is not None
        await subject._task

    problem = NetError("not permitted")
    for _ in range(2):
        await recall(problem)
    assert len(caplog.records) == 1, "once for all who come meanwhile"
    await recall(None)
    assert subject.restored == 1
    await recall(problem)
    assert len(caplog.records) == 2
    await subject.close()
