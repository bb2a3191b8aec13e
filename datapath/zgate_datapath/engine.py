"""The packet engine's interface: what opens and seals the packets that carry datagrams.

aioquic keeps the handshake, HTTP/3, path validation and key updates, and the recovery of its own
packets. An engine takes, of one connection, only the 1-RTT packets that hold nothing but PADDING,
DATAGRAM and (natively) PING and ACK frames; every other packet goes to aioquic untouched. Calls
are per batch, never per packet.

There are two: `python_engine`, and `native_engine` in C, which is built where there is a compiler.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from zgate_protocol.drop_reason import DropReason

from zgate_datapath.udp import Address

if TYPE_CHECKING:
    from aioquic.quic.connection import QuicConnection

    from zgate_datapath.native_carrier import NativeCarrier

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Opened:
    """What one batch of received packets held.

    `datagrams` are DATAGRAM frame payloads in order of arrival; `rest` are whole packets
    for aioquic.
    """

    datagrams: list[bytes] = field(default_factory=list)
    rest: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class EngineCounters:
    """What an engine did for one connection since it began."""

    opened_packets: int = 0
    sealed_packets: int = 0
    forged_packets: int = 0
    duplicate_packets: int = 0


@dataclass(frozen=True, slots=True)
class Carried:
    """IP packets that an engine carried by itself, without Python."""

    received_packets: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    sent_bytes: int = 0


class ProbeResult(Protocol):
    """Called once with what became of a probe."""

    def __call__(self, acknowledged: bool, udp_payload_bytes: int) -> None:
        """Whether the peer acknowledged the probe of this size."""
        ...


Prefix = tuple[bytes, int]
"""A network: its packed address, and the length of its prefix in bits."""


class DirectPath(Protocol):
    """IP packets between the socket and the TUN without Python.

    What passes is Python's to say once, for a pair of addresses; the engine remembers it.
    """

    def carry(self, prefix: bytes) -> None:
        """From now on; `prefix` is what every datagram of the session begins with."""
        ...

    def take_all(self) -> None:
        """All that the TUN has is this connection's."""
        ...

    def hold(self, addresses: Iterable[bytes], networks: Iterable[Prefix]) -> None:
        """What the TUN has for these packed addresses, and in these networks, is this connection's.

        The full list, which replaces the earlier one. An address goes before a network, a longer
        prefix before a shorter one.

        Raises:
            ValueError: no address, no network, or more networks than the engine holds.
        """
        ...

    def allow_inbound(self, pair: bytes) -> None:
        """Packets with these addresses (source, destination) may come from the peer."""
        ...

    def allow_outbound(self, pair: bytes) -> None:
        """Packets with these addresses may go to the peer."""
        ...

    def forget_pairs(self) -> None:
        """Judge every pair anew."""
        ...

    def send_read(self, read: bytes) -> DropReason:
        """Send what a read of the TUN gave: vnet header and packet."""
        ...


class PacketEngine(Protocol):
    """Opens and seals the datagram packets of one connection."""

    name: str

    @property
    def direct(self) -> DirectPath | None:
        """The engine's own way to the TUN; None where it has none."""
        ...

    @property
    def counters(self) -> EngineCounters:
        """What it did."""
        ...

    @property
    def carried(self) -> Carried:
        """What it carried by itself."""
        ...

    @property
    def last_received_s(self) -> float:
        """When the last packet came that was the engine's; -inf or 0 before the first."""
        ...

    @property
    def first_packet_s(self) -> float:
        """When the first IP packet came that it carried by itself; 0: none yet."""
        ...

    def start(self, now: float) -> None:
        """The handshake is complete: 1-RTT packets may be the engine's from now on."""
        ...

    def open(self, packets: Sequence[bytes], address: Address, now: float) -> Opened:
        """Open what is the engine's of `packets`, all from `address`."""
        ...

    def enqueue(self, frame: bytes) -> DropReason:
        """Queue one DATAGRAM frame without length: type byte 0x30, then its payload."""
        ...

    def queued_packets(self) -> int:
        """Packets that wait for the congestion window."""
        ...

    def send_queued(self, most_bytes: int, now: float) -> list[bytes]:
        """UDP payloads for the socket, of at most `most_bytes` of frames each.

        An engine that has the socket itself sends with its carrier's next flush, and returns none.
        """
        ...

    def seal_probe(self, udp_payload_bytes: int, on_result: ProbeResult, now: float) -> bytes:
        """One packet of exactly this size that only asks for an acknowledgement (RFC 8899).

        Empty when none can be sent now.
        """
        ...

    def path_changed(self) -> None:
        """Our own address is another: RTT and congestion begin anew (RFC 9000 section 9.4)."""
        ...

    def window_bytes(self) -> int:
        """How many bytes may be sent now: congestion window, path validation, key state."""
        ...

    def set_frame_limit(self, frame_payload_bytes: int, udp_payload_bytes: int) -> None:
        """What a DATAGRAM frame and a UDP packet may hold on this path, for this peer."""
        ...

    def enter_aioquic(self, now: float) -> None:
        """aioquic is about to receive, to send or to handle a timer: it must know the state."""
        ...

    def leave_aioquic(self, now: float) -> None:
        """aioquic may have changed keys, numbers, paths: take them over."""
        ...

    def statistics(self) -> dict[str, float]:
        """Numbers of recovery and queue, by name; empty where aioquic has them."""
        ...

    def take_drops(self) -> list[tuple[DropReason, int]]:
        """What was dropped since the last call, by reason."""
        ...

    def close(self) -> int:
        """No packet follows; how many waited."""
        ...


class EngineOwner(Protocol):
    """Whom an engine tells, where it does not return to who called it."""

    def engine_opened(self, datagrams: Sequence[bytes], now: float) -> None:
        """DATAGRAM frame payloads, in order of arrival."""

    def engine_read(self, read: bytes, is_too_big: bool, now: float) -> None:
        """A read of the TUN that Python must judge."""

    def engine_failed(self, error_code: int, reason: str) -> None:
        """The peer broke the protocol."""


@functools.cache
def native_problem() -> str:
    """Why the native engine cannot run here; empty when it can. Looked for once."""
    try:
        from zgate_datapath import _native  # noqa: F401
    except ImportError as error:
        return f"the native engine is not built ({error})"
    return ""


@functools.cache
def _tell_fallback(problem: str) -> None:
    logger.warning(
        "%(problem)s: the Python engine runs, at a fraction of the speed",
        {"event": "engine_slow", "problem": problem},
    )


def engine_name(choice: str) -> str:
    """The engine that a configured choice (`auto`, `native`, `python`) means here.

    Raises:
        ValueError: no such engine here.
    """
    if choice == "python":
        return "python"
    if choice not in ("auto", "native"):
        raise ValueError(f"engine {choice!r}: expected auto, native or python")
    problem = native_problem()
    if not problem:
        return "native"
    if choice == "native":
        raise ValueError(f"engine 'native': {problem}; install a compiler and libssl-dev, or auto")
    _tell_fallback(problem)
    return "python"


def make_engine(
    quic: QuicConnection,
    owner: EngineOwner,
    carrier: NativeCarrier | None,
) -> PacketEngine:
    """A new engine for one connection: native with a carrier, Python without."""
    if carrier is None:
        from zgate_datapath.python_engine import PythonEngine

        return PythonEngine(quic)
    from zgate_datapath.native_engine import NativeEngine

    return NativeEngine(quic, owner, carrier)
