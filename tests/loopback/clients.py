"""The clients' ends: the product's own, and one that says whatever the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aioquic.h3.connection import ErrorCode
from aioquic.quic.connection import QuicConnection
from zgate_datapath.address_discovery import DiscoveringQuicConnection
from zgate_datapath.client import TunnelClient, TunnelState
from zgate_datapath.connection import Connection, Ending, Headers
from zgate_datapath.endpoint import Endpoint
from zgate_datapath.udp import UdpSocket
from zgate_protocol.capsule import Capsule, CapsuleDecoder

from .certificates import HOST
from .kernel import FakeTun
from .waiting import eventually


@dataclass
class Client:
    """A TunnelClient with what it reads, writes and says."""

    tunnel: TunnelClient
    tun: FakeTun
    changes: list[TunnelState] = field(default_factory=list)

    @property
    def connection(self) -> Connection:
        assert self.tunnel._connection is not None
        return self.tunnel._connection

    @property
    def endpoint(self) -> Endpoint:
        assert self.tunnel._endpoint is not None
        return self.tunnel._endpoint


class Peer:
    """The client's end of a connection that says whatever the test wants (`ConnectionHandler`)."""

    def __init__(self, quic: QuicConnection, udp: UdpSocket, engine: str) -> None:
        self.quic = quic
        loop = asyncio.get_running_loop()
        self.endpoint = Endpoint(udp, loop, engine=engine)
        self.connection = Connection(
            quic,
            udp=udp,
            carrier=self.endpoint.carrier,
            max_udp_payload_bytes=1452,
            queue_packets=512,
            now=loop.time(),
        )
        self.connection.set_handler(self)
        self.is_ready = False
        self.ended: Ending | None = None
        self.headers: dict[int, dict[bytes, bytes]] = {}
        self.capsules: dict[int, list[Capsule]] = {}
        self.fins: set[int] = set()
        self.resets: dict[int, int] = {}
        self.datagrams: list[bytes] = []
        self._decoders: dict[int, CapsuleDecoder] = {}

    async def dial(self, address: tuple[Any, ...]) -> None:
        self.endpoint.add(self.connection, self.quic.host_cid)
        self.endpoint.start()
        self.quic.connect(address, now=self.endpoint.loop.time())
        self.flush()

    def flush(self) -> None:
        # Tests reach into aioquic behind the connection's back.
        self.connection._control_due = True
        self.endpoint.flush(self.connection)

    async def close(self) -> None:
        if self.connection.peer_address is not None and not self.connection.is_terminated:
            self.connection.close(ErrorCode.H3_NO_ERROR, "")
            self.flush()
        self.endpoint.close()

    # What the test says.

    def open_request(
        self,
        target: str = "*",
        ipproto: str = "*",
        *,
        end: bool = False,
        **changes: str | None,
    ) -> int:
        """Send CONNECT-IP headers; `method=...` and so on change a pseudo-header, None omits it."""
        fields: dict[str, str | None] = {
            "method": "CONNECT",
            "protocol": "connect-ip",
            "scheme": "https",
            "authority": HOST,
            "path": f"/.well-known/masque/ip/{target}/{ipproto}/",
            **changes,
        }
        stream_id = self.quic.get_next_available_stream_id()
        headers = [(f":{k}".encode(), v.encode()) for k, v in fields.items() if v is not None]
        self.connection.send_headers(stream_id, [*headers, (b"capsule-protocol", b"?1")], end=end)
        self.flush()
        return stream_id

    def send_data(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        self.connection.send_data(stream_id, data, end=end)
        self.flush()

    def send_datagram(self, payload: bytes) -> None:
        self.connection.enqueue(b"\x30" + payload)
        self.flush()

    async def establish(self) -> int:
        """Ask for a session and wait for its addresses and routes, and where it is seen."""
        stream_id = self.open_request()
        is_told = isinstance(self.quic, DiscoveringQuicConnection)
        least = 2 if is_told else 3
        await eventually(lambda: len(self.capsules.get(stream_id, [])) >= least)
        return stream_id

    def status(self, stream_id: int) -> int:
        return int(self.headers[stream_id][b":status"])

    async def answer(self, stream_id: int) -> tuple[int, str]:
        """Status and Proxy-Status of a request."""
        await eventually(lambda: stream_id in self.headers or self.ended)
        return self.status(stream_id), self.headers[stream_id].get(b"proxy-status", b"").decode()

    # What it hears.

    def handshake_completed(self) -> None:
        return None

    def settings_received(self) -> None:
        self.is_ready = True

    def headers_received(self, stream_id: int, headers: Headers, ended: bool) -> None:
        self.headers[stream_id] = dict(headers)
        if ended:
            self.fins.add(stream_id)

    def tun_read(self, read: bytes, is_too_big: bool) -> None:
        raise AssertionError("no TUN is attached")

    def data_received(self, stream_id: int, data: bytes, ended: bool) -> None:
        decoder = self._decoders.setdefault(stream_id, CapsuleDecoder())
        self.capsules.setdefault(stream_id, []).extend(decoder.feed(data, ended))
        if ended:
            self.fins.add(stream_id)

    def stream_reset(self, stream_id: int, error_code: int) -> None:
        self.resets[stream_id] = error_code

    def datagrams_received(self, payloads: Sequence[bytes]) -> None:
        self.datagrams.extend(payloads)

    def mtu_changed(self) -> None:
        return None

    def can_send(self) -> None:
        return None

    def terminated(self, ending: Ending) -> None:
        self.ended = ending
