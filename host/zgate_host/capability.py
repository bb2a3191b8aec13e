"""What this process may do."""

from __future__ import annotations

from pathlib import Path

_CAP_NET_ADMIN = 12


def has_net_admin() -> bool:
    """Whether this process may change the host's network."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False
