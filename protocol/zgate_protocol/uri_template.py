"""The URI template of an IP proxy and the scope of a request (RFC 9484 sections 3 and 4.6)."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network


@dataclass(frozen=True, slots=True)
class Scope:
    """What a request is limited to; None means no limit (the wildcard "*")."""

    target: IPv4Network | IPv6Network | str | None = None
    ip_protocol: int | None = None


@dataclass(frozen=True, slots=True)
class UriTemplate:
    """A parsed template."""

    text: str
