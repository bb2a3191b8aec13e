"""Clients of the dialects `stream` and `ztna-v1`, written from their text, with aioquic alone.

In a test they are asyncio protocols; as a program they carry a TUN device's packets:

    dialect_clients.py stream NAME... see `main`
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import ipaddress
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    QuicEvent,
)

MAX_DATAGRAM_BYTES = 1400


class DialectClient(QuicConnectionProtocol):
    """What both have in common."""

    protocol = ""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.packets: list[bytes] = []
        self.on_packet: Callable[[bytes], None] = self.packets.append
        self.on_news: Callable[[], None] = lambda: None
        self.ended: ConnectionTerminated | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.ended = event
            self.on_news()

    def send_packet(self, packet: bytes) -> None:
        raise NotImplementedError


class ZtnaClient(DialectClient):
    """Raw QUIC datagrams under the ALPN `ztna-v1`."""

    protocol = "ztna-v1"

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.seen_at: list[tuple[str, int]] = []
        self.registered: list[str] = []
        self.refused: list[tuple[int, bytes]] = []
        self.service: str | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        super().quic_event_received(event)
        if isinstance(event, DatagramFrameReceived):
            self._take(event.data)
            self.on_news()

    def _take(self, data: bytes) -> None:
        if data[0] >> 4 in (4, 6):
            self.on_packet(data)
        elif data[0] == 0x01:
            assert len(data) == 7
            self.seen_at.append((str(ipaddress.IPv4Address(data[1:5])), data[5] << 8 | data[6]))
        elif data[0] == 0x12:
            assert data[1] == 0 and len(data) == 3 + data[2]
            self.registered.append(data[3:].decode())
        elif data[0] == 0x13:
            assert len(data) == 3 + data[2]
            self.refused.append((data[1], data[3:]))
        else:
            raise AssertionError(f"not of the dialect: {data!r}")

    def say(self, data: bytes) -> None:
        self._quic.send_datagram_frame(data)
        self.transmit()

    def register_agent(self, service: str) -> None:
        raw = service.encode()
        self.say(bytes((0x10, len(raw))) + raw)

    def register_connector(self, service: str) -> None:
        raw = service.encode()
        self.say(bytes((0x11, len(raw))) + raw)

    def send_to(self, service: str, packet: bytes) -> None:
        raw = service.encode()
        self.say(bytes((0x2F, len(raw))) + raw + packet)

    def send_packet(self, packet: bytes) -> None:
        if self.service is None:
            self.say(packet)
        else:
            self.send_to(self.service, packet)


class StreamClient(DialectClient):
    """Packets in capsules on an HTTP/3 stream."""

    protocol = "h3"

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.http: H3Connection | None = None
        self.stream_id = -1
        self.status = 0
        self.is_over = False
        self.capsules: list[tuple[int, bytes]] = []
        self._rest = b""

    def quic_event_received(self, event: QuicEvent) -> None:
        super().quic_event_received(event)
        if isinstance(event, HandshakeCompleted):
            self.http = H3Connection(self._quic)
        if self.http is None:
            return
        for h3_event in self.http.handle_event(event):
            if isinstance(h3_event, HeadersReceived):
                self.status = int(dict(h3_event.headers)[b":status"])
                self.is_over |= h3_event.stream_ended
            elif isinstance(h3_event, DataReceived):
                self._take(h3_event.data)
                self.is_over |= h3_event.stream_ended
            self.on_news()

    def request(self, authority: str, *more: tuple[bytes, bytes]) -> None:
        assert self.http is not None
        self.stream_id = self._quic.get_next_available_stream_id()
        headers = [(b":method", b"CONNECT"), (b":authority", authority.encode())]
        self.http.send_headers(self.stream_id, [*headers, *more, (b"protocol", b"connect-ip")])
        self.transmit()

    def send_capsule(self, capsule_type: int, value: bytes) -> None:
        assert self.http is not None
        head = encode_uint_var(capsule_type) + encode_uint_var(len(value))
        self.http.send_data(self.stream_id, head + value, end_stream=False)
        self.transmit()

    def send_packet(self, packet: bytes) -> None:
        self.send_capsule(0x40, packet)

    def _take(self, data: bytes) -> None:
        self._rest += data
        while capsule := self._next_capsule():
            if capsule[0] == 0x40:
                self.on_packet(capsule[1])
            else:
                self.capsules.append(capsule)

    def _next_capsule(self) -> tuple[int, bytes] | None:
        buffer = Buffer(data=self._rest)
        try:
            capsule_type, length = buffer.pull_uint_var(), buffer.pull_uint_var()
            value = buffer.pull_bytes(length)
        except ValueError:
            return None
        self._rest = self._rest[buffer.tell() :]
        return capsule_type, value

    def addresses(self) -> list[str]:
        """What the last ADDRESS_ASSIGN holds: a count, then the entries."""
        value = [value for capsule_type, value in self.capsules if capsule_type == 0x01][-1]
        buffer = Buffer(data=value)
        found = []
        for _ in range(buffer.pull_uint_var()):
            buffer.pull_uint_var()
            packed = buffer.pull_bytes({4: 4, 6: 16}[buffer.pull_uint8()])
            found.append(f"{ipaddress.ip_address(packed)}/{buffer.pull_uint8()}")
        assert buffer.eof()
        return found


def configuration(
    protocol: str, server_name: str, ca: str, certificate: str, key: str
) -> QuicConfiguration:
    made = QuicConfiguration(
        is_client=True,
        alpn_protocols=[protocol],
        max_datagram_frame_size=65536 if protocol == ZtnaClient.protocol else None,
        max_datagram_size=MAX_DATAGRAM_BYTES,
        server_name=server_name,
        cafile=ca,
    )
    made.load_cert_chain(certificate, key)
    return made


@asynccontextmanager
async def dial(
    kind: type[DialectClient], host: str, port: int, settings: QuicConfiguration
) -> AsyncIterator[Any]:
    """A client whose handshake is complete."""
    async with connect(host, port, configuration=settings, create_protocol=kind) as client:
        yield client


# As a program.


def open_tun(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0001 | 0x1000))
    return fd


def configure_tun(name: str, mtu_bytes: int, addresses: list[str], routes: list[str]) -> None:
    commands = [["ip", "link", "set", name, "mtu", str(mtu_bytes), "up"]]
    commands += [["ip", "address", "add", one, "dev", name, "nodad"] for one in addresses]
    commands += [["ip", "route", "add", one, "dev", name] for one in routes]
    for command in commands:
        if ":" not in " ".join(command) and "nodad" in command:
            command.remove("nodad")
        subprocess.run(command, check=True)


def say(**news: Any) -> None:
    print(json.dumps(news), flush=True)


async def run(arguments: argparse.Namespace) -> int:
    kind: type[DialectClient] = StreamClient if arguments.dialect == "stream" else ZtnaClient
    settings = configuration(
        kind.protocol, arguments.server_name, arguments.ca, arguments.certificate, arguments.key
    )
    fd = open_tun(arguments.tun)
    addresses: list[str] = arguments.address
    async with dial(kind, arguments.host, arguments.port, settings) as client:
        client.on_packet = lambda packet: os.write(fd, packet)
        if isinstance(client, StreamClient):
            client.request(arguments.server_name)
            await until(client, lambda: client.status)
            if client.status != 200:
                say(status=client.status)
                return 1
            await until(client, lambda: client.capsules)
            addresses = client.addresses()
        else:
            client.service = arguments.service if arguments.framed else None
            register = client.register_connector if arguments.connector else client.register_agent
            register(arguments.service)
            await until(client, lambda: client.registered or client.refused)
            if client.refused:
                say(refused=client.refused[0][0])
                return 1
            await until(client, lambda: client.seen_at)
            say(seen_at=client.seen_at[-1])
        configure_tun(arguments.tun, arguments.mtu, addresses, arguments.route)

        def readable() -> None:
            with suppress(BlockingIOError):
                client.send_packet(os.read(fd, 65535))

        stopped: list[bool] = []

        def stop() -> None:
            stopped.append(True)
            client.on_news()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop)
        loop.add_reader(fd, readable)
        say(up=addresses)
        await until(client, lambda: stopped or client.ended)
    return 0


async def until(client: DialectClient, holds: Callable[[], Any]) -> None:
    """Wait for what the gateway says; its end ends the waiting."""
    news = asyncio.Event()
    client.on_news = news.set
    while not holds():
        if client.ended is not None:
            raise ConnectionError(client.ended.reason_phrase)
        await news.wait()
        news.clear()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("dialect", choices=("stream", "ztna-v1"))
    for name in ("host", "server-name", "ca", "certificate", "key", "tun"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, default=443)
    parser.add_argument("--mtu", type=int, default=1280)
    parser.add_argument("--service", default="")
    parser.add_argument("--framed", action="store_true")
    parser.add_argument("--connector", action="store_true")
    parser.add_argument("--address", action="append", default=[])
    parser.add_argument("--route", action="append", default=[])
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
