"""A gateway from its backup: docs/backups.md, line by line."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from zgate_lab.deployment import Deployment

PAGE = Path(__file__).parents[2] / "docs/backups.md"
#: Who runs it in the lab is root.
OWNER = "-o zgate-gateway -g zgate-gateway "


class Host:
    """Where a gateway's files are in this test, and the shell of its administrator."""

    def __init__(self, root: Path) -> None:
        self.etc, self.state, self.backups = root / "etc", root / "state", root / "backups"

    def run_block(self, number: int) -> None:
        """Run one of the page's blocks, on these folders; systemd's lines are the test's."""
        block = re.findall(r"```console\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[number]
        for place, here in (
            ("/etc/zgate", self.etc),
            ("/var/lib/zgate", self.state),
            ("/var/backups/zgate", self.backups),
            (OWNER, ""),
            ("sudo ", ""),
        ):
            block = block.replace(place, str(here))
        for line in block.splitlines():
            if line.startswith("systemctl"):
                continue
            done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
            grew = line.startswith("tar -czf") and "file changed as we read it" in done.stderr
            assert done.returncode == 0 or grew, (line, done.stderr)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.etc.mkdir()
    (made.etc / "policy.yaml").write_text("version: '1.0'")
    return made


def test_clients_find_what_they_had(deployment: Deployment, host: Host) -> None:
    internet = deployment.internet
    devices = {"alice": internet.device1, "bob": internet.device2}
    settings = {"state_dir": str(host.state), "audit": {}}
    deployment.start_gateway(**settings)
    before = {
        name: deployment.start_agent(name, device)["addresses"] for name, device in devices.items()
    }
    host.run_block(0)
    assert all(deployment.is_connected(name) for name in devices), "nobody has noticed"
    deployment.stop()

    shutil.rmtree(host.state)
    shutil.rmtree(host.etc)
    host.run_block(1)
    assert (host.etc / "policy.yaml").exists()
    deployment.start_gateway(**settings)
    # In the other order: who comes first would get the first address from an empty store.
    for name in reversed(devices):
        assert deployment.start_agent(name, devices[name])["addresses"] == before[name]
    deployment.stop()
    audit = host.state / "audit.jsonl"
    deployment.run("audit", "verify", str(audit), "--public-key", str(host.state / "audit.pub"))
