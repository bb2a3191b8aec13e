"""Each make target installs Debian packages for itself, and none for others."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTS = {
    "demo": {"run"},
    "test": {"run", "test"},
    "bench": {"run", "bench"},
    "deb": {"run", "deb"},
    "image": {"image"},
    "test-vm": {"run", "vm"},
    "test-appliance": {"run", "deb", "image", "appliance"},
    "vagrant-box": {"run", "vagrant-box"},
    "vagrant-up": {"vagrant-box", "vagrant"},
}


@pytest.mark.parametrize("target", LISTS)
def test_what_a_target_installs(target: str) -> None:
    # Everything, though it may be there already; and nothing is run.
    said = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert set(re.findall(r"install-packages\.sh packages-(\S+)\.txt", said)) == LISTS[target]


def test_every_list_is_used() -> None:
    found = {file.stem.removeprefix("packages-") for file in ROOT.glob("tools/packages-*.txt")}
    assert found == set().union(*LISTS.values())


def test_the_image_is_built_from_what_the_package_is_built_from() -> None:
    script = (ROOT / "tools/build-deb.sh").read_text()
    (wanted,) = re.findall(r"^    (pyproject\.toml .*?) \|$", script, re.MULTILINE | re.DOTALL)
    ignored = (ROOT / "deploy/container/ignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert set(wanted.replace("\\", "").split()) <= let_in
