"""UDP through a connector's chamber: flows, answers, what nobody answers, limits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from connector_support.site import MANY, OFFERS, Address, Site
from zgate_lab.namespace import in_namespace
from zgate_lab.waiting import wait_until

PORT = 9999


def service(port: int, **more: Any) -> dict[str, Any]:
    return {"id": "echo", "protocol": "udp", "ports": [PORT], "backend": f"127.0.0.1:{port}"} | more


@contextmanager
def echoing(sock: socket.socket) -> Iterator[set[int]]:
    """Send every datagram back; the ports that they come from."""
    ports: set[int] = set()
    sock.settimeout(None)

    def run() -> None:
        while True:
            data, source = sock.recvfrom(65535)
            if data == b"stop":
                return
            ports.add(source[1])
            sock.sendto(data, source)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield ports
    sock.sendto(b"stop", sock.getsockname())
    thread.join(5)
    sock.close()


@pytest.fixture
def backend(site: Site) -> socket.socket:
    return site.bind_udp()


def begin(site: Site, backend: socket.socket, **limits: Any) -> None:
    site.begin([service(backend.getsockname()[1])], {**MANY, **limits})
    site.serve("echo")


@pytest.mark.parametrize("to", OFFERS)
def test_each_source_gets_its_own_answers(site: Site, backend: socket.socket, to: Address) -> None:
    begin(site, backend)
    with echoing(backend) as ports:
        clients = [site.udp(to, PORT) for _ in range(100)]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d %d" % (turn, number))
            for number, client in enumerate(clients):
                # Connected sockets: an answer from another address would not come here.
                assert client.recv(100) == b"%d %d" % (turn, number)
    assert len(ports) == 100
    status = site.status("echo")
    assert (status["open_flows"], status["total_flows"]) == (100, 100)
    assert status["bytes_up"] == status["bytes_down"] == 3 * (10 * 3 + 90 * 4)


@pytest.mark.parametrize("site", ["root"], indirect=True)
@pytest.mark.parametrize("to", OFFERS)
@pytest.mark.parametrize("size_bytes", [0, 1, 1392, 8000, 65000])
def test_datagrams_of_any_size(
    site: Site, backend: socket.socket, to: Address, size_bytes: int
) -> None:
    begin(site, backend)
    with echoing(backend):
        client = site.udp(to, PORT)
        client.send(b"x" * size_bytes)
        assert client.recv(65535) == b"x" * size_bytes


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_a_flow_without_datagrams_ends(site: Site, backend: socket.socket) -> None:
    begin(site, backend, udp_idle_timeout_s=1.0)
    with echoing(backend) as ports:
        client = site.udp(port=PORT)
        client.send(b"one")
        assert client.recv(100) == b"one"
        assert site.status("echo")["total_flows"] == 1
        wait_until(lambda: site.status("echo")["open_flows"] == 0, 5, "the flow to be over")
        client.send(b"two")
        assert client.recv(100) == b"two"
    assert site.status("echo")["total_flows"] == 2
    assert len(ports) == 2


@pytest.mark.parametrize("to", OFFERS)
def test_a_backend_without_such_a_port(site: Site, backend: socket.socket, to: Address) -> None:
    begin(site, backend)
    backend.close()
    client = site.udp(to, PORT)
    client.send(b"anybody there?")
    with pytest.raises(ConnectionRefusedError):
        client.recv(1)
    assert site.status("echo")["open_flows"] == 0
    assert site.ask("counters")["flows_refused_backend"] == 1


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_a_client_with_too_many_flows_loses_its_oldest(site: Site, backend: socket.socket) -> None:
    begin(site, backend, open_flows_per_client=3)
    with echoing(backend):
        clients = [site.udp(port=PORT) for _ in range(4)]
        for client in (*clients[:3], clients[0], clients[3]):
            client.send(b"?")
            assert client.recv(1) == b"?"
        assert site.status("echo")["open_flows"] == 3
        assert site.ask("counters")["udp_flows_evicted"] == 1
        # The first had been used since; the second was the one to go, and may come again.
        clients[1].send(b"!")
        assert clients[1].recv(1) == b"!"
    assert site.status("echo")["total_flows"] == 5


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_new_flows_per_second_and_datagrams_of_open_ones(
    site: Site, backend: socket.socket
) -> None:
    begin(site, backend, new_flows_per_s=10)
    with echoing(backend):
        first = site.udp(port=PORT)
        first.send(b"first")
        assert first.recv(100) == b"first"
        with in_namespace(site.device.name):
            others = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(60)]
        began_s = time.monotonic()
        for sock in others:
            sock.sendto(b"?", (str(OFFERS[0]), PORT))
        wait_until(
            lambda: (
                site.ask("counters")["udp_flows_limited"] + site.status("echo")["total_flows"] == 61
            ),
            5,
            "all to be taken or refused",
        )
        allowed = 20 + 10 * (time.monotonic() - began_s)
        assert 10 <= site.status("echo")["total_flows"] < allowed
        # A flow that is open is not limited.
        for number in range(100):
            first.send(b"%d" % number)
            assert first.recv(100) == b"%d" % number
        for sock in others:
            sock.close()


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_drained(site: Site, backend: socket.socket) -> None:
    begin(site, backend)
    with echoing(backend):
        client = site.udp(port=PORT)
        client.send(b"one")
        assert client.recv(100) == b"one"
        site.ask("drain", deadline_s=5.0)

        def is_refused() -> bool:
            with site.udp(port=PORT) as late:
                late.settimeout(0.3)
                late.send(b"late")
                try:
                    return late.recv(1) == b""
                except TimeoutError:
                    return True

        wait_until(is_refused, 5, "new flows to be refused")
        client.send(b"two")
        assert client.recv(100) == b"two"
        wait_until(lambda: site.ask("is_drained"), 8, "the drain to be over")
    assert site.status("echo")["open_flows"] == 0


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_tcp_and_udp_of_one_service(site: Site, backend: socket.socket) -> None:
    listener = site.listen()
    udp = service(backend.getsockname()[1])
    tcp = {**udp, "protocol": "tcp", "backend": f"127.0.0.1:{listener.getsockname()[1]}"}
    tcp["health"] = {"kind": "none"}
    site.begin([udp, tcp], MANY)
    site.serve("echo")
    with echoing(backend):
        client = site.udp(port=PORT)
        client.send(b"?")
        assert client.recv(1) == b"?"
    stream = site.connect(PORT)
    listener.accept()[0].sendall(b"!")
    assert stream.recv(1) == b"!"
    assert site.status("echo")["open_flows"] == 2
