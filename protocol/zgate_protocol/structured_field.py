"""Structured header fields (RFC 8941): just Capsule-Protocol and Proxy-Status."""

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

CAPSULE_PROTOCOL: Final = b"capsule-protocol"
PROXY_STATUS: Final = b"proxy-status"

_BARE_ITEM: Final = (
    r"(?:\?[01]"
    r"|-?\d{1,12}\.\d{1,3}"
    r"|-?\d{1,15}"
    r'|"(?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"'
    r"|:[A-Za-z0-9+/=]*:"
    r"|[A-Za-z*][!#$%&'*+\-.^_`|~:/\w]*)"
)
_BOOLEAN: Final = re.compile(
    rf" *\?([01])(?:; *[a-z*][a-z0-9_\-.*]*(?:={_BARE_ITEM})?)* *", re.ASCII
)
_TOKEN: Final = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~:/\w]*", re.ASCII)
_MAX_DETAILS: Final = 256


def parse_boolean(values: Iterable[bytes]) -> bool | None:
    """Return the value of a Boolean item, given every field line of that name.

    None (as if absent) without a line, with several (they make a List), or with any other
    type; unknown parameters are ignored (RFC 9297 section 3.4).
    """
    lines = list(values)
    if len(lines) != 1:
        return None
    match = _BOOLEAN.fullmatch(lines[0].decode("latin-1"))
    return None if match is None else match[1] == "1"


class ProxyError(Enum):
    """Proxy error types (RFC 9209 section 2.3) that a gateway has a use for."""

    DNS_TIMEOUT = "dns_timeout"
    DNS_ERROR = "dns_error"
    DESTINATION_NOT_FOUND = "destination_not_found"
    DESTINATION_UNAVAILABLE = "destination_unavailable"
    DESTINATION_IP_PROHIBITED = "destination_ip_prohibited"
    DESTINATION_IP_UNROUTABLE = "destination_ip_unroutable"
    CONNECTION_LIMIT_REACHED = "connection_limit_reached"
    HTTP_REQUEST_ERROR = "http_request_error"
    HTTP_REQUEST_DENIED = "http_request_denied"
    PROXY_CONFIGURATION_ERROR = "proxy_configuration_error"
    PROXY_INTERNAL_ERROR = "proxy_internal_error"


def build_proxy_status(
    proxy: str,
    error: ProxyError,
    details: str = "",
    parameters: Mapping[str, str | int] | None = None,
) -> str:
    """Return a Proxy-Status value (RFC 9209): who, what went wrong, and for humans why.

    ``parameters`` are those of the error type, such as ``rcode`` of DNS_ERROR; strings
    become sf-strings. Characters that a field cannot carry are replaced by "?".
    """
    name = proxy if _TOKEN.fullmatch(proxy) else _quote(proxy)
    parts = [name, f"error={error.value}"]
    for key, value in (parameters or {}).items():
        parts.append(f"{key}={value if isinstance(value, int) else _quote(value)}")
    if details:
        parts.append(f"details={_quote(details)}")
    return "; ".join(parts)


def _quote(text: str) -> str:
    printable = "".join(c if " " <= c <= "~" else "?" for c in text[:_MAX_DETAILS])
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'


def printable_field(value: bytes, max_chars: int = 512) -> str:
    """Return a field as the peer sent it, cut and made safe for a log or a terminal."""
    text = value[:max_chars].decode("latin-1")
    return "".join(c if " " <= c <= "~" else "?" for c in text)
