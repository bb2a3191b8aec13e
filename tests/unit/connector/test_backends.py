from __future__ import annotations

import asyncio
import socket

import pytest
from zgate_connector import backends
from zgate_connector.backends import BackendNames, connect_tcp, connect_udp


@pytest.mark.parametrize(("given", "known"), [("192.0.2.7", "192.0.2.7"), ("FD00::1", "fd00::1")])
async def test_an_address_needs_no_looking_up(given: str, known: str) -> None:
    names = BackendNames([given])
    assert names.addresses(given) == (known,)
    assert await names.look_up(given) == (known,)


async def test_a_name_is_looked_up_again_and_keeps_what_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = ["192.0.2.1", "192.0.2.2", None, "192.0.2.3"]
    asked = 0

    async def answer(name: str, _port: object, **_fields: object) -> list[object]:
        nonlocal asked
        asked += 1
        found = answers[min(asked, len(answers)) - 1]
        if found is None:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer)
    monkeypatch.setattr(backends, "REFRESH_S", 0.01)
    names = BackendNames(["pacs.example", "pacs.example"])
    assert names.addresses("pacs.example") == ()
    names.start()
    assert await names.look_up("pacs.example") == ("192.0.2.1",)
    seen = set()
    async with asyncio.timeout(5):
        while "192.0.2.3" not in seen:
            seen.update(names.addresses("pacs.example"))
            await asyncio.sleep(0.001)
    assert seen == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    await names.close()


async def test_localhost_really_resolves() -> None:
    names = BackendNames(["localhost"])
    names.start()
    found = await names.look_up("localhost")
    assert set(found) <= {"127.0.0.1", "::1"}
    assert found
    await names.close()


async def test_the_first_address_that_takes_the_connection() -> None:
    with socket.create_server(("127.0.0.3", 0)) as listener:
        port = listener.getsockname()[1]
        sock = await connect_tcp(("127.0.0.2", "127.0.0.3"), port)
        assert sock.getpeername() == ("127.0.0.3", port)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        sock.close()


async def test_none_takes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await connect_tcp(("127.0.0.1", "127.0.0.2"), port)
    with pytest.raises(ConnectionError, match="does not resolve"):
        await connect_tcp((), port)


def test_udp_is_connected_to_the_first_address() -> None:
    with connect_udp(("127.0.0.1", "127.0.0.2"), 9) as sock:
        assert sock.getpeername() == ("127.0.0.1", 9)
    with pytest.raises(ConnectionError, match="does not resolve"):
        connect_udp((), 9)
