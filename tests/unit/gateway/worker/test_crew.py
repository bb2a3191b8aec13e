"""Real worker processes on loopback: they serve, die, come back, and end with their supervisor.

Fake: the supervisor's kernel and store, the TUN (a socket pair), and the map of address owners.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from zgate_datapath.client import ClientConfig, SessionRefused, TunnelClient, TunnelState
from zgate_datapath.connection_ids import ConnectionIds
from zgate_datapath.offers import ClientOffers, Notices
from zgate_datapath.udp import UdpSocket
from zgate_gateway.admission import Applicant, PeerPath
from zgate_gateway.worker import crew as crew_module
from zgate_gateway.worker import messages
from zgate_gateway.worker.crew import Crew, WorkerError
from zgate_gateway.worker.process import WorkerProcess
from zgate_protocol.ip_range import networks_of
from zgate_protocol.service_capsule import (
    Health,
    OfferedService,
    OfferKind,
    OfferStatus,
    Registered,
    RegistrationAnswer,
    RegistrationCode,
    ServicePorts,
)

from ....loopback import HOST, WAIT_S, FakeTun, Pki, eventually, udp_packet  # noqa: TID252

SECRET = bytes(range(32))
V4, V6 = ip_address("10.100.0.2"), ip_address("fd00::2")
LONG_S = 30.0  # processes take their time on a busy machine


class Supervisor:
    """Admits everybody, and notes what it hears (`CrewOwner`)."""

    def __init__(self, pki: Pki, count: int) -> None:
        self.pki = pki
        self.tuns = [FakeTun() for _ in range(count)]
        # A port each: without steering, this says which worker a client gets.
        self.sockets = [UdpSocket.bind("127.0.0.1", 0) for _ in range(count)]
        self.owners_fd = os.open("/dev/null", os.O_RDONLY)
        self.heard: list[messages.Message] = []
        self.applicants: list[tuple[WorkerProcess, Applicant]] = []
        self.lost: list[int] = []
        self.answers = 0
        self.refuses = False
        self.key_file = pki.gateway.key
        self.crew = Crew(count, self, asyncio.get_running_loop())

    def configuration(self, index: int) -> tuple[messages.Configure, Sequence[int]]:
        configure = messages.Configure(
            worker=index,
            workers=len(self.tuns),
            log_level="info",
            log_format="auto",
            secret=SECRET,
            retry_key=bytes(16),
            certificate_file=self.pki.gateway.certificate,
            key_file=self.key_file,
            ca_file=self.pki.ca_file,
            crl_file=self.pki.authority.crl_file,
            engine="python",
            congestion="auto",
            idle_timeout_s=30.0,
            max_udp_payload_bytes=1452,
            tun_name="fake0",
            routes=("0.0.0.0/0",),
            gateway_ipv4=IPv4Address("10.100.0.1"),
            gateway_ipv6=IPv6Address("fd00::1"),
            pools=("10.100.0.0/16", "fd00::/64"),
            service_pools=("10.101.0.0/16", "fd01::/64"),
            dns_domain="zgate.internal",
        )
        sock, tun = self.sockets[index], self.tuns[index]
        return configure, (sock.fileno(), tun.fd, self.owners_fd, self.owners_fd)

    def message(self, process: WorkerProcess, message: messages.Message) -> None:
        self.heard.append(message)
        if isinstance(message, messages.Apply):
            self.applicants.append((process, message.applicant))
            answer = (
                messages.Denied(message.request_id, 503, "connection_limit_reached", "no")
                if self.refuses
                else messages.Admitted(message.request_id, f"s{message.request_id}", (V4, V6))
            )
            process.send(answer)

    def worker_lost(self, process: WorkerProcess, cause: str) -> list[PeerPath]:
        self.lost.append(process.index)
        return [one.path for worker, one in self.applicants if worker is process]

    def worker_answered(self) -> None:
        self.answers += 1

    def client(self, name: str, index: int, **more: Any) -> tuple[TunnelClient, FakeTun]:
        identity, tun = self.pki.client(name), FakeTun()
        config = ClientConfig(
            host="127.0.0.1",
            port=int(self.sockets[index].local_address[1]),
            server_name=HOST,
            ca_file=str(self.pki.ca_file),
            certificate_file=str(identity.certificate),
            key_file=str(identity.key),
            engine="python",
        )
        settings = {"on_change": lambda _: None, **more}
        return TunnelClient(config=config, tun=tun, **settings), tun  # type: ignore[arg-type]

    async def work(self) -> None:
        self.crew.spawn()
        await self.crew.work()

    def process(self, index: int) -> WorkerProcess | None:
        return next((one for one in self.crew.processes if one.index == index), None)

    def close(self) -> None:
        for one in (*self.tuns, *self.sockets):
            one.close()
        os.close(self.owners_fd)


@pytest_asyncio.fixture
async def supervisor(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    monkeypatch.setattr(crew_module, "_REPORT_TIMEOUT_S", LONG_S)
    made = Supervisor(pki, 2)
    yield made
    await made.crew.stop()
    assert made.crew.processes == []
    made.close()


async def test_a_client_is_served_by_a_worker(supervisor: Supervisor) -> None:
    await supervisor.work()
    client, tun = supervisor.client("alice", 1)
    state = await client.connect(LONG_S)
    assert [one.ip for one in state.addresses] == [V4, V6]
    ((process, applicant),) = supervisor.applicants
    assert process.index == 1
    assert (applicant.identity.name, applicant.identity.groups) == ("alice", ("staff",))
    assert applicant.path.host == "127.0.0.1"
    assert ConnectionIds(SECRET, 0, 2).owner_of(applicant.path.connection_id) == 1

    kernel = supervisor.tuns[1]._kernels
    tun.inject(udp_packet(V4, "10.20.0.5"))
    up = await eventually(lambda: _receive(kernel))
    assert up == udp_packet(V4, "10.20.0.5")
    supervisor.tuns[1].inject(udp_packet("10.20.0.5", V4))
    await eventually(lambda: tun.written == [udp_packet("10.20.0.5", V4)])

    await supervisor.crew.refresh()
    report = supervisor.crew.session("s1", 1)
    assert report is not None
    assert report.mtu_bytes >= 1280
    assert supervisor.crew.session("s1", 0) is None
    assert [one.restarts for one in supervisor.crew.states()] == [0, 0]
    process.sessions.clear()
    await supervisor.crew.refresh({1: ["s1", "unknown"]})
    assert supervisor.crew.session("s1", 1) is not None
    assert supervisor.crew.session("unknown", 1) is None

    round_trip_s = await supervisor.crew.ping("s1", 1, WAIT_S)
    assert round_trip_s is not None
    assert 0 < round_trip_s < WAIT_S
    assert await supervisor.crew.ping("unknown", 1, WAIT_S) is None

    process.close_session("s1", "kicked: for a reason")
    assert await asyncio.wait_for(client.wait_closed(), WAIT_S) == "kicked: for a reason"
    assert not [one for one in supervisor.heard if isinstance(one, messages.SessionEnded)]


async def test_offers_go_to_the_supervisor_and_what_it_grants_comes_back(
    supervisor: Supervisor,
) -> None:
    await supervisor.work()
    ports = (ServicePorts(6, 104, 104),)
    services = tuple(OfferedService(f"s{number}-" + "x" * 200, ports) for number in range(70))
    network, offer = ip_network("10.20.0.0/16"), ip_address("10.101.255.254")
    registered: list[Registered] = []
    drains: list[int] = []
    states: list[TunnelState] = []
    client, tun = supervisor.client(
        "connector",
        1,
        on_change=states.append,
        offers=ClientOffers(services, (network,)),
        notices=Notices(on_registered=registered.append, on_drain=drains.append),
    )
    await client.connect(LONG_S)

    def heard(kind: type) -> list[Any]:
        return [one for one in supervisor.heard if isinstance(one, kind)]

    # More than fits into one message.
    await eventually(lambda: heard(messages.OfferServices)[-1:] and heard(messages.OfferRoutes))
    await eventually(lambda: heard(messages.OfferServices)[-1].is_last)
    parts = heard(messages.OfferServices)
    assert len(parts) > 1
    assert tuple(one for part in parts for one in part.services) == services
    assert {(part.session_id, part.revision) for part in parts} == {("s1", 1)}
    assert heard(messages.OfferRoutes) == [messages.OfferRoutes("s1", (str(network),))]
    status = OfferStatus(services[0].name, Health.UP, 1, 2, 3, 4, "")
    client.send_offer_state([status])
    await eventually(lambda: heard(messages.OfferStates))
    assert heard(messages.OfferStates) == [messages.OfferStates("s1", (status,))]

    process = supervisor.process(1)
    assert process is not None
    answers = [
        RegistrationAnswer(OfferKind.SERVICE, one.name, RegistrationCode.ACCEPTED, "", (), (offer,))
        for one in services
    ]
    process.answer_offers("s1", 1, answers)
    process.grant("s1", [offer], [str(network)])
    process.drain_session("s1", 5000)
    process.send(messages.Routes(("192.0.2.0/24",)))
    for message in (messages.Grant("gone", (V4,), ()), messages.DrainSession("gone", 1)):
        process.send(message)
    # The clients' pool and that of the services lie side by side: one network.
    expected = {"192.0.2.0/24", "10.100.0.0/15", "fd01::/64", "fd00::/64"}
    await eventually(
        lambda: states and {str(one) for one in networks_of(states[-1].routes)} == expected
    )
    await eventually(lambda: drains)
    assert registered == [Registered(1, tuple(answers))]
    assert drains == [5000]
    assert [one.ip for one in states[-1].addresses] == [V4, V6, offer]
    for destination in ("10.101.255.254", "10.20.0.9"):
        packet = udp_packet("10.100.0.6", destination)
        supervisor.tuns[1].inject(packet)
        await eventually(lambda wanted=packet: tun.written[-1:] == [wanted])

    # It has spoken, and is expected to go on: an agent beside it is not.
    other, _ = supervisor.client("alice", 1)
    await other.connect(LONG_S)
    silent = [messages.ConnectorSilent("s1", True)]
    await eventually(lambda: heard(messages.ConnectorSilent)[: len(silent)] == silent, LONG_S)
    client.send_offer_state([status])
    silent.append(messages.ConnectorSilent("s1", False))
    await eventually(lambda: heard(messages.ConnectorSilent)[: len(silent)] == silent, LONG_S)
    await client.close()
    await other.close()


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65535)
    except BlockingIOError:
        return b""


async def test_what_clients_do_is_told(supervisor: Supervisor) -> None:
    await supervisor.work()
    client, _ = supervisor.client("alice", 0)
    await client.connect(LONG_S)
    await client.close("the user said so")
    await eventually(lambda: messages.SessionEnded("s1", "the user said so") in supervisor.heard)
    supervisor.refuses = True
    refused, _ = supervisor.client("bob", 0)
    with pytest.raises(SessionRefused, match="503"):
        await refused.connect(LONG_S)


async def test_a_killed_worker_is_replaced_and_its_clients_are_told(
    supervisor: Supervisor,
) -> None:
    await supervisor.work()
    alice, _ = supervisor.client("alice", 0)
    bob, bobs = supervisor.client("bob", 1)
    await alice.connect(LONG_S)
    await bob.connect(LONG_S)
    first, other = supervisor.process(0), supervisor.process(1)
    assert first is not None and other is not None
    await supervisor.crew.refresh({})
    assert supervisor.crew.handshakes()["completed"] == 2
    os.kill(first.pid, signal.SIGKILL)
    await eventually(lambda: supervisor.lost == [0])
    # Alice has said nothing: the successor speaks first.
    assert "stateless reset" in await asyncio.wait_for(alice.wait_closed(), LONG_S)
    again, _ = supervisor.client("alice", 0)
    await again.connect(LONG_S)
    await supervisor.crew.refresh({})
    assert supervisor.crew.handshakes()["completed"] == 3, "those of the dead one are not forgotten"
    assert [one.restarts for one in supervisor.crew.states()] == [1, 0]
    assert supervisor.process(1) is other
    supervisor.tuns[1].inject(udp_packet("10.20.0.5", V4))
    await eventually(lambda: bobs.written)
    await again.close()
    await bob.close()


async def test_a_worker_that_hangs_is_killed_and_replaced(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "_PING_INTERVAL_S", 0.05)
    await supervisor.work()
    watch = asyncio.create_task(supervisor.crew.watch())
    hanging = supervisor.process(0)
    assert hanging is not None
    await eventually(lambda: hanging.latest.counters, LONG_S)
    os.kill(hanging.pid, signal.SIGSTOP)
    await eventually(lambda: supervisor.process(0) not in (None, hanging), LONG_S)
    starting = supervisor.process(0)
    assert starting is not None and not starting.ready.done()
    os.kill(starting.pid, signal.SIGSTOP)
    starting.started_s -= crew_module._START_TIMEOUT_S  # so long ago
    await eventually(lambda: supervisor.process(0) not in (None, hanging, starting), LONG_S)
    await eventually(lambda: (one := supervisor.process(0)) and one.ready.done(), LONG_S)
    assert supervisor.crew.states()[0].restarts == 2
    watch.cancel()


async def test_only_workers_that_live_feed_the_watchdog(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "_PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(crew_module, "_MAX_UNANSWERED", 1_000_000)
    await supervisor.work()
    watch = asyncio.create_task(supervisor.crew.watch())
    await eventually(lambda: supervisor.answers > 2, LONG_S)
    processes = supervisor.crew.processes
    for one in processes:
        os.kill(one.pid, signal.SIGSTOP)
    await eventually(lambda: all(one.unanswered > 2 for one in processes), LONG_S)
    before = supervisor.answers
    await eventually(lambda: all(one.unanswered > 6 for one in processes), LONG_S)
    assert supervisor.answers == before
    os.kill(processes[-1].pid, signal.SIGCONT)
    await eventually(lambda: supervisor.answers > before, LONG_S)
    for one in processes:
        os.kill(one.pid, signal.SIGCONT)
    watch.cancel()


async def test_a_worker_that_is_slow_to_report_is_left_out_and_lives(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "_REPORT_TIMEOUT_S", 0.01)
    await supervisor.work()
    client, _ = supervisor.client("alice", 0)
    await client.connect(LONG_S)
    slow = supervisor.process(0)
    assert slow is not None
    os.kill(slow.pid, signal.SIGSTOP)
    for _ in range(3 * crew_module._MAX_UNANSWERED):
        await supervisor.crew.refresh()
    assert slow.unanswered == 0
    await asyncio.sleep(0)
    assert not slow._answers and not slow._gathered
    assert supervisor.crew.session("s1", 0) is None
    os.kill(slow.pid, signal.SIGCONT)
    monkeypatch.setattr(crew_module, "_REPORT_TIMEOUT_S", LONG_S)
    await supervisor.crew.refresh()
    assert supervisor.crew.session("s1", 0) is not None
    assert supervisor.process(0) is slow
    await client.close()


async def test_a_worker_that_ends_again_and_again_is_restarted_less_often(
    supervisor: Supervisor,
) -> None:
    await supervisor.work()
    slot = supervisor.crew._slots[0]
    delays = []
    for number in range(1, 4):
        process = await eventually(lambda: supervisor.process(0), LONG_S)
        process.kill()
        await eventually(lambda number=number: slot.restarts == number, LONG_S)
        delays.append(slot.delay_s)
    assert delays == [0.25, 0.5, 1.0]


async def test_a_worker_that_is_told_nonsense_ends_and_is_replaced(supervisor: Supervisor) -> None:
    await supervisor.work()
    process = supervisor.process(0)
    assert process is not None
    process.send(messages.Ready("me?"))  # no message for a worker
    await eventually(lambda: supervisor.lost == [0], LONG_S)
    await eventually(lambda: supervisor.process(0) not in (None, process), LONG_S)


async def test_a_worker_that_cannot_begin_says_why(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.key_file = tmp_path / "missing.key"
    with pytest.raises(WorkerError, match=r"worker 0: .*missing\.key"):
        await supervisor.work()


async def test_signals_for_the_supervisor_are_not_for_workers(supervisor: Supervisor) -> None:
    await supervisor.work()
    process = supervisor.process(0)
    assert process is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, number)
    client, _ = supervisor.client("alice", 0)
    await client.connect(LONG_S)
    await client.close()
    assert supervisor.process(0) is process


async def test_workers_that_were_never_configured_end_too(pki: Pki) -> None:
    supervisor = Supervisor(pki, 1)
    supervisor.crew.spawn()
    await supervisor.crew.stop()
    assert supervisor.crew.processes == []
    supervisor.close()


async def test_a_worker_ends_when_nobody_listens_any_more(supervisor: Supervisor) -> None:
    await supervisor.work()
    process = supervisor.process(0)
    assert process is not None
    process._channel._socket.shutdown(socket.SHUT_RDWR)
    await eventually(lambda: supervisor.lost == [0], LONG_S)
