"""Names of services: the gateway's name servers, for its own domains, while there is a session.

By systemd-resolved where programs use it, else by resolv.conf. Nothing else of the host's name
resolution is touched, and with the session's end it is what it was: without one, every name would
wait for a server that does not answer.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.ip_range import IpAddress

from zgate_agent import resolved
from zgate_agent.config import DEFAULT_RESOLV_CONF, DnsMode
from zgate_agent.resolv_conf import MAX_SERVERS, ResolvConf, ResolvConfError, own_servers
from zgate_agent.resolved import Resolved, ResolvedError

logger = logging.getLogger(__name__)

_LINKS = Path("/sys/class/net")


class Method(StrEnum):
    """How names are resolved."""

    RESOLVED = "systemd-resolved"
    RESOLV_CONF = "resolv.conf"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class DnsState:
    """What is in force.

    Attributes:
        notes: what is not as the gateway wants it, and why.
    """

    method: Method = Method.NONE
    servers: tuple[IpAddress, ...] = ()
    domains: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


NOTHING = DnsState()


class SplitDns:
    """The host's name resolution, as far as it is one agent's. Blocking calls, one at a time.

    Attributes:
        state: what is in force now.
    """

    def __init__(self, mode: DnsMode, resolv_conf: Path | None, tun_name: str) -> None:
        self._mode = mode
        self._is_own_path = resolv_conf is not None
        self._file = ResolvConf(resolv_conf or DEFAULT_RESOLV_CONF)
        self._resolved = Resolved(tun_name)
        self._tun_name = tun_name
        self.state = NOTHING

    def clean_up_leftovers(self) -> bool:
        """Put back what a killed agent left in resolv.conf; whether there was anything."""
        if not self._may_touch_file():
            return False
        try:
            return self._file.put_back()
        except ResolvConfError as error:
            logger.warning("%(error)s", {"event": "dns_not_changed", "error": error})
            return False

    def apply(self, dns: DnsAssign, versions: Sequence[int]) -> DnsState:
        """Put it in force, for a TUN that speaks these IP versions; never raises: see `notes`."""
        servers = tuple(one for one in dns.servers if one.version in versions)
        if self._mode is DnsMode.OFF or not servers or not dns.domains:
            self.withdraw()
            return self.state
        method, note = self._choose()
        if self.state.method not in (method, Method.NONE):
            self.withdraw()
        if method is Method.NONE:
            self.state = DnsState(notes=(note,))
            return self.state
        try:
            notes = self._put(method, servers, dns.domains)
            state = DnsState(method, servers, dns.domains, notes)
        except (ResolvedError, ResolvConfError) as error:
            state = DnsState(notes=(f"names of services are not resolved: {error}",))
        if state != self.state:
            logger.info(
                "%(state)s",
                {"event": "dns_changed", "state": state.notes[0] if state.notes else _told(state)},
            )
        self.state = state
        return state

    def withdraw(self) -> None:
        """Put everything back. Never raises: what cannot be is logged."""
        before, self.state = self.state, NOTHING
        try:
            if before.method is Method.RESOLVED:
                self._resolved.put_back()
            elif before.method is Method.RESOLV_CONF:
                self._file.put_back()
        except (ResolvedError, ResolvConfError) as error:
            logger.warning("%(error)s", {"event": "dns_not_changed", "error": error})

    def _put(
        self, method: Method, servers: tuple[IpAddress, ...], domains: tuple[str, ...]
    ) -> tuple[str, ...]:
        if method is Method.RESOLVED:
            self._resolved.put(servers, domains)
            return ()
        self._file.put(servers)
        if own_servers(self._file.path.read_text(errors="replace")) >= MAX_SERVERS:
            return (f"{self._file.path}: its third name server is not asked while ours is first",)
        return ()

    def _choose(self) -> tuple[Method, str]:
        if self._mode is not DnsMode.RESOLV_CONF and resolved.is_running():
            if self._mode is DnsMode.RESOLVED or resolved.is_in_use(self._file.path):
                return Method.RESOLVED, ""
        elif self._mode is DnsMode.RESOLVED:
            return Method.NONE, "dns: resolved, but systemd-resolved does not run"
        if not self._may_touch_file():
            return Method.NONE, (
                f"{self._file.path} belongs to another network namespace and is left alone:"
                " names of services are not resolved (set resolv_conf)"
            )
        return Method.RESOLV_CONF, ""

    def _may_touch_file(self) -> bool:
        """Whether the default file is this network's.

        A process that was put into a network namespace, and no more, sees the host's files. It
        sees the host's links in /sys, too, and its own TUN is not among them.
        """
        if self._is_own_path or not _LINKS.exists():
            return True
        return not _exists(self._tun_name) or (_LINKS / self._tun_name).exists()


def _exists(link: str) -> bool:
    try:
        socket.if_nametoindex(link)
    except OSError:
        return False
    return True


def _told(state: DnsState) -> str:
    if state.method is Method.NONE:
        return "names are resolved as without us"
    domains = ", ".join(state.domains)
    return f"names of {domains} are asked from {state.servers[0]}, by {state.method}"
