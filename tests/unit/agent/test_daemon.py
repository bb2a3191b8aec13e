"""The agent with a scripted tunnel and a scripted host network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from zgate_agent.config import AgentConfig, Mode, OnDisconnect
from zgate_agent.daemon import Agent, CompareServices
from zgate_agent.machine import State
from zgate_agent.plan import HALVES, IpAddress
from zgate_agent.rtnl import RoutingError, TunGone
from zgate_agent.split_dns import NOTHING as NO_NAMES
from zgate_agent.split_dns import Method
from zgate_agent.status import AgentStatus
from zgate_config.dialling import GatewayAddress
from zgate_datapath.client import (
    ClientCertificateRefused,
    ConnectTimeout,
    GatewayCertificateRefused,
    SessionRefused,
)
from zgate_host.backoff import Backoff
from zgate_host.resolve import ResolveError
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.ip_range import IpRange
from zgate_protocol.service_capsule import ObservedAddress

from .conftest import (
    GATEWAY,
    OTHER_GATEWAY,
    PATH,
    Dialler,
    FakeNames,
    FakeNetwork,
    tunnel_state,
)

UP = tunnel_state("10.100.0.2/32", "fd7a::2/128")
SOON_S = 5.0
LONG_S = 1000.0


async def one_address(host: str) -> Sequence[IpAddress]:
    return (GATEWAY,)


async def two_addresses(host: str) -> Sequence[IpAddress]:
    return (OTHER_GATEWAY, GATEWAY)


async def nothing_differs(dns: DnsAssign) -> Sequence[str]:
    return ()


@asynccontextmanager
async def running(
    config: AgentConfig,
    dial: Dialler,
    network: FakeNetwork,
    *,
    names: FakeNames | None = None,
    resolve: Callable[[str], Awaitable[Sequence[IpAddress]]] = one_address,
    compare: CompareServices | None = None,
    delay_s: float = 0.001,
) -> AsyncIterator[Agent]:
    """An agent that runs for the length of the block, and is stopped after it."""
    backoff = Backoff(lambda: 0.0, minimum_s=delay_s, maximum_s=delay_s)
    names = names or FakeNames()
    agent = Agent(
        config,
        network=network,
        names=names,
        make_tunnel=dial,
        resolve=resolve,
        compare_services=compare or nothing_differs,
        backoff=backoff,
    )
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        agent.stop("end of the test")
        code = await asyncio.wait_for(task, SOON_S)
    assert code == 0
    assert network.calls[-1] == "withdraw"
    assert names.state == NO_NAMES
    assert all(one.close_reasons for one in dial.tunnels[-1:])


async def until(agent: Agent, condition: Callable[[AgentStatus], object]) -> AgentStatus:
    async with asyncio.timeout(SOON_S):
        while not condition(status := agent.status()):
            await asyncio.sleep(0.001)
    return status


def connected(status: AgentStatus) -> bool:
    return status.state is State.CONNECTED and bool(status.addresses)


async def test_it_connects_and_programs(config: AgentConfig) -> None:
    dial, network = Dialler(UP), FakeNetwork()
    async with running(config, dial, network) as agent:
        status = await until(agent, connected)
        assert status.reason == ""
        assert status.addresses == ["10.100.0.2/32", "fd7a::2/128"]
        assert status.routes == [str(half) for half in HALVES]
        assert status.pinned == [str(GATEWAY)]
        assert status.gateway_address == "203.0.113.10:443"
        assert status.local_address == "198.18.1.2"
        assert (status.mtu_bytes, status.reconnects) == (1400, 0)
        assert status.counters["packets_up"] == 3
        assert status.drops == {"TOO_BIG": 1}
    client = dial.tunnels[0].config
    assert (client.host, client.server_name) == ("203.0.113.10", "gateway.example")
    assert agent.status().state is State.STOPPED


async def test_the_configured_name_is_what_the_certificate_must_carry(config: AgentConfig) -> None:
    named = config.model_copy(
        update={"given_gateway": GatewayAddress("203.0.113.10", 8443), "server_name": "gw.example"}
    )
    dial = Dialler(UP)
    async with running(named, dial, FakeNetwork()) as agent:
        await until(agent, connected)
    client = dial.tunnels[0].config
    assert (client.server_name, client.port) == ("gw.example", 8443)


async def test_all_addresses_are_tried_and_each_failure_is_told(config: AgentConfig) -> None:
    dial = Dialler(ConnectTimeout("no answer"), GatewayCertificateRefused("wrong name"))
    async with running(config, dial, FakeNetwork(), resolve=two_addresses, delay_s=LONG_S) as agent:
        status = await until(agent, lambda one: one.state is State.BACKOFF)
        assert status.reason == (
            "2001:db8:f::10: no answer;"
            " 203.0.113.10: the gateway's certificate is refused: wrong name"
        )
        assert [one.address for one in status.failed_addresses] == [
            "2001:db8:f::10",
            "203.0.113.10",
        ]
        assert status.next_attempt_s is not None
        assert 0 < status.next_attempt_s <= LONG_S
        assert status.addresses == []


async def test_the_second_address_is_enough(config: AgentConfig) -> None:
    dial = Dialler(ConnectTimeout("no answer"), UP)
    async with running(config, dial, FakeNetwork(), resolve=two_addresses) as agent:
        status = await until(agent, connected)
        assert [one.error for one in status.failed_addresses] == ["no answer"]
        assert status.gateway_address == "203.0.113.10:443"


async def test_the_address_of_the_last_session_comes_first_next_time(config: AgentConfig) -> None:
    dial = Dialler(ConnectTimeout("no answer"), UP)
    async with running(config, dial, FakeNetwork(), resolve=two_addresses) as agent:
        await until(agent, connected)
        dial.tunnels[-1].end("lost")
        await until(agent, lambda one: connected(one) and one.reconnects == 1)
    assert [one.config.host for one in dial.tunnels] == [
        "2001:db8:f::10",
        "203.0.113.10",
        "203.0.113.10",
    ]


async def test_a_lost_session_comes_back_and_nothing_is_withdrawn(config: AgentConfig) -> None:
    dial, network = Dialler(UP), FakeNetwork()
    async with running(config, dial, network) as agent:
        await until(agent, connected)
        dial.tunnels[0].end("idle timeout")
        await until(agent, lambda one: one.reconnects == 1 and connected(one))
        assert "withdraw" not in network.calls
        assert dial.tunnels[0].close_reasons, "the old one is closed"


async def test_released_routes_are_withdrawn_while_there_is_no_session(config: AgentConfig) -> None:
    releasing = config.model_copy(update={"on_disconnect": OnDisconnect.RELEASE})
    dial, network = Dialler(UP), FakeNetwork()
    async with running(releasing, dial, network, delay_s=LONG_S) as agent:
        await until(agent, connected)
        dial.tunnels[0].end("idle timeout")
        status = await until(agent, lambda one: one.state is State.BACKOFF and not one.routes)
        assert status.reason == "idle timeout"


async def test_while_routes_are_in_force_every_address_dialled_is_pinned_first(
    config: AgentConfig,
) -> None:
    dial, network = Dialler(UP), FakeNetwork()
    async with running(config, dial, network, resolve=two_addresses) as agent:
        await until(agent, connected)
        assert network.pinned == [(OTHER_GATEWAY,)]
        dial.tunnels[0].end("lost")
        # The state changes first; addresses of before are still there: wait for what is programmed.
        await until(agent, lambda one: one.reconnects == 1 and len(network.pinned) == 3)
        assert network.pinned[1:] == [(OTHER_GATEWAY, GATEWAY), (OTHER_GATEWAY,)]


async def test_a_name_that_does_not_resolve(config: AgentConfig) -> None:
    async def fails(host: str) -> Sequence[IpAddress]:
        raise ResolveError(f"cannot resolve {host}: no such name")

    dial = Dialler(UP)
    async with running(config, dial, FakeNetwork(), resolve=fails, delay_s=LONG_S) as agent:
        status = await until(agent, lambda one: one.state is State.BACKOFF)
        assert status.reason == "cannot resolve gateway.example: no such name"
    assert not dial.tunnels


async def test_a_name_server_behind_the_tunnel(config: AgentConfig) -> None:
    """The name is unresolvable once the tunnel's routes are in force: the old address serves."""
    asked = 0

    async def once(host: str) -> Sequence[IpAddress]:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise ResolveError("cannot resolve: no answer")
        return (GATEWAY,)

    dial = Dialler(UP)
    async with running(config, dial, FakeNetwork(), resolve=once) as agent:
        await until(agent, connected)
        dial.tunnels[0].end("lost")
        status = await until(agent, lambda one: one.reconnects == 1 and connected(one))
        assert status.notes == ["cannot resolve: no answer; trying the addresses known from before"]


