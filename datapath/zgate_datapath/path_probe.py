"""A short connection to a gateway that asks for no session: what the path to it is like.

It is dialled as an agent's, both ends are proved, and nothing changes for the agent's own session.
Round trips are QUIC PINGs, each in a packet of its own; one that is lost is not sent again, so
that losses can be counted. The path's MTU is found as it is for every connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from aioquic.quic.packet_builder import QuicDeliveryState
from zgate_protocol.service_capsule import ObservedAddress

from zgate_datapath.client import ClientConfig, TunnelClient, TunnelState
from zgate_datapath.connection import Headers
from zgate_datapath.offers import Notices
from zgate_datapath.path_mtu import PathMtuState
from zgate_datapath.udp import Address

#: As long as an answer is waited for that is neither here nor known to be lost.
_PATIENCE_S = 1.5
#: The search for the MTU goes on beside the round trips; so long is waited for its end.
_MTU_PATIENCE_S = 3.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class PathReport:
    """What was seen of a path. Times in seconds, sizes in bytes.

    :ivar observed: where the gateway sees us; None: it does not say.
    :ivar handshake_s: from the first packet until the gateway has accepted us.
    :ivar rtts_s: of those round trips that were answered, in order.
    :ivar udp_payload_bytes: the largest that passes; 0: not even the least that a tunnel needs.
    :ivar is_mtu_final: the search has ended.
    :ivar gateway_time: what its clock said; None: it does not say. To the second.
    :ivar own_time: ours, in the middle of the round trip that brought it.
    """

    gateway_address: Address
    local_address: Address
    observed: ObservedAddress | None
    handshake_s: float
    sent: int
    lost: int
    rtts_s: tuple[float, ...]
    udp_payload_bytes: int
    is_mtu_final: bool
    gateway_time: datetime | None
    own_time: datetime


@dataclass(slots=True)
class _RoundTrips:
    """What has become of the pings so far."""

    waiting: set[int] = field(default_factory=set)
    rtts_s: list[float] = field(default_factory=list)
    sent: int = 0
    lost: int = 0


class PathProbe(TunnelClient):
    """See the module's text. One use: `measure`."""

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(
            config=config,
            tun=None,
            on_change=lambda _: None,
            notices=Notices(on_observed=self._take_observed),
        )
        self._observed: ObservedAddress | None = None
        self._trips = _RoundTrips()
        self._asked_at = 0.0
        self._answered_at = 0.0
        self._gateway_time: datetime | None = None

    async def measure(self, *, probes: int, interval_s: float, timeout_s: float) -> PathReport:
        """Dial, measure, hang up.

        Raises:
            TunnelError: one of its subclasses, by cause, as for `TunnelClient.connect`.
        """
        began = self._loop.time()
        try:
            state = await self.connect(timeout_s)
            handshake_s = self._loop.time() - began
            for number in range(probes):
                if number:
                    await asyncio.sleep(interval_s)
                self._ping()
            await self._wait(lambda: not self._trips.waiting, _PATIENCE_S)
            await self._wait(self._is_mtu_final, _MTU_PATIENCE_S)
            return self._report(state, handshake_s)
        finally:
            await self.close("measured")

    def _report(self, state: TunnelState, handshake_s: float) -> PathReport:
        trips, path_mtu = self._trips, self._require_connection().path_mtu
        is_usable = path_mtu.state is not PathMtuState.UNUSABLE
        middle = (self._asked_at + self._answered_at) / 2
        own_time = datetime.now(UTC).timestamp() - (self._loop.time() - middle)
        return PathReport(
            gateway_address=state.gateway_address,
            local_address=state.local_address,
            observed=self._observed,
            handshake_s=handshake_s,
            sent=trips.sent,
            lost=trips.lost + len(trips.waiting),
            rtts_s=tuple(trips.rtts_s),
            udp_payload_bytes=path_mtu.confirmed_bytes if is_usable else 0,
            is_mtu_final=self._is_mtu_final(),
            gateway_time=self._gateway_time,
            own_time=datetime.fromtimestamp(own_time, UTC),
        )

    async def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = self._loop.time() + timeout_s
        # Three things end it, in two other modules: looking is simpler than being told.
        while (  # noqa: ASYNC110
            not condition() and self._loop.time() < deadline and not self._closed.done()
        ):
            await asyncio.sleep(_LOOK_S)

    def _is_mtu_final(self) -> bool:
        return self._require_connection().path_mtu.state in {
            PathMtuState.COMPLETE,
            PathMtuState.UNUSABLE,
        }

    # Round trips.

    def _ping(self) -> None:
        connection, endpoint, trips = self._require_connection(), self._endpoint, self._trips
        assert endpoint is not None
        if connection.is_terminated:
            return
        trips.sent += 1
        number = connection.measure_round_trip(
            lambda rtt_s: self._answered(number, rtt_s), self._loop.time()
        )
        trips.waiting.add(number)
        endpoint.flush(connection)

    def _answered(self, number: int, rtt_s: float) -> None:
        if number in self._trips.waiting:
            self._trips.waiting.discard(number)
            self._trips.rtts_s.append(rtt_s)

    def _lost(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if number in self._trips.waiting:
                self._trips.waiting.discard(number)
                self._trips.lost += 1
                self._require_connection().forget_round_trip(number)

    # What the connection tells.

    def settings_received(self) -> None:
        """The gateway has accepted us: ask for nothing but the time."""
        connection = self._require_connection()
        quic = connection.quic
        delivered = quic._on_ping_delivery

        def on_delivery(delivery: QuicDeliveryState, uids: Sequence[int]) -> None:
            if delivery is QuicDeliveryState.ACKED:
                delivered(delivery, uids)
            else:
                self._lost(uids)

        quic._on_ping_delivery = on_delivery  # type: ignore[method-assign]
        self._asked_at = self._loop.time()
        authority = self._config.server_name.encode()
        connection.send_headers(
            quic.get_next_available_stream_id(),
            [
                (b":method", b"GET"),
                (b":scheme", b"https"),
                (b":authority", authority),
                (b":path", b"/"),
            ],
            end=True,
        )
        address, endpoint = connection.peer_address, self._endpoint
        assert address is not None
        assert endpoint is not None
        self._newest = TunnelState((), (), address, connection.udp.local_address, 0)
        if not self._ready.done():
            self._ready.set_result(self._newest)

    def headers_received(self, stream_id: int, headers: Headers, ended: bool) -> None:
        """The answer: that there is nothing, and when."""
        del stream_id, ended
        self._answered_at = self._loop.time()
        dated = dict(headers).get(b"date")
        try:
            self._gateway_time = parsedate_to_datetime(dated.decode()) if dated else None
        except (ValueError, UnicodeDecodeError):
            self._gateway_time = None

    def mtu_changed(self) -> None:
        """A path that is too small for a tunnel is a finding, not an end."""

    def _take_observed(self, observed: ObservedAddress) -> None:
        self._observed = observed
