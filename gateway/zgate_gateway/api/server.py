"""The sockets of the administration API, served inside the daemon's own event loop.

The Unix socket is the only way to change anything, and its file's mode is the whole access control:
0660 root and the socket group, or 0600 if there is no such group. The file appears under its name
only when mode and owner are right and the socket listens, so nobody ever finds it in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from .later import Later
from .strangers import StrangersProtocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from .facade import GatewayFacade

logger = logging.getLogger(__name__)

_BACKLOG = 64
#: Some modules are loaded in it; nothing waits for a peer.
_START_TIMEOUT_S = 60.0
#: After a restart the clients come back: they come first.
_LOAD_AFTER_S = 3.0
#: sun_path has 108 bytes with the final zero, and the name is longer while the file is prepared.
_MAX_PATH_BYTES = 107
_SUFFIX_BYTES = len(".0123abcd")


class ApiSocketError(Exception):
    """A socket of the API cannot be opened. The text names it, the cause and the cure."""


class ApiServer:
    """The administration API on its Unix socket, and its probes on a local TCP port if wanted."""

    def __init__(
        self,
        facade: GatewayFacade,
        *,
        socket_path: Path,
        socket_group: str | None = "zgate",
        metrics_address: tuple[str, int] | None = None,
    ) -> None:
        self._app = Later(partial(_application, facade))
        self._probes = Later(partial(_probe_application, facade))
        self._socket_path = socket_path
        self._socket_group = socket_group
        self._metrics_address = metrics_address
        self._identity: tuple[int, int] | None = None
        self._running: list[_Running] = []
        self._unix: _Running | None = None

    @property
    def metrics_port(self) -> int | None:
        """The TCP port that the probes listen on, if they do."""
        return next((one.port for one in self._running if one.port is not None), None)

    async def start(self) -> None:
        """Listen. Raises :class:`ApiSocketError`; then nothing is left listening.

        The TCP port is not worth a gateway: see :meth:`look_at_metrics_port`.
        """
        try:
            unix = open_unix_socket(self._socket_path, self._socket_group)
            self._identity = _identity(self._socket_path)
            self._unix = await _run(self._app, unix)
            self._running.append(self._unix)
            await self.look_at_metrics_port()
        except BaseException:
            await self.stop()
            raise

    async def load(self) -> None:
        """Load what the first request would have to wait for, once the start is over."""
        await asyncio.sleep(_LOAD_AFTER_S)
        await self._app.made()

    async def look(self) -> str | None:
        """Make the socket file anew if it is gone; why that cannot be done, None if all is well.

        To be called now and then: whoever clears a runtime directory takes the file with it.
        """
        if self._identity is None or _identity(self._socket_path) == self._identity:
            return None
        try:
            fresh = open_unix_socket(self._socket_path, self._socket_group)
            running = await _run(self._app, fresh)
        except (ApiSocketError, OSError) as error:
            return str(error)
        self._identity = _identity(self._socket_path)
        logger.warning(
            "API socket %(path)s was gone: made anew",
            {"event": "api_socket_restored", "path": self._socket_path},
        )
        old, self._unix = self._unix, running
        self._running = [running if one is old else one for one in self._running]
        if old is not None:
            await old.stop()
        return None

    async def look_at_metrics_port(self) -> str | None:
        """Open the TCP port if it is not; why that cannot be done, None if all is well.

        To be called now and then. Any program of the host may have taken the port first, and the
        address may not be there yet: that must keep no client out.
        """
        if self._metrics_address is None or self.metrics_port is not None:
            return None
        try:
            tcp = open_tcp_socket(*self._metrics_address)
            self._running.append(await _run(self._probes, tcp))
        except (ApiSocketError, OSError) as error:
            return str(error)
        return None

    async def stop(self) -> None:
        """Finish the requests in hand (two seconds at most), close, remove the socket file."""
        await asyncio.gather(*(one.stop() for one in self._running))
        self._running.clear()
        # A gateway started meanwhile may have put its own socket there: that one stays.
        if self._identity is not None and _identity(self._socket_path) == self._identity:
            self._socket_path.unlink(missing_ok=True)
        self._identity = None


# FastAPI, its dependencies and the routes' models are half of what a gateway loads: not at once.


def _application(facade: GatewayFacade) -> ASGIApp:
    from .app import create_app

    return create_app(facade)


def _probe_application(facade: GatewayFacade) -> ASGIApp:
    from .app import create_probe_app

    return create_probe_app(facade)


def open_unix_socket(path: Path, group: str | None) -> socket.socket:
    """Return a listening Unix socket at ``path`` that only root and ``group`` may connect to.

    A socket file that nobody listens on is replaced; anything else at ``path`` is an
    :class:`ApiSocketError`. The directory is created if it is missing.
    """
    _check_free(path)
    if len(os.fsencode(path)) + _SUFFIX_BYTES > _MAX_PATH_BYTES:
        raise ApiSocketError(
            f"API socket {path}: the path is longer than {_MAX_PATH_BYTES - _SUFFIX_BYTES} bytes; "
            "set a shorter socket_path"
        )
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _bind_private(sock, draft)
        _hand_to_group(draft, group)
        sock.listen(_BACKLOG)
        draft.rename(path)
    except OSError as error:
        sock.close()
        draft.unlink(missing_ok=True)
        raise ApiSocketError(
            f"API socket {path}: {error.strerror}; run as root, or set socket_path to a directory "
            "where zgate may write"
        ) from error
    return sock


def open_tcp_socket(address: str, port: int) -> socket.socket:
    """Return a listening TCP socket. Raises :class:`ApiSocketError`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0  # negative: the resolver's, which has no text
        cause = os.strerror(number) if number > 0 else str(error)
        raise ApiSocketError(
            f"metrics on {address} port {port}: {cause}; "
            "set metrics.address and metrics.port to something free on this host"
        ) from error
    sock.setblocking(False)
    return sock


