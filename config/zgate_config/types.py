"""Types that several files share: addresses, networks, ports, names, paths."""

from __future__ import annotations

import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
)

from zgate_config.credentials import CredentialError, resolve_credential
from zgate_config.errors import quote
from zgate_config.model import expected

_MAX_INTERFACE_NAME_BYTES = 15
_HOST_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_HOST_LABEL}(\.{_HOST_LABEL})*", re.IGNORECASE)
_PREFIX = re.compile(r"[0-9a-fA-F.:]+(/(0|[1-9][0-9]{0,2}))?\Z")


def parse_network(value: object) -> IPv4Network | IPv6Network:
    """Read ``10.0.0.0/8``, ``2001:db8::/32`` or one address. Host bits must be zero."""
    if not isinstance(value, str) or not _PREFIX.match(value):
        raise expected("a CIDR such as 10.0.0.0/8 or 2001:db8::/32")
    try:
        return ip_network(value)
    except ValueError:
        pass
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        raise expected("a CIDR such as 10.0.0.0/8 or 2001:db8::/32") from None
    raise expected(f"a CIDR without host bits (the network is {network})")


def parse_ipv4_network(value: object) -> IPv4Network:
    """As :func:`parse_network`, IPv4 only."""
    network = parse_network(value)
    if not isinstance(network, IPv4Network):
        raise expected("an IPv4 CIDR such as 10.0.0.0/8")
    return network


def parse_ipv6_network(value: object) -> IPv6Network:
    """As :func:`parse_network`, IPv6 only."""
    network = parse_network(value)
    if not isinstance(network, IPv6Network):
        raise expected("an IPv6 CIDR such as 2001:db8::/32")
    return network


def parse_address(value: object) -> IPv4Address | IPv6Address:
    """Read an IP address without a zone."""
    try:
        if isinstance(value, str) and "%" not in value:
            return ip_address(value)
    except ValueError:
        pass
    raise expected("an IP address")


def parse_host(value: object) -> str:
    """Read a host name or an IP address; the answer is in lower case."""
    if isinstance(value, str):
        try:
            return str(parse_address(value))
        except ValueError:
            if _HOST_NAME.fullmatch(value):
                return value.lower()
    raise expected("a host name or an IP address")


def check_interface_name(value: str) -> str:
    """Check what the kernel asks of a link's name (dev_valid_name)."""
    fits = 0 < len(value.encode()) <= _MAX_INTERFACE_NAME_BYTES
    strange = value in {".", ".."} or not value.isascii() or re.search(r"[/:\s%]", value)
    if not fits or strange or not value.isprintable():
        raise expected("an interface name of 1 to 15 characters without '/', ':', '%' or blanks")
    return value


def _check_port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0xFFFF:
        raise expected("a port (0 to 65535)")
    return value


def _local_path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise expected("a path")
    folder = (info.context or {}).get("folder")
    return folder / value if folder is not None else Path(value)


def _check_readable(path: Path) -> Path:
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        shown = str(path) if str(path).isprintable() else quote(str(path))
        raise expected(f"a readable file ({error.strerror}: {shown})") from None


def _resolve_credential(value: object) -> object:
    try:
        return resolve_credential(value)
    except CredentialError as error:
        raise expected(str(error)) from None


_as_text = PlainSerializer(str, return_type=str)

IpNetwork = Annotated[IPv4Network | IPv6Network, PlainValidator(parse_network), _as_text]
Ipv4Network = Annotated[IPv4Network, PlainValidator(parse_ipv4_network), _as_text]
Ipv6Network = Annotated[IPv6Network, PlainValidator(parse_ipv6_network), _as_text]
IpAddress = Annotated[IPv4Address | IPv6Address, PlainValidator(parse_address), _as_text]
Host = Annotated[str, PlainValidator(parse_host)]
InterfaceName = Annotated[str, AfterValidator(check_interface_name)]
Port = Annotated[int, PlainValidator(_check_port)]
LocalPath = Annotated[Path, PlainValidator(_local_path), _as_text]
"""A path; a relative one is relative to the folder of the file that holds it."""
_may_be_credential = BeforeValidator(_resolve_credential)
ReadableFile = Annotated[LocalPath, AfterValidator(_check_readable), _may_be_credential]
"""A file that is there and can be read now; ``credential:NAME`` is one, too."""
CredentialPath = Annotated[LocalPath, _may_be_credential]
"""A path, or ``credential:NAME``; whether the file is there is found out later."""
Text = Annotated[str, Field(min_length=1)]
