"""The native engine's loop: a UDP socket and a TUN, and whom to tell what C leaves to Python.

One call of `run` moves as many packets as wait, both ways, without Python. It is called when a
descriptor is readable and when a deadline of the engine's (an ACK, pacing, a probe timeout) has
come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from aioquic.quic.packet import QuicErrorCode

from zgate_datapath import _native
from zgate_datapath.connection_ids import CONNECTION_ID_BYTES
from zgate_datapath.event_loop import selector_of
from zgate_datapath.udp import Address, UdpSocket

if TYPE_CHECKING:
    from zgate_datapath.engine import EngineOwner
    from zgate_datapath.native_engine import NativeEngine
    from zgate_datapath.tun import Tun

# How long one run may keep the event loop's other work waiting.
_RUN_LIMIT_NS = 4_000_000
# No deadline of the engine's is worth waking up more often for.
_LEAST_WAIT_S = 0.0001

_Report = tuple[int, _native.Session | None, bytes, int, Address | None]


class CarrierOwner(Protocol):
    """Whom the carrier tells."""

    def carrier_received(self, packets: list[bytes], address: Address) -> None:
        """UDP payloads for aioquic, all from `address`."""

    def carrier_touched(self, owner: EngineOwner) -> None:
        """This connection was told something: flush it when the run is over."""

    def carrier_done(self, *, error_pending: bool) -> None:
        """A run is over: flush what it touched."""


class NativeCarrier:
    """See the module's text."""

    def __init__(
        self, udp: UdpSocket, loop: asyncio.AbstractEventLoop, owner: CarrierOwner
    ) -> None:
        self.native = _native.Carrier(udp.fileno(), CONNECTION_ID_BYTES)
        self._udp = udp
        self._loop = loop
        self._owner = owner
        self._engines: dict[_native.Session, NativeEngine] = {}
        self._tun: Tun | None = None
        self._on_read: Callable[[bytes], None] | None = None
        self._on_gone: Callable[[], None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._selector = selector_of(loop)

    @property
    def udp_fd(self) -> int:
        """The socket's descriptor; negative when it is closed."""
        return self._udp.fileno()

    # Descriptors.

    def start(self) -> None:
        """Begin to receive."""
        self.native.set_udp(self._udp.fileno())
        self._loop.add_reader(self._udp.fileno(), self._on_udp)
        if self._selector is not None and not self._selector.is_busy:
            self._selector.attach(self)

    def stop(self) -> None:
        """Stop receiving and reading."""
        if self._selector is not None:
            self._selector.detach(self)
        if self._udp.fileno() >= 0:
            self._loop.remove_reader(self._udp.fileno())
        self.native.set_udp(-1)
        self.detach_tun()
        self._cancel_alarm()

    def replace_socket(self, udp: UdpSocket) -> None:
        """Go on with another socket, which `start` has yet to watch."""
        if self._udp.fileno() >= 0:
            self._loop.remove_reader(self._udp.fileno())
        self._udp = udp
        self.native.set_udp(udp.fileno())

    def attach_tun(
        self, tun: Tun, *, on_read: Callable[[bytes], None], on_gone: Callable[[], None]
    ) -> None:
        """Carry between the socket and this TUN, which has vnet headers.

        `on_read` gets what the TUN has for nobody here; `on_gone` is called once if it is deleted.
        """
        self._tun, self._on_read, self._on_gone = tun, on_read, on_gone
        self.native.set_tun(tun.fd, tun.takes_tcp, tun.takes_udp)
        self._loop.add_reader(tun.fd, self.run)
        if self._selector is not None:
            # Before another one, which has no TUN any more.
            self._selector.attach(self)

    def detach_tun(self) -> None:
        """The TUN is no longer ours to read."""
        tun, self._tun = self._tun, None
        if tun is not None:
            if tun.fd >= 0:
                self._loop.remove_reader(tun.fd)
            self.native.set_tun(-1, False, False)

    @property
    def has_tun(self) -> bool:
        """Whether packets can go to a TUN without Python."""
        return self._tun is not None

    # Sessions.

    def add(self, session: _native.Session, engine: NativeEngine) -> None:
        """Whom to tell about this session."""
        self._engines[session] = engine

    def remove(self, session: _native.Session) -> None:
        """The session is over."""
        self._engines.pop(session, None)

    # Running.

    def _on_udp(self) -> None:
        received_before = self.native.received_packets
        self.run(nothing_is_error=True, received_before=received_before)

    def run(self, *, nothing_is_error: bool = False, received_before: int = 0) -> None:
        """Move what waits, both ways."""
        _, reports = self.native.run(_RUN_LIMIT_NS)
        if reports:
            self._take(reports)
        error_pending = self.native.take_error() or (
            nothing_is_error and self.native.received_packets == received_before
        )
        self._owner.carrier_done(error_pending=error_pending)
        if self._tun is not None and self.native.tun_is_gone():
            on_gone = self._on_gone
            self.detach_tun()
            if on_gone is not None:
                on_gone()

    def flush(self) -> None:
        """Send what Python has put into sessions, and look when to come back."""
        if reports := self.native.flush():
            self._take(reports)
        if self._selector is None or not self._selector.carries_for(self):
            self.arm()  # a selector that carries knows the engine's deadlines by itself

    def arm(self) -> None:
        """See to it that the engine runs at its next deadline."""
        at = self.native.deadline()
        alarm = self._alarm
        if at == float("inf"):
            return  # an alarm that is armed still finds nothing to do, and costs one wake-up
        at = max(at, self._loop.time() + _LEAST_WAIT_S)
        if alarm is not None:
            if self._alarm_at <= at:
                return
            alarm.cancel()
        self._alarm_at = at
        self._alarm = self._loop.call_at(at, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self.run()

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    # Reports.

    def _take(self, reports: Iterable[_Report]) -> None:
        """Tell whom it concerns, in order; packets and datagrams in runs."""
        packets: list[bytes] = []
        source: Address | None = None
        datagrams: list[bytes] = []
        whose: NativeEngine | None = None

        def tell() -> None:
            nonlocal packets, datagrams
            if packets:
                assert source is not None
                self._owner.carrier_received(packets, source)
                packets = []
            if datagrams:
                assert whose is not None
                self._owner.carrier_touched(whose.owner)
                whose.opened(datagrams, self._loop.time())
                datagrams = []

        for kind, session, data, number, address in reports:
            engine = self._engines.get(session) if session is not None else None
            if kind == _native.REPORT_PACKET:
                if datagrams or address != source:
                    tell()
                source = address
                packets.append(data)
            elif kind == _native.REPORT_DATAGRAM:
                if packets or engine is not whose:
                    tell()
                if engine is not None:
                    whose = engine
                    datagrams.append(data)
            else:
                tell()
                self._tell_one(kind, engine, data, number)
        tell()

    def _tell_one(self, kind: int, engine: NativeEngine | None, data: bytes, number: int) -> None:
        if engine is not None:
            self._owner.carrier_touched(engine.owner)
        if kind == _native.REPORT_READ:
            if engine is not None:
                engine.read(data, self._loop.time(), is_too_big=bool(number))
            elif self._on_read is not None:
                self._on_read(data)
        elif engine is None:
            return
        elif kind == _native.REPORT_PROBE_ACKED:
            engine.probe_ended(True, number)
        elif kind == _native.REPORT_PROBE_LOST:
            engine.probe_ended(False, number)
        elif kind == _native.REPORT_BAD_ACK:
            # RFC 9000 section 13.1.
            engine.failed(QuicErrorCode.PROTOCOL_VIOLATION, "an ACK of a packet never sent")
        elif kind == _native.REPORT_AEAD_LIMIT:
            engine.failed(QuicErrorCode.AEAD_LIMIT_REACHED, "too many forged packets")
        elif kind == _native.REPORT_KEY_WORN:
            engine.update_key(number, self._loop.time())

    def counters(self) -> dict[str, int]:
        """What the carrier did, by name."""
        return self.native.counters()
