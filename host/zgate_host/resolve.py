"""The gateway's name to addresses, without ever holding up the end of the process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from zgate_protocol.ip_range import IpAddress

Lookup = Callable[..., Sequence[tuple[Any, ...]]]


class ResolveError(Exception):
    """The name has no address now; the text names the cause."""


async def resolve(host: str, lookup: Lookup = socket.getaddrinfo) -> tuple[IpAddress, ...]:
    """All addresses of a host, in the order that the system prefers (RFC 6724), each once.

    Cancelling it takes effect at once. `getaddrinfo` cannot be interrupted, so it has a daemon
    thread of its own: one in asyncio's pool would be waited for when the process ends.

    Raises:
        ResolveError: no answer, or none with an address.
    """
    try:
        return (ip_address(host),)
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[tuple[Any, ...]]] = loop.create_future()

    def settle(rows: Sequence[tuple[Any, ...]], error: OSError | UnicodeError | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(rows)
        else:
            answer.set_exception(ResolveError(f"cannot resolve {host}: {_cause(error)}"))

    def body() -> None:
        rows: Sequence[tuple[Any, ...]] = ()
        failed: OSError | UnicodeError | None = None
        try:
            rows = lookup(host, None, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            failed = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, rows, failed)

    threading.Thread(target=body, name=f"resolve {host}", daemon=True).start()
    found = tuple(dict.fromkeys(_address(row) for row in await answer))
    if not found:
        raise ResolveError(f"cannot resolve {host}: the name has no address")
    return found


def _address(row: tuple[Any, ...]) -> IpAddress:
    return ip_address(str(row[4][0]).partition("%")[0])


def _cause(error: OSError | UnicodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
