"""A machine that runs this clone's zgate instead of an installed one, for quick tests of units.

The clone and its virtual environment are lent read-only, at a place of their own: units hide /tmp
and /home, where a clone may well be. The environment's files name the place on this host, so the
programs are told where to look.
"""

import shlex
from pathlib import Path

from bed.files import ROOT
from bed.machine import Machine

INSIDE = Path("/opt/zgate-clone")
PROGRAMS = ("zgatectl", "zgate-gateway", "zgate-agent", "zgate-connector")
PACKAGES_PYTHON = "/usr/lib/zgate/venv/bin/python3"
BINDS = {str(INSIDE): ROOT}
"""For `Machine.binds`."""
UNITS = "/lib/systemd/system"


def link_programs(machine: Machine) -> None:
    """Put programs that run the clone's where a package has its own."""
    folders = {INSIDE / path.parent.parent.name for path in ROOT.glob("*/zgate_*/__init__.py")}
    search = ":".join(map(str, sorted(folders)))
    environment = INSIDE / ".venv/bin"
    for name in PROGRAMS:
        command = shlex.join([str(environment / "python3"), str(environment / name)])
        text = f'#!/bin/sh\nPYTHONPATH={search} exec {command} "$@"\n'
        machine.write(f"/usr/bin/{name}", text, mode="755")
    text = f'#!/bin/sh\nPYTHONPATH={search} exec {environment}/python3 "$@"\n'
    machine.write(PACKAGES_PYTHON, text, mode="755")


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