async def test_a_name_server_that_never_answers(config: AgentConfig) -> None:
    async def hangs(host: str) -> Sequence[IpAddress]:
        await asyncio.Event().wait()
        raise AssertionError

    impatient = config.model_copy(update={"connect_timeout_s": 0.01})
    async with running(
        impatient, Dialler(UP), FakeNetwork(), resolve=hangs, delay_s=LONG_S
    ) as agent:
        status = await until(agent, lambda one: one.state is State.BACKOFF)
        assert "no answer from the name server in time" in status.reason


async def test_what_the_gateway_changes_is_programmed(config: AgentConfig) -> None:
    dial, network = Dialler(UP), FakeNetwork()
    split = config.model_copy(update={"routes": (ip_network("10.20.0.0/16"),)})
    async with running(split, dial, network) as agent:
        await until(agent, connected)
        assert network.plan.routes == (ip_network("10.20.0.0/16"),)
        dial.tunnels[0].on_change(
            replace(UP, addresses=(ip_interface("10.100.0.9/32"),), mtu_bytes=1300)
        )
        await until(agent, lambda one: one.addresses == ["10.100.0.9/32"] and one.mtu_bytes == 1300)


async def test_a_full_tunnel_takes_everything(config: AgentConfig) -> None:
    full = config.model_copy(update={"mode": Mode.FULL})
    network = FakeNetwork()
    nothing_advertised = replace(UP, routes=())
    async with running(full, Dialler(nothing_advertised), network) as agent:
        await until(agent, connected)
        assert network.plan.routes == HALVES


