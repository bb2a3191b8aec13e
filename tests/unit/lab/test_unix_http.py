"""Questions over a Unix socket: an answer, or None, and never an exception."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from zgate_lab.unix_http import get_json


class Handler(http.server.BaseHTTPRequestHandler):
    """/ok answers, /broken breaks off, all else is 404."""

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/broken":
            self.wfile.write(b"not HTTP at all\r\n\r\n")
            return
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200 if self.path == "/ok" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "server.sock"
    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_an_answer_is_parsed(socket_path: Path) -> None:
    assert get_json(socket_path, "/ok") == {"path": "/ok"}


@pytest.mark.parametrize("target", ["/nowhere", "/broken"])
def test_an_error_is_none(socket_path: Path, target: str) -> None:
    assert get_json(socket_path, target) is None


def test_nobody_there_is_none(tmp_path: Path) -> None:
    assert get_json(tmp_path / "nobody.sock", "/ok") is None
