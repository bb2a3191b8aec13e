"""Which way names of services take, and that it is put back."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest
from zgate_agent import resolved, split_dns
from zgate_agent.config import DnsMode
from zgate_agent.keeper import Keeper
from zgate_agent.resolv_conf import ResolvConf
from zgate_agent.split_dns import NOTHING, Method, SplitDns
from zgate_protocol.dns_capsule import DnsAssign

DNS = DnsAssign((ip_address("10.100.0.1"), ip_address("fd7a::1")), ("zgate.internal",))
HOST = "nameserver 192.0.2.53\n"
BOTH = (4, 6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(HOST)
    return path


@pytest.fixture
def resolvectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command of that name which writes down how it was called; `fail` makes it fail."""
    log, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    command = folder / "resolvectl"
    command.write_text(
        f'#!/bin/sh\necho "$*" >> {log}\n'
        f'if [ -e {tmp_path}/fail ]; then echo "Unit not found." >&2; exit 1; fi\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    socket = tmp_path / "io.systemd.Resolve"
    socket.touch()
    monkeypatch.setattr(resolved, "_SOCKET", socket)
    return log


def calls(log: Path) -> list[str]:
    return log.read_text().splitlines()


def test_off_is_off(path: Path) -> None:
    names = SplitDns(DnsMode.OFF, path, "tun0")
    assert names.apply(DNS, BOTH) == NOTHING
    assert path.read_text() == HOST


def test_by_resolv_conf(path: Path) -> None:
    names = SplitDns(DnsMode.AUTO, path, "tun0")
    state = names.apply(DNS, BOTH)
    assert (state.method, state.domains, state.notes) == (
        Method.RESOLV_CONF,
        ("zgate.internal",),
        (),
    )
    assert "nameserver 10.100.0.1" in path.read_text()
    names.withdraw()
    assert (names.state, path.read_text()) == (NOTHING, HOST)


def test_a_server_that_the_tun_cannot_speak_to_is_no_server(path: Path) -> None:
    names = SplitDns(DnsMode.AUTO, path, "tun0")
    assert names.apply(DNS, (6,)).servers == (ip_address("fd7a::1"),)
    assert names.apply(DNS, ()) == NOTHING
    assert path.read_text() == HOST


def test_an_empty_assignment_takes_it_away(path: Path) -> None:
    names = SplitDns(DnsMode.AUTO, path, "tun0")
    names.apply(DNS, BOTH)
    assert names.apply(DnsAssign((), ()), BOTH) == NOTHING
    assert path.read_text() == HOST


def test_a_third_server_is_noted(path: Path) -> None:
    path.write_text("".join(f"nameserver 192.0.2.{number}\n" for number in (1, 2, 3)))
    (note,) = SplitDns(DnsMode.AUTO, path, "tun0").apply(DNS, BOTH).notes
    assert "its last name server is not asked" in note


def test_what_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").mkdir()
    names = SplitDns(DnsMode.AUTO, tmp_path / "resolv.conf", "tun0")
    state = names.apply(DNS, BOTH)
    assert state.method is Method.NONE
    assert "names of services are not resolved: cannot change" in state.notes[0]
    names.withdraw()


def test_leftovers_of_a_killed_agent(path: Path) -> None:
    SplitDns(DnsMode.AUTO, path, "tun0").apply(DNS, BOTH)
    names = SplitDns(DnsMode.AUTO, path, "tun0")
    assert names.clean_up_leftovers()
    assert path.read_text() == HOST
    assert not names.clean_up_leftovers()


def test_by_systemd_resolved_where_programs_use_it(path: Path, resolvectl: Path) -> None:
    path.write_text("nameserver 127.0.0.53\n")
    names = SplitDns(DnsMode.AUTO, path, "tun0")
    assert names.apply(DNS, BOTH).method is Method.RESOLVED
    assert calls(resolvectl) == [
        "dns tun0 10.100.0.1 fd7a::1",
        "domain tun0 ~zgate.internal",
        "default-route tun0 false",
    ]
    names.withdraw()
    assert calls(resolvectl)[3:] == ["revert tun0"]
    assert path.read_text() == "nameserver 127.0.0.53\n"


def test_all_names(path: Path, resolvectl: Path) -> None:
    everything = DnsAssign(DNS.servers, ("",))
    assert SplitDns(DnsMode.RESOLVED, path, "tun0").apply(everything, BOTH).domains == ("",)
    assert calls(resolvectl)[1:] == ["domain tun0 ~.", "default-route tun0 true"]


def test_by_resolv_conf_where_resolved_runs_and_nobody_asks_it(
    path: Path, resolvectl: Path
) -> None:
    assert SplitDns(DnsMode.AUTO, path, "tun0").apply(DNS, BOTH).method is Method.RESOLV_CONF
    path.write_text("nameserver 127.0.0.53\n")
    names = SplitDns(DnsMode.RESOLV_CONF, path, "tun0")
    assert names.apply(DNS, BOTH).method is Method.RESOLV_CONF
    assert not resolvectl.exists()


def test_nss_resolve_is_a_use(
    path: Path, resolvectl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nsswitch = tmp_path / "nsswitch.conf"
    nsswitch.write_text("hosts: files resolve [!UNAVAIL=return] dns\n")
    monkeypatch.setattr(resolved, "_NSSWITCH", nsswitch)
    assert SplitDns(DnsMode.AUTO, path, "tun0").apply(DNS, BOTH).method is Method.RESOLVED


def test_what_resolved_refuses_is_a_note(path: Path, resolvectl: Path, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    state = SplitDns(DnsMode.RESOLVED, path, "tun0").apply(DNS, BOTH)
    assert state.method is Method.NONE
    assert "resolvectl dns: Unit not found." in state.notes[0]


def test_resolved_that_does_not_run_is_a_note(path: Path) -> None:
    state = SplitDns(DnsMode.RESOLVED, path, "tun0").apply(DNS, BOTH)
    assert state.notes == ("dns: resolved, but systemd-resolved does not run",)
    assert path.read_text() == HOST


@pytest.fixture
def kept(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SplitDns]:
    """By the keeper of the host's file, which answers as long as the test lasts."""
    monkeypatch.setattr(split_dns, "DEFAULT_RESOLV_CONF", path)
    monkeypatch.setattr(split_dns, "_LINKS", tmp_path / "none")
    place = tmp_path / "keeper.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        loop, keeper = asyncio.new_event_loop(), Keeper(ResolvConf(path))
        loop.run_until_complete(asyncio.start_unix_server(keeper.attend, sock=listener.dup()))
        thread = Thread(target=loop.run_forever)
        thread.start()
        yield SplitDns(DnsMode.AUTO, None, "tun0", place)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        keeper.dismiss()
        for task in asyncio.all_tasks(loop):
            loop.run_until_complete(asyncio.wait_for(task, 5))
        loop.close()


def test_by_the_keeper_where_there_is_one(
    kept: SplitDns, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by the agent's own hand.
    monkeypatch.setattr(kept._file, "put", None)
    state = kept.apply(DNS, BOTH)
    assert (state.method, state.notes) == (Method.RESOLV_CONF, ())
    assert "nameserver 10.100.0.1" in path.read_text()
    assert kept.is_as_left()
    kept.withdraw()
    assert (kept.state, path.read_text()) == (NOTHING, HOST)


def test_lines_of_other_agents_are_no_leftovers(kept: SplitDns, path: Path) -> None:
    assert not kept.clean_up_leftovers()
    kept.apply(DNS, BOTH)
    before = path.read_text()
    other = SplitDns(DnsMode.AUTO, None, "tun1", kept._kept._socket_file)
    assert not other.clean_up_leftovers()
    assert path.read_text() == before
    kept.withdraw()


def test_without_the_right_and_without_a_keeper_it_says_what_to_start(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.unlink()
    path.mkdir()  # the test may be root
    monkeypatch.setattr(split_dns, "DEFAULT_RESOLV_CONF", path)
    monkeypatch.setattr(split_dns, "_LINKS", tmp_path / "none")
    names = SplitDns(DnsMode.AUTO, None, "tun0", tmp_path / "nobody")
    (note,) = names.apply(DNS, BOTH).notes
    assert note.endswith("Is a directory, and zgate-resolv-conf.socket is not up")
    assert names.is_as_left()
    path.rmdir()
    path.write_text(HOST)
    assert not names.is_as_left(), "worth another try"


async def test_what_others_write_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_dns, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(split_dns, "PAUSE_S", 0.01)
    names, noticed = SplitDns(DnsMode.AUTO, path, "tun0"), asyncio.Event()
    assert names.is_as_left()
    task = asyncio.create_task(split_dns.watch_names(names, noticed.set))
    try:
        names.apply(DNS, BOTH)
        assert names.is_as_left()
        path.write_text("nameserver 203.0.113.1\n")
        await asyncio.wait_for(noticed.wait(), 5)
        names.apply(DNS, BOTH)
        assert "203.0.113.1" in path.read_text() and "10.100.0.1" in path.read_text()
        assert names.is_as_left()
        names.withdraw()
        path.write_text(HOST)
        assert names.is_as_left(), "it is no matter of ours"
    finally:
        task.cancel()


def test_the_file_of_another_network_is_left_alone(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in a network namespace of its own sees the host's /etc, and the host's /sys."""
    (tmp_path / "net").mkdir()
    monkeypatch.setattr(split_dns, "_LINKS", tmp_path / "net")
    monkeypatch.setattr(split_dns, "DEFAULT_RESOLV_CONF", path)
    names = SplitDns(DnsMode.AUTO, None, "lo")
    state = names.apply(DNS, BOTH)
    assert "belongs to another network namespace" in state.notes[0]
    assert not names.clean_up_leftovers()
    assert path.read_text() == HOST
    (tmp_path / "net" / "lo").mkdir()
    assert names.apply(DNS, BOTH).method is Method.RESOLV_CONF
    names.withdraw()
