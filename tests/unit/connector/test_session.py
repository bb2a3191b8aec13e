"""A session with a gateway: a scripted tunnel, a scripted plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest
from zgate_config.dialling import GatewayAddress
from zgate_connector import session as module
from zgate_connector.config import ConnectorConfig
from zgate_connector.plane import PlaneError
from zgate_connector.session import GatewaySession, offers_of, source_towards
from zgate_connector.status import GatewayStatus, State
from zgate_datapath.client import (
    ClientCertificateRefused,
    ConnectTimeout,
    GatewayCertificateRefused,
)
from zgate_host.backoff import Backoff
from zgate_host.resolve import ResolveError
from zgate_protocol.ip_range import IpAddress
from zgate_protocol.service_capsule import (
    ObservedAddress,
    OfferedService,
    Registered,
    RegistrationCode,
    ServicePorts,
)

from .conftest import (
    GATEWAY,
    OFFER,
    Dialler,
    FakePlane,
    FakeTunnel,
    accepted,
    refused,
    tunnel_state,
)

UP = tunnel_state("10.100.0.2/32", "10.101.255.254/32")
SOON_S = 5.0
LONG_S = 1000.0


async def one_address(host: str) -> Sequence[IpAddress]:
    return (GATEWAY,)


async def two_addresses(host: str) -> Sequence[IpAddress]:
    return (ip_address("2001:db8:f::10"), GATEWAY)


@asynccontextmanager
async def running(
    config: ConnectorConfig,
    dial: Dialler,
    plane: FakePlane,
    *,
    resolve: Callable[[str], Awaitable[Sequence[IpAddress]]] = one_address,
    delay_s: float = 0.001,
) -> AsyncIterator[GatewaySession]:
    """A session that runs for the length of the block, and is cancelled after it."""
    session = GatewaySession(
        GatewayAddress("gateway.example"),
        config,
        plane=plane,
        make_tunnel=dial,
        resolve=resolve,
        backoff=Backoff(lambda: 0.0, minimum_s=delay_s, maximum_s=delay_s),
    )
    task = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        assert not task.done()
        task.cancel()
        await asyncio.wait([task], timeout=0.5)
        assert task.cancelled(), "it takes no longer than half a second"
    assert plane.log[-1] == "close"
    assert all(tunnel.close_reasons for tunnel in dial.tunnels)
    assert session.status().state is State.STOPPED


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.001)


async def reach(
    session: GatewaySession, condition: Callable[[GatewayStatus], object]
) -> GatewayStatus:
    await until(lambda: condition(session.status()))
    return session.status()


def connected(status: GatewayStatus) -> bool:
    return status.state is State.CONNECTED


async def live(session: GatewaySession, dial: Dialler) -> FakeTunnel:
    await reach(session, connected)
    return dial.tunnels[-1]


def test_a_service_of_both_protocols_is_one_offer(config: ConnectorConfig) -> None:
    networks = config.model_copy(update={"networks": ()})
    assert offers_of(networks).services == (
        OfferedService("echo", (ServicePorts(17, 7, 7), ServicePorts(6, 7, 7))),
        OfferedService("pacs", (ServicePorts(6, 104, 104), ServicePorts(6, 200, 210))),
    )


async def test_it_offers_and_serves_what_is_accepted(config: ConnectorConfig) -> None:
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane) as session:
        tunnel = await live(session, dial)
        assert tunnel.offers == offers_of(config)
        assert (tunnel.config.host, tunnel.config.server_name) == (str(GATEWAY), "gateway.example")
        assert (tunnel.config.keepalive_s, tunnel.config.idle_timeout_s) == (10, 30)
        tunnel.notices.on_registered(Registered(1, (accepted(), refused("pacs"))))
        await until(lambda: plane.offered and plane.offered[-1])
        assert plane.offered[-1] == {"echo": (OFFER,)}
        status = session.status()
        assert [(one.name, one.code) for one in status.answers] == [
            ("echo", "accepted"),
            ("pacs", "not_authorized"),
        ]
        assert status.answers[0].service_addresses == ["10.101.0.1"]
        assert status.addresses == ["10.100.0.2", "10.101.255.254"]
        assert (status.routes, status.mtu_bytes) == (["10.100.0.0/16"], 1400)
        assert [(one.name, one.health) for one in status.services] == [("echo", "up")]


async def test_what_the_gateway_takes_back_is_served_no_longer(config: ConnectorConfig) -> None:
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane) as session:
        tunnel = await live(session, dial)
        tunnel.notices.on_registered(Registered(1, (accepted(),)))
        await until(lambda: plane.offered[-1])
        tunnel.notices.on_registered(Registered(1, (refused(),)))
        await until(lambda: not plane.offered[-1])


async def test_the_sign_of_life_comes_each_second_and_at_once_on_a_change(
    config: ConnectorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane) as session:
        tunnel = await live(session, dial)
        tunnel.notices.on_registered(Registered(1, (accepted(),)))
        await until(lambda: tunnel.beats and tunnel.beats[-1])
        assert [one.name for one in tunnel.beats[-1]] == ["echo"]
        before = len(tunnel.beats)
        session.health_changed()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await until(lambda: len(tunnel.beats) > before)
        monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
        session.health_changed()
        before = len(tunnel.beats)
        await until(lambda: len(tunnel.beats) > before + 5)


async def test_a_lost_session_comes_back_and_everything_is_offered_again(
    config: ConnectorConfig,
) -> None:
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane) as session:
        tunnel = await live(session, dial)
        tunnel.notices.on_registered(Registered(1, (accepted(),)))
        await until(lambda: plane.offered[-1])
        tunnel.end("idle timeout")
        status = await reach(session, lambda one: connected(one) and one.reconnects == 1)
        assert plane.log == ["open", "begin", "end", "open", "begin"]
        assert status.answers == [], "those of the session before are nobody's"
        assert dial.tunnels[1].offers == offers_of(config)
        # What the dead session still says is not heard.
        tunnel.notices.on_registered(Registered(9, (accepted(),)))
        assert session.status().answers == []


async def test_the_gateway_is_told_before_the_flows_are_ended(config: ConnectorConfig) -> None:
    log: list[str] = []
    dial, plane = Dialler(UP, log=log), FakePlane(log=log)
    async with running(config, dial, plane) as session:
        await live(session, dial)
    assert log == ["open", "begin", "tunnel closed", "end", "close"]


async def test_all_addresses_are_tried_and_each_failure_is_told(config: ConnectorConfig) -> None:
    dial = Dialler(ConnectTimeout("no answer"), GatewayCertificateRefused("wrong name"))
    async with running(config, dial, FakePlane(), resolve=two_addresses, delay_s=LONG_S) as session:
        status = await reach(session, lambda one: one.state is State.BACKOFF)
        assert status.reason == (
            "2001:db8:f::10: no answer;"
            " 203.0.113.10: the gateway's certificate is refused: wrong name"
        )
        assert len(status.failed_addresses) == 2
        assert status.next_attempt_s is not None
        session.reconnect()
        await until(lambda: len(dial.tunnels) == 4)


async def test_an_address_that_never_answers_is_not_tried_first_after_an_outage(
    config: ConnectorConfig,
) -> None:
    """The last session's address comes first, not the one that was tried last."""
    silent = ConnectTimeout("no answer")
    dial = Dialler(silent, UP, silent, silent, UP)
    async with running(config, dial, FakePlane(), resolve=two_addresses) as session:
        (await live(session, dial)).end("lost")
        await reach(session, lambda one: connected(one) and one.reconnects == 1)
    good, bad = str(GATEWAY), "2001:db8:f::10"
    assert [one.config.host for one in dial.tunnels] == [bad, good, good, bad, good]


