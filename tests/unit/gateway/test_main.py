"""`zgate-gateway --check`: what a start would find wrong, said without one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from zgate_datapath import engine
from zgate_gateway import config as config_module
from zgate_gateway import main as main_module
from zgate_gateway.main import EXIT_BAD_INPUT, main
from zgate_identity.authority import CertificateAuthority
from zgate_identity.profile import Usage


def check(tmp_path: Path, **config: Any) -> Result:
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps({"state_dir": str(tmp_path / "state"), **config}))
    return CliRunner().invoke(main, ["--config", str(file), "--check"])


@pytest.fixture
def pki(tmp_path: Path) -> dict[str, str]:
    now = datetime.now(UTC)
    authority = CertificateAuthority.create(tmp_path / "ca", now=now)
    for name in ("one", "two"):
        issued = authority.issue(
            name, usage=Usage.SERVER, dns_names=["g.test"], lifetime=timedelta(days=9), now=now
        )
        (tmp_path / f"{name}.crt").write_bytes(issued.certificate_pem)
        (tmp_path / f"{name}.key").touch(0o600)
        (tmp_path / f"{name}.key").write_bytes(issued.key_pem)
    return {
        "ca": str(authority.ca_file),
        "crl": str(authority.crl_file),
        "certificate": str(tmp_path / "one.crt"),
        "key": str(tmp_path / "one.key"),
    }


def test_what_is_in_order_is_called_so(tmp_path: Path, pki: dict[str, str]) -> None:
    result = check(tmp_path, pki=pki, engine="python")
    assert (result.exit_code, result.output) == (0, f"{tmp_path / 'gateway.yaml'}: ok\n")
    assert not (tmp_path / "state").exists()


def test_it_says_what_it_has_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.yaml"
    for module in (config_module, main_module):
        monkeypatch.setattr(module, "DEFAULT_PATH", file)
    assert CliRunner().invoke(main, ["--check"]).output == "built-in defaults: ok\n"
    file.write_text("engine: python")
    assert CliRunner().invoke(main, ["--check"]).output == f"{file}: ok\n"
    file.write_text("engine: steam")
    assert CliRunner().invoke(main, ["--check"]).exit_code == EXIT_BAD_INPUT


def test_an_engine_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "native_problem", lambda: "it was not compiled")
    result = check(tmp_path, engine="native")
    assert result.exit_code == EXIT_BAD_INPUT
    assert "engine 'native': it was not compiled" in result.output
    assert check(tmp_path, engine="auto").exit_code == 0


def test_certificates_that_a_start_would_refuse(tmp_path: Path, pki: dict[str, str]) -> None:
    other_key = {**pki, "key": str(tmp_path / "two.key")}
    result = check(tmp_path, pki=other_key)
    assert result.exit_code == EXIT_BAD_INPUT and "does not belong" in result.output
    result = check(tmp_path, pki={**pki, "crl": pki["ca"]})
    assert result.exit_code == EXIT_BAD_INPUT and "no readable PEM revocation list" in result.output
