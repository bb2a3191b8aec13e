"""Two QUIC connections pumped in memory with an explicit clock."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent
from aioquic.tls import CipherSuite
from zgate_datapath.peer_authentication import ServerQuicConnection
from zgate_identity.authority import CertificateAuthority
from zgate_identity.profile import Usage

from ...loopback import engine, lab, pki  # noqa: TID252
from .links import engines, links

__all__ = ["engine", "engines", "lab", "links", "pki"]

CLIENT_ADDRESS = ("192.0.2.10", 40000)
SERVER_ADDRESS = ("192.0.2.1", 443)


@dataclass(frozen=True)
class Credentials:
    ca_file: Path
    server_certificate: Path
    server_key: Path
    client_certificate: Path
    client_key: Path


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    directory = tmp_path_factory.mktemp("pki")
    now = datetime.now(UTC)
    authority = CertificateAuthority.create(directory / "ca", now=now)
    for name, usage, hosts in (
        ("server", Usage.SERVER, ["gateway.test"]),
        ("client", Usage.CLIENT, []),
    ):
        issued = authority.issue(name, usage=usage, dns_names=hosts, now=now)
        (directory / f"{name}.crt").write_bytes(issued.certificate_pem)
        (directory / f"{name}.key").write_bytes(issued.key_pem)
    return Credentials(
        authority.ca_file,
        directory / "server.crt",
        directory / "server.key",
        directory / "client.crt",
        directory / "client.key",
    )


@dataclass
class Pair:
    """A client and a server; `now` only moves when a test moves it."""

    client: QuicConnection
    server: ServerQuicConnection
    now: float = 100.0
    drop: Callable[[bytes], bool] = lambda packet: False
    client_events: list[QuicEvent] = field(default_factory=list)
    server_events: list[QuicEvent] = field(default_factory=list)

    def pump(self, rounds: int = 20) -> None:
        """Carry packets both ways until both are silent."""
        for _ in range(rounds):
            moved = self._carry(self.client, self.server, CLIENT_ADDRESS)
            moved |= self._carry(self.server, self.client, SERVER_ADDRESS)
            self.collect()
            self.now += 0.005
            if not moved:
                return

    def _carry(self, source: QuicConnection, target: QuicConnection, address: object) -> bool:
        if source is self.server and not self.server._network_paths:
            return False
        packets = [data for data, _ in source.datagrams_to_send(self.now)]
        for packet in packets:
            if not self.drop(packet):
                target.receive_datagram(packet, address, self.now)
        return bool(packets)

    def collect(self) -> None:
        for connection, events in (
            (self.client, self.client_events),
            (self.server, self.server_events),
        ):
            while (event := connection.next_event()) is not None:
                events.append(event)


def client_configuration(credentials: Credentials, **more: object) -> QuicConfiguration:
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["h3"],
        max_datagram_frame_size=65535,
        server_name="gateway.test",
        cafile=str(credentials.ca_file),
        verify_mode=ssl.CERT_REQUIRED,
        **more,  # type: ignore[arg-type]
    )
    configuration.load_cert_chain(credentials.client_certificate, credentials.client_key)
    return configuration


def server_configuration(credentials: Credentials) -> QuicConfiguration:
    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=["h3"], max_datagram_frame_size=65535
    )
    configuration.load_cert_chain(credentials.server_certificate, credentials.server_key)
    return configuration


def make_pair(
    credentials: Credentials,
    cipher_suite: CipherSuite = CipherSuite.AES_128_GCM_SHA256,
    verify_peer: Callable[..., object] = lambda leaf, chain: "client",
    configuration: QuicConfiguration | None = None,
) -> Pair:
    client = QuicConnection(
        configuration=configuration
        or client_configuration(credentials, cipher_suites=[cipher_suite])
    )
    server = ServerQuicConnection(
        verify_peer=verify_peer,
        configuration=server_configuration(credentials),
        original_destination_connection_id=client.original_destination_connection_id,
    )
    pair = Pair(client, server)
    client.connect(SERVER_ADDRESS, now=pair.now)
    return pair


@pytest.fixture(
    params=[
        CipherSuite.AES_128_GCM_SHA256,
        CipherSuite.AES_256_GCM_SHA384,
        CipherSuite.CHACHA20_POLY1305_SHA256,
    ],
    ids=["aes128", "aes256", "chacha20"],
)
def pair(request: pytest.FixtureRequest, credentials: Credentials) -> Iterator[Pair]:
    """A pair whose handshake is done, for each cipher suite."""
    made = make_pair(credentials, request.param)
    made.pump()
    assert made.server.is_authenticated()
    yield made
