"""zgatectl audit verify: exit codes, and what it says."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from zgate_cli.main import cli
from zgate_gateway.audit import AuditLog
from zgate_gateway.audit_head import HeadKeeper

Verify = Callable[..., Result]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of two files, closed in an orderly way."""
    path = tmp_path / "audit.jsonl"
    written = AuditLog(path, keeper=HeadKeeper(tmp_path))
    written.events_lost(count=1)
    path.rename(tmp_path / "audit.jsonl.1")
    written.reopen()
    written.events_lost(count=2)
    written.close()
    return path


@pytest.fixture
def verify(log: Path) -> Verify:
    def run(*arguments: object, code: int = 0) -> Result:
        words = ["audit", "verify", *map(str, arguments)]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        return result

    return run


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"count":1', b'"count":7'))


def test_an_intact_log(verify: Verify, log: Path) -> None:
    lines = verify(log, f"{log}.1").stdout.splitlines()
    assert lines[0].startswith("intact: 6 records, 1 to 6, the last one ")
    assert lines[1].startswith("signed up to record 6, by ") and "--public-key" in lines[1]
    public, head = log.with_name("audit.pub"), log.with_name("audit.head")
    trusted = ["--public-key", public, "--head", head, "--sealed"]
    assert "by a trusted key" in verify(f"{log}.1", log, *trusted).stdout


def test_no_gateway_is_asked(verify: Verify, log: Path, tmp_path: Path) -> None:
    verify(log, f"{log}.1", "--socket", tmp_path / "nowhere.sock")


def test_a_changed_log(verify: Verify, log: Path) -> None:
    change(log.with_name("audit.jsonl.1"))
    lines = verify(log, f"{log}.1", code=1).stdout.splitlines()
    assert lines[0].startswith(f"{log}.1:2: changed: record 2 was changed")
    assert lines[1].startswith("    expected ")
    assert lines[2].startswith("TAMPERED WITH: 1 finding in 6 records")


def test_as_json(verify: Verify, log: Path) -> None:
    intact = json.loads(verify(log, f"{log}.1", "--json").stdout)
    assert (intact["intact"], intact["last_seq"], intact["signed_seq"]) == (True, 6, 6)
    change(log.with_name("audit.jsonl.1"))
    tampered = json.loads(verify(log, f"{log}.1", "--json", code=1).stdout)
    (finding,) = tampered["findings"]
    assert (finding["kind"], finding["line"], finding["seq"]) == ("changed", 2, 2)
    assert finding["file"] == f"{log}.1" and len(finding["expected"]) == 64


def test_a_missing_file_of_the_chain_is_told(verify: Verify, log: Path) -> None:
    assert "note: records 1 to 3 are not in these files" in verify(log).stdout


def test_another_key(verify: Verify, log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    HeadKeeper(other)
    public = other / "audit.pub"
    result = verify(log, f"{log}.1", "--public-key", public, code=1)
    assert "signed by a key that is not trusted" in result.stdout
    verify(log, f"{log}.1", "--public-key", public, "--public-key", log.with_name("audit.pub"))


def test_a_log_that_is_shorter_than_its_head(verify: Verify, log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]))
    verify(log, f"{log}.1")
    verify(log, f"{log}.1", "--sealed", code=1)
    result = verify(log, f"{log}.1", "--head", log.with_name("audit.head"), code=1)
    assert "the log ends with record 5, and had come to record 6" in result.stdout


def test_what_is_unreadable_is_bad_input(verify: Verify, log: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    elliptic = tmp_path / "ec.pub"
    public = generate_private_key(SECP256R1()).public_key()
    elliptic.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    forged = tmp_path / "forged.head"
    forged.write_bytes(log.with_name("audit.head").read_bytes().replace(b'"seq":7', b'"seq":6'))
    for arguments, words in [
        ([nothing], "No such file"),
        ([tmp_path], "Is a directory"),
        ([log, "--public-key", nothing], "does not exist"),
        ([log, "--public-key", log], "no public key in PEM"),
        ([log, "--public-key", elliptic], "no Ed25519 key"),
        ([log, "--head", nothing], "No such file"),
        ([log, "--head", log], "no head of an audit log"),
        ([log, "--head", forged], "signature does not fit"),
    ]:
        (line,) = verify(*arguments, code=2).stderr.splitlines()
        assert line.startswith("zgatectl: ") and words in line
    verify(code=2)


def test_no_permission_is_unreadable(verify: Verify, log: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    log.chmod(0)
    for folder in log.parents[:3]:
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        result = verify(log, code=2)
    finally:
        os.seteuid(0)
    assert "Permission denied" in result.stderr


def test_a_name_cannot_steer_the_terminal(verify: Any, log: Path) -> None:
    evil = log.with_name("a\x1b[2J.jsonl")
    log.with_name("audit.jsonl.1").rename(evil)
    change(evil)
    assert "\x1b" not in verify(evil, code=1).stdout
