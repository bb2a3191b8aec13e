"""The bed itself: what the other tests of this folder stand on."""

import subprocess

import pytest
from bed import Files, with_dependencies
from bed.machine import CGROUP_PREFIX, MACHINES, cgroup_root, ssh_arguments
from conftest import Boot
from zgate_lab.internet import Internet
from zgate_lab.namespace import command_in

pytestmark = pytest.mark.timeout(600)


def test_a_machine_is_empty_and_can_do_what_a_gateway_needs(internet: Internet, boot: Boot) -> None:
    machine = boot(internet.gateway)
    assert machine.output("systemctl", "is-system-running") == "running"
    assert machine.run("sh", "-c", "command -v zgatectl", check=False).returncode != 0
    assert machine.run("python3", "-c", "import bcc", check=False).returncode != 0
    machine.shell("ip tuntap add dev t0 mode tun; ip link del t0")
    machine.shell("nft add table inet t; nft delete table inet t")
    machine.shell("mount -t bpf bpf /sys/fs/bpf")
    assert machine.run("ping", "-c1", str(internet.device1.ipv4)).returncode == 0


def test_machines_are_reached_by_ssh_from_their_neighbours(
    internet: Internet, boot: Boot, ssh_key
) -> None:
    machines = [boot(host) for host in (internet.gateway, internet.device1)]
    for machine in machines:
        command = ["ssh", *ssh_arguments(ssh_key), f"root@{machine.address}", "hostname"]
        done = subprocess.run(
            command_in(internet.isp.name, command), capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == machine.name, done.stderr


def test_files_go_in_and_what_is_written_survives_a_reboot(
    internet: Internet, boot: Boot, tmp_path
) -> None:
    machine = boot(internet.gateway)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("content\n")
    machine.copy_in(tmp_path / "folder", "/srv/copied", owner="nobody")
    machine.write("/etc/made/here", "text\n", mode="600")
    machine.reboot()
    assert machine.read("/srv/copied/file") == "content\n"
    assert machine.output("stat", "-c", "%U", "/srv/copied/file") == "nobody"
    assert machine.output("stat", "-c", "%a", "/etc/made/here") == "600"
    assert "Reached target" in machine.journal()


def test_nothing_of_a_machine_stays(internet: Internet, boot: Boot, empty: Files) -> None:
    machine = boot(internet.gateway)
    machine.write("/usr/bin/intruder", "")
    machine.close()
    assert not (empty.layers[0] / "usr/bin/intruder").exists()
    assert not list(MACHINES.glob(f"{internet.lab.run.prefix}*"))
    assert not list(cgroup_root().glob(f"{CGROUP_PREFIX}{internet.lab.run.prefix}*"))


def test_dependencies_come_from_the_repository(internet: Internet, boot: Boot) -> None:
    machine = boot(internet.gateway, with_dependencies())
    machine.run("python3", "-c", "import bcc, nftables")
    assert machine.output("dpkg", "--audit") == ""


def test_a_machine_runs_this_clone(internet: Internet, boot_clone: Boot) -> None:
    machine = boot_clone(internet.gateway)
    assert "zgate" in machine.output("zgatectl", "--version")
    machine.write("/etc/zgate/gateway.yaml", "{}\n")
    machine.run("zgate-gateway", "--config", "/etc/zgate/gateway.yaml", "--check")
