"""What an agent is told: a YAML or JSON file, flags, or both (flags win).

    gateway: gateway.example.org        # HOST or HOST:PORT; an IPv6 address with port in brackets
    ca: /etc/zgate/ca.crt
    certificate: /etc/zgate/alice.crt
    key: /etc/zgate/alice.key

Everything else has a default. There is no setting, and no flag, that accepts a gateway whose
certificate does not verify.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from zgate_config import StrictModel, misfit
from zgate_config.dialling import Gateway, LogSettings, Settings, load_with_flags
from zgate_config.types import Host, InterfaceName, IpNetwork

DEFAULT_RUNTIME_DIR = Path("/run/zgate-agent")
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


class TunSettings(StrictModel):
    """The TUN device."""

    name: InterfaceName = "zgate-agent0"
    mtu_bytes: int = Field(default=1420, ge=MIN_MTU_BYTES, le=65535)
    """At most this; the path may allow less."""


class AgentConfig(StrictModel):
    """All settings of one agent."""

    gateway: Gateway
    ca: Path
    certificate: Path
    key: Path
    server_name: Host | None = None
    """The name that the gateway's certificate must carry; None: the gateway's host."""
    mode: Mode = Mode.SPLIT
    routes: tuple[IpNetwork, ...] | None = None
    """Split tunnel only: of what the gateway advertises, no more than this. None: all of it."""
    on_disconnect: OnDisconnect = OnDisconnect.BLOCK
    tun: TunSettings = TunSettings()
    runtime_dir: Path = DEFAULT_RUNTIME_DIR
    connect_timeout_s: float = Field(default=10.0, gt=0, le=120)
    """For each of the gateway's addresses."""
    idle_timeout_s: float = Field(default=30.0, ge=5, le=600)
    keepalive_s: float = Field(default=10.0, ge=1, le=300)
    engine: Literal["auto", "native", "python"] = "auto"
    congestion: Literal["auto", "model", "cubic", "reno", "none"] = "auto"
    log: LogSettings = LogSettings()

    @property
    def expected_name(self) -> str:
        """The name that the gateway's certificate must carry."""
        return self.server_name or self.gateway.host

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
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
