"""Calling pyroute2 from anywhere, also from a coroutine."""

import errno
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pyroute2 import IPRoute, NetlinkError

from zgate_gateway.net.errors import NetError

Result = TypeVar("Result")

CURES = {
    errno.EPERM: "the gateway needs the capability CAP_NET_ADMIN",
    errno.EACCES: "the gateway needs the capability CAP_NET_ADMIN",
    errno.EEXIST: "it exists already; remove it, or choose another name or pool",
}


def rtnl(what: str, function: Callable[[Any], Result]) -> Result:
    """Call `function` with an open IPRoute and return its result; NetError begins with `what`.

    pyroute2's synchronous calls run an event loop of their own and fail in a thread that already
    runs one, as the daemon's does; a short thread has none. It inherits the network namespace.
    """
    results: list[Result] = []
    errors: list[Exception] = []

    def body() -> None:
        try:
            with IPRoute() as route:
                results.append(function(route))
        except Exception as error:  # carried over to the caller's thread, below
            errors.append(error)

    thread = threading.Thread(target=body, name="rtnl")
    thread.start()
    thread.join()
    if not errors:
        return results[0]
    raise _explain(what, errors[0]) from errors[0]


def _explain(what: str, error: Exception) -> Exception:
    if not isinstance(error, NetlinkError | OSError):
        return error
    code = error.code if isinstance(error, NetlinkError) else error.errno
    cure = CURES.get(code or 0)
    return NetError(f"{what}: {error}" + (f" ({cure})" if cure else ""))
