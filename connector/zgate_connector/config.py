"""What a connector is told: a YAML or JSON file, flags, or both (flags win).

    gateways: [gateway.example.org, 192.0.2.7:8443]    # or `gateway:` with one
    ca: /etc/zgate/ca.crt
    certificate: /etc/zgate/pacs-room.crt
    key: /etc/zgate/pacs-room.key
    services:
      - {id: pacs, protocol: tcp, ports: [104, 11112], backend: 10.0.5.9}
      - {id: echo, protocol: udp, ports: [9999], backend: "127.0.0.1:9999", health: {kind: none}}
    networks:                                          # needs CAP_NET_ADMIN
      - {network: 10.20.0.0/16, masquerade: true}

This shape is read as well, with the same keys beside it:

    intermediate_server: {host: gateway.example.org, port: 443}
    services:
      - {id: echo, backend: "127.0.0.1:9999", protocol: udp}

Relative paths start at the file's folder, those of flags where the command is run. There is no
setting, and no flag, that accepts a gateway whose certificate does not verify.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)
from zgate_config import StrictModel, expected, misfit
from zgate_config.dialling import (
    Gateway,
    GatewayAddress,
    IntermediateServer,
    MetricsSettings,
    Settings,
    load_with_flags,
    split_port,
)
from zgate_config.log_settings import LogSettings
from zgate_config.types import CredentialPath, Host, IpNetwork, LocalPath, Port
from zgate_host.runtime_dir import service_runtime_dir

SYSTEM_RUNTIME_DIR = Path("/run/zgate-connector")
MIN_MTU_BYTES = 1280
MAX_SERVICES = 256
MAX_NETWORKS = 256
MAX_PORT_RANGES = 64
MAX_PORTS = 1024
"""Of all services: each is a socket for each address family."""
_MAX_ID_BYTES = 255
_PORTS = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?\Z")


def default_runtime_dir() -> Path:
    """Where this user's connector has its status socket, unless it is told otherwise."""
    given = service_runtime_dir()
    if given is not None:
        return given
    if os.geteuid() == 0:
        return SYSTEM_RUNTIME_DIR
    own = os.environ.get("XDG_RUNTIME_DIR")
    if own:
        return Path(own) / "zgate-connector"
    return Path(f"/tmp/zgate-connector-{os.geteuid()}")  # noqa: S108 - `RuntimeDir` sees whose it is


class Transport(StrEnum):
    """What a service speaks. Its ICMP echo is answered by the connector, for both."""

    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """The IP protocol number."""
        return 6 if self is Transport.TCP else 17


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))

    def __len__(self) -> int:
        return self.last - self.first + 1


def parse_ports(value: object) -> PortRange:
    """Read ``443`` or ``8000-8100``. Raises PydanticCustomError, a ValueError."""
    is_port = isinstance(value, int | str) and not isinstance(value, bool)
    match = _PORTS.match(str(value)) if is_port else None
    if match is not None:
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if first <= last <= 0xFFFF:
            return PortRange(first, last)
    raise expected("a port or a range of ports such as 443 or 8000-8100 (1 to 65535)")


@dataclass(frozen=True, slots=True)
class Backend:
    """Where the application itself is, as the connector's host sees it.

    Attributes:
        port: every port of the service goes there; None: each to the same port.
    """

    host: str
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def parse_backend(value: object) -> Backend:
    """Read ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT`` or a bare IPv6 address.

    Raises:
        PydanticCustomError: it is none of these. A ValueError.
    """
    try:
        if isinstance(value, str):
            return Backend(*split_port(value))
    except ValueError:
        pass
    raise expected("HOST or HOST:PORT, such as 10.0.5.9 or 127.0.0.1:9999")


def _service_id(value: object) -> str:
    fits = isinstance(value, str) and 0 < len(value.encode(errors="replace")) <= _MAX_ID_BYTES
    if not fits or not str(value).isprintable():
        raise expected(f"a name of 1 to {_MAX_ID_BYTES} bytes without control characters")
    return str(value)


def _transport(value: object) -> Transport:
    try:
        if isinstance(value, str):
            return Transport(value.lower())
    except ValueError:
        pass
    raise expected("tcp or udp")


