"""The connection to one gateway: dial, offer, serve, and come back when it is lost.

    CONNECTING ──session──> CONNECTED ──lost──> BACKOFF ──1 s to 30 s──> CONNECTING ...

Another certificate is for another session: as soon as nothing is open, but in time before the one
of the present session expires, it is ended and dialled again at once.

Everything waits in a way that cancelling interrupts at once: that is how a connector ends. What is
offered is offered anew with each session. Once a second, and whenever a backend's health changes,
the gateway is told how the services do: that is also the sign of life by which it notices within
seconds that a connector is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from zgate_config.dialling import GatewayAddress
from zgate_datapath.client import ClientConfig, TunnelError, TunnelState
from zgate_datapath.offers import ClientOffers, Notices
from zgate_datapath.tun import Tun
from zgate_datapath.udp import Address
from zgate_host.backoff import Backoff
from zgate_host.resolve import ResolveError
from zgate_host.status_socket import FailedAddress
from zgate_identity.files import IdentityFileError
from zgate_identity.tls_files import read_certificates
from zgate_protocol.drop_reason import DropReason
from zgate_protocol.ip_range import IpAddress, networks_of
from zgate_protocol.service_capsule import (
    Health,
    ObservedAddress,
    OfferedService,
    OfferKind,
    OfferStatus,
    Registered,
    RegistrationAnswer,
    RegistrationCode,
    ServicePorts,
)

from zgate_connector.config import ConnectorConfig
from zgate_connector.plane import Plane, PlaneError
from zgate_connector.status import GatewayStatus, OfferAnswer, ServiceState, State

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
"""The gateway counts a connector as gone after somewhat more than two of these."""
STABLE_AFTER_S = 30.0
"""A session that held this long ends the trouble before it: the next delay is a short one."""
FIRST_RETRY_S = 30.0
LAST_RETRY_S = 300.0
CLOSE_TIMEOUT_S = 2.0
RENEW_WITHIN_S = 300.0
"""So long may open flows put off the session with another certificate."""
RENEW_BEFORE_EXPIRY_S = 10.0
_RENEWED = "another certificate"
_SOMEWHERE = "192.0.2.1"

Resolve = Callable[[str], Awaitable[Sequence[IpAddress]]]


class TunnelLike(Protocol):
    """What is needed of a `zgate_datapath.client.TunnelClient`."""

    async def connect(self, timeout_s: float) -> TunnelState:
        """Dial; raises TunnelError."""

    async def wait_closed(self) -> str:
        """Wait for the end; returns why."""

    async def close(self, reason: str = "") -> None:
        """End it; safe to call twice."""

    def rebind(self) -> None:
        """Go on from a new socket."""

    def offer(self, offers: ClientOffers) -> None:
        """Offer this from now on."""

    def send_offer_state(self, statuses: Sequence[OfferStatus]) -> bool:
        """Tell how the services do."""

    def statistics(self) -> dict[str, float]:
        """Counters."""

    def drops(self) -> dict[DropReason, int]:
        """Packets dropped, by reason."""


class MakeTunnel(Protocol):
    """Makes a tunnel that has not dialled yet."""

    def __call__(
        self,
        config: ClientConfig,
        tun: Tun,
        on_change: Callable[[TunnelState], None],
        offers: ClientOffers,
        notices: Notices,
    ) -> TunnelLike:
        """Make it."""


def offers_of(config: ConnectorConfig) -> ClientOffers:
    """What a configuration offers. A service of both protocols is one, with the ports of both."""
    ports: dict[str, list[ServicePorts]] = {}
    for one in config.services:
        ranges = ports.setdefault(one.id, [])
        ranges += [ServicePorts(one.protocol.number, item.first, item.last) for item in one.ports]
    services = tuple(OfferedService(name, tuple(ranges)) for name, ranges in ports.items())
    return ClientOffers(services, config.own_networks)


@dataclass
class _Live:
    """What one session has told us; the next one has one of its own."""

    tunnel: TunnelState | None = None
    answers: tuple[RegistrationAnswer, ...] = ()
    observed: ObservedAddress | None = None
    drain_deadline_s: float | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    drained: asyncio.Event = field(default_factory=asyncio.Event)

    def take_state(self, state: TunnelState) -> None:
        self.tunnel = state
        self.changed.set()

    def take_answers(self, registered: Registered) -> None:
        self.answers = registered.answers
        self.changed.set()

    def take_observed(self, observed: ObservedAddress) -> None:
        self.observed = observed

    def take_drain(self, deadline_ms: int) -> None:
        self.drain_deadline_s = deadline_ms / 1000
        self.drained.set()

    @property
    def offered(self) -> Mapping[str, Sequence[IpAddress]]:
        """Accepted services, and the addresses at which they are to be served."""
        return {
            one.name: one.offer_addresses
            for one in self.answers
            if one.kind is OfferKind.SERVICE and one.is_accepted
        }

    @property
    def has_refusals(self) -> bool:
        """Whether asking again may help."""
        fine = (RegistrationCode.ACCEPTED, RegistrationCode.INVALID)
        return any(one.code not in fine for one in self.answers)


class GatewaySession:
    """Holds a session with one gateway for as long as `run` runs; make it in the event loop."""

    def __init__(
        self,
        gateway: GatewayAddress,
        config: ConnectorConfig,
        *,
        plane: Plane,
        make_tunnel: MakeTunnel,
        resolve: Resolve,
        backoff: Backoff,
    ) -> None:
        self._gateway = gateway
        self._config = config
        self._plane = plane
        self._make_tunnel = make_tunnel
        self._resolve = resolve
        self._backoff = backoff
        self._loop = asyncio.get_running_loop()
        self._offers = offers_of(config)
        self._state = State.CONNECTING
        self._since = self._loop.time()
        self._reason = ""
        self._wake_at: float | None = None
        self._wake = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._identity_changed = asyncio.Event()
        self._identity_problem = ""
        self._certificate_until: datetime | None = None
        self._sessions = 0
        self._live = _Live()
        self._tunnel: TunnelLike | None = None
        self._address: IpAddress | None = None
        # Of the last session: the one that was tried last may be one that never answers.
        self._last: IpAddress | None = None
        self._source: str | None = None
        self._failed: list[FailedAddress] = []
        self._failures = 0
        self._told: dict[tuple[OfferKind, str], RegistrationCode] = {}

    # What others call.

    async def run(self) -> None:
        """Hold the session; ends by being cancelled only, and tells the gateway then."""
        try:
            while True:
                self._enter(State.CONNECTING)
                logger.info(
                    "connecting to %(gateway)s", {"event": "connecting", "gateway": self._gateway}
                )
                reason = await self._attempt()
                if self._state is State.CONNECTED:
                    if self._age_s() >= STABLE_AFTER_S or reason == _RENEWED:
                        self._backoff.reset()
                    self._backoff.heed(reason, self._loop.time())
                if reason != _RENEWED:
                    await self._back_off(reason)
        finally:
            self._enter(State.STOPPED)
            await self._plane.close()

    def reconnect(self) -> None:
        """Dial now, if we wait for the next attempt."""
        self._backoff.reset()
        self._wake.set()

    def identity_changed(self, problem: str) -> None:
        """Certificate, key or CA are others; a problem: they cannot be used, and why."""
        self._identity_problem = problem
        if problem:
            logger.error(
                "%(gateway)s: the session is not renewed: %(problem)s",
                {"event": "renewal_not_begun", "gateway": self._gateway, "problem": problem},
            )
        elif self._state is State.BACKOFF:
            self.reconnect()
        else:
            self._identity_changed.set()

    def network_changed(self) -> None:
        """The host's network may have changed: a session moves to the address that it has now."""
        source = self._find_source()
        if source is None or source == self._source:
            return
        self._source = source
        if self._state is State.BACKOFF:
            self.reconnect()
        elif self._state is State.CONNECTED and self._tunnel is not None:
            logger.info(
                "%(gateway)s: the way has changed: the session moves to it",
                {"event": "path_changed", "gateway": self._gateway},
            )
            self._tunnel.rebind()

    def _find_source(self) -> str | None:
        # Before the gateway's name was ever resolved any other address has to do.
        return source_towards((str(self._address or _SOMEWHERE), self._gateway.port))

    def health_changed(self) -> None:
        """A backend's health has changed: tell the gateway now."""
        self._beat_now.set()

    def status(self) -> GatewayStatus:
        """What is true now."""
        live, tunnel, now = self._live, self._live.tunnel, self._loop.time()
        seen, address = live.observed, self._address
        return GatewayStatus(
            gateway=str(self._gateway),
            server_name=self._config.expected_name(self._gateway),
            state=self._state,
            reason=self._reason,
            since=datetime.fromtimestamp(time.time() - self._age_s(), UTC),
            gateway_address=_place(address, self._gateway.port) if address else None,
            observed_address=_place(seen.address, seen.port) if seen else None,
            addresses=[str(one.ip) for one in tunnel.addresses] if tunnel else [],
            routes=[str(one) for one in networks_of(tunnel.routes)] if tunnel else [],
            mtu_bytes=tunnel.mtu_bytes if tunnel else None,
            is_draining=live.drain_deadline_s is not None,
            answers=[_shown(one) for one in live.answers],
            services=[_service_state(one) for one in self._plane.statuses()],
            reconnects=max(0, self._sessions - 1),
            renewal_problem=self._identity_problem,
            failures=self._failures,
            next_attempt_s=None if self._wake_at is None else max(0.0, self._wake_at - now),
            failed_addresses=self._failed,
            counters=self._tunnel.statistics() if self._tunnel is not None else {},
            drops=_named(self._tunnel.drops()) if self._tunnel is not None else {},
        )

    # One attempt, and the session it gives.

    async def _attempt(self) -> str:
        """Dial; serve while there is a session. Returns why there is none, or none any more."""
        self._failed = []
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                found = await self._resolve(self._gateway.host)
        except TimeoutError:
            return f"cannot resolve {self._gateway.host}: no answer from the name server in time"
        except ResolveError as error:
            return str(error)
        try:
            for address in sorted(found, key=lambda one: one != self._last):
                reason = await self._try(address)
                if reason is not None:
                    return reason
        except PlaneError as error:
            return str(error)
        except Exception as error:
            # A bug, here or below: this attempt is lost, not the connector.
            logger.exception(
                "%(gateway)s: the session failed",
                {"event": "attempt_failed", "gateway": self._gateway},
            )
            return f"internal error: {error!r}"
        return "; ".join(f"{one.address}: {one.error}" for one in self._failed)

    async def _try(self, address: IpAddress) -> str | None:
        """Why the session with this address has ended; None if there was none."""
        live = self._live = _Live()
        # Read anew by each attempt.
        self._identity_changed.clear()
        self._certificate_until = _expiry_of(self._config.certificate)
        tun = await self._plane.open()
        notices = Notices(
            on_registered=live.take_answers,
            on_drain=live.take_drain,
            on_observed=live.take_observed,
        )
        tunnel = self._make_tunnel(
            self._client_config(address), tun, live.take_state, self._offers, notices
        )
        self._address, self._tunnel = address, tunnel
        try:
            first = await tunnel.connect(self._config.connect_timeout_s)
            if live.tunnel is None:  # else a newer one has overtaken us
                live.take_state(first)
            self._source = self._find_source()
            return await self._serve(tunnel, live)
        except TunnelError as error:
            failed = FailedAddress(address=str(address), error=error.explain())
            self._failed.append(failed)
            self._failures += 1
            logger.info(
                "no session with %(address)s: %(error)s",
                {"event": "no_session", "address": address, "error": failed.error},
            )
            return None
        finally:
            # First of all: the gateway gives our flows to others as soon as it knows.
            await self._close(tunnel)
            await self._plane.end()

    async def _serve(self, tunnel: TunnelLike, live: _Live) -> str:
        self._enter(State.CONNECTED)
        self._sessions += 1
        self._last = self._address
        self._plane.begin()
        logger.info(
            "session up with %(address)s", {"event": "session_up", "address": self._address}
        )
        async with contextlib.AsyncExitStack() as stack:
            tasks = [
                asyncio.ensure_future(one)
                for one in (
                    tunnel.wait_closed(),
                    self._plane.lost(),
                    self._apply_changes(live),
                    self._beat(tunnel),
                    self._ask_again(tunnel, live),
                    self._drain(live),
                    self._renew(),
                )
            ]
            stack.push_async_callback(_end_all, tasks)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result() or "the session has ended"
        raise AssertionError  # the stack swallows nothing

    async def _apply_changes(self, live: _Live) -> str:
        """Serve what the gateway has accepted, at the addresses that it gave."""
        while True:
            await live.changed.wait()
            live.changed.clear()
            self._log_answers(live.answers)
            assert live.tunnel is not None
            accepted = tuple(one for one in live.answers if one.is_accepted)
            await self._plane.apply(live.tunnel, live.offered, accepted)
            self._beat_now.set()

    async def _beat(self, tunnel: TunnelLike) -> str:
        while True:
            self._beat_now.clear()
            tunnel.send_offer_state(self._plane.statuses())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._beat_now.wait()

    async def _ask_again(self, tunnel: TunnelLike, live: _Live) -> str:
        """Offer again what was refused: by then the gateway may have room, or another policy."""
        delay_s = FIRST_RETRY_S
        while True:
            await asyncio.sleep(delay_s * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            if live.has_refusals:
                tunnel.offer(self._offers)
                delay_s = min(2 * delay_s, LAST_RETRY_S)
            else:
                delay_s = FIRST_RETRY_S

    async def _drain(self, live: _Live) -> str:
        await live.drained.wait()
        deadline_s = live.drain_deadline_s
        logger.info(
            "%(gateway)s drains this connector: no new flows",
            {"event": "drain_begins", "gateway": self._gateway},
        )
        await self._plane.drain(deadline_s or None)
        logger.info("%(gateway)s: drained", {"event": "drained", "gateway": self._gateway})
        return await asyncio.Future[str]()

    async def _renew(self) -> str:
        """Wait for another certificate, and then for a moment that disturbs nobody."""
        await self._identity_changed.wait()
        deadline = self._loop.time() + self._renew_within_s()
        logger.info(
            "%(gateway)s: another certificate: the session is renewed",
            {"event": "certificate_changed", "gateway": self._gateway},
        )
        while True:
            if not self._open_flows() or self._loop.time() >= deadline:
                return _RENEWED
            await asyncio.sleep(HEARTBEAT_S)

    def _open_flows(self) -> int:
        return sum(one.open_flows for one in self._plane.statuses())

    def _renew_within_s(self) -> float:
        until = self._certificate_until
        if until is None:
            return 0.0
        left_s = (until - datetime.now(UTC)).total_seconds() - RENEW_BEFORE_EXPIRY_S
        return max(0.0, min(RENEW_WITHIN_S, left_s))

    def _log_answers(self, answers: Sequence[RegistrationAnswer]) -> None:
        told = {(one.kind, one.name): one.code for one in answers}
        for one in answers:
            key = one.kind, one.name
            if self._told.get(key) is one.code:
                continue
            kind = one.kind.name.lower()
            if one.is_accepted:
                addresses = ", ".join(str(item) for item in one.service_addresses)
                logger.info(
                    "%(gateway)s: %(kind)s %(offer)s accepted %(addresses)s",
                    {
                        "event": "offer_accepted",
                        "gateway": self._gateway,
                        "kind": kind,
                        "offer": one.name,
                        "addresses": addresses,
                    },
                )
            else:
                code, name = one.code.name.lower(), one.name
                logger.warning(
                    "%(gateway)s: %(kind)s %(offer)s refused: %(code)s: %(error)s",
                    {
                        "event": "offer_refused",
                        "gateway": self._gateway,
                        "kind": kind,
                        "offer": name,
                        "code": code,
                        "error": one.text,
                    },
                )
        self._told = told

    async def _close(self, tunnel: TunnelLike) -> None:
        reason = "the connector ends" if self._state is State.CONNECTED else ""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await tunnel.close(reason)
        except TimeoutError:
            logger.warning(
                "the session did not close in %(timeout_s)g s",
                {"event": "session_close_late", "timeout_s": CLOSE_TIMEOUT_S},
            )
        except Exception:
            # A bug below must not keep us from ending what is served.
            logger.exception("the session did not close cleanly", {"event": "session_close_failed"})

    async def _back_off(self, reason: str) -> None:
        self._enter(State.BACKOFF)
        self._reason = reason
        self._told.clear()
        self._wake.clear()
        self._source = self._find_source()
        delay_s = self._backoff.next_delay_s(self._loop.time())
        self._wake_at = self._loop.time() + delay_s
        logger.warning(
            "%(gateway)s: not connected: %(reason)s; next attempt in %(delay_s).1f s",
            {
                "event": "not_connected",
                "gateway": self._gateway,
                "reason": reason,
                "delay_s": delay_s,
            },
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._wake_at):
                await self._wake.wait()

    def _enter(self, state: State) -> None:
        self._state = state
        self._since = self._loop.time()
        self._wake_at = None
        if state is not State.CONNECTING:
            self._reason = ""

    def _age_s(self) -> float:
        return self._loop.time() - self._since

    def _client_config(self, address: IpAddress) -> ClientConfig:
        config = self._config
        return ClientConfig(
            host=str(address),
            port=self._gateway.port,
            server_name=config.expected_name(self._gateway),
            ca_file=str(config.ca),
            certificate_file=str(config.certificate),
            key_file=str(config.key),
            mtu_bytes=config.tun.mtu_bytes,
            idle_timeout_s=config.idle_timeout_s,
            keepalive_s=config.keepalive_s,
            engine=config.engine,
            congestion=config.congestion,
        )


def source_towards(gateway: Address) -> str | None:
    """The address from which this host would send to the gateway now; None: from none."""
    family = socket.AF_INET6 if ":" in str(gateway[0]) else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(gateway)  # which sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _expiry_of(certificate: Path) -> datetime | None:
    """Until when a certificate is valid; None: it cannot be read, as whoever dials will say."""
    try:
        return read_certificates(certificate)[0].not_valid_after_utc
    except IdentityFileError:
        return None


async def _end_all(tasks: Sequence[asyncio.Future[str]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _named(drops: dict[DropReason, int]) -> dict[str, int]:
    return {reason.name: count for reason, count in drops.items()}


def _place(address: IpAddress, port: int) -> str:
    return str(GatewayAddress(str(address), port))


def _shown(answer: RegistrationAnswer) -> OfferAnswer:
    return OfferAnswer(
        kind=answer.kind.name.lower(),
        name=answer.name,
        code=answer.code.name.lower(),
        text=answer.text,
        service_addresses=[str(one) for one in answer.service_addresses],
    )


def _service_state(status: OfferStatus) -> ServiceState:
    return ServiceState(
        name=status.name,
        health="up" if status.health is Health.UP else "down",
        reason=status.reason,
        open_flows=status.open_flows,
        total_flows=status.total_flows,
        bytes_up=status.bytes_up,
        bytes_down=status.bytes_down,
    )
