"""A tunnel and a plane that do what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from zgate_connector.config import ConnectorConfig, load_config
from zgate_datapath.client import ClientConfig, TunnelState
from zgate_datapath.offers import ClientOffers, Notices
from zgate_datapath.tun import Tun
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.ip_range import IpAddress, IpRange
from zgate_protocol.service_capsule import (
    Health,
    OfferKind,
    OfferStatus,
    RegistrationAnswer,
    RegistrationCode,
)

GATEWAY = ip_address("203.0.113.10")
OFFER = ip_address("10.101.255.254")
VIP = ip_address("10.101.0.1")


def tunnel_state(*addresses: str, mtu_bytes: int = 1400) -> TunnelState:
    return TunnelState(
        addresses=tuple(ip_interface(one) for one in addresses or ("10.100.0.2/32",)),
        routes=(IpRange.of(ip_network("10.100.0.0/16")),),
        gateway_address=("203.0.113.10", 443),
        local_address=("198.18.1.2", 40000),
        mtu_bytes=mtu_bytes,
    )


def accepted(name: str = "echo") -> RegistrationAnswer:
    return RegistrationAnswer(
        OfferKind.SERVICE, name, RegistrationCode.ACCEPTED, "", (VIP,), (OFFER,)
    )


def refused(
    name: str = "echo", code: RegistrationCode = RegistrationCode.NOT_AUTHORIZED
) -> RegistrationAnswer:
    return RegistrationAnswer(OfferKind.SERVICE, name, code, "no rule names it")


@dataclass
class FakeTunnel:
    """One dial. `answer`: a state, an error, or None for silence."""

    config: ClientConfig
    on_change: Callable[[TunnelState], None]
    offers: ClientOffers
    notices: Notices
    answer: TunnelState | Exception | None
    log: list[str]
    closed: asyncio.Future[str] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    close_reasons: list[str] = field(default_factory=list)
    offered_again: int = 0
    rebinds: int = 0
    beats: list[list[OfferStatus]] = field(default_factory=list)

    async def connect(self, timeout_s: float) -> TunnelState:
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer

    async def wait_closed(self) -> str:
        return await asyncio.shield(self.closed)

    async def close(self, reason: str = "") -> None:
        self.log.append("tunnel closed")
        self.close_reasons.append(reason)
        self.end(reason)

    def end(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)

    def rebind(self) -> None:
        self.rebinds += 1

    def offer(self, offers: ClientOffers) -> None:
        self.offered_again += 1

    def send_offer_state(self, statuses: Sequence[OfferStatus]) -> bool:
        self.beats.append(list(statuses))
        return True

    def statistics(self) -> dict[str, float]:
        return {"packets_up": 3}

    def drops(self) -> dict[DropReason, int]:
        return {DropReason.TOO_BIG: 1}


@dataclass
class FakePlane:
    """Remembers what was asked of it; raises `failure`."""

    log: list[str] = field(default_factory=list)
    offered: list[Mapping[str, Sequence[IpAddress]]] = field(default_factory=list)
    failure: Exception | None = None
    gone: asyncio.Future[str] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    notes: list[str] = field(default_factory=list)
    drained: list[float | None] = field(default_factory=list)

    async def open(self) -> Tun:
        self.log.append("open")
        return None  # type: ignore[return-value]

    def begin(self) -> None:
        self.log.append("begin")

    async def apply(
        self,
        tunnel: TunnelState,
        offered: Mapping[str, Sequence[IpAddress]],
        accepted: Sequence[RegistrationAnswer],
    ) -> None:
        if self.failure is not None:
            raise self.failure
        self.offered.append(dict(offered))

    def statuses(self) -> list[OfferStatus]:
        names = self.offered[-1] if self.offered else ()
        return [OfferStatus(name, Health.UP, 1, 2, 3, 4, "") for name in names]

    async def drain(self, deadline_s: float | None) -> None:
        self.drained.append(deadline_s)

    async def lost(self) -> str:
        return await asyncio.shield(self.gone)

    async def end(self) -> None:
        self.log.append("end")

    async def close(self) -> None:
        self.log.append("close")


class Dialler:
    """Makes the tunnels: the n-th dial gets the n-th answer, the last one for ever."""

    def __init__(self, *answers: TunnelState | Exception | None, log: list[str] | None = None):
        self.answers = list(answers)
        self.tunnels: list[FakeTunnel] = []
        self.log = log if log is not None else []

    def __call__(
        self,
        config: ClientConfig,
        tun: Tun,
        on_change: Callable[[TunnelState], None],
        offers: ClientOffers,
        notices: Notices,
    ) -> FakeTunnel:
        answer = self.answers[min(len(self.tunnels), len(self.answers) - 1)]
        made = FakeTunnel(config, on_change, offers, notices, answer, self.log)
        self.tunnels.append(made)
        return made


@pytest.fixture
def config(tmp_path: Path) -> ConnectorConfig:
    return load_config(
        None,
        {
            "gateway": "gateway.example",
            "ca": "/c/ca.crt",
            "certificate": "/c/west.crt",
            "key": "/c/west.key",
            "runtime_dir": str(tmp_path),
            "services": [
                {"id": "echo", "protocol": "udp", "backend": "127.0.0.1:7"},
                {"id": "echo", "protocol": "tcp", "backend": "127.0.0.1:7"},
                {"id": "pacs", "protocol": "tcp", "ports": [104, "200-210"], "backend": "h"},
            ],
        },
    )
