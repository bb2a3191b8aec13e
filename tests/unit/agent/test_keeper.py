"""The keeper of resolv.conf: what it takes from an agent, and that it is put back."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_agent import keeper
from zgate_agent.keeper import BadWish, keep, parse_wish
from zgate_agent.kept_resolv_conf import KeptResolvConf
from zgate_agent.resolv_conf import ResolvConf, ResolvConfError, is_ours, with_servers
from zgate_lab.waiting import SLOWNESS

HOST = "search example.org\nnameserver 192.0.2.53\n"
A, B, C = (ip_address(one) for one in ("10.100.0.1", "fd7a::1", "10.200.0.1"))


@pytest.mark.parametrize("text", ["10.100.0.1", "fd7a::1", "203.0.113.7"])
def test_an_address_is_a_wish(text: str) -> None:
    assert parse_wish(f"{text}\n".encode()) == ip_address(text)


def test_an_empty_line_is_no_wish() -> None:
    assert parse_wish(b"\n") is None


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"10.100.0.1", b"10.100.0.1\r\n", b" 10.100.0.1\n", b"10.100.0.1 \n"),
        *(b"10.100.0.1\n10.100.0.2\n", b"10.100.0.1 10.100.0.2\n", b"10.100.0.1\0\n"),
        *(b"nameserver 10.100.0.1\n", b"options debug\n", b"# 10.100.0.1\n", b"localhost\n"),
        *(b"10.100.1\n", b"167772161\n", b"010.100.0.1\n", b"10.100.0.1/32\n", b"0x0a.1.1.1\n"),
        *(b"FD7A::1\n", b"fd7a:0::1\n", b"fd7a::1%eth0\n", b"fd7a::1%\n", b"[fd7a::1]\n"),
        *(b"fe80::1\n", b"fe80::1%eth0\n", b"169.254.1.1\n", b"::ffff:10.0.0.1\n"),
        *(b"127.0.0.1\n", b"::1\n", b"0.0.0.0\n", b"::\n", b"224.0.0.251\n", b"ff02::fb\n"),
        *(b"255.255.255.255\n", b"240.0.0.1\n", b"\xff\n", "\uff110.100.0.1\n".encode()),
        *(b"f" * 100 + b"\n", b"-1\n"),
    ],
)
def test_nothing_else_is(line: bytes) -> None:
    with pytest.raises(BadWish):
        parse_wish(line)


@given(st.binary(max_size=80))
def test_whatever_comes_is_an_address_or_refused(line: bytes) -> None:
    try:
        found = parse_wish(line)
    except BadWish:
        return
    assert line == (b"\n" if found is None else f"{found}\n".encode())


@given(st.ip_addresses())
def test_what_is_taken_is_one_line_of_the_file(address: object) -> None:
    try:
        found = parse_wish(f"{address}\n".encode())
    except BadWish:
        return
    assert found is not None
    text = with_servers(HOST, [found])
    assert text.splitlines()[1] == f"nameserver {address}"
    assert len(text.splitlines()) == len(HOST.splitlines()) + 3


class Place:
    """A file and a socket in a folder."""

    def __init__(self, folder: Path) -> None:
        self.file = ResolvConf(folder / "resolv.conf")
        self.file.path.write_text(HOST)
        self.socket_file = folder / "keeper.sock"

    @property
    def text(self) -> str:
        return self.file.path.read_text()

    def agent(self) -> KeptResolvConf:
        return KeptResolvConf(self.file.path, self.socket_file)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[asyncio.Task[int]]:
        """A keeper runs, as systemd starts it."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.socket_file))
            listener.listen()
            task = asyncio.create_task(keep(listener.dup(), self.file))
            try:
                yield task
            finally:
                self.socket_file.unlink()
                if not task.done():
                    os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(task, 5 * SLOWNESS)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5 * SLOWNESS):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_wish_is_fulfilled_and_taken_back(place: Place) -> None:
    agent = place.agent()
    assert not agent.is_there()
    async with place.kept():
        assert agent.is_there()
        await asyncio.to_thread(agent.put, [A, B])
        assert place.text == with_servers(HOST, [A]), "one for each agent"
        await asyncio.to_thread(agent.put, [C])
        assert place.text == with_servers(HOST, [C])
        assert not agent.is_lost()
        await asyncio.to_thread(agent.put_back)
        assert place.text == HOST
    assert stat.S_IMODE(place.file.path.stat().st_mode) == 0o644


async def test_a_wish_ends_with_its_connection(place: Place) -> None:
    async with place.kept():
        agent = place.agent()
        await asyncio.to_thread(agent.put, [A])
        agent._close()  # as the kernel does when it is killed
        await until(lambda: place.text == HOST)