async def test_a_name_that_does_not_resolve(config: ConnectorConfig) -> None:
    async def fails(host: str) -> Sequence[IpAddress]:
        raise ResolveError(f"cannot resolve {host}: no such name")

    dial = Dialler(UP)
    async with running(config, dial, FakePlane(), resolve=fails, delay_s=LONG_S) as session:
        status = await reach(session, lambda one: one.state is State.BACKOFF)
        assert status.reason == "cannot resolve gateway.example: no such name"
    assert not dial.tunnels


async def test_a_name_server_that_never_answers(config: ConnectorConfig) -> None:
    async def hangs(host: str) -> Sequence[IpAddress]:
        await asyncio.Event().wait()
        raise AssertionError

    impatient = config.model_copy(update={"connect_timeout_s": 0.01})
    async with running(
        impatient, Dialler(UP), FakePlane(), resolve=hangs, delay_s=LONG_S
    ) as session:
        status = await reach(session, lambda one: one.state is State.BACKOFF)
        assert "no answer from the name server in time" in status.reason


@pytest.mark.parametrize("answer", [None, ClientCertificateRefused("certificate_revoked")])
async def test_dialling_and_waiting_can_be_interrupted(
    config: ConnectorConfig, answer: Exception | None
) -> None:
    dial = Dialler(answer)
    async with running(config, dial, FakePlane(), delay_s=LONG_S):
        await until(lambda: dial.tunnels)
    # `running` has stopped it, within half a second.


