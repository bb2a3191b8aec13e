"""What an agent is told: a YAML or JSON file, flags, or both (flags win).

    gateway: gateway.example.org        # HOST or HOST:PORT; an IPv6 address with port in brackets
    ca: /etc/zgate/ca.crt
    certificate: /etc/zgate/alice.crt
    key: /etc/zgate/alice.key

Everything else has a default. There is no setting, and no flag, that accepts a gateway whose
certificate does not verify.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, model_validator
from zgate_config import (
    ConfigError,
    Mistake,
    StrictModel,
    expected,
    misfit,
    parse_document,
    read_document,
    validate,
)
from zgate_config.types import Host, InterfaceName, IpNetwork, parse_host

DEFAULT_PORT = 443
DEFAULT_RUNTIME_DIR = Path("/run/zgate-agent")
MIN_MTU_BYTES = 1280
COMMAND_LINE = "command line"


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


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where the gateway listens: a host name or an address, and a UDP port."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_gateway(value: object) -> GatewayAddress:
    """Read ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT`` or a bare IPv6 address.

    Raises:
        PydanticCustomError: it is none of these. A ValueError.
    """
    wrong = expected("HOST or HOST:PORT, such as gateway.example.org:443 or [2001:db8::1]:443")
    if not isinstance(value, str):
        raise wrong
    host, port = value, ""
    if value.startswith("["):
        host, closed, port = value[1:].partition("]")
        if not closed or ":" not in host or port[:1] not in ("", ":") or port == ":":
            raise wrong
        port = port[1:]
    elif value.count(":") == 1:
        host, _, port = value.partition(":")
        if not port:
            raise wrong
    try:
        return GatewayAddress(parse_host(host), _parse_port(port) if port else DEFAULT_PORT)
    except ValueError:
        raise wrong from None


def _parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 0xFFFF):
        raise ValueError(text)
    return int(text)


Gateway = Annotated[
    GatewayAddress, PlainValidator(parse_gateway), PlainSerializer(str, return_type=str)
]


class TunSettings(StrictModel):
    """The TUN device."""

    name: InterfaceName = "zgate-agent0"
    mtu_bytes: int = Field(default=1420, ge=MIN_MTU_BYTES, le=65535)
    """At most this; the path may allow less."""


class LogSettings(StrictModel):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


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


Settings = Mapping[str, object]
"""Keys of the configuration with plain values, nested as in the file."""


def load_config(path: Path | None, flags: Settings) -> AgentConfig:
    """Read a file, flags, or a file of which flags replace some values.

    Raises:
        ConfigError: with every mistake; ``str()`` is one line.
    """
    if path is not None and not flags:
        return validate(read_document(path), AgentConfig)
    base = {} if path is None else read_document(path).value
    if not isinstance(base, dict):
        raise ConfigError([Mistake(str(path), 1, (), "expected a mapping, got something else")])
    name = COMMAND_LINE if path is None else f"{path} with the {COMMAND_LINE}"
    document = parse_document(json.dumps(_overlay(base, flags)), name)
    try:
        return validate(document, AgentConfig)
    except ConfigError as error:
        # What was merged has no lines that anybody could look up.
        unlined = [Mistake(one.file, None, one.path, one.text) for one in error.mistakes]
        raise ConfigError(unlined) from None


def _overlay(base: Settings, over: Settings) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _overlay(below, value) if both else value  # type: ignore[arg-type]
    return merged
