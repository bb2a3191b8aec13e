"""Debian packages of this clone, built by the same command as `make deb`."""

import hashlib
import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

from bed.errors import BedError
from bed.files import ROOT

OUT = ROOT / "build/deb"
BUILDER = ROOT / "tools/build-deb.sh"
NEXT_VERSION = "99.0.0"
"""What the machines are upgraded to: this clone again, under another number."""


def version() -> str:
    """The version of this clone."""
    number = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return str(number)


def build(number: str) -> Path:
    """A package of this clone with a version number; built only if something has changed.

    `ZGATE_DEB` in the environment is a package to test instead.

    Raises:
        BedError: it could not be built.
    """
    if given := os.environ.get("ZGATE_DEB"):
        return Path(given)
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    made = OUT / f"zgate_{number}_{architecture}.deb"
    note, digest = made.with_suffix(".inputs"), inputs()
    if not made.exists() or not note.exists() or note.read_text() != digest:
        done = subprocess.run([BUILDER, number], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BedError(f"{BUILDER.name}: {done.stderr}")
        note.write_text(digest)
    return made


def inputs() -> str:
    """A digest of every file that the package is made of."""
    found = hashlib.sha256()
    for path in sorted(_sources()):
        found.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _sources() -> Iterator[Path]:
    """What tools/build-deb.sh copies, and itself."""
    packages = (path.parent for path in ROOT.glob("*/zgate_*/__init__.py"))
    others = ("systemd", "docs", "deploy/debian", "deploy/prometheus", "deploy/grafana")
    folders = {*(path.parent for path in packages), *(ROOT / name for name in others)}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                yield path
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "requirements-run.txt"):
        yield ROOT / name
    yield from (ROOT / "README.md", ROOT / "CHANGELOG.md", BUILDER)
