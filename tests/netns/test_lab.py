"""Namespaces, links and processes of the lab, and what is left after its owner was killed."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from pathlib import Path

import pytest
from zgate_lab.errors import LabError, LabTimeout, ProcessExited
from zgate_lab.lab import Lab, Namespace, Port
from zgate_lab.namespace import call_in, in_namespace, run_in
from zgate_lab.ownership import NETNS_DIRECTORY, RUN_DIRECTORY, ProcessIdentity, sweep
from zgate_lab.traffic import ping, send_udp
from zgate_lab.waiting import wait_until


@pytest.fixture
def pair(lab: Lab) -> tuple[Namespace, Namespace]:
    one, other = lab.add_namespace("one"), lab.add_namespace("other")
    lab.connect(
        Port(one, "eth0", (IPv4Interface("192.0.2.1/24"), IPv6Interface("2001:db8::1/64"))),
        Port(other, "eth0", (IPv4Interface("192.0.2.2/24"), IPv6Interface("2001:db8::2/64"))),
    )
    return one, other


def namespaces_of(run_id: str) -> list[str]:
    return [path.name for path in NETNS_DIRECTORY.glob(f"zg-{run_id}-*")]


def interfaces() -> str:
    return subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout


def test_a_lab_leaves_nothing_behind() -> None:
    before = interfaces()
    with Lab() as lab:
        run = lab.run.run_id
        one = lab.add_namespace("one")
        lab.connect(Port(one, "a"), Port(lab.add_namespace("other"), "b"))
        sleeper = one.spawn("sleeper", "sleep", "60")
        assert len(namespaces_of(run)) == 2
        assert interfaces() == before
    assert sleeper.returncode == -signal.SIGKILL
    assert namespaces_of(run) == []
    assert not (RUN_DIRECTORY / run).exists()
    assert interfaces() == before
    lab.close()


@pytest.mark.parametrize("address", ["192.0.2.2", "2001:db8::2"])
def test_a_link_carries_both_families_at_once(
    pair: tuple[Namespace, Namespace], address: str
) -> None:
    result = ping(pair[0].name, ip_address(address), count=2)
    assert result.lost == 0
    assert result.rtt_min_ms is not None and result.rtt_min_ms < 100


def test_a_role_is_unique(lab: Lab) -> None:
    lab.add_namespace("one")
    with pytest.raises(LabError, match="already has a namespace 'one'"):
        lab.add_namespace("one")


def test_a_namespace_begins_as_no_router_whatever_the_host_is(lab: Lab) -> None:
    assert lab.add_namespace("host").sysctl("net.ipv4.ip_forward") == "0"
    assert lab.add_namespace("router", router=True).sysctl("net.ipv6.conf.all.forwarding") == "1"


# -- inside a namespace


def test_a_socket_stays_in_the_namespace_that_it_was_opened_in(
    pair: tuple[Namespace, Namespace],
) -> None:
    one, other = pair
    with other.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver:
        receiver.bind(("192.0.2.2", 5000))  # an address that only `other` has
        receiver.settimeout(5)
        sent = send_udp(
            one.name, ip_address("192.0.2.2"), 5000, (b"%d" % n for n in range(10)), count=3
        )
        assert sent == 3
        assert [receiver.recv(100) for _ in range(3)] == [b"0", b"1", b"2"]


def test_the_thread_comes_back_also_after_an_error(lab: Lab) -> None:
    def here() -> int:
        return Path("/proc/thread-self/ns/net").stat().st_ino

    home = here()
    namespace = lab.add_namespace("one")
    with pytest.raises(ZeroDivisionError), in_namespace(namespace.name):
        assert here() != home
        raise ZeroDivisionError
    assert here() == home
    with pytest.raises(FileNotFoundError), in_namespace("no-such-namespace"):
        pass
    assert here() == home


def test_a_thread_of_its_own_returns_its_result_and_its_error(lab: Lab) -> None:
    name = lab.add_namespace("one").name

    def names() -> list[str]:
        assert threading.current_thread() is not threading.main_thread()
        return [name for _, name in socket.if_nameindex()]

    assert call_in(name, names) == ["lo"]
    with pytest.raises(ZeroDivisionError):
        call_in(name, lambda: 1 // 0)


def test_a_command_that_fails_or_hangs_is_an_error(lab: Lab) -> None:
    name = lab.add_namespace("one").name
    assert run_in(name, ["cat"], stdin="text").stdout == "text"
    with pytest.raises(LabError, match=r"in zg-\w+-one: ls /none: exit code 2: .*No such file"):
        run_in(name, ["ls", "/none"])
    assert run_in(name, ["false"], check=False).returncode == 1
    with pytest.raises(LabError, match=r"sleep in .*: not finished after 0\.1 s"):
        run_in(name, ["sleep", "60"], timeout_s=0.1)


# -- processes


def test_a_process_is_watched_by_what_it_prints(lab: Lab) -> None:
    namespace = lab.add_namespace("one")
    script = "echo port $PORT; exec sleep 60"
    process = namespace.spawn("shell", "sh", "-c", script, environment={"PORT": "4433"})
    assert process.wait_for_output(r"^port (\d+)$", 10.0)[1] == "4433"
    assert process.is_running()
    assert Path(f"/proc/{process.pid}/comm").read_text().strip() in {"sh", "sleep"}
    assert process.stop() == -signal.SIGTERM
    assert not process.is_running()


def test_waiting_for_a_process_that_ends_says_why(lab: Lab) -> None:
    process = lab.add_namespace("one").spawn("shell", "sh", "-c", "echo no such key >&2; exit 2")
    with pytest.raises(ProcessExited, match=r"shell ended with 2 before 'ready'(?s:.*)no such key"):
        process.wait_for_output("ready", 10.0)
    assert process.wait(1.0) == 2


def test_waiting_too_long_shows_the_log(lab: Lab) -> None:
    process = lab.add_namespace("one").spawn("shell", "sh", "-c", "echo busy; exec sleep 60")
    process.wait_for_output("busy", 10.0)
    with pytest.raises(LabTimeout, match=r"waiting for a miracle(?s:.*)busy"):
        process.wait_for(lambda: False, 0.05, "a miracle")
    with pytest.raises(LabTimeout, match=r"still runs after 0\.05 s"):
        process.wait(0.05)


def test_a_process_that_does_not_listen_is_killed(lab: Lab) -> None:
    process = lab.add_namespace("one").spawn(
        "deaf", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    )
    process.wait_for_output("ready", 10.0)
    assert process.stop(timeout_s=0.2) == -signal.SIGKILL


def test_a_restarted_process_has_not_printed_what_its_predecessor_did(lab: Lab) -> None:
    namespace = lab.add_namespace("one")
    first = namespace.spawn("daemon", "echo", "ready")
    first.wait(10.0)
    second = namespace.spawn("daemon", "sh", "-c", "echo starting; exec sleep 60")
    second.wait_for_output("starting", 10.0)
    assert "ready" not in second.output()
    assert second.log_path.read_text() == "ready\nstarting\n"


def test_the_logs_may_be_kept(lab: Lab, tmp_path: Path) -> None:
    process = lab.add_namespace("one").spawn("shell", "echo", "hello")
    process.wait(10.0)
    lab.keep_logs(tmp_path / "kept")
    lab.close()
    assert (tmp_path / "kept" / "shell.log").read_text() == "hello\n"


# -- after a crash

OWNER = """
import sys, time
from zgate_lab.lab import Lab
lab = Lab()
one = lab.add_namespace("one")
child = one.spawn("child", "sh", "-c", "sleep 61 & echo started $!; sleep 62")
pid = child.wait_for_output(r"started (\\d+)", 10)[1]
print(lab.run.run_id, child.pid, pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_owner() -> Iterator[subprocess.Popen[str]]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    yield owner
    owner.kill()
    owner.wait()
    sweep()


def test_what_a_killed_owner_left_is_swept(other_owner: subprocess.Popen[str]) -> None:
    assert other_owner.stdout is not None
    run, *pids = other_owner.stdout.readline().split()
    processes = [ProcessIdentity.of(int(pid)) for pid in pids]
    assert run not in sweep()  # its owner lives
    assert namespaces_of(run) == [f"zg-{run}-one"]
    assert all(process.is_alive() for process in processes)

    other_owner.kill()
    other_owner.wait()
    Lab().close()  # whoever starts next
    wait_until(lambda: not any(one.is_alive() for one in processes), 5.0, "their end")
    assert namespaces_of(run) == []
    assert not (RUN_DIRECTORY / run).exists()


def test_a_namespace_half_made_is_swept_too(tmp_path: Path) -> None:
    """Between the file and the mount on it, `ip netns add` can be killed."""
    with Lab() as lab:
        half = NETNS_DIRECTORY / f"{lab.run.prefix}half"
        half.touch()
    assert not half.exists()


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "abc123").mkdir()
    (tmp_path / "abc123" / "state.json").write_text("{")
    (tmp_path / "file").write_text("x")
    assert sweep(tmp_path) == []
    assert sweep(tmp_path / "none") == []
    assert (tmp_path / "abc123" / "state.json").exists()
