"""The Debian package: installed, upgraded under traffic, rolled back, removed, purged, again.

The machines are empty, without a network, and install what the package needs from the bed's
repository. One story, told in order: each test goes on where the one before it ended.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bed import Files, Machine, package
from bed.files import ROOT
from packages import repacked
from zgate_lab.internet import Internet, WebServer
from zgate_lab.waiting import wait_until

pytestmark = pytest.mark.timeout(1200)

SERVICE = "zgate-gateway.service"
AGENT = "zgate-agent@laptop.service"
KEEPER = "zgate-resolv-conf.service"
SOCKET = "zgate-gateway.socket"
USERS = ("zgate-gateway", "zgate-agent", "zgate-connector")
OFFICE = "10.20.0.5"
BACK_WITHIN_S = 10.0
# An agent that nobody answers for a while tries less often.
BACKED_OFF_S = 60.0
RESOLV_CONF = "/etc/resolv.conf"
RESOLVER = "nameserver 203.0.113.99\n"
POLICY = """\
version: "1.0"
default_action: deny
clients:
  laptop:
    rules:
      - {id: allow-office, type: ip_cidr, action: allow, destinations: [10.20.0.0/24]}
"""


@dataclass
class Story:
    """Two machines, the office behind one of them, and packages of two versions."""

    internet: Internet
    gateway: Machine
    device: Machine
    office: WebServer
    debs: dict[str, str]

    @property
    def machines(self) -> tuple[Machine, Machine]:
        return self.gateway, self.device

    def install(self, number: str, *options: str) -> None:
        """On the gateway."""
        self.gateway.install(self.debs[number], *options)

    def session(self) -> dict[str, Any]:
        """The laptop's, as the gateway has it; empty without."""
        done = self.gateway.run("zgatectl", "--json", "sessions", check=False)
        sessions = json.loads(done.stdout)["sessions"] if done.returncode == 0 else []
        return next((one for one in sessions if one["client"] == "laptop"), {})

    def asks_for_names(self) -> bool:
        """Whether the device's resolver has the gateway's name server."""
        text = self.device.read(RESOLV_CONF)
        return "nameserver 10.100.0.1\n" in text and text.endswith(RESOLVER)

    def reaches_office(self) -> bool:
        """Whether the device gets through, within a second."""
        ping = self.device.run("ping", "-c", "1", "-W", "1", OFFICE, check=False)
        return ping.returncode == 0


@pytest.fixture(scope="module")
def numbers() -> tuple[str, str]:
    """The version of this clone, and a later one."""
    return package.version(), package.NEXT_VERSION