async def test_a_network_that_cannot_be_programmed(config: AgentConfig) -> None:
    dial, network = Dialler(UP), FakeNetwork(failure=RoutingError("cannot set up: no room"))
    async with running(config, dial, network, delay_s=LONG_S) as agent:
        status = await until(agent, lambda one: one.state is State.BACKOFF)
        assert status.reason == "cannot set up: no room"
        # The state changes first, what follows from it is carried out one by one.
        await until(agent, lambda one: dial.tunnels[0].close_reasons)
        assert dial.tunnels[0].close_reasons == ["the host's network failed"]
        assert status.routes == []


async def test_a_new_path_is_pinned_and_the_session_moves(config: AgentConfig) -> None:
    dial, network = Dialler(UP), FakeNetwork()
    async with running(config, dial, network) as agent:
        await until(agent, connected)
        network.calls.clear()
        network.path = replace(PATH, source=ip_address("198.18.1.77"))
        agent.network_changed()
        status = await until(agent, lambda one: one.rebinds == 1)
        assert status.local_address == "198.18.1.77"
        assert dial.tunnels[0].rebinds == 1
        assert network.calls == ["apply"]
        agent.network_changed()
        await until(agent, lambda _: len(network.calls) == 2)
        assert dial.tunnels[0].rebinds == 1, "the same path again is no change"


async def test_a_path_that_comes_back_moves_the_session_though_it_is_the_same(
    config: AgentConfig,
) -> None:
    dial, network = Dialler(UP), FakeNetwork()
    async with running(config, dial, network) as agent:
        await until(agent, connected)
        network.path = None
        agent.network_changed()
        await until(agent, lambda one: one.local_address is None)
        assert dial.tunnels[0].rebinds == 0
        network.path = PATH
        agent.network_changed()
        await until(agent, lambda one: one.rebinds == 1)


async def test_a_network_that_comes_up_ends_the_wait(config: AgentConfig) -> None:
    dial, network = Dialler(ConnectTimeout("unreachable"), UP), FakeNetwork(path=None)
    async with running(config, dial, network, delay_s=LONG_S) as agent:
        await until(agent, lambda one: one.state is State.BACKOFF)
        network.path = PATH
        agent.network_changed()
        await until(agent, connected)


async def test_a_network_that_comes_up_ends_the_wait_for_a_name(config: AgentConfig) -> None:
    asked = 0

    async def second_time(host: str) -> Sequence[IpAddress]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ResolveError("no")
        return (GATEWAY,)

    async with running(
        config, Dialler(UP), FakeNetwork(), resolve=second_time, delay_s=LONG_S
    ) as agent:
        await until(agent, lambda one: one.state is State.BACKOFF)
        agent.network_changed()
        await until(agent, connected)


