"""The URI template of an IP proxy and the scope of a request (RFC 9484 sections 3 and 4.6).

Of RFC 6570, RFC 9484 leaves simple expansion ``{a,b}``, form-style query ``{?a,b}`` and its
continuation ``{&a,b}``: no prefix lengths and no explode (level 4), no other operator.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from zgate_protocol.ip_header import EXTENSION_HEADERS
from zgate_protocol.ip_range import IpNetwork

WILDCARD: Final = "*"
MAX_PATH_CHARS: Final = 2048
_MAX_HOSTNAME_CHARS: Final = 253

_TEMPLATE: Final = re.compile(r"https://(?P<authority>[^/?#{}@]+)(?P<rest>/.*)")
_EXPRESSION: Final = re.compile(r"\{([^{}]*)\}")
_VARIABLE: Final = re.compile(r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+(?:\.(?:[A-Za-z0-9_])+)*")
# A raw value is unreserved characters and escapes, and the wildcard, which the examples of
# RFC 9484 leave as it is.
_RAW_VALUE: Final = re.compile(r"(?:[A-Za-z0-9\-._~*]|%[0-9A-Fa-f]{2})*")
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_DIGITS: Final = re.compile(r"[0-9]{1,3}")


class TemplateError(ValueError):
    """A template that RFC 9484 section 3 does not allow: a fault of the configuration."""


class ScopeError(ValueError):
    """A target or ipproto that RFC 9484 section 4.6 does not allow: a malformed request."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a request is limited to; None means no limit (the wildcard "*")."""

    target: IpNetwork | str | None = None
    """A network, or a hostname that the proxy resolves."""
    ip_protocol: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether anything at all is left out."""
        return self.target is not None or self.ip_protocol is not None

    @property
    def hostname(self) -> str | None:
        """The hostname to resolve, if the target is one."""
        return self.target if isinstance(self.target, str) else None

    @property
    def names_extension_header(self) -> bool:
        """Whether the protocol is an IPv6 extension header, to which no scope can limit."""
        return self.ip_protocol in EXTENSION_HEADERS


def parse_scope(target: str | None, ipproto: str | None) -> Scope:
    """Return the scope that two raw (still percent-encoded) values say; ScopeError if none."""
    return Scope(
        _parse_target(_decode("target", target)), _parse_ipproto(_decode("ipproto", ipproto))
    )


def _decode(name: str, raw: str | None) -> str:
    if raw is None:
        return WILDCARD
    if not raw:
        raise ScopeError(f"{name} is empty; the wildcard is *")
    if not _RAW_VALUE.fullmatch(raw):
        raise ScopeError(f"{name} has characters that must be percent-encoded")
    try:
        return unquote_to_bytes(raw).decode("ascii")
    except UnicodeDecodeError as error:
        raise ScopeError(f"{name} is not ASCII") from error


def _parse_target(text: str) -> IpNetwork | str | None:
    if text == WILDCARD:
        return None
    if ":" in text:
        return _parse_prefix(text, 128)
    host, _, _ = text.partition("/")
    if "/" in text or re.fullmatch(r"[0-9.]+", host):
        return _parse_prefix(text, 32)
    return _check_hostname(text)


def _parse_prefix(text: str, max_bits: int) -> IpNetwork:
    address, slash, length = text.partition("/")
    if "%" in address:
        raise ScopeError("IPv6 zone identifiers are not supported")
    max_digits = 2 if max_bits == 32 else 3
    if slash and not (_DIGITS.fullmatch(length) and len(length) <= max_digits):
        raise ScopeError("a prefix length is a decimal number")
    if slash and int(length) > max_bits:
        raise ScopeError(f"a prefix length is 0 to {max_bits}")
    bits = int(length) if slash else max_bits
    try:
        # Strict: bits outside the prefix must be zero.
        if max_bits == 32:
            return IPv4Network((int(IPv4Address(address)), bits))
        return IPv6Network((int(IPv6Address(address)), bits))
    except AddressValueError as error:
        raise ScopeError("target is no IP address") from error
    except ValueError as error:
        raise ScopeError("target has bits set outside its prefix") from error


def _check_hostname(text: str) -> str:
    name = text.removesuffix(".")
    labels = name.split(".")
    if len(name) > _MAX_HOSTNAME_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise ScopeError("target is neither an IP prefix nor a hostname")
    if re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", labels[-1]):
        # Resolvers read such names as addresses of their own notation (inet_aton).
        raise ScopeError("a hostname does not end in a number")
    return name.lower()


def _parse_ipproto(text: str) -> int | None:
    if text == WILDCARD:
        return None
    if not _DIGITS.fullmatch(text) or int(text) > 255:
        raise ScopeError("ipproto is 0 to 255, or *")
    return int(text)


def scope_variables(scope: Scope) -> dict[str, str]:
    """Return the values of "target" and "ipproto", percent-encoded."""
    target = WILDCARD
    if isinstance(scope.target, str):
        target = quote(scope.target, safe="")
    elif scope.target is not None:
        single = scope.target.prefixlen == scope.target.max_prefixlen
        text = str(scope.target.network_address) if single else str(scope.target)
        target = quote(text, safe="")
    protocol = WILDCARD if scope.ip_protocol is None else str(scope.ip_protocol)
    return {"target": target, "ipproto": protocol}


@dataclass(frozen=True, slots=True)
class _Expression:
    operator: str
    names: tuple[str, ...]

    def expand(self, variables: Mapping[str, str]) -> str:
        """Return the expansion; the values are percent-encoded already."""
        known = [(name, variables[name]) for name in self.names if name in variables]
        if not self.operator:
            return ",".join(value for _, value in known)
        pairs = "&".join(f"{name}={value}" for name, value in known)
        return self.operator + pairs if pairs else ""


class UriTemplate:
    """A template that was checked when it was made; TemplateError tells what is wrong."""

    def __init__(self, text: str) -> None:
        if not all("\x21" <= character <= "\x7e" for character in text):
            raise TemplateError("a URI template is printable ASCII without spaces")
        match = _TEMPLATE.fullmatch(text)
        if match is None:
            raise TemplateError("a URI template is https://AUTHORITY/PATH, variables in the path")
        self.text = text
        self.authority = match["authority"]
        self._parts = _split(match["rest"])
        self._pattern = re.compile("".join(map(_pattern_of, self._parts)))

    def __repr__(self) -> str:
        return f"UriTemplate({self.text!r})"

    def expand(self, scope: Scope, variables: Mapping[str, str] | None = None) -> str:
        """Return the value of :path for a scope.

        ``variables`` gives the template's other variables, percent-encoded here. A template
        without "target" or "ipproto" cannot say a scope: TemplateError.
        """
        values = {name: quote(value, safe="") for name, value in (variables or {}).items()}
        values |= scope_variables(scope)
        names = {n for part in self._parts if isinstance(part, _Expression) for n in part.names}
        for name in ("target", "ipproto"):
            if name not in names and values[name] != WILDCARD:
                raise TemplateError(f"{self.text} has no variable {name} to limit the scope with")
        return "".join(p if isinstance(p, str) else p.expand(values) for p in self._parts)

    def match(self, path: str) -> Scope | None:
        """Return the scope that a :path asks for, None if it is not this template's path.

        ScopeError if the path is this template's, but its values are not valid.
        """
        if len(path) > MAX_PATH_CHARS:
            return None
        found = self._pattern.fullmatch(path)
        if found is None:
            return None
        variables: dict[str, str] = {}
        expressions = [part for part in self._parts if isinstance(part, _Expression)]
        in_query = {n for part in expressions if part.operator for n in part.names}
        for expression, raw in zip(expressions, found.groups(), strict=True):
            for name, value in _values_of(expression, raw or "", in_query):
                if name in variables:
                    raise ScopeError(f"{name} appears twice")
                variables[name] = value
        return parse_scope(variables.get("target"), variables.get("ipproto"))


def _split(rest: str) -> list[str | _Expression]:
    parts: list[str | _Expression] = []
    position = 0
    for match in _EXPRESSION.finditer(rest):
        parts.append(_literal(rest[position : match.start()]))
        parts.append(_expression(match[1]))
        position = match.end()
    parts.append(_literal(rest[position:]))
    names = [n for part in parts if isinstance(part, _Expression) for n in part.names]
    if len(names) != len(set(names)):
        raise TemplateError("a variable appears twice")
    return parts


def _literal(text: str) -> str:
    if "{" in text or "}" in text:
        raise TemplateError("a brace without its partner")
    if "#" in text:
        raise TemplateError("a URI template for IP proxying has no fragment")
    return text


def _expression(body: str) -> _Expression:
    operator = body[:1] if body[:1] in ("?", "&") else ""
    names = tuple(body[len(operator) :].split(","))
    for name in names:
        if not _VARIABLE.fullmatch(name):
            raise TemplateError(
                f"{{{body}}}: only {{a}}, {{?a}} and {{&a}} are allowed, without modifiers"
            )
    return _Expression(operator, names)


def _pattern_of(part: str | _Expression) -> str:
    if isinstance(part, str):
        return re.escape(part)
    if not part.operator:
        return "([^/?&#]*)"
    return rf"(?:{re.escape(part.operator)}([^/?#]*))?"


def _values_of(
    expression: _Expression, raw: str, in_query: Collection[str]
) -> list[tuple[str, str]]:
    if not expression.operator:
        values = raw.split(",") if len(expression.names) > 1 else [raw]
        if len(values) != len(expression.names):
            raise ScopeError(f"{len(expression.names)} values are expected")
        return list(zip(expression.names, values, strict=True))
    pairs = [tuple(pair.partition("=")[::2]) for pair in raw.split("&")] if raw else []
    for name, _ in pairs:
        if name not in in_query:
            raise ScopeError("an unknown query parameter")
    return [(name, value) for name, value in pairs]


WELL_KNOWN_PATH: Final = "/.well-known/masque/ip/{target}/{ipproto}/"


def default_template(authority: str) -> UriTemplate:
    """Return the template that is tried when only a host and a port are known (section 3)."""
    return UriTemplate(f"https://{authority}{WELL_KNOWN_PATH}")
