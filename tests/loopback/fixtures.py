"""Who makes gateways, clients and peers for a test, and the fixtures of it all."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from zgate_datapath.client import CIPHER_SUITES, ClientConfig, TunnelClient, TunnelState
from zgate_datapath.connection_ids import CONNECTION_ID_BYTES
from zgate_datapath.offers import ClientOffers, Notices
from zgate_datapath.udp import UdpSocket

from .certificates import HOST, Identity, Pki
from .clients import Client, Peer
from .gateway import Gateway
from .kernel import FakeTun
from .waiting import WAIT_S, eventually


class Lab:
    """Makes gateways, clients and peers, and takes them away again.

    `engine` is the packet engine of the gateways, `client_engine` that of the others.
    """

    def __init__(self, pki: Pki, engine: str, client_engine: str | None = None) -> None:
        self.pki = pki
        self.engine = engine
        self.client_engine = client_engine or engine
        self._gateways: list[Gateway] = []
        self._clients: list[Client] = []
        self._peers: list[Peer] = []

    def gateway(self, **settings: Any) -> Gateway:
        made = Gateway(self.pki, **{"engine": self.engine, **settings})
        self._gateways.append(made)
        return made

    def make_client(
        self,
        gateway: Gateway,
        name: str = "alice",
        identity: Identity | None = None,
        *,
        offers: ClientOffers | None = None,
        notices: Notices = Notices(),  # noqa: B008 - it is frozen
        **config: Any,
    ) -> Client:
        """A client that has not dialled yet."""
        identity = identity or self.pki.client(name)
        settings = {
            "host": "127.0.0.1",
            "port": gateway.port,
            "server_name": HOST,
            "ca_file": str(self.pki.ca_file),
            "certificate_file": str(identity.certificate),
            "key_file": str(identity.key),
            "engine": self.client_engine,
            **config,
        }
        tun, changes = FakeTun(), []  # type: ignore[var-annotated]
        tunnel = TunnelClient(
            config=ClientConfig(**settings),
            tun=tun,  # type: ignore[arg-type]
            on_change=changes.append,
            offers=offers,
            notices=notices,
        )
        client = Client(tunnel, tun, changes)
        self._clients.append(client)
        return client

    async def connect(
        self, gateway: Gateway, name: str = "alice", **config: Any
    ) -> tuple[Client, TunnelState]:
        client = self.make_client(gateway, name, **config)
        return client, await client.tunnel.connect(WAIT_S)

    def make_peer(
        self,
        gateway: Gateway,
        name: str | None = "alice",
        *,
        identity: Identity | None = None,
        source: str | None = None,
        quic: QuicConnection | None = None,
        **configuration: Any,
    ) -> Peer:
        """A peer that has not dialled yet; without a name it has no certificate."""
        address = gateway.endpoint.udp.local_address
        udp = UdpSocket.towards(address) if source is None else UdpSocket.bind(source, 0)
        if quic is None:
            settings = QuicConfiguration(
                is_client=True,
                **{
                    "alpn_protocols": ["h3"],
                    "cipher_suites": CIPHER_SUITES,
                    "connection_id_length": CONNECTION_ID_BYTES,
                    "max_datagram_frame_size": 65535,
                    "server_name": HOST,
                    "verify_mode": ssl.CERT_REQUIRED,
                    "cafile": str(self.pki.ca_file),
                    **configuration,
                },
            )
            if identity is None and name is not None:
                identity = self.pki.client(name)
            if identity is not None:
                settings.load_cert_chain(identity.certificate, identity.key)
            quic = QuicConnection(configuration=settings)
        peer = Peer(quic, udp, self.client_engine)
        self._peers.append(peer)
        return peer

    async def peer(self, gateway: Gateway, name: str | None = "alice", **more: Any) -> Peer:
        """A peer whose HTTP/3 is up."""
        peer = self.make_peer(gateway, name, **more)
        await peer.dial(gateway.endpoint.udp.local_address)
        await eventually(lambda: peer.is_ready or peer.ended)
        assert peer.is_ready, peer.ended
        return peer

    async def close(self) -> None:
        for client in self._clients:
            await client.tunnel.close("the test is over")
            client.tun.close()
        for peer in self._peers:
            await peer.close()
        for gateway in self._gateways:
            gateway.close()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(params=["python", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    """Everything holds for both engines; a test that looks into one of them overrides this."""
    name: str = request.param
    return name


#: For a test of what only the Python engine has.
python_engine = pytest.mark.parametrize("engine", ["python"], indirect=True)


@pytest_asyncio.fixture
async def lab(pki: Pki, engine: str) -> AsyncIterator[Lab]:
    made = Lab(pki, engine)
    yield made
    await made.close()