def _hex(value: object) -> bytes:
    try:
        if isinstance(value, str):
            return bytes.fromhex(value)
    except ValueError:
        pass
    raise expected('bytes in hexadecimal, in quotes, such as "0a00"')


_as_text = PlainSerializer(str, return_type=str)
ServiceId = Annotated[str, PlainValidator(_service_id)]
Ports = Annotated[PortRange, PlainValidator(parse_ports), _as_text]
BackendAddress = Annotated[Backend, PlainValidator(parse_backend), _as_text]
HexBytes = Annotated[
    bytes, PlainValidator(_hex), PlainSerializer(lambda value: value.hex(), return_type=str)
]


class HealthKind(StrEnum):
    """How it is found out whether a backend works."""

    TCP = "tcp"
    """A TCP connection can be opened."""
    UDP = "udp"
    """A datagram is answered."""
    NONE = "none"
    """Not at all: it always counts as healthy."""


class HealthSettings(StrictModel):
    """How often to ask a backend, and what its answers mean."""

    kind: HealthKind | None = None
    """None: tcp for a TCP service, none for a UDP one."""
    port: Port | None = None
    """None: the first port of the backend."""
    interval_s: float = Field(default=5.0, ge=0.1, le=3600)
    timeout_s: float = Field(default=2.0, gt=0, le=60)
    rise: int = Field(default=1, ge=1, le=100)
    """So many successes in a row make an unhealthy backend healthy."""
    fall: int = Field(default=2, ge=1, le=100)
    """So many failures in a row make a healthy backend unhealthy."""
    probe_hex: HexBytes = b"\0"
    """kind: udp: what is sent."""


class ServiceSettings(StrictModel):
    """One named service, and the application behind it."""

    id: ServiceId
    protocol: Annotated[Transport, PlainValidator(_transport)] = Transport.TCP
    given_ports: tuple[Ports, ...] = Field(default=(), alias="ports", max_length=MAX_PORT_RANGES)
    """Where clients reach it. Empty only with a backend that has a port: that one."""
    backend: BackendAddress
    health: HealthSettings = HealthSettings()

    @property
    def ports(self) -> tuple[PortRange, ...]:
        """Where clients reach it: never empty, in order, each port once."""
        if self.given_ports or self.backend.port is None:
            return tuple(sorted(self.given_ports, key=lambda one: one.first))
        return (PortRange(self.backend.port, self.backend.port),)

    @property
    def health_kind(self) -> HealthKind:
        """How its health is found out."""
        if self.health.kind is not None:
            return self.health.kind
        return HealthKind.TCP if self.protocol is Transport.TCP else HealthKind.NONE

    @property
    def health_port(self) -> int:
        """The port that health checks ask."""
        return self.health.port or self.backend_port(self.ports[0].first)

    def backend_port(self, port: int) -> int:
        """The application's port for a port of the service."""
        return self.backend.port or port

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.ports:
            raise misfit("ports", "ports, here or in the backend (HOST:PORT)", "none")
        for before, after in pairwise(self.ports):
            if after.first <= before.last:
                raise misfit("ports", "each port once", f"{after} beside {before}")
        return self


class NetworkSettings(StrictModel):
    """A network behind the connector."""

    network: IpNetwork
    masquerade: bool = True
    """Whether its hosts see the connector's address. If not, they need a route back to it."""


def _network(value: object) -> object:
    return {"network": value} if isinstance(value, str) else value


class LimitSettings(StrictModel):
    """What the clients of one gateway may use of this host."""

    new_flows_per_s: int = Field(default=10, ge=1, le=1_000_000)
    """For each source and destination: TCP connections opened, and UDP flows begun."""
    open_flows_per_client: int = Field(default=256, ge=1, le=65536)
    max_flows: int = Field(default=4096, ge=1, le=65536)
    """All clients together."""
    buffer_bytes_per_flow: int = Field(default=262144, ge=4096, le=1048576)
    """For each direction of a TCP flow: what a slow reader makes us hold at most."""
    connect_timeout_s: float = Field(default=10.0, gt=0, le=120)
    """For a connection to the backend."""
    udp_idle_timeout_s: float = Field(default=60.0, ge=1, le=3600)
    """After so long without a datagram a UDP flow is over."""


