"""Vagrant takes the Vagrantfile, for both providers, and zgate its policy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VAGRANT = ROOT / "vagrant"


@pytest.mark.parametrize("provider", ["libvirt", "virtualbox"])
def test_the_vagrantfile_is_valid(provider: str, tmp_path: Path) -> None:
    # VirtualBox is not in Debian.
    done = subprocess.run(
        ["vagrant", "validate", *(["--ignore-provider"] if provider == "virtualbox" else [])],
        cwd=VAGRANT,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "VAGRANT_HOME": str(tmp_path / "home"),
            "VAGRANT_DOTFILE_PATH": str(tmp_path / "machines"),
            "VAGRANT_DEFAULT_PROVIDER": provider,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def test_the_policy_can_be_loaded() -> None:
    zgatectl = Path(sys.executable).parent / "zgatectl"
    subprocess.run([zgatectl, "policy", "test", VAGRANT / "policy.yaml"], check=True)
