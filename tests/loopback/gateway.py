"""A gateway's UDP side on a port of loopback, without its kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

from zgate_datapath.connection import HTTP3
from zgate_datapath.connection_ids import ConnectionIds
from zgate_datapath.endpoint import ServerEndpoint
from zgate_datapath.udp import UdpSocket
from zgate_gateway.client_connection import ClientConnection
from zgate_gateway.dialects.connection import ZTNA_V1, DialectConnection
from zgate_gateway.forwarder import Forwarder
from zgate_gateway.listener import Listener, ListenerSettings
from zgate_gateway.registry import Registry, RegistrySettings
from zgate_gateway.sessions import Session, SessionSettings, SessionTable
from zgate_identity.reload import ReloadingClientVerifier
from zgate_protocol.ip_range import IpRange
from zgate_protocol.uri_template import default_template

from .certificates import Identity, Pki
from .kernel import FakeIcmp, FakeKernel, FakePool, FakeSteering, FakeTun
from .packets import GATEWAY_V4, GATEWAY_V6, POOLS, ROUTES
from .supervisor import Near, Record


class Gateway:
    """Listener, session table and forwarder on a port of loopback."""

    def __init__(
        self,
        pki: Pki,
        *,
        engine: str = "auto",
        identity: Identity | None = None,
        newest_wins: bool = True,
        max_sessions: int = 100,
        queue_packets: int = 512,
        routes: Sequence[str] = ROUTES,
        pools: Sequence[str] = POOLS,
        idle_timeout_s: float = 30.0,
        address: str = "127.0.0.1",
        port: int = 0,
        connection_ids: ConnectionIds | None = None,
        retry_key: bytes | None = None,
        client_pools: Sequence[str] = (),
        service_pools: Sequence[str] = (),
        dns_domain: str = "",
        dialects: Sequence[str] = (),
    ) -> None:
        self.pki = pki
        self.dialects = tuple(dialects)
        self.refusals: list[str] = []
        self.handlers: list[ClientConnection] = []
        self.tun_lost = 0
        self.pools = [FakePool(network) for network in pools]
        self.kernel, self.record, self.steering = FakeKernel(), Record(), FakeSteering()
        self.tun, self.icmp = FakeTun(), FakeIcmp()
        self.verifier = ReloadingClientVerifier(
            pki.ca_file, pki.authority.crl_file, datetime.now(UTC)
        )
        self.registry = self._make_registry(
            RegistrySettings(newest_wins=newest_wins, max_sessions=max_sessions)
        )
        self.link = Near(self.registry)
        self.table = self.link.table = self._make_table(
            SessionSettings(
                routes=_ranges(routes),
                template=default_template("gateway"),
                gateway_addresses=(GATEWAY_V4.packed, GATEWAY_V6.packed),
                pools=_ranges(client_pools),
                service_pools=_ranges(service_pools),
                dns_domain=dns_domain,
            )
        )
        identity = identity or pki.gateway
        self.listener = self._make_listener(
            ListenerSettings(
                certificate_file=identity.certificate,
                key_file=identity.key,
                engine=engine,
                congestion="cubic",
                idle_timeout_s=idle_timeout_s,
                max_udp_payload_bytes=1452,
                queue_packets=queue_packets,
                protocols=(HTTP3, ZTNA_V1) if ZTNA_V1 in self.dialects else (HTTP3,),
            ),
            connection_ids,
            retry_key,
        )
        self.listener.open(UdpSocket.bind(address, port), asyncio.get_running_loop())
        self.forwarder = self._start_forwarder()

    def _make_registry(self, settings: RegistrySettings) -> Registry:
        return Registry(
            settings,
            pools=self.pools,  # type: ignore[arg-type]
            kernel=self.kernel,
            steering=self.steering,
            listener=self.record,
            recheck=self.verifier.recheck,
            loop=asyncio.get_running_loop(),
        )

    def _make_table(self, settings: SessionSettings) -> SessionTable:
        return SessionTable(
            settings,
            registrar=self.link,
            write_tun=self.tun.write,
            owner_of=self.steering.owners.get,
            loop=asyncio.get_running_loop(),
        )

    def _make_listener(
        self,
        settings: ListenerSettings,
        connection_ids: ConnectionIds | None,
        retry_key: bytes | None,
    ) -> Listener:
        return Listener(
            settings,
            self.verifier,
            make_handler=self._make_handler,
            on_refused=lambda connection, reason, text: self.refusals.append(reason),
            connection_ids=connection_ids,
            retry_key=retry_key,
        )

    def _start_forwarder(self) -> Forwarder:
        forwarder = Forwarder(
            self.tun,  # type: ignore[arg-type]
            self.table,
            self.endpoint,
            asyncio.get_running_loop(),
            icmp=self.icmp,
            on_lost=self._lost,
        )
        forwarder.start()
        return forwarder

    def _lost(self) -> None:
        self.tun_lost += 1

    def _make_handler(self, listener: Listener, connection: Any, quic: Any) -> ClientConnection:
        handler = (
            DialectConnection(self.dialects, self.table, self.endpoint, connection, quic)
            if self.dialects
            else ClientConnection(self.table, self.endpoint, connection, quic)
        )
        self.handlers.append(handler)
        return handler

    @property
    def endpoint(self) -> ServerEndpoint:
        assert self.listener.endpoint is not None
        return self.listener.endpoint

    @property
    def port(self) -> int:
        return int(self.endpoint.udp.local_address[1])

    def session(self, name: str) -> Session:
        return self.table.by_client[name]

    def close(self) -> None:
        for session in list(self.table.by_client.values()):
            self.table.close(session, "the test is over")
        self.endpoint.flush_touched()
        self.forwarder.stop()
        self.listener.close()
        self.tun.close()

    def kill(self) -> None:
        """End as SIGKILL would: nobody is told, and the port is free."""
        self.endpoint.connections.clear()
        self.forwarder.stop()
        self.endpoint.close()

    def assert_holds_nothing(self) -> None:
        """No session, no address, no kernel entry, no connection is left."""
        endpoint, table = self.endpoint, self.table
        assert not table.by_client and not table.by_address and not table.by_id
        assert not table.by_network and not table.services
        assert not self.registry.by_client and not self.registry.by_id
        assert not self.steering.owners
        assert self.kernel.clients == {}
        assert [pool.held for pool in self.pools] == [[] for _ in self.pools]
        assert not endpoint.connections and not endpoint._by_id
        assert not endpoint._timers and not endpoint._touched and not endpoint.half_open


def _ranges(networks: Sequence[str]) -> tuple[IpRange, ...]:
    return tuple(IpRange.of(ip_network(each)) for each in networks)
