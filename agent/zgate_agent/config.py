"""What an agent is told: a YAML or JSON file, flags, or both (flags win).

    gateway: gateway.example.org        # HOST or HOST:PORT; an IPv6 address with port in brackets
    ca: /etc/zgate/ca.crt
    certificate: /etc/zgate/alice.crt
    key: /etc/zgate/alice.key

This shape is read as well, with the same keys beside it; an address that differs from what the
gateway says is told in the status:

    intermediate_server: {host: gateway.example.org, port: 443}
    services:
      - {id: pacs, virtualIp: 10.101.0.1}

Several gateways, in the order in which they are tried:

    gateways: [gateway1.example.org, gateway2.example.org:8443]

Everything else has a default. Relative paths start at the file's folder, those of flags where the
command is run. There is no setting, and no flag, that accepts a gateway whose certificate does not
verify.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from zgate_config import StrictModel, expected, misfit
from zgate_config.dialling import (
    Gateway,
    GatewayAddress,
    IntermediateServer,
    MetricsSettings,
    Settings,
    load_with_flags,
)
from zgate_config.log_settings import LogSettings
from zgate_config.types import (
    CredentialPath,
    Host,
    InterfaceName,
    IpAddress,
    IpNetwork,
    LocalPath,
    Text,
)
from zgate_host.runtime_dir import service_runtime_dir

DEFAULT_RUNTIME_DIR = Path("/run/zgate-agent")
DEFAULT_RESOLV_CONF = Path("/etc/resolv.conf")
MIN_MTU_BYTES = 1280


class Mode(StrEnum):
    """What goes into the tunnel."""

    SPLIT = "split"
    """The networks that the gateway advertises, narrowed by the agent's own list."""
    FULL = "full"
    """Everything, of both families; what the gateway does not advertise goes nowhere."""


class OnDisconnect(StrEnum):
    """What happens to tunnelled traffic while there is no session."""

    BLOCK = "block"
    """Routes and addresses stay: nothing leaves the device beside the tunnel."""
    RELEASE = "release"
    """Routes and addresses go, and traffic takes the way it had without the agent."""


class DnsMode(StrEnum):
    """How this host comes to ask the gateway for names of services, and of nothing else."""

    AUTO = "auto"
    """By systemd-resolved where programs use it, else by resolv.conf."""
    RESOLVED = "resolved"
    """By systemd-resolved, or not at all."""
    RESOLV_CONF = "resolv.conf"
    """By resolv.conf, whatever runs."""
    OFF = "off"
    """Not at all."""


class KnownService(StrictModel):
    """A service, and the virtual IP that the file's author believes that it has."""

    id: Text
    virtual_ip: IpAddress | None = Field(default=None, alias="virtualIp")


class TunSettings(StrictModel):
    """The TUN device."""

    name: InterfaceName = "zgate-agent0"
    mtu_bytes: int = Field(default=1420, ge=MIN_MTU_BYTES, le=65535)
    """At most this; the path may allow less."""


class AgentConfig(StrictModel):
    """All settings of one agent."""

    given_gateways: tuple[Gateway, ...] = Field(default=(), alias="gateways", max_length=16)
    """The first one that gives a session has it; the others stand by."""
    given_gateway: Gateway | None = Field(default=None, alias="gateway")
    """The same as `gateways` with one."""
    intermediate_server: IntermediateServer | None = None
    """The same as `gateway`."""
    services: tuple[KnownService, ...] = Field(default=(), max_length=1024)
    """Compared with what the gateway says, and no more."""
    ca: CredentialPath
    certificate: CredentialPath
    key: CredentialPath
    server_name: Host | None = None
    """The name that a gateway's certificate must carry; None: the gateway's host."""
    mode: Mode = Mode.SPLIT
    routes: tuple[IpNetwork, ...] | None = None
    """Split tunnel only: of what the gateway advertises, no more than this. None: all of it."""
    on_disconnect: OnDisconnect = OnDisconnect.BLOCK
    dns: DnsMode = DnsMode.AUTO
    resolv_conf: LocalPath | None = None
    """None: /etc/resolv.conf."""
    tun: TunSettings = TunSettings()
    runtime_dir: LocalPath = Field(
        default_factory=lambda: service_runtime_dir() or DEFAULT_RUNTIME_DIR
    )
    connect_timeout_s: float = Field(default=10.0, gt=0, le=120)
    """For each of the gateway's addresses."""
    idle_timeout_s: float = Field(default=30.0, ge=5, le=600)
    keepalive_s: float = Field(default=10.0, ge=1, le=300)
    engine: Literal["auto", "native", "python"] = "auto"
    congestion: Literal["auto", "model", "cubic", "reno", "none"] = "auto"
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def all_gateways(self) -> tuple[GatewayAddress, ...]:
        """The gateways in their order, in whichever way they are written."""
        if self.intermediate_server is not None:
            return (self.intermediate_server.address,)
        return self.given_gateways if self.given_gateway is None else (self.given_gateway,)

    @property
    def gateway(self) -> GatewayAddress:
        """The first gateway."""
        return self.all_gateways[0]

    @property
    def expected_name(self) -> str:
        """The name that the first gateway's certificate must carry."""
        return self.expected_name_of(self.gateway)

    def expected_name_of(self, gateway: GatewayAddress) -> str:
        """The name that a gateway's certificate must carry."""
        return self.server_name or gateway.host

    @field_validator("given_gateways")
    @classmethod
    def _each_gateway_once(cls, value: tuple[GatewayAddress, ...]) -> tuple[GatewayAddress, ...]:
        if len(set(value)) != len(value):
            raise expected("each gateway once")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [self.given_gateways or None, self.given_gateway, self.intermediate_server]
        how_many = sum(one is not None for one in given)
        if how_many != 1:
            what = "one of gateways, gateway and intermediate_server"
            raise misfit("gateway", what, "none" if how_many == 0 else "several")
        if self.mode is Mode.FULL and self.routes is not None:
            raise misfit("routes", "no routes with mode: full, which takes everything", "a list")
        if self.keepalive_s >= self.idle_timeout_s:
            raise misfit("keepalive_s", f"less than idle_timeout_s ({self.idle_timeout_s:g})")
        return self


def load_config(path: Path | None, flags: Settings) -> AgentConfig:
    """Read a file, flags, or a file of which flags replace some values.

    Raises:
        ConfigError: with every mistake; ``str()`` is one line.
    """
    return load_with_flags(path, flags, AgentConfig)
