"""Ansible, in a namespace of the lab from which ssh reaches the machines."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from bed import Machine, ssh_arguments
from zgate_lab.lab import Namespace
from zgate_lab.namespace import command_in

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "ansible"
BIN = ROOT / "build" / "appliance-venv" / "bin"
PLAYBOOK_TIMEOUT_S = 600

_RECAP = re.compile(
    r"^(\S+)\s*: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE
)


@dataclass(frozen=True)
class Run:
    """How a playbook ended.

    Attributes:
        changed: tasks that changed something, by host.
        failed: hosts on which it failed.
    """

    status: int
    output: str
    changed: Mapping[str, int]
    failed: frozenset[str]


class Controller:
    """An inventory, and playbooks that are run with it."""

    def __init__(self, namespace: Namespace, folder: Path, key: Path) -> None:
        self.namespace = namespace
        self.folder = folder
        self.inventory = folder / "inventory.yml"
        self._key = key

    def write_inventory(
        self, groups: Mapping[str, Mapping[str, Machine]], variables: Mapping[str, Any]
    ) -> None:
        """The machines of each group, and the variables of groups and hosts, by their names.

        The group `zgate` is all of them.
        """
        children = {
            name: {
                "hosts": {
                    host: {"ansible_host": str(machine.address), **variables.get(host, {})}
                    for host, machine in hosts.items()
                },
                "vars": variables.get(name, {}),
            }
            for name, hosts in groups.items()
        }
        every = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self._key),
            "ansible_ssh_common_args": " ".join(ssh_arguments(self._key)[2:]),
            "ansible_python_interpreter": "/usr/bin/python3",
            **variables.get("zgate", {}),
        }
        inventory = {"zgate": {"vars": every, "children": children}}
        self.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))

    def run(self, playbook: str, *arguments: str, check: bool = True, **variables: Any) -> Run:
        """Run a playbook of `ansible/` on all hosts; `variables` win over the inventory's.

        Raises:
            AssertionError: it failed, and `check`; its output is in the text.
        """
        given = ["-e", json.dumps(variables)]
        command = [BIN / "ansible-playbook", "-i", self.inventory, ANSIBLE / playbook]
        done = subprocess.run(
            command_in(self.namespace.name, [*command, *given, *arguments]),
            cwd=ANSIBLE,
            env=environment(self.folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PLAYBOOK_TIMEOUT_S,
            check=False,
        )
        rows = _RECAP.findall(done.stdout)
        run = Run(
            done.returncode,
            done.stdout,
            {host: int(changed) for host, changed, _, _ in rows},
            frozenset(host for host, _, lost, failed in rows if int(lost) or int(failed)),
        )
        if check:
            assert run.status == 0, run.output
        return run


def environment(folder: Path) -> dict[str, str]:
    """What Ansible and Molecule are to know; what they write goes to `folder`."""
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        # What stays of a connection ends with the lab.
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=15s",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
