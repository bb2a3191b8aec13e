"""What a gateway begins at once: with the kernel's real programs and real processes."""

import contextlib
import os
import socket
from pathlib import Path

import pytest
from zgate_bpf.errors import BpfLoadError
from zgate_gateway import head_start
from zgate_gateway.config import GatewayConfig
from zgate_gateway.head_start import HeadStart
from zgate_gateway.worker import launch
from zgate_lab.waiting import wait_until

CONFIG = GatewayConfig(
    workers=2, sessions={"max": 16}, limits={"max_clients": 16, "max_flows": 1024}
)


def descriptors():
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths


@pytest.fixture
def launched(monkeypatch):
    """Every process that was started, and what it was started with."""
    made = []

    def noting():
        made.append(launch.launch())
        return made[-1]

    monkeypatch.setattr(head_start, "launch", noting)
    return made


def is_running(one):
    return one.popen.poll() is None


def test_who_takes_it_all_has_it_all(launched):
    begun = HeadStart(CONFIG)
    with begun.programs() as programs:
        workers = begun.workers()
        begun.close()
        assert programs.ingress_fd > 0
        assert workers == launched
        assert all(is_running(one) for one in workers)
        # A supervisor that ends says so by this alone.
        for one in workers:
            one.channel.close()
        assert [one.popen.wait(30) for one in workers] == [0, 0]


def test_nothing_stays_of_what_nobody_took(launched):
    before = descriptors()
    HeadStart(CONFIG).close()
    assert descriptors() == before
    assert [is_running(one) for one in launched] == [False, False]


def test_programs_are_given_once(launched):
    begun = HeadStart(CONFIG)
    try:
        with begun.programs(), pytest.raises(RuntimeError, match="taken"):
            begun.programs()
    finally:
        begun.close()


def test_what_went_wrong_is_told_to_who_asks(launched, monkeypatch):
    def refused(*_arguments, **_more):
        raise BpfLoadError("the kernel refused program zg_ingress")

    monkeypatch.setattr("zgate_bpf.loader.load_program", refused)
    begun = HeadStart(CONFIG)
    try:
        with pytest.raises(BpfLoadError, match="refused program zg_ingress"):
            begun.programs()
    finally:
        begun.close()
    assert not any(is_running(one) for one in launched)


def test_processes_that_cannot_be_had_are_the_crews_matter(monkeypatch, caplog):
    def none_left():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(head_start, "launch", none_left)
    begun = HeadStart(CONFIG)
    try:
        assert begun.workers() == []
        assert "cannot be started yet" in caplog.text
    finally:
        begun.close()


def _open_files(directory: Path) -> set[Path]:
    """What a running process holds open: what it closes meanwhile does not count."""
    links = set()
    for fd in (directory / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(fd.readlink())
    return links


def test_workers_get_nothing_of_the_service_managers(monkeypatch):
    for name in launch._NOT_FOR_WORKERS:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ZGATE_SEEN", "1")
    with socket.socket() as handed_over:
        handed_over.set_inheritable(True)
        inode = Path(f"/proc/self/fd/{handed_over.fileno()}").readlink()
        one = launch.launch()
        try:
            directory = Path(f"/proc/{one.popen.pid}")
            # A process that has just become another program has none for a moment.
            environment = wait_until((directory / "environ").read_bytes, 10.0, "its environment")
            names = {line.split(b"=")[0].decode() for line in environment.split(b"\0")}
            assert "ZGATE_SEEN" in names
            assert not names & set(launch._NOT_FOR_WORKERS)
            assert inode not in _open_files(directory)
        finally:
            one.discard()
