"""A tunnel and a host network that do what a test says, and the configuration between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from zgate_agent.config import AgentConfig, Mode, load_config
from zgate_agent.machine import State
from zgate_agent.plan import IpAddress, NetworkPlan
from zgate_agent.routing import NOTHING, PhysicalPath
from zgate_agent.split_dns import NOTHING as NO_NAMES
from zgate_agent.split_dns import DnsState, Method
from zgate_agent.status import AgentStatus
from zgate_datapath.client import ClientConfig, TunnelError, TunnelState
from zgate_datapath.offers import Notices
from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.ip_range import EVERYTHING

GATEWAY = ip_address("203.0.113.10")
OTHER_GATEWAY = ip_address("2001:db8:f::10")
PATH = PhysicalPath(2, ip_address("198.18.1.1"), ip_address("198.18.1.2"))


def tunnel_state(*addresses: str, mtu_bytes: int = 1400) -> TunnelState:
    return TunnelState(
        addresses=tuple(ip_interface(one) for one in addresses or ("10.100.0.2/32",)),
        routes=EVERYTHING,
        gateway_address=("203.0.113.10", 443),
        local_address=("198.18.1.2", 40000),
        mtu_bytes=mtu_bytes,
    )


@dataclass
class FakeTunnel:
    """One dial. `answer`: a state, an error, or None for silence."""

    config: ClientConfig
    on_change: Callable[[TunnelState], None]
    notices: Notices
    answer: TunnelState | Exception | None
    closed: asyncio.Future[str] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    close_reasons: list[str] = field(default_factory=list)
    rebinds: int = 0
    stands_by: bool = False
    reads_tun: bool = False

    async def connect(self, timeout_s: float) -> TunnelState:
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        self.reads_tun = not self.stands_by
        return self.answer

    def let_go(self) -> None:
        self.reads_tun = False

    def take_over(self) -> None:
        self.reads_tun = True

    async def wait_closed(self) -> str:
        return await asyncio.shield(self.closed)

    async def close(self, reason: str = "") -> None:
        self.close_reasons.append(reason)
        self.end(reason)

    def end(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)

    def rebind(self) -> None:
        self.rebinds += 1

    def statistics(self) -> dict[str, float]:
        return {"packets_up": 3, "bytes_up": 252, "packets_down": 2, "bytes_down": 168}

    def drops(self) -> dict[DropReason, int]:
        return {DropReason.TOO_BIG: 1}


@dataclass
class FakeNetwork:
    """Remembers what was asked of it."""

    wanted: NetworkPlan = NOTHING
    plan: NetworkPlan = NOTHING
    has_ipv6: bool = True
    path: PhysicalPath | None = PATH
    failure: Exception | None = None
    calls: list[str] = field(default_factory=list)
    pinned: list[tuple[IpAddress, ...]] = field(default_factory=list)

    def apply(self, plan: NetworkPlan) -> NetworkPlan:
        self.calls.append("apply")
        self.pinned.append(plan.pins)
        if self.failure is not None:
            self.wanted = self.plan = NOTHING
            raise self.failure
        self.wanted = plan
        self.plan = plan if self.has_ipv6 else plan.without_version(6)
        return self.plan

    def withdraw(self) -> None:
        self.calls.append("withdraw")
        self.wanted = self.plan = NOTHING

    def path_to(self, address: IpAddress) -> PhysicalPath | None:
        return self.path


@dataclass
class FakeNames:
    """Remembers what was asked of it."""

    state: DnsState = NO_NAMES
    calls: list[str] = field(default_factory=list)

    def apply(self, dns: DnsAssign, versions: Sequence[int]) -> DnsState:
        self.calls.append("apply")
        servers = tuple(one for one in dns.servers if one.version in versions)
        self.state = DnsState(Method.RESOLV_CONF, servers, dns.domains)
        return self.state

    def withdraw(self) -> None:
        self.calls.append("withdraw")
        self.state = NO_NAMES


class Dialler:
    """Makes the tunnels: the n-th dial gets the n-th answer, the last one for ever."""

    def __init__(self, *answers: TunnelState | TunnelError | Exception | None) -> None:
        self.answers = list(answers)
        self.tunnels: list[FakeTunnel] = []

    def __call__(
        self,
        config: ClientConfig,
        on_change: Callable[[TunnelState], None],
        notices: Notices,
        *,
        stands_by: bool,
    ) -> FakeTunnel:
        answer = self.answers[min(len(self.tunnels), len(self.answers) - 1)]
        self.tunnels.append(FakeTunnel(config, on_change, notices, answer, stands_by=stands_by))
        return self.tunnels[-1]


def a_status(state: State = State.CONNECTED, reason: str = "") -> AgentStatus:
    return AgentStatus(
        state=state,
        reason=reason,
        since=datetime(2026, 3, 1, 12, tzinfo=UTC),
        gateway="gw.example:443",
        server_name="gw.example",
        gateway_address="203.0.113.10:443",
        local_address="198.18.1.2",
        addresses=["10.100.0.2/32"],
        routes=["10.20.0.0/24"],
        pinned=[],
        mode=Mode.SPLIT,
        tun="zgate-agent0",
        mtu_bytes=1400,
        reconnects=1,
        rebinds=0,
        next_attempt_s=None,
        failed_addresses=[],
        notes=[],
        counters={"packets_up": 3.0, "bytes_up": 2520.0},
        drops={"TOO_BIG": 1},
        pid=1,
    )


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    settings = {"gateway": "gateway.example", "runtime_dir": str(tmp_path)}
    files = {"ca": "/c/ca.crt", "certificate": "/c/alice.crt", "key": "/c/alice.key"}
    return load_config(None, settings | files)