async def test_a_session_is_renewed_beside_the_first(config: AgentConfig) -> None:
    dial, network = Dialler(UP, None), FakeNetwork()
    async with running(config, dial, network) as agent:
        await until(agent, connected)
        agent.reconnect()
        status = await until(agent, lambda one: one.is_renewing and len(dial.tunnels) == 2)
        first, second = dial.tunnels
        assert connected(status) and status.reconnects == 0
        assert (first.reads_tun, second.reads_tun, first.close_reasons) == (True, False, [])
        assert "withdraw" not in network.calls


async def test_the_renewed_session_reads_the_tun_and_the_first_is_closed(
    config: AgentConfig,
) -> None:
    dial, network = Dialler(UP), FakeNetwork()
    async with running(config, dial, network) as agent:
        await until(agent, connected)
        dial.tunnels[0].notices.on_dns(NAMES)
        await until(agent, lambda one: one.dns.domains)
        agent.identity_changed("")
        await until(agent, lambda one: connected(one) and one.reconnects == 1)
        first, second = dial.tunnels
        assert (first.reads_tun, second.reads_tun) == (False, True)
        assert agent.status().dns.domains, "names were not forgotten meanwhile"
        await until(agent, lambda _: first.close_reasons)
        assert (first.close_reasons, second.close_reasons) == (["renewed"], [])
        assert agent.status().state is State.CONNECTED
        assert "withdraw" not in network.calls
        second.notices.on_dns(NAMES)
        second.end("idle")
        await until(agent, lambda one: connected(one) and one.reconnects == 2)


async def test_a_renewal_that_fails_leaves_the_session_and_is_told(config: AgentConfig) -> None:
    refused = SessionRefused(503, "the gateway is draining")
    dial = Dialler(UP, refused)
    async with running(config, dial, FakeNetwork(), delay_s=LONG_S) as agent:
        await until(agent, connected)
        agent.reconnect()
        status = await until(agent, lambda one: one.renewal_problem)
        assert connected(status) and "503" in status.renewal_problem
        assert dial.tunnels[0].reads_tun and not dial.tunnels[0].close_reasons
        assert status.next_attempt_s is not None
        agent.identity_changed("certificate and key do not belong together")


async def test_a_session_that_ends_while_it_is_renewed(config: AgentConfig) -> None:
    dial = Dialler(UP, None)
    async with running(config, dial, FakeNetwork()) as agent:
        await until(agent, connected)
        agent.reconnect()
        await until(agent, lambda _: len(dial.tunnels) == 2)
        dial.tunnels[0].end("idle timeout")
        status = await until(agent, lambda one: one.state is State.CONNECTING)
        assert status.reason == "idle timeout"
        await until(agent, lambda _: dial.tunnels[0].close_reasons)


async def test_its_line_is_given_up_before_anything_that_waits(config: AgentConfig) -> None:
    """The attempt beside it goes on, and its line must not be taken for the one that ended."""
    dial = Dialler(UP, None)

    class Names(FakeNames):
        def withdraw(self) -> None:
            assert not dial.tunnels[0].reads_tun
            super().withdraw()

    names = Names()
    async with running(config, dial, FakeNetwork(), names=names) as agent:
        await until(agent, connected)
        dial.tunnels[0].notices.on_dns(NAMES)
        await until(agent, lambda one: one.dns.domains)
        agent.reconnect()
        await until(agent, lambda _: len(dial.tunnels) == 2)
        dial.tunnels[0].end("idle timeout")
        await until(agent, lambda one: not one.dns.domains)
        await until(agent, lambda _: dial.tunnels[0].close_reasons)


async def test_an_address_that_never_answers_is_not_tried_first_after_an_outage(
    config: AgentConfig,
) -> None:
    """The last session's address comes first, not the one that was tried last."""
    silent = ConnectTimeout("no answer")
    dial = Dialler(silent, UP, silent, silent, UP)
    async with running(config, dial, FakeNetwork(), resolve=two_addresses) as agent:
        await until(agent, connected)
        dial.tunnels[-1].end("lost")
        await until(agent, lambda one: connected(one) and one.reconnects == 1)
    good, bad = str(GATEWAY), str(OTHER_GATEWAY)
    assert [one.config.host for one in dial.tunnels] == [bad, good, good, bad, good]