class TunSettings(StrictModel):
    """The TUN devices of networks mode, one for each gateway."""

    prefix: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,11}$")] = "zgate-conn"
    """A number follows it: zgate-conn0."""
    mtu_bytes: int = Field(default=1420, ge=MIN_MTU_BYTES, le=65535)
    """At most this; the path may allow less. Also inside the private namespace."""


class ConnectorConfig(StrictModel):
    """All settings of one connector."""

    gateways: tuple[Gateway, ...] = Field(default=(), max_length=16)
    """A session is held to each."""
    gateway: Gateway | None = None
    """The same as `gateways` with one."""
    intermediate_server: IntermediateServer | None = None
    """The same as `gateway`."""
    ca: CredentialPath = Path("/etc/zgate/ca.crt")
    certificate: CredentialPath = Path("/etc/zgate/connector.crt")
    key: CredentialPath = Path("/etc/zgate/connector.key")
    server_name: Host | None = None
    """The name that a gateway's certificate must carry; None: the gateway's host."""
    services: tuple[ServiceSettings, ...] = Field(default=(), max_length=MAX_SERVICES)
    networks: tuple[Annotated[NetworkSettings, BeforeValidator(_network)], ...] = Field(
        default=(), max_length=MAX_NETWORKS
    )
    limits: LimitSettings = LimitSettings()
    tun: TunSettings = TunSettings()
    runtime_dir: LocalPath = Field(default_factory=default_runtime_dir)
    connect_timeout_s: float = Field(default=10.0, gt=0, le=120)
    """For each of a gateway's addresses."""
    idle_timeout_s: float = Field(default=30.0, ge=5, le=600)
    keepalive_s: float = Field(default=10.0, ge=1, le=300)
    engine: Literal["auto", "native", "python"] = "auto"
    congestion: Literal["auto", "model", "cubic", "reno", "none"] = "auto"
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def all_gateways(self) -> tuple[GatewayAddress, ...]:
        """The gateways, in whichever way they are written."""
        if self.intermediate_server is not None:
            return (self.intermediate_server.address,)
        return self.gateways if self.gateway is None else (self.gateway,)

    def expected_name(self, gateway: GatewayAddress) -> str:
        """The name that a gateway's certificate must carry."""
        return self.server_name or gateway.host

    @property
    def own_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """What is advertised."""
        return tuple(one.network for one in self.networks)

    @field_validator("gateways")
    @classmethod
    def _each_gateway_once(cls, value: tuple[GatewayAddress, ...]) -> tuple[GatewayAddress, ...]:
        if len(set(value)) != len(value):
            raise expected("each gateway once")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [self.gateways or None, self.gateway, self.intermediate_server]
        how_many = sum(one is not None for one in given)
        if how_many != 1:
            what = "one of gateways, gateway and intermediate_server"
            raise misfit("gateways", what, "none" if how_many == 0 else "several")
        if not self.services and not self.networks:
            raise misfit("services", "services, or networks, to offer", "neither")
        if self.keepalive_s >= self.idle_timeout_s:
            raise misfit("keepalive_s", f"less than idle_timeout_s ({self.idle_timeout_s:g})")
        self._check_services()
        self._check_networks()
        return self

    def _check_services(self) -> None:
        ranges = Counter(one.id for one in self.services for _ in one.ports)
        for name, count in ranges.items():
            if count > MAX_PORT_RANGES:
                what = f"at most {MAX_PORT_RANGES} ranges of ports for an id, tcp and udp together"
                raise misfit("services", what, f"{count} for {name}")
        seen = set()
        for one in self.services:
            if (one.id, one.protocol) in seen:
                what = "each id once per protocol"
                raise misfit("services", what, f"{one.id} again, with {one.protocol}")
            seen.add((one.id, one.protocol))
        count = sum(len(ports) for one in self.services for ports in one.ports)
        if count > MAX_PORTS:
            raise misfit("services", f"at most {MAX_PORTS} ports in all", f"{count}")

    def _check_networks(self) -> None:
        if len(set(self.own_networks)) != len(self.own_networks):
            raise misfit("networks", "each network once", "one of them again")


def load_config(path: Path | None, flags: Settings) -> ConnectorConfig:
    """Read a file, flags, or a file of which flags replace some values.

    Raises:
        ConfigError: with every mistake; ``str()`` is one line.
    """
    return load_with_flags(path, flags, ConnectorConfig)
