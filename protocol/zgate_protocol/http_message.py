"""The header sections of a CONNECT-IP request and its response (RFC 9484 sections 4.4, 4.5).

The rules of HTTP/3 (RFC 9114 section 4.3) and of the Capsule Protocol (RFC 9297 section
3.2) are checked here again, whatever the HTTP library checked before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zgate_protocol.errors import MalformedMessage
from zgate_protocol.structured_field import (
    CAPSULE_PROTOCOL,
    PROXY_STATUS,
    parse_boolean,
    printable_field,
)

Header = tuple[bytes, bytes]

UPGRADE_TOKEN: Final = b"connect-ip"
_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_RESPONSE_PSEUDO: Final = frozenset((b":status",))
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_CONTENT_FIELDS: Final = frozenset((b"content-length", b"content-type", b"transfer-encoding"))
_STATUSES_WITHOUT_CAPSULES: Final = frozenset((204, 205, 206))


class NotServed(Exception):
    """A valid HTTP request that is no IP proxying request; answer with ``status``."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed IP proxying request, its path not looked at."""

    authority: str
    path: str
    capsule_protocol: bool


@dataclass(frozen=True, slots=True)
class Response:
    """A response; whether it accepts is in the status."""

    status: int
    capsule_protocol: bool
    proxy_status: str

    @property
    def is_interim(self) -> bool:
        """1xx: the real response is yet to come."""
        return self.status < 200

    @property
    def is_success(self) -> bool:
        """2xx, and only 2xx."""
        return 200 <= self.status < 300


def build_request(authority: str, path: str, scheme: str = "https") -> list[Header]:
    """Return the header section of an IP proxying request."""
    if not authority or not path or not scheme:
        raise ValueError("authority, path and scheme of an IP proxying request are not empty")
    return [
        (b":method", b"CONNECT"),
        (b":protocol", UPGRADE_TOKEN),
        (b":scheme", scheme.encode("ascii")),
        (b":authority", authority.encode("ascii")),
        (b":path", path.encode("ascii")),
        (CAPSULE_PROTOCOL, b"?1"),
    ]


def build_success() -> list[Header]:
    """Return the header section that accepts."""
    return [(b":status", b"200"), (CAPSULE_PROTOCOL, b"?1")]


def build_refusal(status: int, proxy_status: str = "") -> list[Header]:
    """Return a header section that refuses; without Capsule-Protocol (RFC 9297 section 3.4)."""
    if not 300 <= status <= 599:
        raise ValueError(f"{status} does not refuse")
    headers = [(b":status", str(status).encode("ascii"))]
    if proxy_status:
        headers.append((PROXY_STATUS, proxy_status.encode("ascii")))
    return headers


def parse_request(headers: Sequence[Header]) -> Request:
    """Return the request; MalformedMessage, or NotServed if it is for somebody else."""
    pseudo = _pseudo_headers(headers, _REQUEST_PSEUDO)
    method, protocol = pseudo.get(b":method"), pseudo.get(b":protocol")
    if method is None:
        raise MalformedMessage(":method is missing")
    if protocol is not None and method != b"CONNECT":
        raise MalformedMessage(":protocol without CONNECT")
    if method != b"CONNECT":
        raise NotServed(404, "nothing but IP proxying is served here")
    if protocol != UPGRADE_TOKEN:
        raise NotServed(501, "the only protocol served here is connect-ip")
    for name in (b":scheme", b":path", b":authority"):
        if not pseudo.get(name):
            raise MalformedMessage(f"{name.decode()} is missing or empty")
    _forbid_content(headers)
    return Request(
        authority=_ascii(pseudo[b":authority"]),
        path=_ascii(pseudo[b":path"]),
        capsule_protocol=_capsule_protocol(headers),
    )


def parse_classic_connect(headers: Sequence[Header]) -> str:
    """Return the authority of a CONNECT without :protocol; MalformedMessage if it is none.

    Unlike RFC 9114 section 4.4, :scheme and :path may be there.
    """
    pseudo = _pseudo_headers(headers, _REQUEST_PSEUDO)
    if pseudo.get(b":method") != b"CONNECT" or b":protocol" in pseudo:
        raise MalformedMessage("not a CONNECT without :protocol")
    if not pseudo.get(b":authority"):
        raise MalformedMessage(":authority is missing or empty")
    return _ascii(pseudo[b":authority"])


def parse_response(headers: Sequence[Header]) -> Response:
    """Return the response, of any status; MalformedMessage if it is none."""
    pseudo = _pseudo_headers(headers, _RESPONSE_PSEUDO)
    raw = pseudo.get(b":status", b"")
    if not (len(raw) == 3 and raw.isdigit() and 100 <= int(raw) <= 599):
        raise MalformedMessage(":status is no number from 100 to 599")
    status = int(raw)
    if status == 101:
        raise MalformedMessage("HTTP/3 has no status 101")
    proxy_status = b", ".join(value for name, value in headers if name == PROXY_STATUS)
    response = Response(status, _capsule_protocol(headers), printable_field(proxy_status))
    if response.is_success:
        if status in _STATUSES_WITHOUT_CAPSULES:
            raise MalformedMessage(f"status {status} cannot start the Capsule Protocol")
        _forbid_content(headers)
    return response


def _pseudo_headers(headers: Sequence[Header], known: frozenset[bytes]) -> dict[bytes, bytes]:
    pseudo: dict[bytes, bytes] = {}
    regular_seen = False
    for name, value in headers:
        if name.startswith(b":"):
            if regular_seen or name in pseudo or name not in known:
                raise MalformedMessage(f"pseudo-header {printable_field(name)} has no place here")
            pseudo[name] = value
        else:
            regular_seen = True
            if not name or name != name.lower():
                raise MalformedMessage("a field name is lower case and not empty")
            if name in _CONNECTION_SPECIFIC:
                raise MalformedMessage(f"{name.decode()} does not belong into HTTP/3")
    return pseudo


def _forbid_content(headers: Sequence[Header]) -> None:
    for name, _ in headers:
        if name in _CONTENT_FIELDS:
            raise MalformedMessage(f"{name.decode()} with the Capsule Protocol")


def _capsule_protocol(headers: Sequence[Header]) -> bool:
    return parse_boolean(value for name, value in headers if name == CAPSULE_PROTOCOL) is True


def _ascii(value: bytes) -> str:
    if not all(0x21 <= byte <= 0x7E for byte in value):
        raise MalformedMessage("a pseudo-header has bytes that are not printable ASCII")
    return value.decode("ascii")