async def test_two_agents(place: Place) -> None:
    async with place.kept():
        first, second, third = place.agent(), place.agent(), place.agent()
        await asyncio.to_thread(first.put, [A])
        await asyncio.to_thread(second.put, [B])
        assert place.text == with_servers(HOST, [A, B])
        with pytest.raises(ResolvConfError, match="of 2 other agents"):
            await asyncio.to_thread(third.put, [C])
        # The same one takes no room.
        await asyncio.to_thread(third.put, [A])
        await asyncio.to_thread(first.put_back)
        assert sorted(place.text.splitlines()) == sorted(with_servers(HOST, [B, A]).splitlines())
        await asyncio.to_thread(third.put_back)
        assert place.text == with_servers(HOST, [B])
        await asyncio.to_thread(second.put_back)
        assert place.text == HOST


async def test_what_others_write_stays(place: Place) -> None:
    theirs = "nameserver 203.0.113.1\n"
    async with place.kept():
        agent = place.agent()
        await asyncio.to_thread(agent.put, [A])
        place.file.path.write_text(theirs)
        await asyncio.to_thread(agent.put, [A])
        assert place.text == with_servers(theirs, [A])
        place.file.path.write_text(place.text + "options rotate\n")
        await asyncio.to_thread(agent.put_back)
        assert place.text == f"{theirs}options rotate\n"


@pytest.mark.parametrize("line", [b"options debug\n", b"x" * 5000, b"10.100.0.1\nnot\n"])
async def test_who_says_something_else_is_heard_no_more(place: Place, line: bytes) -> None:
    async with place.kept():
        reader, writer = await asyncio.open_unix_connection(place.socket_file)
        writer.write(line)
        answer = await asyncio.wait_for(reader.read(), 5 * SLOWNESS)
        assert answer in (b"", b"refused: expected one IP address, and nothing else\n") or (
            answer.startswith(b"ok\nrefused")
        )
        writer.close()
        await until(lambda: place.text == HOST)
        await asyncio.to_thread(place.agent().put, [A])


async def test_connections_have_a_limit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "MAX_CONNECTIONS", 2)
    async with place.kept():
        for server in (A, B):
            reader, writer = await asyncio.open_unix_connection(place.socket_file)
            writer.write(f"{server}\n".encode())
            assert await reader.readline() == b"ok\n"
        with pytest.raises(ResolvConfError, match="its keeper"):
            await asyncio.to_thread(place.agent().put, [C])
        writer.close()
        await until(lambda: place.text == with_servers(HOST, [A]))


async def test_a_terminated_keeper_puts_back_and_its_agents_know(place: Place) -> None:
    agent = place.agent()
    async with place.kept() as task:
        await asyncio.to_thread(agent.put, [A])
        os.kill(os.getpid(), signal.SIGTERM)
        assert await task == 0
        assert place.text == HOST
    await until(agent.is_lost)
    await asyncio.to_thread(agent.put_back)
    async with place.kept():
        await asyncio.to_thread(agent.put, [A])
        assert is_ours(place.text)


async def test_an_agent_comes_again_when_its_keeper_has_ended(place: Place) -> None:
    agent = place.agent()
    async with place.kept():
        await asyncio.to_thread(agent.put, [A])
    assert place.text == HOST
    async with place.kept():
        await asyncio.to_thread(agent.put, [A])
        assert is_ours(place.text)


async def test_what_a_killed_keeper_left_is_put_back(place: Place) -> None:
    place.file.put([A])
    async with place.kept():
        await until(lambda: place.text == HOST)


async def test_it_ends_when_nobody_asks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.kept() as task:
        agent = place.agent()
        await asyncio.to_thread(agent.put, [A])
        monkeypatch.setattr(keeper, "IDLE_S", 0.1)
        done, _ = await asyncio.wait([task], timeout=0.3)
        assert not done
        await asyncio.to_thread(agent.put_back)
        assert await asyncio.wait_for(task, 5 * SLOWNESS) == 0


async def test_what_cannot_be_written_is_told(place: Place) -> None:
    place.file.path.unlink()
    place.file.path.mkdir()
    async with place.kept():
        with pytest.raises(ResolvConfError, match=r"cannot change .*: Is a directory"):
            await asyncio.to_thread(place.agent().put, [A])
        place.file.path.rmdir()
        place.file.path.write_text(HOST)
        await asyncio.to_thread(place.agent().put, [A])


def test_nobody_listens(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place.socket_file))
    with pytest.raises(ResolvConfError, match="its keeper"):
        place.agent().put([A])


def test_without_a_socket_it_says_who_starts_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    monkeypatch.setattr(keeper, "configure_logging", lambda level: None)
    assert keeper.main() == 2
    assert "start zgate-resolv-conf.socket" in capsys.readouterr().err
