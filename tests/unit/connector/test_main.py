"""The command line: exit codes, and one line for each mistake."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from zgate_connector import main as cli
from zgate_connector.config import ConnectorConfig
from zgate_datapath import engine
from zgate_identity.authority import CertificateAuthority

from .test_status import a_status


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(one) for one in arguments])


def line(result: Result) -> str:
    """The one line on standard error."""
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    now = datetime.now(UTC)
    authority = CertificateAuthority.create(tmp_path / "pki", now)
    west, east = (authority.issue(name, now=now) for name in ("west", "east"))
    files = {
        "ca": (tmp_path / "ca.crt", west.ca_pem),
        "certificate": (tmp_path / "west.crt", west.certificate_pem),
        "key": (tmp_path / "west.key", west.key_pem),
        "other_key": (tmp_path / "east.key", east.key_pem),
    }
    for file, content in files.values():
        file.write_bytes(content)
        file.chmod(0o600)
    return {name: str(file) for name, (file, _) in files.items()}


def write(tmp_path: Path, files: dict[str, str], **more: object) -> Path:
    content = {
        "gateway": "gw.example",
        **{name: files[name] for name in ("ca", "certificate", "key")},
        "services": [{"id": "echo", "protocol": "udp", "backend": "127.0.0.1:7"}],
        "runtime_dir": str(tmp_path),
        **more,
    }
    file = tmp_path / "connector.yaml"
    file.write_text(json.dumps(content))
    return file


def test_check_reads_everything_and_starts_nothing(tmp_path: Path, files: dict[str, str]) -> None:
    file = write(tmp_path, files)
    result = call("--config", file, "--check")
    assert (result.exit_code, result.stdout) == (0, f"{file}: ok\n")


def test_a_mistake_has_line_and_key(tmp_path: Path, files: dict[str, str]) -> None:
    result = call("--config", write(tmp_path, files, insecure=True), "--check")
    assert result.exit_code == 2
    assert "connector.yaml:1: insecure: expected one of" in line(result)


def test_a_file_that_is_not_there(tmp_path: Path, files: dict[str, str]) -> None:
    result = call("--config", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "none.yaml: expected a readable file" in line(result)
    result = call("--config", write(tmp_path, files), "--ca", tmp_path / "none.crt", "--check")
    assert result.exit_code == 2
    assert "none.crt" in line(result)


def test_a_key_that_does_not_fit(tmp_path: Path, files: dict[str, str]) -> None:
    result = call("--config", write(tmp_path, files), "--key", files["other_key"], "--check")
    assert result.exit_code == 2
    assert "east.key" in line(result) or "west.crt" in line(result)


def test_an_engine_that_was_not_built(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "native_problem", lambda: "the native engine is not built")
    result = call("--config", write(tmp_path, files, engine="native"), "--check")
    assert result.exit_code == 2
    assert "not built; install a compiler" in line(result)


def test_networks_need_a_capability_and_services_do_not(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "has_net_admin", lambda: False)
    assert call("--config", write(tmp_path, files), "--check").exit_code == 0
    result = call("--config", write(tmp_path, files, networks=["10.20.0.0/16"]), "--check")
    assert result.exit_code == 1
    assert "networks need the capability CAP_NET_ADMIN" in line(result)


def test_flags_become_the_configuration(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ConnectorConfig] = []

    def run(config: ConnectorConfig, *_: object) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr(cli, "_run", run)
    monkeypatch.setattr(cli, "configure_logging", lambda level, log_format: None)
    monkeypatch.setattr(cli, "end_now", sys.exit)
    more = "--server-name gw.other --log-level debug --runtime-dir /r"
    result = call("--config", write(tmp_path, files), *more.split())
    assert result.exit_code == 0, result.output
    config = seen[0]
    assert (config.server_name, config.log.level) == ("gw.other", "debug")
    assert config.runtime_dir == Path("/r")


def test_status_without_a_connector(tmp_path: Path, files: dict[str, str]) -> None:
    result = call("status", "--runtime-dir", tmp_path)
    assert result.exit_code == 1
    assert line(result).startswith("not running: no connector answers on")
    # The folder is in the configuration, before or after the command.
    for arguments in (
        ("--config", write(tmp_path, files), "status", "--json"),
        ("status", "--config", write(tmp_path, files), "--json"),
        ("--runtime-dir", tmp_path, "status", "--json"),
    ):
        result = call(*arguments)
        assert (result.exit_code, json.loads(result.stdout)["state"]) == (1, "not running")
        assert str(tmp_path) in json.loads(result.stdout)["reason"]


def test_status_of_a_broken_configuration(tmp_path: Path) -> None:
    result = call("status", "--config", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "none.yaml" in line(result)


def test_a_status_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zgate_connector.status.fetch_status", lambda file: a_status())
    result = call("status", "--runtime-dir", tmp_path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["gateways"][0]["state"] == "connected"
