"""The gateway's configuration: ``/etc/zgate/gateway.yaml``, every key optional.

Without a file the defaults below hold: state in /var/lib/zgate, a certificate authority of its own,
and a policy that denies everything. Relative paths are relative to the folder of the file that
holds them; files that the configuration names must exist. Units stand in the keys' names.
"""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator
from zgate_config import StrictModel, expected, load_yaml, misfit
from zgate_config.log_settings import LogSettings
from zgate_config.types import (
    Host,
    InterfaceName,
    IpAddress,
    IpNetwork,
    Ipv4Network,
    Ipv6Network,
    LocalPath,
    Port,
    ReadableFile,
    Text,
)

from zgate_gateway.tracing import extra as tracing_extra
from zgate_gateway.worker.messages import TracingSettings

DEFAULT_PATH = Path("/etc/zgate/gateway.yaml")

_MIN_IPV6_MTU_BYTES = 1280
_MAX_MTU_BYTES = 65_535
#: RFC 9484 section 7.2: an inner packet of 1280 bytes needs QUIC packets of 1331.
_MIN_QUIC_PACKET_BYTES = 1331
_MAX_UDP_PAYLOAD_BYTES = 65_527
_MAX_CLIENTS = 65_536
_MAX_WORKERS = 16
#: Some hundred records: smaller files would be names without content.
_MIN_AUDIT_BYTES = 64 * 1024
_NARROWEST_IPV4_POOL = 30
_NARROWEST_IPV6_POOL = 126
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
#: RFC 1035 section 2.3.4: a name is at most 253 characters; a service's label has up to 63.
_DOMAIN = re.compile(rf"(?=.{{1,189}}\Z)(?=.*[a-z]){_LABEL}(\.{_LABEL})*")


