"""Names of services on a device as Debian 12 installs it: no systemd-resolved, resolv.conf a file.

The agent is not root; the keeper of /etc/resolv.conf is asked (zgate-resolv-conf.socket).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from units_support import AGENT, CONNECTOR, GATEWAY, TIMEOUT_S, Units, main_pid, wait_active
from zgate_lab.waiting import wait_until

pytestmark = pytest.mark.timeout(600)

FILE, BACKUP = "/etc/resolv.conf", "/etc/resolv.conf.zgate-backup"
KEEPER, PATH = "zgate-resolv-conf.service", "zgate-resolv-conf.path"
SERVER, NAME = "10.100.0.1", "wiki.zgate.internal"
# Nobody answers there: names of services are told to nobody else.
HOST = "# by the host\nnameserver 203.0.113.99\noptions timeout:1 attempts:1\n"


@pytest.fixture(scope="module")
def units() -> Iterator[Units]:
    """The machines, with a service; the agent is configured as it comes, and not started."""
    with Units.open() as made:
        wait_active(made.gateway, GATEWAY)
        made.beside.run("systemctl", "enable", "--now", CONNECTOR)
        made.wait_session("beside")
        configure(made, "laptop")
        made.device.write(FILE, HOST, mode="644")
        yield made


def configure(units: Units, instance: str, **changes: object) -> None:
    """As the role of Ansible does: no word about names."""
    path = f"/etc/zgate/agents/{instance}.yaml"
    config = json.loads(units.device.read("/etc/zgate/agents/laptop.yaml"))
    config.pop("dns", None)
    units.device.write(path, json.dumps({**config, **changes}))


@pytest.fixture(autouse=True)
def journals(units: Units) -> Iterator[None]:
    """Each test begins with an agent that is up, and leaves the file as it was."""
    units.device.run("systemctl", "start", AGENT)
    units.wait_connected()
    wait_resolved(units)
    try:
        yield
    finally:
        print(units.device.journal("zgate-*")[-6000:])
    units.device.run("systemctl", "stop", AGENT)
    wait_put_back(units)


def looked_up(units: Units, name: str = NAME) -> str:
    """The address, by the device's own resolver; empty: there is none."""
    return next(iter(units.device.output("getent", "ahostsv4", name).split()), "")


def wait_resolved(units: Units) -> None:
    wait_until(lambda: looked_up(units).startswith("10.101."), TIMEOUT_S, f"{NAME} to be found")


def wait_put_back(units: Units, text: str = HOST) -> None:
    wait_until(lambda: units.device.read(FILE) == text, TIMEOUT_S, f"{FILE} to be as it was")
    assert not units.device.exists(BACKUP)


def test_a_name_is_found_and_its_service_answers(units: Units) -> None:
    device = units.device
    assert device.run("curl", "-sS", "-m5", f"http://{NAME}/").stdout == "the wiki answers"
    status = units.agent_status()
    assert (status["dns"]["method"], status["notes"]) == ("resolv.conf", [])
    text = device.read(FILE)
    assert f"nameserver {SERVER}\n" in text and text.endswith(HOST)
    assert device.output("stat", "-c", "%a %U", FILE) == "644 root"
    # And the agent cannot do that itself.
    (agent,) = units.processes(device, AGENT)
    assert "0" not in agent["Uid"].split()
    shell = ["nsenter", "--target", str(main_pid(device, AGENT)), "--all"]
    done = device.run(*shell, "sh", "-c", f": >>{FILE}", check=False, user="zgate-agent")
    assert done.returncode != 0


def test_the_keeper_may_do_little(units: Units) -> None:
    (keeper,) = units.processes(units.device, KEEPER)
    assert keeper["Uid"].split() == ["0"] * 4
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(keeper[kind], 16) == 0, kind
    assert (keeper["NoNewPrivs"], keeper["Seccomp"]) == ("1", "2")
    text = units.device.output("systemd-analyze", "security", "--no-pager", KEEPER)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    assert found and float(found[1]) <= 1.0, text
    inside = ["nsenter", "--target", str(main_pid(units.device, KEEPER)), "--mount"]
    for folder in ("/etc/systemd/system", "/etc/ssh", "/etc/zgate", "/usr", "/run", "/var"):
        done = units.device.run(*inside, "touch", f"{folder}/x", check=False)
        assert "Read-only file system" in done.stderr, folder


def test_nobody_else_is_listened_to(units: Units) -> None:
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX);"
        "s.connect('/run/zgate-resolv-conf.sock'); s.send(sys.argv[1].encode() + b'\\n');"
        "print(s.recv(500).decode())"
    )
    call = ("python3", "-c", program)
    assert units.device.run(*call, SERVER, check=False, user="nobody").returncode != 0
    before = units.device.read(FILE)
    answer = units.device.run(*call, "1.1.1.1\nsearch evil", user="zgate-agent").stdout
    assert answer.startswith("refused") or "refused" in units.device.journal(KEEPER)
    wait_until(lambda: units.device.read(FILE) == before, TIMEOUT_S, "nothing of it to stay")


