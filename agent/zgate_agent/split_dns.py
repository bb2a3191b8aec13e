"""Names of services: the gateway's name servers, for its own domains, while there is a session.

By systemd-resolved where programs use it, else by resolv.conf: asked of its keeper where there is
one, as where systemd runs the agent, or written by ourselves. Nothing else of the host's name
resolution is touched, and with the session's end it is what it was: without one, every name would
wait for a server that does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from zgate_protocol.dns_capsule import DnsAssign
from zgate_protocol.ip_range import IpAddress

from zgate_agent import resolved
from zgate_agent.config import DEFAULT_RESOLV_CONF, DnsMode
from zgate_agent.kept_resolv_conf import KEEPER_SOCKET, KeptResolvConf
from zgate_agent.resolv_conf import (
    ResolvConf,
    ResolvConfError,
    Signature,
    is_ours,
    servers_left_out,
)
from zgate_agent.resolved import Resolved, ResolvedError

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
PAUSE_S = 5.0
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

    def __init__(
        self,
        mode: DnsMode,
        resolv_conf: Path | None,
        tun_name: str,
        keeper_socket: Path = KEEPER_SOCKET,
    ) -> None:
        self._mode = mode
        self._is_own_path = resolv_conf is not None
        self._file = ResolvConf(resolv_conf or DEFAULT_RESOLV_CONF)
        self._kept = KeptResolvConf(self._file.path, keeper_socket)
        self._writer: ResolvConf | KeptResolvConf | None = None
        self._left: tuple[bool, Signature] | None = None
        self._resolved = Resolved(tun_name)
        self._tun_name = tun_name
        self.state = NOTHING

    def clean_up_leftovers(self) -> bool:
        """Put back what a killed agent left in resolv.conf; whether there was anything."""
        if not self._may_touch_file():
            return False
        try:
            if not self._has_keeper():
                return self._file.put_back()
            if not is_ours(self._text()):
                return False
            # Lines of other agents, which are connected to it, stay.
            self._kept.clean_up()
            return not is_ours(self._text())
        except ResolvConfError as error:
            logger.warning("%(error)s", {"event": "dns_not_changed", "error": error})
            return False

    def is_as_left(self) -> bool:
        """Whether resolv.conf still is what our last change, or attempt, made of it.

        Does not block, and may be called from another thread.
        """
        left = self._left
        return left is None or (left == self._look() and not self._kept.is_lost())

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
        writer, self._writer = self._writer, None
        self._left = None
        try:
            if before.method is Method.RESOLVED:
                self._resolved.put_back()
            if writer is not None:
                writer.put_back()
        except (ResolvedError, ResolvConfError) as error:
            logger.warning("%(error)s", {"event": "dns_not_changed", "error": error})

    def _put(
        self, method: Method, servers: tuple[IpAddress, ...], domains: tuple[str, ...]
    ) -> tuple[str, ...]:
        if method is Method.RESOLVED:
            self._resolved.put(servers, domains)
            return ()
        self._writer = self._kept if self._has_keeper() else self._file
        try:
            # Only one: two of the host's own must stay in reach.
            self._writer.put(servers[:1])
        except ResolvConfError as error:
            if self._writer is self._kept or self._is_own_path:
                raise
            why = f"{error}, and zgate-resolv-conf.socket is not up"
            raise ResolvConfError(why) from error
        finally:
            self._left = self._look()
        if servers_left_out(self._text()):
            return (f"{self._file.path}: its last name server is not asked while ours is first",)
        return ()

    def _look(self) -> tuple[bool, Signature]:
        return self._has_keeper(), self._file.signature()

    def _has_keeper(self) -> bool:
        return not self._is_own_path and self._kept.is_there()

    def _text(self) -> str:
        try:
            return self._file.path.read_text(errors="replace")
        except OSError:
            return ""

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


async def watch_names(names: SplitDns, on_change: Callable[[], None]) -> None:
    """Call `on_change` when somebody else has written resolv.conf, or its keeper is gone; forever.

    Whoever writes it again and again is answered now and then only.
    """
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        if not names.is_as_left():
            on_change()
            await asyncio.sleep(PAUSE_S)


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
