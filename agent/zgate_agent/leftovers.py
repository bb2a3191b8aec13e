"""A list of what is programmed outside the TUN, for the next start after a SIGKILL.

The TUN, its addresses and its routes vanish with the process that holds it. The pins do not: they
stand in the file *before* they are made. Boot and network namespace are there too, because routes
of another boot or of another namespace are nobody's leftovers here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from zgate_agent.plan import IpAddress
from zgate_agent.rtnl import ROUTE_PROTOCOL, Rtnl

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
OWN_NAMESPACE = Path("/proc/thread-self/ns/net")


@dataclass(frozen=True, slots=True)
class Leftovers:
    """The content of the file.

    Attributes:
        namespace: inode of the network namespace.
        pins: addresses to which host routes were made.
    """

    boot_id: str
    namespace: int
    pins: tuple[IpAddress, ...] = ()

    @classmethod
    def of(cls, pins: Iterable[IpAddress]) -> Self:
        """What is programmed here and now."""
        ordered = sorted(set(pins), key=lambda one: (one.version, one.packed))
        return cls(BOOT_ID.read_text().strip(), OWN_NAMESPACE.stat().st_ino, tuple(ordered))

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(
            {
                "boot_id": self.boot_id,
                "namespace": self.namespace,
                "pins": [str(one) for one in self.pins],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the text of the file; ValueError when it is not one."""
        try:
            document = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        match document:
            case {
                "boot_id": str() as boot_id,
                "namespace": int() as namespace,
                "pins": list() as pins,
            } if all(isinstance(one, str) for one in pins):
                return cls(boot_id, namespace, tuple(ip_address(one) for one in pins))
        raise ValueError("keys missing")


def remember(file: Path, pins: Iterable[IpAddress]) -> None:
    """Write the list, or remove it when there is nothing to remember. OSError if it cannot."""
    leftovers = Leftovers.of(pins)
    if not leftovers.pins:
        file.unlink(missing_ok=True)
        return
    # No fsync: what must survive is a killed process; a new boot has no leftovers.
    temporary = file.with_suffix(".new")
    temporary.write_text(leftovers.to_json())
    temporary.replace(file)


def recall(file: Path) -> tuple[IpAddress, ...]:
    """The pins that an earlier process of this boot and this namespace made and left."""
    try:
        found = Leftovers.from_json(file.read_text())
    except FileNotFoundError:
        return ()
    except ValueError:
        # It is replaced by rename, so this is not a crash: somebody else wrote there.
        file.replace(file.with_suffix(".unreadable"))
        return ()
    here = Leftovers.of(())
    same = (found.boot_id, found.namespace) == (here.boot_id, here.namespace)
    return found.pins if same else ()


def remove_pins(rtnl: Rtnl, addresses: Iterable[IpAddress]) -> int:
    """Remove the host routes to these addresses that an agent made; return how many."""
    wanted = set(addresses)
    ours = [
        route
        for route in rtnl.routes()
        if route.protocol == ROUTE_PROTOCOL
        and route.destination.num_addresses == 1
        and route.destination.network_address in wanted
    ]
    for route in ours:
        rtnl.remove_route(route)
    return len(ours)