async def test_a_gateway_that_drains_is_left_for_the_next(config: AgentConfig) -> None:
    first, second = GatewayAddress("one.example"), GatewayAddress("two.example", 8443)
    both = config.model_copy(
        update={"given_gateway": None, "given_gateways": (first, second), "server_name": None}
    )
    dial = Dialler(UP)
    async with running(both, dial, FakeNetwork()) as agent:
        status = await until(agent, connected)
        assert (status.gateway, status.server_name) == ("one.example:443", "one.example")
        dial.tunnels[0].notices.on_drain(30_000)
        status = await until(agent, lambda one: one.gateway == "two.example:8443")
        assert connected(status) and status.gateways == ["one.example:443", "two.example:8443"]
        assert dial.tunnels[1].config.server_name == "two.example"
        # The other one ends: the first is tried last for a while, though it comes first.
        dial.tunnels[1].end("lost")
        await until(agent, lambda one: one.reconnects == 2 and connected(one))
    assert [one.config.port for one in dial.tunnels] == [443, 8443, 8443]


async def test_the_only_gateway_drains(config: AgentConfig) -> None:
    dial = Dialler(UP)
    async with running(config, dial, FakeNetwork()) as agent:
        await until(agent, connected)
        dial.tunnels[0].notices.on_drain(30_000)
        status = await until(agent, lambda one: one.is_draining)
        assert connected(status) and len(dial.tunnels) == 1


async def test_the_next_gateway_is_tried_when_one_refuses(config: AgentConfig) -> None:
    gateways = GatewayAddress("one.example"), GatewayAddress("two.example")
    both = config.model_copy(update={"given_gateway": None, "given_gateways": gateways})
    dial = Dialler(SessionRefused(503, "the gateway is draining"), UP, ConnectTimeout("gone"))
    async with running(both, dial, FakeNetwork(), delay_s=LONG_S) as agent:
        status = await until(agent, connected)
        assert status.gateway == "two.example:443"
        assert [one.error for one in status.failed_addresses]


@pytest.mark.parametrize("answer", [None, SessionRefused(503, "no address left")])
async def test_stopping_interrupts_dialling_and_waiting(
    config: AgentConfig, answer: Exception | None
) -> None:
    dial = Dialler(answer)
    async with running(config, dial, FakeNetwork(), delay_s=LONG_S) as agent:
        await until(agent, lambda _: bool(dial.tunnels))
    # `running` has stopped it, within seconds.


async def test_stopping_interrupts_resolving(config: AgentConfig) -> None:
    asked = asyncio.Event()

    async def hangs(host: str) -> Sequence[IpAddress]:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with running(config, Dialler(UP), FakeNetwork(), resolve=hangs):
        await asyncio.wait_for(asked.wait(), SOON_S)


async def test_a_refused_certificate_of_ours_is_told_apart(config: AgentConfig) -> None:
    dial = Dialler(ClientCertificateRefused("certificate_revoked"))
    async with running(config, dial, FakeNetwork(), delay_s=LONG_S) as agent:
        status = await until(agent, lambda one: one.state is State.BACKOFF)
        assert status.reason.endswith("the gateway refuses our certificate: certificate_revoked")


async def test_a_bug_below_costs_one_attempt(config: AgentConfig) -> None:
    dial = Dialler(AssertionError("a bug"), UP)
    async with running(config, dial, FakeNetwork()) as agent:
        await until(agent, connected)


async def test_a_tun_that_was_removed_ends_the_agent(config: AgentConfig) -> None:
    network = FakeNetwork()
    backoff = Backoff(lambda: 0.0)
    agent = Agent(
        config,
        network=network,
        names=FakeNames(),
        make_tunnel=Dialler(UP),
        resolve=one_address,
        compare_services=nothing_differs,
        backoff=backoff,
    )
    task = asyncio.create_task(agent.run())
    await until(agent, connected)
    network.failure = TunGone("the interface is gone")
    agent.network_changed()
    assert await asyncio.wait_for(task, SOON_S) == 1
    assert agent.status().reason == "the interface is gone"


