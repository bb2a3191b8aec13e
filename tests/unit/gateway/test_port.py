"""The UDP port: bound here, or handed over by a service manager, in a real child process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from zgate_gateway.config import ListenConfig
from zgate_gateway.port import UdpPort

# What systemd does between fork and exec, and what the gateway does then.
_SERVICE = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from ipaddress import ip_address
from zgate_config import ConfigError
from zgate_gateway.config import ListenConfig
from zgate_gateway.port import UdpPort
address, port, workers = sys.argv[1:]
listen = ListenConfig.model_construct(address=ip_address(address), port=int(port))
try:
    port = UdpPort(listen, int(workers))
except ConfigError as error:
    sys.exit(str(error))
used = port.open()
port.close()
opened = [fd for fd in range(3, 7) if os.path.exists(f"/proc/self/fd/{fd}")]
print(port.is_activated, [one.fileno() for one in used], opened)
"""


def activate(
    sockets: list[socket.socket],
    *,
    address: str = "::1",
    port: int | None = None,
    workers: int = 2,
    name: str = "quic",
) -> subprocess.CompletedProcess[str]:
    """Start the above with these sockets from descriptor 3 on."""

    def place() -> None:
        high = [os.dup2(one.fileno(), 100 + number) for number, one in enumerate(sockets)]
        for number, fd in enumerate(high):
            os.dup2(fd, 3 + number)
            os.close(fd)

    names = ":".join([name] * len(sockets))
    number = sockets[0].getsockname()[1] if port is None else port
    return subprocess.run(
        [sys.executable, "-c", _SERVICE, address, str(number), str(workers)],
        preexec_fn=place,
        close_fds=False,
        env={**os.environ, "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names},
        capture_output=True,
        text=True,
        check=False,
    )


Bind = Callable[..., list[socket.socket]]


@pytest.fixture
def bind() -> Iterator[Bind]:
    """Sockets of one free port, as the socket unit would have them."""
    made: list[socket.socket] = []

    def group(
        count: int, kind: int = socket.SOCK_DGRAM, *, is_shared: bool = True
    ) -> list[socket.socket]:
        port = 0
        for _ in range(count):
            one = socket.socket(socket.AF_INET6, kind)
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, is_shared)
            one.bind(("::1", port))
            port = one.getsockname()[1]
        return made[-count:]

    yield group
    for one in made:
        one.close()


def test_without_a_service_manager_it_is_bound_here() -> None:
    listen = ListenConfig.model_validate_json('{"address": "::1", "port": 0}')
    port = UdpPort(listen, 2)
    sockets = port.open()
    port.close()
    assert not port.is_activated
    assert len({one.local_address for one in sockets}) == 1
    assert len(sockets) == 2
    for one in sockets:
        one.close()


def test_the_first_sockets_are_used_and_the_others_emptied_and_let_go(bind: Bind) -> None:
    sockets = bind(4)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.bind(("::1", 0))
        for _ in range(8):
            sender.sendto(b"early", sockets[0].getsockname())
    ended = activate(sockets)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "True [3, 4] [3, 4]"
    for one in sockets[2:]:
        with pytest.raises(BlockingIOError):
            one.recv(100, socket.MSG_DONTWAIT)


def test_the_port_of_the_configuration_is_what_the_sockets_must_have(bind: Bind) -> None:
    sockets = bind(2)
    bound = sockets[0].getsockname()[1]
    for address, port in (("::1", bound + 1), ("::", bound)):
        ended = activate(sockets, address=address, port=port)
        assert ended.returncode == 1
        assert ended.stderr.startswith(
            f"zgate-gateway.socket: expected the address and port of `listen` ([{address}]:{port}),"
            f" and not [::1]:{bound}: look at ListenDatagram= of this unit"
        )


def test_each_worker_needs_a_socket(bind: Bind) -> None:
    ended = activate(bind(2), workers=3)
    assert "a socket for each of the 3 workers, and not 2" in ended.stderr


def test_other_sockets_are_refused(bind: Bind) -> None:
    ended = activate(bind(1, socket.SOCK_STREAM), workers=1)
    assert "expected UDP sockets: look at ListenDatagram=" in ended.stderr
    ended = activate(bind(2), name="zgate-gateway.socket")
    assert "expected sockets named quic: look at FileDescriptorName=" in ended.stderr
    ended = activate(bind(1, is_shared=False), workers=1)
    assert "expected sockets that share the port: look at ReusePort=" in ended.stderr