async def test_a_plane_that_cannot_serve_ends_the_session(config: ConnectorConfig) -> None:
    dial, plane = Dialler(UP), FakePlane(failure=PlaneError("no room"))
    async with running(config, dial, plane, delay_s=LONG_S) as session:
        status = await reach(session, lambda one: one.state is State.BACKOFF)
        assert status.reason == "no room"
        assert dial.tunnels[0].close_reasons


async def test_a_chamber_that_ends_is_made_anew(config: ConnectorConfig) -> None:
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane) as session:
        await live(session, dial)
        plane.gone.set_result("the chamber's process has ended (killed by signal 9)")
        await until(lambda: len(dial.tunnels) > 1)
        plane.gone = asyncio.get_running_loop().create_future()
        await reach(session, connected)
        assert plane.log.count("open") >= 2


async def test_a_bug_below_costs_one_attempt(config: ConnectorConfig) -> None:
    dial = Dialler(AssertionError("a bug"), UP)
    async with running(config, dial, FakePlane()) as session:
        await reach(session, connected)


@pytest.mark.parametrize(
    ("code", "asks"),
    [(RegistrationCode.NO_ADDRESS, True), (RegistrationCode.INVALID, False)],
)
async def test_what_was_refused_is_offered_again_if_that_may_help(
    config: ConnectorConfig, monkeypatch: pytest.MonkeyPatch, code: RegistrationCode, asks: bool
) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.01)
    dial = Dialler(UP)
    async with running(config, dial, FakePlane()) as session:
        tunnel = await live(session, dial)
        tunnel.notices.on_registered(Registered(1, (accepted("pacs"), refused("echo", code))))
        if asks:
            await until(lambda: tunnel.offered_again >= 2)
            tunnel.notices.on_registered(Registered(1, (accepted("pacs"), accepted("echo"))))
        before = tunnel.offered_again
        await asyncio.sleep(0.1)
        assert tunnel.offered_again <= before + 1
        assert asks or not tunnel.offered_again


@pytest.mark.parametrize(("deadline_ms", "deadline_s"), [(5000, 5.0), (0, None)])
async def test_draining(
    config: ConnectorConfig, deadline_ms: int, deadline_s: float | None
) -> None:
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane) as session:
        tunnel = await live(session, dial)
        assert not session.status().is_draining
        tunnel.notices.on_drain(deadline_ms)
        await until(lambda: plane.drained == [deadline_s])
        assert session.status().is_draining
        assert connected(session.status())


async def test_the_address_that_we_are_seen_at(config: ConnectorConfig) -> None:
    dial = Dialler(UP)
    async with running(config, dial, FakePlane()) as session:
        tunnel = await live(session, dial)
        assert session.status().observed_address is None
        tunnel.notices.on_observed(ObservedAddress(1, ip_address("2001:db8::7"), 4711))
        assert session.status().observed_address == "[2001:db8::7]:4711"


