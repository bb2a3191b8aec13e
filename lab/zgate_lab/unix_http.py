"""JSON over HTTP over a Unix socket: what gateway and agent answer, without a process per question.

Waiting for a condition asks many times a second; a command line would spend that second starting.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

TIMEOUT_S = 10.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get_json(socket_path: Path, target: str) -> Any | None:
    """Return the parsed answer to a GET; None when nobody answers there (now)."""
    connection = _UnixConnection(socket_path)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        return json.loads(response.read()) if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
