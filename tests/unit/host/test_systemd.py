"""What is said to the service manager, over real sockets; what it hands over, in a real child."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from zgate_host import systemd


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The manager's end of NOTIFY_SOCKET, in the file system or in the abstract namespace."""
    name = f"zgate-test-{secrets.token_hex(8)}"
    path = str(tmp_path / "notify") if request.param == "path" else f"@{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path if request.param == "path" else f"\0{name}")
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield sock


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_each_thing_has_its_word(manager: socket.socket) -> None:
    systemd.notify(ready=True, status="3 sessions")
    assert heard(manager) == ["READY=1", "STATUS=3 sessions"]
    systemd.notify(watchdog=True)
    assert heard(manager) == ["WATCHDOG=1"]
    systemd.notify(stopping=True, extend_timeout_s=2.5)
    assert heard(manager) == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=2500000"]


def test_a_reload_says_when_it_began(manager: socket.socket) -> None:
    systemd.notify(reloading=True)
    word, clock = heard(manager)
    assert word == "RELOADING=1"
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", clock)


def test_a_status_is_one_line_whatever_is_in_it(manager: socket.socket) -> None:
    systemd.notify(status="bad\nREADY=1\0\x1b[2J" + "x" * 1000)
    (line,) = heard(manager)
    assert line.startswith("STATUS=bad READY=1  [2J")
    assert len(line) == len("STATUS=") + 500


def test_nothing_to_say_is_not_sent(manager: socket.socket) -> None:
    systemd.notify()
    systemd.notify(status="")
    assert heard(manager) == ["STATUS="]


def test_a_manager_that_is_gone_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    systemd.notify(ready=True)
    assert "does not listen" in caplog.text


def test_a_manager_that_does_not_read_stops_nobody(
    manager: socket.socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_SEND_TIMEOUT_S", 0.01)
    for _ in range(10_000):
        systemd.notify(watchdog=True)
        if caplog.text:
            break
    assert "does not listen" in caplog.text
    assert heard(manager) == ["WATCHDOG=1"]


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    systemd.notify(ready=True)
    assert not systemd.is_watched()
    assert systemd.watchdog_interval_s() is None
    assert systemd.activated_sockets() == {}


def test_the_watchdogs_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert systemd.watchdog_interval_s() == 10.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_interval_s() == 10.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    assert systemd.watchdog_interval_s() is None
    monkeypatch.delenv("WATCHDOG_PID")
    for nonsense in ("0", "-1", "soon", ""):
        monkeypatch.setenv("WATCHDOG_USEC", nonsense)
        assert systemd.watchdog_interval_s() is None


# A service of its own process: LISTEN_PID is that of who is started, which only it knows.
_LAUNCH = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid() if sys.argv[1] == "own" else os.getppid())
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""
_SERVICE = """
import os, subprocess, sys
from zgate_host.systemd import ActivationError, activated_sockets
try:
    found = activated_sockets()
except ActivationError as error:
    sys.exit(f"refused: {error}")
print({name: [(s.type.name, s.getsockname()[1]) for s in group] for name, group in found.items()})
print(activated_sockets(), [name for name in os.environ if name.startswith("LISTEN_")])
fds = [s.fileno() for group in found.values() for s in group]
child = f"import os; print([fd for fd in {fds} if os.path.exists(f'/proc/self/fd/{{fd}}')])"
subprocess.run([sys.executable, "-c", child], check=True, close_fds=False)
"""


def activate(
    descriptors: list[int], names: str | None, *, whose: str = "own", count: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `_SERVICE` with these descriptors from 3 on, as a service manager would."""

    def place() -> None:
        # First out of the way of each other, then where they belong.
        apart = [os.dup(fd) for fd in descriptors]
        high = [os.dup2(fd, 100 + number) for number, fd in enumerate(apart)]
        for number, fd in enumerate(high):
            os.dup2(fd, 3 + number)

    environment = {**os.environ, "LISTEN_FDS": count or str(len(descriptors))}
    environment.pop("LISTEN_FDNAMES", None)
    if names is not None:
        environment["LISTEN_FDNAMES"] = names
    return subprocess.run(
        [sys.executable, "-c", _LAUNCH, whose, _SERVICE],
        preexec_fn=place,
        close_fds=False,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    kinds = [socket.SOCK_DGRAM, socket.SOCK_DGRAM, socket.SOCK_STREAM]
    made = [socket.socket(socket.AF_INET6, kind) for kind in kinds]
    for one in made:
        one.bind(("::1", 0))
    yield made
    for one in made:
        one.close()


def test_sockets_come_by_name_and_only_once(sockets: list[socket.socket]) -> None:
    one, two, three = (sock.getsockname()[1] for sock in sockets)
    ended = activate([sock.fileno() for sock in sockets], "quic:quic:web")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        str({"quic": [("SOCK_DGRAM", one), ("SOCK_DGRAM", two)], "web": [("SOCK_STREAM", three)]}),
        "{} []",
        "[]",
    ]


def test_sockets_without_names(sockets: list[socket.socket]) -> None:
    ended = activate([sockets[0].fileno()], None)
    assert ended.stdout.startswith("{'unknown': [('SOCK_DGRAM',"), ended.stderr


def test_another_process_s_sockets_are_left_alone(sockets: list[socket.socket]) -> None:
    ended = activate([sockets[0].fileno()], "quic", whose="parent")
    assert ended.stdout.startswith("{}\n{} ['LISTEN_"), ended.stderr


def test_what_is_no_socket_is_refused(tmp_path: Path, sockets: list[socket.socket]) -> None:
    with (tmp_path / "file").open("w") as file:
        ended = activate([sockets[0].fileno(), file.fileno()], "quic:quic")
    assert ended.stderr.strip() == "refused: descriptor 4, from the service manager, is no socket"


@pytest.mark.parametrize(
    ("count", "names", "text"),
    [
        ("many", "quic", "LISTEN_FDS is 'many' and not a number"),
        ("2", "quic", "LISTEN_FDNAMES has 1 names for 2 descriptors"),
    ],
)
def test_variables_that_make_no_sense(
    sockets: list[socket.socket], count: str, names: str, text: str
) -> None:
    ended = activate([sockets[0].fileno()], names, count=count)
    assert ended.stderr.strip() == f"refused: {text}"
