"""TCP through a connector's chamber: bytes, ends, resets, slow readers, limits. As root and not."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from connector_support.ends import (
    BLOCK,
    Both,
    echoing,
    receive_all,
    receive_exactly,
    reset,
    send_blocks,
)
from connector_support.site import MANY, OFFERS, OTHER_DEVICE, Site, SiteError, open_site
from zgate_datapath.tun import Tun
from zgate_lab.lab import Lab
from zgate_lab.namespace import in_namespace
from zgate_lab.waiting import wait_until

PORT = 104
BLOCKS = 1024  # 1 GiB
UNREACHABLE = "192.0.2.1"
#: Socket buffers of four sockets, as far as the kernel lets them grow, and what we hold.
MAX_BUFFERED_BYTES = 64 << 20


def service(listener: socket.socket, **more: Any) -> dict[str, Any]:
    backend = f"127.0.0.1:{listener.getsockname()[1]}"
    return {"id": "pacs", "ports": [PORT], "backend": backend, "health": {"kind": "none"}, **more}


def open_flow(site: Site, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """The device's end and the backend's."""
    client = site.connect(PORT)
    backend, _ = listener.accept()
    backend.settimeout(20)
    return client, backend


@pytest.fixture
def listener(site: Site) -> socket.socket:
    """The backend of the service `pacs`, which is served."""
    listener = site.listen()
    site.begin([service(listener)], MANY)
    site.serve("pacs")
    return listener


@pytest.mark.timeout(180)
def test_a_gibibyte_each_way_at_the_same_time(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    both = Both(
        lambda: send_blocks(client, BLOCKS),
        lambda: receive_all(backend),
        lambda: send_blocks(backend, BLOCKS),
        lambda: receive_all(client),
    )
    sent_up, received_up, sent_down, received_down = both.results(150)
    size_bytes = BLOCKS * len(BLOCK)
    assert received_up == (size_bytes, sent_up)
    assert received_down == (size_bytes, sent_down)
    wait_until(lambda: site.status("pacs")["open_flows"] == 0, 5, "the flow to be over")
    status = site.status("pacs")
    assert (status["bytes_up"], status["bytes_down"]) == (size_bytes, size_bytes)


def test_packets_without_vnet_headers(lab: Lab) -> None:
    """As the Python engine reads and writes them."""
    with open_site(lab, as_nobody=True, has_vnet_header=False) as site:
        listener = site.listen()
        site.begin([service(listener)], MANY)
        site.serve("pacs")
        client, backend = open_flow(site, listener)
        both = Both(
            lambda: send_blocks(client, 50),
            lambda: receive_all(backend),
            lambda: send_blocks(backend, 50),
            lambda: receive_all(client),
        )
        sent_up, received_up, sent_down, received_down = both.results(60)
        assert received_up == (50 * len(BLOCK), sent_up)
        assert received_down == (50 * len(BLOCK), sent_down)


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_the_mtu_follows_the_paths(site: Site, listener: socket.socket) -> None:
    def segment_bytes() -> int:
        client, _ = open_flow(site, listener)
        with client:
            return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    assert segment_bytes() == 1420 - 20 - 20 - 12  # with timestamps
    site.ask("mtu", mtu_bytes=1300)
    assert segment_bytes() == 1300 - 20 - 20 - 12


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_both_connections_are_kept_alive(site: Site, listener: socket.socket) -> None:
    ends = open_flow(site, listener)
    inside = site.host.run("nsenter", f"--net=/proc/{site.chamber_pid}/ns/net", "ss", "-Htno")
    assert "timer:(keepalive," in inside.stdout
    outside = site.host.run("ss", "-Htno", "state", "established")
    assert outside.stdout.count("timer:(keepalive,") == 1
    for end in ends:
        end.close()


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_500_flows_at_once(site: Site) -> None:
    listener = site.listen()
    site.begin([service(listener)], MANY)
    files_before = site.serve("pacs")
    with echoing(listener):
        clients = [site.connect(PORT, OFFERS[number % 2]) for number in range(500)]
        for number, client in enumerate(clients):
            client.sendall(b"%05d" % number * 200)
        for number, client in enumerate(clients):
            assert receive_exactly(client, 1000) == b"%05d" % number * 200
        assert site.status("pacs")["open_flows"] == 500
        # Flows whose bytes do not wait have no pipes.
        assert site.ask("open_files") - files_before < 2 * 500 + 150
        for client in clients:
            client.close()
        wait_until(lambda: site.status("pacs")["open_flows"] == 0, 10, "all flows to be over")
    assert site.status("pacs")["total_flows"] == 500
    assert site.ask("open_files") - files_before < 150
    assert site.ask("close")["open_files"] < files_before


@pytest.mark.parametrize("site", ["root"], indirect=True)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_either_family_to_either_family(site: Site, family: socket.AddressFamily) -> None:
    listener = site.listen(family)
    host, port = listener.getsockname()[:2]
    backend = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    site.begin([{**service(listener), "backend": backend}], MANY)
    site.serve("pacs")
    for offer in OFFERS:
        client = site.connect(PORT, offer)
        backend_end, _ = listener.accept()
        client.sendall(b"ping")
        assert receive_exactly(backend_end, 4) == b"ping"
        backend_end.sendall(b"pong")
        assert receive_exactly(client, 4) == b"pong"


# Ends and resets.


def test_half_close_up(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    client.sendall(b"the question")
    client.shutdown(socket.SHUT_WR)
    assert receive_exactly(backend, 12) == b"the question"
    assert backend.recv(1) == b""
    both = Both(lambda: send_blocks(backend, 20), lambda: receive_all(client))
    sent, received = both.results(30)
    assert received == (20 * len(BLOCK), sent)
    wait_until(lambda: site.status("pacs")["open_flows"] == 0, 5, "the flow to be over")


def test_half_close_down(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    backend.sendall(b"welcome")
    backend.shutdown(socket.SHUT_WR)
    assert receive_exactly(client, 7) == b"welcome"
    assert client.recv(1) == b""
    both = Both(lambda: send_blocks(client, 20), lambda: receive_all(backend))
    sent, received = both.results(30)
    assert received == (20 * len(BLOCK), sent)


def test_a_reset_of_the_client_resets_the_backend(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    client.sendall(b"x")
    assert backend.recv(1) == b"x"
    reset(client)
    with pytest.raises(ConnectionResetError):
        backend.recv(1)
    assert site.status("pacs")["open_flows"] == 0


def test_a_reset_of_the_backend_resets_the_client(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    backend.sendall(b"x")
    assert client.recv(1) == b"x"
    reset(backend)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert site.status("pacs")["open_flows"] == 0


def test_a_reset_is_noticed_while_the_other_does_not_read(
    site: Site, listener: socket.socket
) -> None:
    client, backend = open_flow(site, listener)
    fill(client)
    reset(client)
    wait_until(lambda: site.status("pacs")["open_flows"] == 0, 5, "the flow to be over")
    with pytest.raises(ConnectionResetError):
        while backend.recv(1 << 20):
            pass


def test_a_backend_that_dies_in_the_middle(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    fill(client)
    receive_exactly(backend, 1 << 20)
    backend.close()  # with unread bytes: what a process that is killed leaves to its kernel
    client.settimeout(5)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            client.sendall(BLOCK)


def test_a_backend_that_refuses(site: Site) -> None:
    listener = site.listen()
    site.begin([service(listener)], MANY)
    site.serve("pacs")
    listener.close()
    started_s = time.monotonic()
    with pytest.raises(ConnectionResetError):
        site.connect(PORT).recv(1)
    assert time.monotonic() - started_s < 5  # not by the timeout
    assert site.status("pacs")["open_flows"] == 0
    assert site.ask("counters")["flows_refused_backend"] == 1


@pytest.fixture
def black_hole(site: Site) -> Tun:
    """Where packets of the connector's host to UNREACHABLE go, and stay."""
    with in_namespace(site.host.name):
        tun = Tun.open("hole0")
    site.host.ip(
        "link set hole0 up", "addr add 192.0.2.2/32 dev hole0", f"route add {UNREACHABLE} dev hole0"
    )
    return tun


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_a_backend_that_does_not_answer(site: Site, black_hole: Tun) -> None:
    only = {"id": "pacs", "ports": [PORT], "backend": UNREACHABLE, "health": {"kind": "none"}}
    site.begin([only], {**MANY, "connect_timeout_s": 1.0})
    site.serve("pacs")
    started_s = time.monotonic()
    client = site.connect(PORT)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert 0.5 < time.monotonic() - started_s < 10
    assert site.ask("counters")["flows_refused_backend"] == 1
    black_hole.close()


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_a_client_that_gives_up_while_we_connect(site: Site, black_hole: Tun) -> None:
    only = {"id": "pacs", "ports": [PORT], "backend": UNREACHABLE, "health": {"kind": "none"}}
    site.begin([only], {**MANY, "connect_timeout_s": 60.0})
    site.serve("pacs")
    client = site.connect(PORT)
    wait_until(lambda: site.status("pacs")["open_flows"] == 1, 5, "the flow")
    reset(client)
    wait_until(lambda: site.status("pacs")["open_flows"] == 0, 5, "the flow to be over")
    black_hole.close()


