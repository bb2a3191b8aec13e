"""The sockets: who may connect, what happens to what lies in the way, and signals left alone."""

import asyncio
import grp
import os
import signal
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from zgate_gateway.api import server as server_module
from zgate_gateway.api.server import ApiServer, ApiSocketError, open_tcp_socket, open_unix_socket

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing a file's group needs root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "api.sock"


async def get(path: Path, route: str) -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.get(route)


async def test_it_answers_on_the_socket_and_removes_it(path: Path, fake_gateway: Any) -> None:
    server = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    await server.start()
    assert (await get(path, "/v1/status")).json()["pid"] == 4242
    assert server.metrics_port is None
    await server.stop()
    assert list(path.parent.iterdir()) == []
    with pytest.raises(httpx.ConnectError):
        await get(path, "/health")
    await server.stop()  # stopping twice is no error


async def test_it_can_be_started_again_after_a_kill(path: Path, fake_gateway: Any) -> None:
    path.parent.mkdir()
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))
    left_behind.listen()
    left_behind.close()
    assert path.is_socket()
    server = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    await server.start()
    assert (await get(path, "/health")).status_code == 200
    await server.stop()


async def test_a_socket_that_somebody_listens_on_is_left_alone(
    path: Path, fake_gateway: Any
) -> None:
    first = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    await first.start()
    second = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    with pytest.raises(ApiSocketError, match="another gateway listens"):
        await second.start()
    assert (await get(path, "/health")).status_code == 200
    await first.stop()


async def test_stop_leaves_a_successor_s_socket(path: Path, fake_gateway: Any) -> None:
    first = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    await first.start()
    path.unlink()
    second = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    await second.start()
    await first.stop()
    assert (await get(path, "/health")).status_code == 200
    await second.stop()


async def test_a_directory_that_is_none_any_more_is_told_and_stops_no_stop(
    path: Path, fake_gateway: Any
) -> None:
    server = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    await server.start()
    aside = path.parent.rename(path.parent.with_name("aside"))
    path.parent.touch()
    assert "Not a directory" in (await server.look() or "")
    path.parent.unlink()
    aside.rename(path.parent)
    assert await server.look() is None
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    await server.stop()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_never_removed(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(ApiSocketError, match="no socket is in the way"):
        open_unix_socket(path, None)
    assert len(list(path.parent.iterdir())) == 1


def test_only_root_without_the_group(path: Path) -> None:
    with open_unix_socket(path, "no-such-group-here"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@needs_root
def test_root_and_the_group_with_it(path: Path) -> None:
    group = grp.getgrgid(1)
    with open_unix_socket(path, group.gr_name):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, 0, 1)
        # The group must be able to reach the socket, and nobody else to put something there.
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_the_umask_is_put_back(path: Path) -> None:
    before = os.umask(0o022)
    try:
        open_unix_socket(path, None).close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["x" * 100, "file/api.sock"])
def test_a_path_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ApiSocketError, match="socket_path"):
        open_unix_socket(tmp_path / name, None)


async def test_probes_on_tcp_and_nothing_else(path: Path, fake_gateway: Any) -> None:
    server = ApiServer(
        fake_gateway, socket_path=path, socket_group=None, metrics_address=("127.0.0.1", 0)
    )
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.metrics_port}") as client:
        assert "zgate_ready" in (await client.get("/metrics")).text
        assert (await client.get("/v1/status")).status_code == 404
    await server.stop()


async def test_a_taken_port_keeps_nobody_from_the_socket(path: Path, fake_gateway: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = ("127.0.0.1", taken.getsockname()[1])
        server = ApiServer(
            fake_gateway, socket_path=path, socket_group=None, metrics_address=address
        )
        await server.start()
        assert server.metrics_port is None
        assert (await get(path, "/health")).status_code == 200
        problem = await server.look_at_metrics_port()
        assert problem is not None
        assert "already in use; set metrics.address" in problem
    assert await server.look_at_metrics_port() is None
    assert server.metrics_port == address[1]
    await server.stop()


@pytest.mark.parametrize("address", [("not-an-address.invalid", 1), ("127.0.0.1", 70000)])
def test_an_impossible_tcp_address(address: tuple[str, int]) -> None:
    with pytest.raises(ApiSocketError, match=r"metrics\.address"):
        open_tcp_socket(*address)


async def test_signal_handlers_stay_the_daemon_s(path: Path, fake_gateway: Any) -> None:
    assert threading.current_thread() is threading.main_thread()
    got = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGTERM, got.set)
    try:
        server = ApiServer(fake_gateway, socket_path=path, socket_group=None)
        await server.start()
        assert signal.getsignal(signal.SIGINT) is before
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(got.wait(), 5)
        assert (await get(path, "/health")).status_code == 200
        await server.stop()
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_a_request_in_hand_does_not_hold_up_the_stop(path: Path, fake_gateway: Any) -> None:
    server = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    await server.start()
    _reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"POST /v1/policy/check HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
    await writer.drain()
    async with asyncio.timeout(10):
        await server.stop()
    writer.close()


async def test_garbage_harms_nobody(path: Path, fake_gateway: Any) -> None:
    server = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    await server.start()
    for garbage in (
        b"\x00" * 100,
        b"GET / HTTP/9\r\n\r\n",
        b"\x16\x03\x01",
        b"GET " + b"x" * 70000,
    ):
        _reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(garbage)
        writer.close()
    assert (await get(path, "/health")).status_code == 200
    await server.stop()


async def test_a_server_that_does_not_come_up_is_an_error(
    path: Path, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def startup(self: Any, sockets: Any = None) -> None:
        self.should_exit = True

    monkeypatch.setattr(server_module._Server, "startup", startup)
    server = ApiServer(fake_gateway, socket_path=path, socket_group=None)
    with pytest.raises(ApiSocketError, match="ended while it started"):
        await server.start()
    assert not path.exists()