def _check_free(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ApiSocketError(f"API socket {path}: {error.strerror}; correct socket_path") from error
    if not stat.S_ISSOCK(mode):
        raise ApiSocketError(
            f"API socket {path}: something that is no socket is in the way; remove it, "
            "or set socket_path"
        )
    if _somebody_listens(path):
        raise ApiSocketError(
            f"API socket {path}: another gateway listens on it; stop that one first"
        )


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # a full backlog (EAGAIN), no permission: alive, or not ours to judge
    return True


def _bind_private(sock: socket.socket, path: Path) -> None:
    old = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(old)


def _hand_to_group(path: Path, group: str | None) -> None:
    """Open the socket to the group; without a group, or the right to do so, root alone has it."""
    if group is None:
        return
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        logger.info(
            "group %(group)s does not exist: only root may use %(directory)s",
            {"event": "socket_group_missing", "group": group, "directory": path.parent},
        )
        return
    os.chown(path, -1, gid)
    path.chmod(0o660)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:  # it may be the directory that is not there
        return None
    return found.st_dev, found.st_ino


# --- uvicorn --------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are the daemon's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


class _Running:
    """One uvicorn server, running as a task of this loop."""

    def __init__(self, server: _Server, task: asyncio.Task[None], port: int | None) -> None:
        self.port = port
        self._server = server
        self._task = task

    async def stop(self) -> None:
        self._server.should_exit = True
        await self._task


async def _run(app: ASGIApp, sock: socket.socket) -> _Running:
    config = uvicorn.Config(
        app,
        http="h11" if sock.family == socket.AF_UNIX else StrangersProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    port = sock.getsockname()[1] if sock.family != socket.AF_UNIX else None
    task = asyncio.create_task(server.serve(sockets=[sock]), name="zgate-api")
    async with asyncio.timeout(_START_TIMEOUT_S):
        while not server.started:
            if task.done():
                sock.close()
                task.result()
                raise ApiSocketError("the API server ended while it started; see the log")
            await asyncio.sleep(0.005)
    return _Running(server, task, port)
