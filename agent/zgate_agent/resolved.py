"""Split DNS by systemd-resolved: per-link servers and domains, by its own command resolvectl(1).

They belong to the TUN: when it goes, however the agent ends, systemd-resolved forgets them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from zgate_protocol.ip_range import IpAddress

_SOCKET = Path("/run/systemd/resolve/io.systemd.Resolve")
_NSSWITCH = Path("/etc/nsswitch.conf")
_STUBS = ("127.0.0.53", "127.0.0.54")
_TIMEOUT_S = 5.0


class ResolvedError(Exception):
    """systemd-resolved did not do it; the text names the cause."""


def is_running() -> bool:
    """Whether systemd-resolved runs, and can be told."""
    return _SOCKET.exists() and shutil.which("resolvectl") is not None


def is_in_use(resolv_conf: Path) -> bool:
    """Whether programs of this host ask it: by resolv.conf's stub, or by nss-resolve."""
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    servers = [words[1] for words in map(str.split, lines) if words[:1] == ["nameserver"]]
    if any(server in _STUBS for server in servers):
        return True
    try:
        lines = _NSSWITCH.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith("hosts:") and "resolve" in line.split() for line in lines)


class Resolved:
    """The TUN's settings in systemd-resolved. Blocking calls."""

    def __init__(self, tun_name: str) -> None:
        self._tun_name = tun_name

    def put(self, servers: Sequence[IpAddress], domains: Sequence[str]) -> None:
        """Let these servers be asked for these domains, "" being all names, and no others.

        Raises:
            ResolvedError: it was refused.
        """
        routed = [f"~{domain}" if domain else "~." for domain in domains]
        everything = "" in domains
        self._call("dns", *(str(one) for one in servers))
        self._call("domain", *routed)
        self._call("default-route", "true" if everything else "false")

    def put_back(self) -> None:
        """Forget it all. ResolvedError if that is refused."""
        self._call("revert")

    def _call(self, verb: str, *words: str) -> None:
        command = ["resolvectl", verb, self._tun_name, *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ResolvedError(f"resolvectl {verb}: {error}") from error
        if done.returncode != 0:
            why = done.stderr.strip().partition("\n")[0] or f"status {done.returncode}"
            raise ResolvedError(f"resolvectl {verb}: {why}")