# Slow readers, busy neighbours.


def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken for half a second; how much that was."""
    sock.settimeout(0.5)
    size_bytes = 0
    try:
        while size_bytes < 2 * MAX_BUFFERED_BYTES:
            size_bytes += sock.send(BLOCK)
    except TimeoutError:
        pass
    sock.settimeout(20)
    return size_bytes


@pytest.mark.parametrize("is_up", [True, False])
def test_a_slow_reader_holds_its_sender_back(
    site: Site, listener: socket.socket, is_up: bool
) -> None:
    ends = open_flow(site, listener)
    sender, reader = ends if is_up else ends[::-1]
    sent_bytes = fill(sender)
    assert sent_bytes < MAX_BUFFERED_BYTES
    # The other direction is not held back.
    reader.sendall(b"still here")
    assert receive_exactly(sender, 10) == b"still here"
    sender.shutdown(socket.SHUT_WR)
    received_bytes, _ = receive_all(reader)
    assert received_bytes == sent_bytes


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_a_busy_flow_does_not_starve_others(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    small, small_backend = open_flow(site, listener)
    both = Both(lambda: send_blocks(client, BLOCKS), lambda: receive_all(backend))
    took_s = []
    for _ in range(100):
        started_s = time.monotonic()
        small.sendall(b"?")
        assert small_backend.recv(1) == b"?"
        took_s.append(time.monotonic() - started_s)
    sent, received = both.results(60)
    assert received == (BLOCKS * len(BLOCK), sent)
    assert sorted(took_s)[89] < 1, "nine in ten: the machine may stand still, too"


# Limits.


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_new_flows_per_second(site: Site) -> None:
    listener = site.listen()
    site.begin([service(listener)], {"new_flows_per_s": 10})
    site.serve("pacs")
    sockets = []
    began_s = time.monotonic()
    with in_namespace(site.device.name):
        for _ in range(60):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect_ex((str(OFFERS[0]), PORT))
            sockets.append(sock)
    wait_until(
        lambda: site.ask("counters")["tcp_flows_limited"] >= 40, 5, "connections to be dropped"
    )
    # Those that were let through are accepted one after the other.
    wait_until(lambda: site.status("pacs")["total_flows"] >= 10, 5, "the others to be accepted")
    # What was dropped is sent again a second later.
    assert site.status("pacs")["total_flows"] < 20 + 10 * (time.monotonic() - began_s)
    # Another source has its own allowance, and another destination too.
    site.connect(PORT, source=OTHER_DEVICE).close()
    site.connect(PORT, OFFERS[1]).close()
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_open_flows_of_a_client(site: Site) -> None:
    listener = site.listen()
    site.begin([service(listener)], {"new_flows_per_s": 1000, "open_flows_per_client": 5})
    site.serve("pacs")
    flows = [open_flow(site, listener) for _ in range(5)]
    with pytest.raises(ConnectionResetError):
        site.connect(PORT).recv(1)
    other = site.connect(PORT, source=OTHER_DEVICE)
    listener.accept()[0].sendall(b"!")
    assert other.recv(1) == b"!"
    assert site.ask("counters")["flows_refused_client"] == 1
    # When one is over there is room again.
    flows[0][0].close()
    assert flows[0][1].recv(1) == b""
    flows[0][1].close()
    wait_until(lambda: site.status("pacs")["open_flows"] == 5, 5, "a flow to be over")
    open_flow(site, listener)


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_open_flows_of_all_clients(site: Site) -> None:
    listener = site.listen()
    site.begin([service(listener)], {"new_flows_per_s": 1000, "max_flows": 3})
    site.serve("pacs")
    flows = [open_flow(site, listener) for _ in range(3)]
    with pytest.raises(ConnectionResetError):
        site.connect(PORT, source=OTHER_DEVICE).recv(1)
    assert site.ask("counters")["flows_refused_total"] == 1
    assert len(flows) == site.status("pacs")["open_flows"]


# What is served, and for how long.


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_several_ports_and_what_is_not_offered(site: Site) -> None:
    listener = site.listen()
    first = listener.getsockname()[1]
    only = {"id": "pacs", "ports": [PORT, "8000-8002"], "backend": f"127.0.0.1:{first}"}
    site.begin([only, {"id": "other", "ports": [9], "backend": f"127.0.0.1:{first}"}], MANY)
    site.serve("pacs")
    for port in (PORT, 8000, 8001, 8002):
        site.connect(port).close()
    for port in (8003, 9):
        with pytest.raises(ConnectionRefusedError):
            site.connect(port)
    assert list(site.ask("statuses")) == ["pacs"]


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_an_address_that_is_taken_away(site: Site, listener: socket.socket) -> None:
    client, lost = open_flow(site, listener)
    kept = site.connect(PORT, OFFERS[1])
    backend, _ = listener.accept()
    site.ask("serve", offers={"pacs": [str(OFFERS[1])]})
    wait_until(lambda: site.status("pacs")["open_flows"] == 1, 5, "one flow to be over")
    backend.sendall(b"on")
    assert receive_exactly(kept, 2) == b"on"
    client.settimeout(0.5)
    with pytest.raises((ConnectionResetError, TimeoutError)):  # by then nobody may be there
        client.recv(1)
    with pytest.raises(TimeoutError):
        site.connect(PORT, OFFERS[0], timeout_s=1)
    with pytest.raises(ConnectionResetError):
        lost.recv(1)


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_drained_flows_go_on_and_new_ones_are_refused(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    site.ask("drain", deadline_s=None)

    def is_refused() -> bool:
        try:
            one = site.connect(PORT)
        except ConnectionRefusedError:
            return True
        with one, suppress(TimeoutError):  # cut off on its way: look again
            listener.settimeout(2)
            listener.accept()[0].close()
        return False

    assert not is_refused()  # what is on its way is still taken
    wait_until(is_refused, 5, "new flows to be refused")
    client.sendall(b"go on")
    assert receive_exactly(backend, 5) == b"go on"
    assert not site.ask("is_drained")
    site.serve("pacs")  # a change of addresses, say: it stays drained
    with pytest.raises(ConnectionRefusedError):
        site.connect(PORT)
    client.close()
    backend.close()
    wait_until(lambda: site.ask("is_drained"), 5, "the drain to be over")


@pytest.mark.parametrize("site", ["root"], indirect=True)
def test_drained_flows_are_reset_at_the_deadline(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    site.ask("drain", deadline_s=0.3)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        backend.recv(1)
    wait_until(lambda: site.ask("is_drained"), 5, "the drain to be over")


# Life of the chamber.


def test_flows_outlive_the_chambers_process_and_it_is_known(
    site: Site, listener: socket.socket
) -> None:
    client, backend = open_flow(site, listener)
    os.kill(site.chamber_pid, signal.SIGKILL)
    reason = wait_until(lambda: site.ask("lost"), 2, "the loss to be known")
    assert "killed by signal 9" in reason
    client.sendall(b"on")
    assert receive_exactly(backend, 2) == b"on"
    with pytest.raises(SiteError, match="the chamber has ended"):
        site.serve("pacs")


def test_the_chamber_ends_with_its_connector(site: Site, listener: socket.socket) -> None:
    client, backend = open_flow(site, listener)
    assert Path(f"/proc/{site.chamber_pid}").exists()
    os.kill(site.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(site.chamber_pid), 5, "the chamber's process to end")
    assert backend.recv(1) == b""
    client.close()


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
