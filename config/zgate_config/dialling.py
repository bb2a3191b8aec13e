"""What everybody who dials a gateway is told: where it is, how to log; a file, flags, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, PlainSerializer, PlainValidator

from zgate_config.credentials import is_credential
from zgate_config.document import parse_document, read_document
from zgate_config.errors import ConfigError, Mistake
from zgate_config.load import validate
from zgate_config.model import StrictModel, expected
from zgate_config.types import Host, IpAddress, Port, parse_host

DEFAULT_PORT = 443
COMMAND_LINE = "command line"

ModelT = TypeVar("ModelT", bound=BaseModel)

Settings = Mapping[str, object]
"""Keys of a configuration with plain values, nested as in the file."""


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where a gateway listens: a host name or an address, and a UDP port."""

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
    try:
        host, port = split_port(value)
    except ValueError:
        raise wrong from None
    return GatewayAddress(host, DEFAULT_PORT if port is None else port)


def split_port(text: str) -> tuple[str, int | None]:
    """Split ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT`` or a bare IPv6 address; ValueError if none."""
    host, port = text, ""
    if text.startswith("["):
        host, closed, port = text[1:].partition("]")
        if not closed or ":" not in host or port[:1] not in ("", ":") or port == ":":
            raise ValueError(text)
        port = port[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not port:
            raise ValueError(text)
    return parse_host(host), _parse_port(port) if port else None


def _parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 0xFFFF):
        raise ValueError(text)
    return int(text)


Gateway = Annotated[
    GatewayAddress, PlainValidator(parse_gateway), PlainSerializer(str, return_type=str)
]


class IntermediateServer(StrictModel):
    """A gateway, as files of another shape name it: ``intermediate_server: {host, port}``."""

    host: Host
    port: Annotated[Port, Field(ge=1)] = DEFAULT_PORT

    @property
    def address(self) -> GatewayAddress:
        """The same as a gateway's address."""
        return GatewayAddress(self.host, self.port)


class MetricsSettings(StrictModel):
    """Prometheus metrics over TCP. No authentication."""

    address: IpAddress = IPv4Address("127.0.0.1")
    port: Port | None = None
    """None: none of it."""


def load_with_flags(path: Path | None, flags: Settings, model: type[ModelT]) -> ModelT:
    """Read a file, flags, or a file of which flags replace some values.

    Relative paths in the file start at its folder; those of flags have to be absolute already
    (`path_setting`).

    Raises:
        ConfigError: with every mistake; ``str()`` is one line.
    """
    folder = path.absolute().parent if path is not None else None
    if path is not None and not flags:
        return validate(read_document(path), model, folder=folder)
    base = {} if path is None else read_document(path).value
    if not isinstance(base, dict):
        raise ConfigError([Mistake(str(path), 1, (), "expected a mapping, got something else")])
    name = COMMAND_LINE if path is None else f"{path} with the {COMMAND_LINE}"
    document = parse_document(json.dumps(_overlay(base, flags)), name)
    try:
        return validate(document, model, folder=folder)
    except ConfigError as error:
        # What was merged has no lines that anybody could look up.
        unlined = [Mistake(one.file, None, one.path, one.text) for one in error.mistakes]
        raise ConfigError(unlined) from None


def path_setting(given: Path) -> str:
    """A path of the command line as a setting: it starts where the shell is, not at a file."""
    text = str(given)
    return text if is_credential(text) else str(given.absolute())


def _overlay(base: Settings, over: Settings) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _overlay(below, value) if both else value  # type: ignore[arg-type]
    return merged
