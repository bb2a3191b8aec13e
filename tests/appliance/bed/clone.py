"""A machine that runs this clone's zgate instead of an installed one, for quick tests of units.

The clone and its virtual environment are lent read-only, where they are on this host: the
environment's files name that place.
"""

from pathlib import Path

from bed.files import ROOT
from bed.machine import Machine

PROGRAMS = ("zgatectl", "zgate-gateway", "zgate-agent", "zgate-connector")
BINDS = {str(ROOT): ROOT}
"""For `Machine.binds`."""
UNITS = "/lib/systemd/system"


def link_programs(machine: Machine) -> None:
    """Put the clone's programs where a package has them."""
    for name in PROGRAMS:
        machine.run("ln", "-sf", ROOT / ".venv/bin" / name, f"/usr/bin/{name}")


def install_units(machine: Machine, folder: Path = ROOT / "systemd") -> None:
    """Units, users and folders as a package installs them; nothing is started or enabled."""
    for path in sorted(folder.iterdir()):
        match path.suffix:
            case ".service" | ".socket" | ".mount" | ".timer" | ".path" | ".target":
                machine.copy_in(path, f"{UNITS}/{path.name}", mode="644")
            case ".sysusers":
                machine.copy_in(path, f"/usr/lib/sysusers.d/{path.stem}.conf", mode="644")
                machine.run("systemd-sysusers", f"{path.stem}.conf")
            case ".tmpfiles":
                machine.copy_in(path, f"/usr/lib/tmpfiles.d/{path.stem}.conf", mode="644")
    for path in sorted(folder.glob("*.tmpfiles")):
        machine.run("systemd-tmpfiles", "--create", f"{path.stem}.conf")
    machine.run("systemctl", "daemon-reload")
