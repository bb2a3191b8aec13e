"""What a client's certificate says about services: DNS names of its subjectAltName under ``zgate``.

    connector.S.zgate   its holder may offer service S; ``*`` in place of S: every service
    agent.S.zgate       its holder reaches service S, and nothing that no such name allows

Only whole labels: S is a service's name as DNS knows it (RFC 1035 section 2.3.1), in lower case, or
``*``. Nobody resolves these names, and no server can use them: the certificate is a client's.
"""

import re
from collections.abc import Iterable

EVERY_SERVICE = "*"
_SUFFIX = ".zgate"
_CONNECTOR = "connector."
_AGENT = "agent."
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def offered_services(dns_names: Iterable[str]) -> tuple[str, ...]:
    """The services that a certificate with these names may offer; a name that is odd gives none."""
    found = _between(_CONNECTOR, dns_names)
    return tuple(dict.fromkeys(name for name in found if _is_service(name)))


def reached_services(dns_names: Iterable[str]) -> tuple[str, ...] | None:
    """The services that a certificate with these names is narrowed to; None: it is not.

    A name that is odd narrows all the same: to nothing, if there is no other.
    """
    found = _between(_AGENT, dns_names)
    if not found:
        return None
    return tuple(dict.fromkeys(name for name in found if _is_service(name)))


def connector_name(service: str) -> str:
    """The name that lets a certificate's holder offer a service. Raises ValueError."""
    return _CONNECTOR + _checked(service) + _SUFFIX


def agent_name(service: str) -> str:
    """The name that narrows a certificate's holder to a service. Raises ValueError."""
    return _AGENT + _checked(service) + _SUFFIX


def _between(prefix: str, dns_names: Iterable[str]) -> list[str]:
    lowered = (name.lower() for name in dns_names)
    return [
        name[len(prefix) : -len(_SUFFIX)]  # "agent.zgate" leaves nothing
        for name in lowered
        if name.startswith(prefix) and name.endswith(_SUFFIX)
    ]


def _is_service(name: str) -> bool:
    return name == EVERY_SERVICE or _LABEL.fullmatch(name) is not None


def _checked(service: str) -> str:
    name = service.lower()
    if not _is_service(name):
        raise ValueError(
            f"{service!r} is no service that a certificate can name "
            "(1 to 63 of a-z, 0-9 and '-', or '*' for all)"
        )
    return name