async def test_a_host_without_ipv6_says_so(config: AgentConfig) -> None:
    network = FakeNetwork(has_ipv6=False)
    async with running(config, Dialler(UP), network) as agent:
        status = await until(agent, connected)
        assert status.notes == ["IPv6 is off on this host: the tunnel carries IPv4 only"]
        network.has_ipv6 = True
        agent.network_changed()
        assert (await until(agent, lambda one: len(one.addresses) == 2)).notes == []


# Names of services, and where the gateway sees us.

NAMES = DnsAssign((ip_address("10.100.0.1"), ip_address("fd7a::1")), ("zgate.internal",))


async def test_the_gateways_names_are_asked_while_there_is_a_session(config: AgentConfig) -> None:
    dial, names = Dialler(UP), FakeNames()
    async with running(config, dial, FakeNetwork(), names=names, delay_s=LONG_S) as agent:
        await until(agent, connected)
        dial.tunnels[0].notices.on_dns(NAMES)
        status = await until(agent, lambda one: one.dns.domains)
        assert status.dns.method is Method.RESOLV_CONF
        assert status.dns.servers == ["10.100.0.1", "fd7a::1"]
        assert status.dns.domains == ["zgate.internal"]
        dial.tunnels[0].end("idle timeout")
        await until(agent, lambda one: one.state is State.BACKOFF and not one.dns.domains)
        assert names.calls[-1] == "withdraw"


async def test_names_may_come_before_the_session_is_ready(config: AgentConfig) -> None:
    dial = Dialler(None, UP)
    names = FakeNames()
    impatient = config.model_copy(update={"connect_timeout_s": 0.01})
    async with running(impatient, dial, FakeNetwork(), names=names) as agent:
        await until(agent, lambda _: dial.tunnels)
        dial.tunnels[0].notices.on_dns(NAMES)
        assert agent.status().dns.domains == []
        dial.tunnels[0].answer = UP
        agent.reconnect()
        await until(agent, connected)
        assert agent.status().dns.domains == [], "what another session said is not this one's"
        dial.tunnels[-1].notices.on_dns(NAMES)
        await until(agent, lambda one: one.dns.domains)


async def test_the_name_servers_are_routed_even_if_routes_are_few(config: AgentConfig) -> None:
    narrow = config.model_copy(update={"routes": (ip_network("10.20.0.0/16"),)})
    advertised = replace(
        UP, routes=tuple(IpRange.of(ip_network(one)) for one in ("10.20.0.0/15", "10.100.0.0/16"))
    )
    dial, network = Dialler(advertised), FakeNetwork()
    async with running(narrow, dial, network) as agent:
        await until(agent, connected)
        assert network.plan.routes == (ip_network("10.20.0.0/16"),)
        dial.tunnels[0].notices.on_dns(NAMES)
        await until(agent, lambda one: one.dns.domains)
        assert network.plan.routes == (ip_network("10.20.0.0/16"), ip_network("10.100.0.1/32"))


async def test_a_changed_network_has_its_names_looked_at(config: AgentConfig) -> None:
    dial, names = Dialler(UP), FakeNames()
    async with running(config, dial, FakeNetwork(), names=names) as agent:
        await until(agent, connected)
        dial.tunnels[0].notices.on_dns(NAMES)
        await until(agent, lambda one: one.dns.domains)
        before = len(names.calls)
        agent.network_changed()
        await until(agent, lambda _: len(names.calls) > before)


async def test_what_the_file_says_of_services_is_compared(config: AgentConfig) -> None:
    async def compare(dns: DnsAssign) -> Sequence[str]:
        return (f"service pacs: not as {dns.domains[0]} says",)

    dial = Dialler(UP)
    async with running(config, dial, FakeNetwork(), compare=compare) as agent:
        await until(agent, connected)
        dial.tunnels[0].notices.on_dns(NAMES)
        status = await until(agent, lambda one: one.notes)
        assert status.notes == ["service pacs: not as zgate.internal says"]


async def test_the_address_that_we_are_seen_at(config: AgentConfig) -> None:
    dial = Dialler(UP)
    async with running(config, dial, FakeNetwork()) as agent:
        status = await until(agent, connected)
        assert status.observed_address is None
        dial.tunnels[0].notices.on_observed(ObservedAddress(1, ip_address("192.0.2.7"), 4711))
        assert agent.status().observed_address == "192.0.2.7:4711"
