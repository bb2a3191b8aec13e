"""What is installed is whole: the wheel holds every file of every package, and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/zgate_*/__init__.py"))
NATIVE = "zgate_datapath/_native."
# What Python and the compiler have left beside the sources.
LEFT_BEHIND = ("__pycache__", "*.pyc", "*.so")


def copy_sources(copy: Path) -> Path:
    """So that nothing appears in the work tree, and nothing of an earlier build is used."""
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "setup.py"):
        shutil.copy(ROOT / name, copy)
    for folder in (*PACKAGES, ROOT / "datapath" / "native"):
        shutil.copytree(
            folder,
            copy / folder.relative_to(ROOT),
            ignore=shutil.ignore_patterns(*LEFT_BEHIND),
        )
    return copy


def build(directory: Path, **environment: str) -> set[str]:
    """Build the wheel; the names of its files."""
    source = copy_sources(directory / "source")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", source, "--wheel-dir", directory),
            *("--no-deps", "--no-build-isolation", "--no-index", "--quiet"),
            "--disable-pip-version-check",
        ],
        check=True,
        timeout=100,
        env=os.environ | environment,
    )
    (built,) = directory.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return build(tmp_path_factory.mktemp("wheel"))


def files_of_the_packages() -> Iterator[Path]:
    for package in PACKAGES:
        for file in package.rglob("*"):
            if file.is_file() and not any(file.match(pattern) for pattern in LEFT_BEHIND):
                yield file.relative_to(package.parent)


def test_every_file_of_a_package_is_in_the_wheel(wheel: set[str]) -> None:
    assert not sorted({str(file) for file in files_of_the_packages()} - wheel)


def test_the_native_engine_is_compiled(wheel: set[str]) -> None:
    assert [name for name in wheel if name.startswith(NATIVE) and name.endswith(".so")]


def test_without_a_compiler_there_is_a_wheel_all_the_same(tmp_path: Path) -> None:
    """Which then runs the Python engine (tests/unit/datapath/test_engine.py)."""
    held = build(tmp_path, CC=str(tmp_path / "no-compiler"))
    assert "zgate_datapath/python_engine.py" in held
    assert not [name for name in held if name.startswith(NATIVE) and name.endswith(".so")]


def test_nothing_at_the_top_collides_with_other_people(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert all(top.startswith(("zgate_", "zgate-")) for top in tops), sorted(tops)