@pytest.fixture(scope="module")
def debs(numbers: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages by their version."""
    now, later = numbers
    built = package.build(now)
    return {now: built, later: repacked(built, later, tmp_path_factory.mktemp("later"))}


@pytest.fixture(scope="module")
def story(empty: Files, ssh_key: Path, debs: dict[str, Path]) -> Iterator[Story]:
    """Empty machines on gateway and device1, the packages beside them."""
    with Internet.open() as internet, ExitStack() as stack:
        hosts = (internet.gateway, internet.device1)
        machines = [
            stack.enter_context(
                Machine(internet.lab, host.namespace, host.ipv4, empty, key=ssh_key)
            )
            for host in hosts
        ]
        inside = {number: f"/root/{path.name}" for number, path in debs.items()}
        for machine in machines:
            for number, path in debs.items():
                machine.copy_in(path, inside[number])
        office = internet.start_web_server(internet.office)
        yield Story(internet, machines[0], machines[1], office, inside)


def assert_healthy(machine: Machine) -> None:
    """What dpkg and apt say of themselves."""
    machine.run("apt-get", "check")
    assert machine.output("dpkg", "--audit") == ""


def installed_version(machine: Machine) -> str:
    return machine.output("dpkg-query", "-W", "-f", "${Version}", "zgate")


def test_lintian_has_nothing_to_say(debs: dict[str, Path], numbers: tuple[str, str]) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", debs[numbers[0]]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_installing_starts_and_enables_nothing(story: Story, numbers: tuple[str, str]) -> None:
    before = story.gateway.shell("ls -d /usr/bin/zgate* 2>/dev/null || true")
    assert before == ""
    for machine in story.machines:
        machine.install(story.debs[numbers[0]])
        assert_healthy(machine)
        assert installed_version(machine) == numbers[0]
        for unit in (SERVICE, SOCKET):
            state = machine.unit(unit, "LoadState", "ActiveState", "UnitFileState")
            assert state == {
                "LoadState": "loaded",
                "ActiveState": "inactive",
                "UnitFileState": "disabled",
            }
        assert machine.output("systemctl", "--failed", "--no-legend") == ""
        for user in USERS:
            machine.run("id", user)
        assert machine.output("stat", "-c", "%a %U", "/etc/zgate/credentials") == "700 root"


def test_what_is_installed_is_complete(story: Story, numbers: tuple[str, str]) -> None:
    gateway = story.gateway
    for program in ("zgatectl", "zgate-gateway", "zgate-agent", "zgate-connector"):
        assert numbers[0] in gateway.run(program, "--version").stdout
        gateway.run("man", "--where", program)
    # By the names that the programs give themselves, not those that argv[0] would.
    completion = gateway.read("/usr/share/bash-completion/completions/zgatectl")
    assert "_ZGATECTL_COMPLETE" in completion and "zgatectl" in completion
    python = "/usr/lib/zgate/venv/bin/python3"
    gateway.run(python, "-c", "import bcc, nftables, zgate_datapath._native")
    assert gateway.run(python, "-c", "import zgate_lab", check=False).returncode != 0
    gateway.run("zgate-gateway", "--check")
    # Bytecode is there, and belongs to no other package: services may not write it.
    gateway.run(
        "test", "-d", "/usr/lib/zgate/venv/lib/python3.11/site-packages/aioquic/__pycache__"
    )
    assert gateway.output("find", "/usr/lib/zgate", "-perm", "/022", "-not", "-type", "l") == ""
    for unit in (SERVICE, SOCKET, AGENT, "zgate-connector@x.service"):
        done = gateway.run("systemd-analyze", "verify", "--man=no", unit, check=False)
        assert "zgate" not in done.stderr, done.stderr


def test_what_watches_it_is_there(story: Story) -> None:
    """Rules, dashboard, and the page that each alert leads to, with those that the page names."""
    gateway = story.gateway
    for folder, names in {
        "deploy/prometheus": ("zgate-alerts.yml", "zgate-recording.yml"),
        "deploy/grafana": ("zgate.json",),
    }.items():
        where = f"/usr/share/zgate/{Path(folder).name}"
        assert gateway.output("ls", where).split() == sorted(names)
        for name in names:
            assert gateway.read(f"{where}/{name}") == (ROOT / folder / name).read_text()
    examples = gateway.output("ls", "/usr/share/doc/zgate/examples").split()
    assert {"gateway.yaml", "prometheus.yml", "zgate-runbooks.yml"} <= set(examples)
    pages = "/usr/share/doc/zgate/runbooks"
    alerts = re.findall(
        r"- alert: (\w+)", gateway.read("/usr/share/zgate/prometheus/zgate-alerts.yml")
    )
    assert alerts
    linked = gateway.shell(f"cd {pages} && grep -ohE '\\]\\([^)#]+' *.md | cut -c 3- | sort -u")
    named = {*(f"{name}.md" for name in alerts), *linked.split()}
    there = gateway.shell(f"cd {pages} && ls -d -- {' '.join(sorted(named))}")
    assert set(there.split()) == named


def test_the_units_carry_traffic(story: Story) -> None:
    gateway, device = story.machines
    gateway.write(
        "/etc/zgate/gateway.yaml",
        f"server_names: [{gateway.address}]\npolicy_file: policy.yaml\nroutes: [10.20.0.0/24]\n",
    )
    gateway.write("/etc/zgate/policy.yaml", POLICY)
    gateway.run("systemctl", "enable", "--now", SERVICE)
    gateway.run("zgatectl", "pki", "issue", "laptop", "--usage", "client")
    for name in ("ca.crt", "laptop.crt", "laptop.key"):
        text = gateway.read(f"/var/lib/zgate/pki/issued/laptop/{name}")
        device.write(f"/etc/zgate/agents/{name}", text, mode="640", owner="root:zgate-agent")
    device.write(
        "/etc/zgate/agents/laptop.yaml",
        f"gateway: {gateway.address}:443\n"
        "ca: /etc/zgate/agents/ca.crt\n"
        "certificate: /etc/zgate/agents/laptop.crt\n"
        "key: /etc/zgate/agents/laptop.key\n",
    )
    device.write(RESOLV_CONF, RESOLVER)
    device.run("systemctl", "enable", "--now", AGENT)
    wait_until(story.reaches_office, BACK_WITHIN_S, "a ping through the tunnel")
    wait_until(story.asks_for_names, BACK_WITHIN_S, "the name server")
    pid = gateway.unit(SERVICE, "MainPID")["MainPID"]
    status = gateway.read(f"/proc/{pid}/status")
    uid = gateway.output("id", "-u", "zgate-gateway")
    assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in status
    # The session is the gateway's, and what passes was decided by its kernel.
    assert story.session()["counters"]["up_packets"] > 0


def curl_office(story: Story) -> subprocess.Popen[bytes]:
    """A download through the tunnel that takes some seconds; its end is the caller's."""
    rate = ["--limit-rate", "400k", "--max-time", "60"]
    url = f"{story.office.url_ipv4}bytes/{4 << 20}"
    return subprocess.Popen(
        story.device.command("curl", "-k", "-sS", "-o", "/dev/null", *rate, url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def change_version(story: Story, number: str, *options: str) -> None:
    """Another version on the gateway, while the laptop downloads."""
    before = story.session()
    gateway = story.gateway
    files = gateway.shell("cat /etc/zgate/*.yaml /var/lib/zgate/pki/ca.crt")
    with curl_office(story) as download:
        story.install(number, *options)
        assert installed_version(gateway) == number
        assert_healthy(gateway)
        assert download.wait(60) == 0, download.stdout.read() if download.stdout else ""
    wait_until(story.reaches_office, BACK_WITHIN_S, "a ping after the other version")
    after = wait_until(story.session, BACK_WITHIN_S, "the session")
    assert after["addresses"] == before["addresses"]
    assert gateway.unit(SERVICE, "ActiveState")["ActiveState"] == "active"
    assert gateway.shell("cat /etc/zgate/*.yaml /var/lib/zgate/pki/ca.crt") == files
    running = json.loads(gateway.run("zgatectl", "--json", "status").stdout)["version"]
    assert running == number


def test_an_upgrade_under_a_running_session(story: Story, numbers: tuple[str, str]) -> None:
    change_version(story, numbers[1])


def test_going_back_to_the_version_before(story: Story, numbers: tuple[str, str]) -> None:
    change_version(story, numbers[0], "--allow-downgrades")


def test_an_upgrade_starts_nothing_that_was_stopped(story: Story, numbers: tuple[str, str]) -> None:
    gateway = story.gateway
    gateway.run("systemctl", "stop", SOCKET, SERVICE)
    story.install(numbers[1])
    for unit in (SERVICE, SOCKET):
        assert gateway.unit(unit, "ActiveState")["ActiveState"] == "inactive"
    gateway.run("systemctl", "start", SERVICE)
    wait_until(story.reaches_office, BACKED_OFF_S, "a ping after the start")


def test_an_upgraded_device_asks_for_names_as_before(
    story: Story, numbers: tuple[str, str]
) -> None:
    device = story.device
    before = {unit: device.unit(unit, "MainPID")["MainPID"] for unit in (AGENT, KEEPER)}
    device.install(story.debs[numbers[1]])
    assert_healthy(device)
    wait_until(story.reaches_office, BACKED_OFF_S, "a ping with the other version")
    wait_until(story.asks_for_names, BACK_WITHIN_S, "the name server")
    for unit, pid in before.items():
        assert device.unit(unit, "MainPID")["MainPID"] not in ("0", pid), unit


def test_a_removed_package_stops_and_keeps_what_it_knew(
    story: Story, numbers: tuple[str, str]
) -> None:
    gateway, device = story.machines
    authority = gateway.read("/var/lib/zgate/pki/ca.crt")
    for machine in story.machines:
        machine.run("apt-get", "-y", "remove", "zgate")
        assert_healthy(machine)
        assert machine.output("pgrep", "-f", "/usr/lib/zgate") == ""
        assert not machine.exists("/usr/lib/zgate")
        # The host's network is as it was.
        assert "zgate" not in machine.output("nft", "list", "tables")
        assert "zgate" not in machine.output("ip", "link")
    assert device.read(RESOLV_CONF) == RESOLVER
    assert gateway.read("/etc/zgate/policy.yaml") == POLICY
    assert gateway.read("/var/lib/zgate/pki/ca.crt") == authority
    gateway.install(story.debs[numbers[0]])
    device.install(story.debs[numbers[0]])
    gateway.run("systemctl", "start", SERVICE)
    device.run("systemctl", "start", AGENT)
    wait_until(story.reaches_office, BACKED_OFF_S, "a ping after it was installed again")
    wait_until(story.asks_for_names, BACK_WITHIN_S, "the name server")


def traces(machine: Machine) -> set[str]:
    """Files, here and there, whose names say zgate; and what is in its folders."""
    found = machine.shell("find / /run -xdev -name '*zgate*' -not -path '/root/*'")
    return set(found.splitlines())


def test_a_purged_package_leaves_its_users_and_nothing_else(
    story: Story, numbers: tuple[str, str]
) -> None:
    gateway, device = story.machines
    for machine in story.machines:
        machine.run("apt-get", "-y", "purge", "zgate")
        assert_healthy(machine)
        assert machine.run("dpkg-query", "-W", "zgate", check=False).returncode != 0
        assert machine.output("systemctl", "--failed", "--no-legend") == ""
        for user in USERS:
            machine.run("id", user)
    assert device.read(RESOLV_CONF) == RESOLVER
    assert traces(gateway) == set()
    # What somebody has put there is his: a key cannot be made again.
    assert traces(device) == {"/etc/zgate"}
    assert sorted(device.output("ls", "/etc/zgate", "/etc/zgate/agents").split()[-4:]) == [
        "ca.crt",
        "laptop.crt",
        "laptop.key",
        "laptop.yaml",
    ]


def test_installed_again_it_knows_nothing(story: Story, numbers: tuple[str, str]) -> None:
    gateway = story.gateway
    story.install(numbers[0])
    assert_healthy(gateway)
    assert "server_names: []" in gateway.read("/etc/zgate/gateway.yaml")
    gateway.run("systemctl", "start", SERVICE)
    status = json.loads(gateway.run("zgatectl", "--json", "status").stdout)
    assert status["state"] == "ready"
    assert story.session() == {}
