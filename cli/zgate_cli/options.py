"""What every command has in common: ``--socket`` and ``--json``, before or after its name."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

DEFAULT_SOCKET = Path("/run/zgate/gateway.sock")
SOCKET_VARIABLE = "ZGATE_SOCKET"


@dataclass(frozen=True, slots=True)
class Invocation:
    """Which gateway to ask, and how to print the answer."""

    socket_path: Path = DEFAULT_SOCKET
    as_json: bool = False


def invocation_of(context: click.Context) -> Invocation:
    """Return what was given at the innermost place, else the environment's socket, else ours."""
    named = os.environ.get(SOCKET_VARIABLE)
    socket_path = Path(named) if named else DEFAULT_SOCKET
    as_json = False
    chain = [context]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    for one in reversed(chain):
        socket_path = one.params.get("socket_path") or socket_path
        as_json = as_json or bool(one.params.get("as_json"))
    return Invocation(socket_path, as_json)


def with_socket_and_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the two options; :func:`invocation_of` reads them."""
    socket = click.option(
        "--socket",
        "socket_path",
        type=click.Path(path_type=Path),
        help=f"The gateway's Unix socket.  [default: ${SOCKET_VARIABLE}, or {DEFAULT_SOCKET}]",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return socket(as_json(command))


def gateway_command(command: Callable[..., None]) -> Callable[..., None]:
    """Call ``command`` with an :class:`Invocation` in place of the two options."""

    @with_socket_and_json
    @functools.wraps(command)
    def wrapped(*, socket_path: Path | None, as_json: bool, **arguments: Any) -> None:
        del socket_path, as_json  # the context has them, and those given before the command's name
        command(invocation_of(click.get_current_context()), **arguments)

    return wrapped
