"""A gateway that does not answer: what is wrong and what helps, and exit code 4."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from zgate_cli import client as client_module
from zgate_cli.client import GatewayClient
from zgate_cli.errors import CommandError, NotReachable
from zgate_cli.main import cli
from zgate_gateway.api.facade import NotReady

COMMANDS = [
    ["status"],
    ["sessions"],
    ["clients"],
    ["policy", "show"],
    ["policy", "reload"],
    ["kick", "c"],
    ["why", "c", "10.0.0.1"],
]


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """A server that sends the same bytes to whoever connects."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            try:
                while True:
                    peer, _ = server.accept()
                    with peer:
                        peer.recv(65536)
                        peer.sendall(answer)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def error_of(path: Path, **options: Any) -> CommandError:
    with GatewayClient(path, **options) as gateway, pytest.raises(CommandError) as caught:
        gateway.status()
    return caught.value


@pytest.mark.parametrize("command", COMMANDS)
def test_no_socket(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "api.sock"
    result = CliRunner().invoke(cli, ["--socket", str(path), *command])
    assert result.exit_code == 4
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"zgatectl: there is no socket {path}: the gateway is not running; ")
    assert "--socket" in line


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    error = error_of(path)
    assert isinstance(error, NotReachable)
    assert "not running any more; start zgate-gateway" in error.message


def test_permission_denied(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0o600)
        tmp_path.chmod(0o755)
        os.seteuid(65534)
        try:
            error = error_of(path)
        finally:
            os.seteuid(0)
    assert isinstance(error, NotReachable)
    assert "permission denied" in error.message
    assert "group zgate" in error.message


def test_a_gateway_that_hangs(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        error = error_of(path, timeout=httpx.Timeout(0.05))
    assert isinstance(error, NotReachable) and "does not answer" in error.message


@pytest.mark.parametrize(
    ("answer", "words", "code"),
    [
        (b"", "no zgate gateway", 4),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no zgate gateway", 4),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "not one that this zgatectl", 1),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n\xff{}", "not one that this zgatectl", 1),
        (b"HTTP/1.1 502 Bad\r\ncontent-length: 2\r\n\r\nno", "not one that this zgatectl", 1),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", "no zgate gateway", 4),
    ],
)
def test_somebody_else_answers(tmp_path: Path, answer: bytes, words: str, code: int) -> None:
    path = tmp_path / "api.sock"
    with answering(path, answer):
        error = error_of(path)
    assert words in error.message
    assert error.exit_code == code


def test_the_socket_is_no_socket(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert error_of(file).exit_code == 4
    assert error_of(file / "api.sock").exit_code == 4
    assert error_of(tmp_path / ("x" * 200)).exit_code == 4


def test_a_gateway_that_is_not_ready_fails_with_1(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.error = NotReady("the gateway is stopping", "wait for the next start")
    result = zgatectl("status", code=1)
    assert result.stderr == "zgatectl: the gateway is stopping; wait for the next start\n"


def test_a_connection_that_breaks() -> None:
    assert "closed the connection" in client_module._explain(None, Path("/x"))[0]


def test_proxies_of_the_environment_are_not_asked(
    zgatectl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:3128")
    zgatectl("status")
