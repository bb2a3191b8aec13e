"""The Molecule scenario, and ansible-lint, as whoever works on the roles runs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import packages
import pytest
from appliance import Appliance
from bed import Files, package, with_dependencies
from controller import ANSIBLE, BIN, environment
from zgate_lab.namespace import command_in

pytestmark = pytest.mark.timeout(900)


def test_the_linter_finds_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / "ansible-lint", "--offline", "--profile", "production"],
        cwd=ANSIBLE,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scenario(ssh_key: Path, tmp_path: Path) -> None:
    current = package.build(package.version())
    newer = packages.repacked(current, "9.0.1", tmp_path)
    files: Files = with_dependencies()
    with Appliance.open(files, ssh_key, tmp_path) as appliance:
        appliance.variables["zgate"] = {
            "zgate_common_deb": str(current),
            "verify_office": str(appliance.office.host.ipv4),
        }
        appliance.write_inventory()
        done = subprocess.run(
            command_in(appliance.controller.namespace.name, [BIN / "molecule", "test"]),
            cwd=ANSIBLE,
            env={
                **environment(tmp_path),
                "ZGATE_INVENTORY": str(appliance.controller.inventory),
                "ZGATE_NEWER_DEB": str(newer),
                "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path / "molecule"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        versions = {
            machine.output("dpkg-query", "--show", "--showformat=${Version}", "zgate")
            for machine in appliance.machines.values()
        }
    assert versions == {"9.0.1"}
    assert done.stdout.count("PLAY [Gateways]") >= 3
    assert not list(ANSIBLE.glob(".molecule"))