def _check_pool(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Refuse what no host may hold, and what has no room for a gateway and a client."""
    narrowest = _NARROWEST_IPV4_POOL if network.version == 4 else _NARROWEST_IPV6_POOL
    if network.prefixlen > narrowest:
        raise expected(f"a pool of /{narrowest} or wider")
    if (
        network.is_multicast
        or network.is_loopback
        or network.is_link_local
        or network.is_unspecified
        or network.prefixlen == 0
    ):
        raise expected("a pool of unicast addresses that hosts may hold")
    return network


def _check_domain(value: str) -> str:
    """A DNS suffix, which comes out in lower case and without a dot at its end."""
    name = value.lower().removesuffix(".")
    if not _DOMAIN.fullmatch(name):
        raise expected("a domain such as zgate.internal")
    return name


def _check_endpoint(value: str) -> str:
    """A collector's address; the path of OTLP over HTTP is ours to add."""
    try:
        parts = urlsplit(value)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise expected("an address such as http://127.0.0.1:4318")
    return value


class ListenConfig(StrictModel):
    """The UDP port that agents and connectors dial. ``::`` takes IPv4 too."""

    address: IpAddress = IPv6Address("::")
    port: Port = 443


class PkiConfig(StrictModel):
    """Files in PEM. Without a ``crl`` no certificate is ever revoked: know why you leave it out."""

    ca: ReadableFile
    certificate: ReadableFile
    key: ReadableFile
    crl: ReadableFile | None = None


class CertificatesConfig(StrictModel):
    """What to say of certificates.

    :ivar warn_before_days: how long before the end of the gateway's certificate, an authority or a
        revocation list an alert begins; never earlier than in the last quarter of its lifetime.
    """

    warn_before_days: Annotated[float, Field(gt=0, le=365)] = 30.0


class PoolConfig(StrictModel):
    """Where virtual IPs come from. The first host address is the gateway's own."""

    ipv4: Annotated[Ipv4Network, AfterValidator(_check_pool)] = IPv4Network("10.100.0.0/16")
    ipv6: Annotated[Ipv6Network, AfterValidator(_check_pool)] = IPv6Network(
        "fd7a:7a67:6174:65::/64"
    )


class ServicesConfig(StrictModel):
    """Private services, reached through connectors.

    :ivar ipv4, ipv6: where the services' virtual IPs come from, and the addresses by which
        connectors are told apart; no client's pool.
    :ivar domain: services have names under it: ``pacs.zgate.internal``.
    """

    ipv4: Annotated[Ipv4Network, AfterValidator(_check_pool)] = IPv4Network("10.101.0.0/16")
    ipv6: Annotated[Ipv6Network, AfterValidator(_check_pool)] = IPv6Network(
        "fd7a:7a67:6174:66::/64"
    )
    domain: Annotated[str, AfterValidator(_check_domain)] = "zgate.internal"


class TunConfig(StrictModel):
    """The link between the tunnel and the kernel."""

    name: InterfaceName = "zgate0"
    mtu_bytes: Annotated[int, Field(ge=_MIN_IPV6_MTU_BYTES, le=_MAX_MTU_BYTES)] = 1420


class UplinkConfig(StrictModel):
    """Where clients' traffic leaves.

    :ivar interface: masquerade there only; absent: wherever packets leave, the TUN excepted.
    """

    interface: InterfaceName | None = None
    masquerade: bool = True


class SessionsConfig(StrictModel):
    """CONNECT-IP sessions.

    :ivar per_identity: which of two sessions with one certificate name stays.
    :ivar max: sessions at once; one more is answered 503.
    """

    per_identity: Literal["newest", "oldest"] = "newest"
    idle_timeout_s: Annotated[float, Field(ge=5, le=600)] = 30.0
    max: Annotated[int, Field(ge=1, le=_MAX_CLIENTS)] = 10_000


class QuicConfig(StrictModel):
    """The outer connection.

    :ivar congestion: ``auto`` is ``model`` (delivery rate and least RTT) where the native engine
        runs and ``cubic`` elsewhere; ``reno`` is ``cubic`` there; ``none`` is for a path whose
        owner says that nobody else needs it.
    :ivar max_datagram_bytes: UDP payload on a path that takes it; path MTU discovery goes up to
        this. 1452 fills a 1500-byte path over IPv6.
    """

    congestion: Literal["auto", "model", "cubic", "reno", "none"] = "auto"
    max_datagram_bytes: Annotated[
        int, Field(ge=_MIN_QUIC_PACKET_BYTES, le=_MAX_UDP_PAYLOAD_BYTES)
    ] = 1452


class AuditConfig(StrictModel):
    """The audit log.

    :ivar path: ``audit.jsonl`` in ``state_dir`` when absent.
    :ivar max_bytes: a larger file is put aside under its name and its last record's number, and a
        new one begins; absent: never.
    """

    path: LocalPath | None = None
    max_bytes: Annotated[int, Field(ge=_MIN_AUDIT_BYTES)] | None = None


class EdgeConfig(StrictModel):
    """The XDP program before the UDP port.

    :ivar enabled: ``auto``: where it can be attached; ``on``: not without it.
    :ivar mode: ``auto``: in the driver if it can, else in the kernel's generic hook.
    :ivar interface: absent: ``uplink.interface``, or that of the listened address, or that of the
        default route.
    :ivar initials_per_source_per_s: first packets of one IPv4 address or IPv6 /64. A handshake
        takes two or three.
    :ivar initials_burst: so many at once.
    :ivar initials_per_s: of all sources together.
    :ivar blocklist: sources that get nothing through to the port.
    :ivar blocklist_file: more of them, one on each line; read again when it changes.
    """

    enabled: Literal["auto", "on", "off"] = "auto"
    mode: Literal["auto", "native", "generic"] = "auto"
    interface: InterfaceName | None = None
    initials_per_source_per_s: Annotated[float, Field(ge=0.1, le=1e6)] = 50.0
    initials_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    initials_per_s: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    blocklist: tuple[IpNetwork, ...] = ()
    blocklist_file: ReadableFile | None = None


class MetricsConfig(StrictModel):
    """Prometheus metrics and probes over TCP. No authentication: whoever reaches the port reads.

    :ivar port: null: none of it.
    :ivar per_client: which clients and connectors get series of their own. ``auto``: up to 1,000
        all of them; above, the 100 that moved most bytes. ``all``, ``none``, or so many.
    """

    address: IpAddress = IPv4Address("127.0.0.1")
    port: Port | None = 9464
    per_client: Literal["auto", "all", "none"] | Annotated[int, Field(ge=1, le=_MAX_CLIENTS)] = (
        "auto"
    )


class TracingConfig(StrictModel):
    """Traces of session set-ups, sent to an OpenTelemetry collector as OTLP over HTTP.

    :ivar endpoint: the collector's address, without a path.
    :ivar sample_ratio: of so many set-ups, chosen when their first packet comes.
    :ivar client_addresses: whether a trace has the client's outer address and port.
    """

    endpoint: Annotated[str, AfterValidator(_check_endpoint)] = "http://127.0.0.1:4318"
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    client_addresses: bool = False

    def settings(self) -> TracingSettings:
        """What a worker needs of it."""
        return TracingSettings(self.endpoint, self.sample_ratio, self.client_addresses)


class LimitsConfig(StrictModel):
    """Sizes of the kernel's tables, allocated at start."""

    max_clients: Annotated[int, Field(ge=1, le=_MAX_CLIENTS)] = _MAX_CLIENTS
    max_flows: Annotated[int, Field(ge=1024, le=1 << 24)] = 262_144


def _default_socket(validated: dict[str, Any]) -> Path:
    folder: Path = validated["runtime_dir"]
    return folder / "gateway.sock"


class GatewayConfig(StrictModel):
    """All of it. ``GatewayConfig()`` is a gateway without a file.

    :ivar workers: processes that carry packets; auto: one for each core, at most 16.
    :ivar policy_file: None: everything is denied.
    :ivar pki: None: the gateway makes its own authority in ``state_dir``.
    :ivar server_names: host names and addresses in the certificate that it then issues to itself.
    :ivar dialects: framings that are served beside RFC 9484's, for clients that speak no other.
    :ivar routes: advertised to agents (ROUTE_ADVERTISEMENT); what passes is the policy's matter.
    """

    listen: ListenConfig = ListenConfig()
    state_dir: LocalPath = Path("/var/lib/zgate")
    runtime_dir: LocalPath = Path("/run/zgate")
    socket_path: LocalPath = Field(default_factory=_default_socket)
    socket_group: Text = "zgate"
    policy_file: ReadableFile | None = None
    pki: PkiConfig | None = None
    certificates: CertificatesConfig = CertificatesConfig()
    server_names: tuple[Host, ...] = ()
    pool: PoolConfig = PoolConfig()
    services: ServicesConfig = ServicesConfig()
    tun: TunConfig = TunConfig()
    uplink: UplinkConfig = UplinkConfig()
    routes: tuple[IpNetwork, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    sessions: SessionsConfig = SessionsConfig()
    workers: Annotated[int, Field(ge=1, le=_MAX_WORKERS)] | Literal["auto"] = "auto"
    engine: Literal["auto", "native", "python"] = "auto"
    quic: QuicConfig = QuicConfig()
    dialects: tuple[Literal["stream", "ztna-v1"], ...] = ()
    edge: EdgeConfig = EdgeConfig()
    audit: AuditConfig = AuditConfig()
    log: LogSettings = LogSettings()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig | None = None
    limits: LimitsConfig = LimitsConfig()

    @property
    def worker_count(self) -> int:
        """How many workers there are to be."""
        if self.workers == "auto":
            return min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
        return self.workers

    @model_validator(mode="after")
    def _parts_fit(self) -> GatewayConfig:
        if self.uplink.interface == self.tun.name:
            raise misfit("uplink.interface", "another interface than the TUN itself")
        if self.edge.interface == self.tun.name:
            raise misfit("edge.interface", "another interface than the TUN itself")
        if self.tracing is not None and not tracing_extra.is_installed():
            what = "OpenTelemetry, which is not installed: pip install 'zgate[otel]', or no tracing"
            raise misfit("tracing", what, "none")
        pool, services = self.pool, self.services
        if services.ipv4.overlaps(pool.ipv4):
            bound = f"a network apart from pool.ipv4 ({pool.ipv4})"
            raise misfit("services.ipv4", bound, str(services.ipv4))
        if services.ipv6.overlaps(pool.ipv6):
            bound = f"a network apart from pool.ipv6 ({pool.ipv6})"
            raise misfit("services.ipv6", bound, str(services.ipv6))
        if self.sessions.max > self.limits.max_clients:
            bound = f"at most limits.max_clients ({self.limits.max_clients})"
            raise misfit("sessions.max", bound, str(self.sessions.max))
        return self


def load_config(path: Path | None = None) -> GatewayConfig:
    """Read the configuration. Raises :class:`zgate_config.ConfigError`.

    Without ``path``, :data:`DEFAULT_PATH` if it is there, else the defaults. A file that is there
    and cannot be read is an error: the defaults are not what its owner wanted.
    """
    if path is None:
        path = DEFAULT_PATH
        if _is_absent(path):
            return GatewayConfig()
    return load_yaml(path, GatewayConfig)


def _is_absent(path: Path) -> bool:
    """Whether there is no such file; False where that cannot be told, and reading will say why."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