async def test_a_session_moves_to_the_address_that_the_host_has_now(
    config: ConnectorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: list[str | None] = ["198.18.1.2"]
    monkeypatch.setattr(module, "source_towards", lambda gateway: source[0])
    dial = Dialler(UP)
    async with running(config, dial, FakePlane()) as session:
        tunnel = await live(session, dial)
        session.network_changed()
        source[0] = None
        session.network_changed()
        assert tunnel.rebinds == 0, "the same way, or none at the moment"
        source[0] = "198.18.9.9"
        session.network_changed()
        session.network_changed()
        assert tunnel.rebinds == 1


async def test_another_way_ends_the_wait_and_the_same_one_does_not(
    config: ConnectorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: list[str | None] = [None]
    monkeypatch.setattr(module, "source_towards", lambda gateway: source[0])
    dial = Dialler(ConnectTimeout("no answer"), UP)
    async with running(config, dial, FakePlane(), delay_s=LONG_S) as session:
        await reach(session, lambda one: one.state is State.BACKOFF)
        session.network_changed()
        await asyncio.sleep(0.01)
        assert session.status().state is State.BACKOFF
        source[0] = "198.18.1.2"
        session.network_changed()
        await reach(session, connected)


def test_the_source_towards_a_gateway() -> None:
    assert source_towards(("127.0.0.1", 443)) == "127.0.0.1"
    assert source_towards(("no address", 443)) is None


async def test_networks_are_offered_too(config: ConnectorConfig) -> None:
    both = config.model_copy(
        update={"networks": load_networks("10.20.0.0/16"), "services": config.services[:1]}
    )
    assert offers_of(both).networks == (ip_network("10.20.0.0/16"),)


def load_networks(*texts: str) -> tuple[object, ...]:
    from zgate_connector.config import NetworkSettings

    return tuple(NetworkSettings(network=one) for one in texts)  # type: ignore[arg-type]


# Another certificate.


async def test_another_certificate_is_for_another_session_at_once(config: ConnectorConfig) -> None:
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane, delay_s=LONG_S) as session:
        await live(session, dial)
        session.identity_changed("")
        await until(lambda: len(dial.tunnels) == 2 and connected(session.status()))
        assert dial.tunnels[0].close_reasons
        assert session.status().reconnects == 1


async def test_open_flows_put_it_off(
    config: ConnectorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(module, "_expiry_of", lambda _: datetime.now(UTC) + timedelta(hours=1))
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane, delay_s=LONG_S) as session:
        await live(session, dial)
        monkeypatch.setattr(session, "_open_flows", lambda: 3)
        session.identity_changed("")
        await asyncio.sleep(0.1)
        assert len(dial.tunnels) == 1
        monkeypatch.setattr(session, "_open_flows", lambda: 0)
        await until(lambda: len(dial.tunnels) == 2)


async def test_but_not_beyond_the_expiry_of_the_old_one(
    config: ConnectorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    expiry = datetime.now(UTC) + timedelta(seconds=module.RENEW_BEFORE_EXPIRY_S + 0.1)
    monkeypatch.setattr(module, "_expiry_of", lambda _: expiry)
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane, delay_s=LONG_S) as session:
        await live(session, dial)
        monkeypatch.setattr(session, "_open_flows", lambda: 3)
        session.identity_changed("")
        await until(lambda: len(dial.tunnels) == 2)


async def test_files_that_cannot_be_used_leave_the_session(config: ConnectorConfig) -> None:
    dial, plane = Dialler(UP), FakePlane()
    async with running(config, dial, plane) as session:
        await live(session, dial)
        session.identity_changed("the key is another certificate's")
        await asyncio.sleep(0.05)
        assert len(dial.tunnels) == 1
        assert session.status().renewal_problem == "the key is another certificate's"
        session.identity_changed("")
        await until(lambda: len(dial.tunnels) == 2)
        assert session.status().renewal_problem == ""


async def test_another_certificate_ends_the_wait(config: ConnectorConfig) -> None:
    dial, plane = Dialler(ClientCertificateRefused("expired"), UP), FakePlane()
    async with running(config, dial, plane, delay_s=LONG_S) as session:
        await reach(session, lambda one: one.state is State.BACKOFF)
        session.identity_changed("")
        await live(session, dial)
