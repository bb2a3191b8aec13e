"""The packet engine's interface: what opens and seals the packets that carry datagrams.

aioquic keeps the handshake, HTTP/3, acknowledgements, loss recovery, path validation and key
updates. An engine takes, of one connection, only the 1-RTT packets that hold nothing but
PADDING and DATAGRAM frames; every other packet goes to aioquic untouched. Calls are per
batch, never per packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aioquic.quic.connection import QuicConnection

from zgate_datapath.udp import Address


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


class PacketEngine(Protocol):
    """Opens and seals the datagram packets of one connection."""

    name: str
    counters: EngineCounters

    def open(self, packets: Sequence[bytes], address: Address, now: float) -> Opened:
        """Open what is the engine's of `packets`, all from `address`."""
        ...

    def seal(self, payloads: Sequence[bytes], now: float) -> list[bytes]:
        """Make one UDP payload of each packet payload (whole frames), and register them as sent.

        The caller has asked `window_bytes`; sealing beyond it breaks congestion control.
        """
        ...

    def seal_probe(self, udp_payload_bytes: int, on_result: ProbeResult, now: float) -> bytes:
        """One packet of exactly this size that only asks for an acknowledgement (RFC 8899)."""
        ...

    def window_bytes(self) -> int:
        """How many bytes may be sent now: congestion window, path validation, key state."""
        ...


class ProbeResult(Protocol):
    """Called once with what became of a probe."""

    def __call__(self, acknowledged: bool, udp_payload_bytes: int) -> None:
        """Whether the peer acknowledged the probe of this size."""
        ...


def engine_name(choice: str) -> str:
    """The engine that a configured choice (`auto`, `native`, `python`) means here.

    Raises:
        ValueError: no such engine here.
    """
    # The native engine will register itself here; `auto` will prefer it.
    if choice in ("auto", "python"):
        return "python"
    raise ValueError(f"engine {choice!r}: expected auto or python (native is not built)")


def make_engine(choice: str, quic: QuicConnection) -> PacketEngine:
    """A new engine for one connection; see `engine_name`."""
    from zgate_datapath.python_engine import PythonEngine

    assert engine_name(choice) == PythonEngine.name
    return PythonEngine(quic)
