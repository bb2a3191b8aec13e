"""Where clients are, for the next life of a gateway that is killed.

Nobody says goodbye for a process that was killed, and a client that has nothing to send notices by
silence only. So the paths of all sessions are in a file in the runtime directory, where a second
is the most that is missing. The next gateway sends each a stateless reset (RFC 9000 section 10.3),
for which it needs the connection ID and the secret that is kept (`quic.key`), and from the address
that the client sends to: it would not believe another.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from zgate_identity.files import PRIVATE_MODE, IdentityError, write_file

from zgate_gateway.admission import PeerPath

logger = logging.getLogger(__name__)

MAX_BYTES = 16 << 20


class PathMemory:
    """See the module's text. What cannot be read or written costs clients some seconds, no more."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._written: frozenset[PeerPath] = frozenset()
        self._problem = ""

    def take_over(self) -> list[PeerPath]:
        """The clients of a gateway that was killed; none if it ended in order."""
        try:
            if self._file.stat().st_size > MAX_BYTES:
                raise ValueError("it is too large")
            entries = json.loads(self._file.read_bytes())
            paths = [_path(*entry) for entry in entries]
        except FileNotFoundError:
            return []
        except (OSError, TypeError, ValueError) as error:
            logger.warning(
                "%(path)s: not known who was here: %(error)s",
                {"event": "path_memory_unread", "path": self._file, "error": error},
            )
            return []
        finally:
            self.forget()
        return paths

    def keep(self, paths: Iterable[PeerPath]) -> None:
        """These are here now; written if they are others than before."""
        here = frozenset(paths)
        if here == self._written:
            return
        entries = [
            (one.host, one.port, one.connection_id.hex(), one.local_host)
            for one in here
            if one.port
        ]
        try:
            write_file(self._file, json.dumps(entries).encode(), PRIVATE_MODE)
        except (IdentityError, OSError) as error:
            self._told(str(error))
            return
        self._written, self._problem = here, ""

    def _told(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            logger.warning(
                "where clients are is not written: %(problem)s",
                {"event": "path_memory_off", "problem": problem},
            )

    def forget(self) -> None:
        """All have been told: there is nothing to remember."""
        self._written = frozenset()
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            self._told(str(error))


def _path(host: str, port: int, connection_id: str, local_host: str = "") -> PeerPath:
    """What was written; ValueError or TypeError if it is no path.

    Earlier versions kept no local address.
    """
    ip_address(str(host))
    if local_host:
        ip_address(str(local_host))
    return PeerPath(host, int(port), bytes.fromhex(connection_id), local_host)
