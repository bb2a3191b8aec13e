"""What is installed is whole: the wheel holds every file of every package, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/zgate_*/__init__.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing appears in the work tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(
            package,
            source / package.relative_to(ROOT),
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
        )
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", source, "--wheel-dir", out),
            *("--no-deps", "--no-build-isolation", "--no-index", "--quiet"),
            "--disable-pip-version-check",
        ],
        check=True,
        timeout=100,
    )
    (built,) = out.glob("*.whl")
    return built


def test_every_file_of_a_package_is_in_the_wheel(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(file.relative_to(package.parent))
        for package in PACKAGES
        for file in package.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert not sorted(wanted - held)


def test_nothing_at_the_top_collides_with_other_people(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert all(top.startswith(("zgate_", "zgate-")) for top in tops), sorted(tops)
