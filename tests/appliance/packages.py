"""Packages to upgrade to, made of that of `make deb`; a repository that machines get them from."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bed import Machine
from bed.files import index
from zgate_lab.lab import Namespace

SITE_PACKAGES = "usr/lib/zgate/venv/lib/python3.11/site-packages"
BROKEN_WORKER = 'raise SystemExit("this worker was broken on purpose")\n'
MIGRATION = '''"""What a later version makes of the store: an earlier one refuses to open it."""

revision = "9999"
down_revision = {head!r}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing, under a new number."""


def downgrade() -> None:
    """Never."""
'''


def repacked(
    package: Path, version: str, folder: Path, change: Callable[[Path], None] | None = None
) -> Path:
    """The package under another version; `change` may edit its files before."""
    architecture = package.stem.rpartition("_")[2]
    made = folder / f"zgate_{version}_{architecture}.deb"
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name) / "root"
        subprocess.run(["dpkg-deb", "--raw-extract", package, root], check=True)
        replace(root / "DEBIAN/control", r"(?m)^Version: .*", f"Version: {version}")
        (metadata,) = (root / SITE_PACKAGES).glob("zgate-*.dist-info/METADATA")
        replace(metadata, r"(?m)^Version: .*", f"Version: {version}")
        if change is not None:
            change(root / SITE_PACKAGES)
        subprocess.run(
            ["dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "--build", root, made],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return made


def broken(site_packages: Path) -> None:
    """A gateway that takes its store to a newer schema, and then never becomes ready."""
    versions = site_packages / "zgate_control/store/migrations/versions"
    newest = max(versions.glob("v[0-9]*.py"))
    head = re.search(r'(?m)^revision\b.*= "(.+)"', newest.read_text())
    assert head is not None
    (versions / "v9999_later.py").write_text(MIGRATION.format(head=head[1]))
    (site_packages / "zgate_gateway/worker/__main__.py").write_text(BROKEN_WORKER)


def replace(file: Path, pattern: str, text: str) -> None:
    """Replace what matches, once; it is there."""
    changed, count = re.subn(pattern, text, file.read_text(), count=1)
    assert count == 1, f"{file} has no {pattern}"
    file.write_text(changed)


class Repository:
    """An apt repository over HTTP that machines can be told of. It holds one version at a time."""

    PORT = 8000

    def __init__(self, namespace: Namespace, address: str, folder: Path) -> None:
        self._folder = folder
        self._source = f"deb [trusted=yes] http://{address}:{self.PORT}/ ./\n"
        command = ("-u", "-m", "http.server", "--directory", folder, str(self.PORT))
        server = namespace.spawn("repository", sys.executable, *command)
        server.wait_for_output("Serving HTTP", 10)

    def publish(self, package: Path) -> None:
        """This package, and the one before no more: as most repositories do."""
        for old in self._folder.glob("*.deb"):
            old.unlink()
        shutil.copy(package, self._folder)
        index(self._folder)

    def tell(self, machine: Machine) -> None:
        """Let the machine know of it."""
        machine.write("/etc/apt/sources.list.d/vendor.list", self._source)