def test_stopped_it_is_put_back(units: Units) -> None:
    units.device.run("systemctl", "stop", AGENT)
    assert units.device.read(FILE) == HOST, "when the agent has ended, and not later"
    assert looked_up(units) == ""


def test_killed_it_is_put_back_and_again_there(units: Units) -> None:
    pid = main_pid(units.device, AGENT)
    with held_down(units):
        units.device.run("systemctl", "kill", "--signal=KILL", AGENT)
        wait_put_back(units)
    wait_active(units.device, AGENT, other_than=pid)
    wait_resolved(units)


@contextmanager
def held_down(units: Units) -> Iterator[None]:
    """The agent cannot start until the block ends."""
    program = "/usr/bin/zgate-agent"
    units.device.run("mv", program, f"{program}.gone")
    try:
        yield
    finally:
        units.device.run("mv", f"{program}.gone", program)


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_the_keeper_ends_and_another_goes_on(units: Units, signal: str) -> None:
    pid = main_pid(units.device, KEEPER)
    units.device.run("systemctl", "kill", f"--signal={signal}", KEEPER)
    wait_active(units.device, KEEPER, other_than=pid)
    wait_resolved(units)
    wait_until(
        lambda: units.agent_status()["dns"]["method"] == "resolv.conf", TIMEOUT_S, "the status"
    )


def test_what_others_write_meanwhile_stays(units: Units) -> None:
    """As dhclient does: another file in its place; and as an operator does: a line more."""
    theirs, device = HOST.replace("203.0.113.99", "203.0.113.98"), units.device
    device.write("/etc/resolv.conf.dhclient-new.1", theirs)
    device.run("mv", "/etc/resolv.conf.dhclient-new.1", FILE)
    wait_until(lambda: SERVER in device.read(FILE), TIMEOUT_S, "the agent's line in the new file")
    assert device.read(FILE).endswith(theirs)
    wait_resolved(units)
    device.shell(f"echo 'options rotate' >>{FILE}")
    device.run("systemctl", "stop", AGENT)
    assert device.read(FILE) == f"{theirs}options rotate\n"
    assert not device.exists(BACKUP)
    device.write(FILE, HOST, mode="644")


def test_a_link_is_a_link_again(units: Units) -> None:
    """As resolvconf and NetworkManager have it: their changes are seen, and the link comes back."""
    device, target = units.device, "/run/resolvconf/resolv.conf"
    device.run("systemctl", "stop", AGENT)
    device.write(target, HOST)
    device.run("ln", "-sf", target, FILE)
    device.run("systemctl", "start", AGENT)
    wait_resolved(units)
    assert device.read(target) == HOST
    moved = HOST.replace("203.0.113.99", "203.0.113.97")
    device.write(target, moved)
    wait_until(lambda: device.read(FILE).endswith(moved), TIMEOUT_S, "what the link leads to")
    device.run("systemctl", "stop", AGENT)
    assert device.output("readlink", FILE) == target
    assert device.read(target) == moved
    device.run("rm", FILE)
    device.write(FILE, HOST, mode="644")


def test_two_agents_and_one_of_them_ends(units: Units) -> None:
    device, other = units.device, "zgate-agent@other.service"
    units.write_policy(bob={"rules": []})
    units.gateway.run("systemctl", "reload", GATEWAY)
    units._hand_over("bob", device, "/etc/zgate/credentials/agents/other")
    configure(units, "other", tun={"name": "other0"}, routes=["10.102.0.0/16"])
    device.run("systemctl", "start", other)
    units.wait_session("bob")
    asks = ("zgate-agent", "status", "--json", "--runtime-dir", "/run/zgate-agent/other")
    wait_until(
        lambda: json.loads(device.output(*asks))["dns"]["method"] == "resolv.conf",
        TIMEOUT_S,
        "the other's name server",
    )
    assert device.read(FILE).count(SERVER) == 1, "both have the same one"
    device.run("systemctl", "stop", AGENT)
    assert f"nameserver {SERVER}\n" in device.read(FILE)
    assert device.unit(KEEPER, "ActiveState")["ActiveState"] == "active"
    device.run("systemctl", "stop", other)
    assert device.read(FILE) == HOST


def test_a_power_failure_s_leftovers_are_put_back_at_boot(units: Units) -> None:
    """No agent is enabled, and none is started."""
    device = units.device
    device.run("mkdir", "-p", "/lib/systemd/system/paths.target.wants")
    device.run("ln", "-sf", f"../{PATH}", f"/lib/systemd/system/paths.target.wants/{PATH}")
    files = device.shell(f"cp -a {FILE} /root/file; cp -a {BACKUP} /root/backup; cat {FILE}")
    assert SERVER in files
    device.run("systemctl", "stop", AGENT)
    device.shell(f"cp -a /root/file {FILE}; cp -a /root/backup {BACKUP}")
    device.reboot()
    wait_put_back(units)
    assert device.unit(AGENT, "ActiveState")["ActiveState"] == "inactive"
    wait_until(
        lambda: device.unit(KEEPER, "ActiveState")["ActiveState"] == "inactive",
        TIMEOUT_S,
        "the keeper to end, for nobody needs it",
    )
    assert device.unit(KEEPER, "Result")["Result"] == "success"
