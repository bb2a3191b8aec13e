"""/etc/resolv.conf by its keeper (`zgate_agent.keeper`), for agents that may not write it.

A connection to the keeper's socket, and on it a line for each wish:

    agent:   10.100.0.1\\n      this name server first; or an empty line: none
    keeper:  ok\\n              it is done; or why not, in one line

A wish ends with its connection: also when the agent is killed.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Sequence
from pathlib import Path

from zgate_protocol.ip_range import IpAddress

from zgate_agent.resolv_conf import ResolvConfError

KEEPER_SOCKET = Path("/run/zgate-resolv-conf.sock")
"""systemd/zgate-resolv-conf.socket has it."""
MAX_LINE_BYTES = 512
DONE = "ok"
#: The keeper is started by the first connection, by a Python that may be slow.
_TIMEOUT_S = 10.0


class KeptResolvConf:
    """What `ResolvConf` does, asked for. Blocking calls, one at a time."""

    def __init__(self, path: Path, socket_file: Path) -> None:
        self._path = path
        self._socket_file = socket_file
        self._sock: socket.socket | None = None

    def is_there(self) -> bool:
        """Whether somebody keeps the file."""
        is_connected = self._sock is not None and not self.is_lost()
        return is_connected or self._socket_file.is_socket()

    def is_lost(self) -> bool:
        """Whether the keeper has ended, and our wish with it. Does not block; from any thread."""
        sock = self._sock
        if sock is None:
            return False
        poll = select.poll()
        try:
            poll.register(sock, select.POLLRDHUP)
        except ValueError:
            return False  # closed just now, by us
        return bool(poll.poll(0))

    def put(self, servers: Sequence[IpAddress]) -> None:
        """Have the first of these servers asked first, until `put_back` or the end of the process.

        Raises:
            ResolvConfError: it is not; the text says why.
        """
        if self._sock is not None and self.is_lost():
            self._close()
        self._ask(str(servers[0]))

    def put_back(self) -> None:
        """Withdraw the wish, if there is one. ResolvConfError if the file is not as it was."""
        if self._sock is None or self.is_lost():
            self._close()
            return
        self.clean_up()

    def clean_up(self) -> None:
        """Have removed what nobody wishes any more; the keeper does that whenever it starts.

        Raises:
            ResolvConfError: it does not.
        """
        try:
            self._ask("")
        finally:
            self._close()

    def _ask(self, wish: str) -> None:
        answer = self._answer(wish)
        if answer is None:
            # It ended just when we came; the next connection starts another.
            answer = self._answer(wish)
        if answer != DONE:
            self._close()
            raise ResolvConfError(answer or f"{self._path}: its keeper ends when it is asked")

    def _answer(self, wish: str) -> str | None:
        try:
            return self._exchange(f"{wish}\n".encode())
        except ConnectionError:
            self._close()
            return None
        except OSError as error:
            self._close()
            why = error.strerror or error
            raise ResolvConfError(f"{self._path}: its keeper does not answer: {why}") from error

    def _exchange(self, line: bytes) -> str:
        if self._sock is None:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.settimeout(_TIMEOUT_S)
            self._sock.connect(str(self._socket_file))
        self._sock.sendall(line)
        answer = b""
        while not answer.endswith(b"\n") and len(answer) <= MAX_LINE_BYTES:
            more = self._sock.recv(MAX_LINE_BYTES)
            if not more:
                raise ConnectionResetError
            answer += more
        return answer.decode(errors="replace").rstrip("\n")

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()
