"""A support archive holds what is on the list, and neither secrets nor addresses."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_cli.answers import BundleReport
from zgate_cli.bundle.redact import MASK, Redactor
from zgate_cli.bundle.sources import Source
from zgate_cli.doctor.host import Host, Ran

PEM = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEG\n-----END PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"


def clean(text: str, *, with_addresses: bool = False) -> str:
    return Redactor(b"k" * 16, with_addresses=with_addresses).text(text)


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (f"key:\n{PEM}\nnext: 1", "MIGHAgEAMBMGByqGSM49AgEG"),
        ("-----BEGIN EC PRIVATE KEY-----\nMIGHAgEAcut", "MIGHAgEAcut"),
        (f"saw {JWT} there", "c2lnbmF0dXJl"),
        ("password: hunter2", "hunter2"),
        ("db_password = 'hunter 2'", "hunter 2"),
        ('{"api_key": "hunter2", "x": 1}', "hunter2"),
        ("ZGATE_TOKEN=hunter2 zgate-gateway", "hunter2"),
        ("--token=hunter2", "hunter2"),
        ("Authorization: Bearer hunter2hunter2", "hunter2hunter2"),
        ("sent Bearer hunter2hunter2.", "hunter2hunter2"),
        ("postgresql://zgate:hunter2@db.test/zgate", "hunter2"),
        ("https://hunter2@host.test/", "hunter2"),
        ("client_secret: hunter2 # why", "hunter2"),
    ],
)
def test_secrets_are_masked(text: str, gone: str) -> None:
    assert gone not in clean(text)
    assert MASK in clean(text)
    assert gone not in clean(text, with_addresses=True)


@pytest.mark.parametrize(
    "text",
    [
        "token: null", "a token was refused", "retries: 5", "key: /etc/zgate/gateway.key",
        "certificate: /etc/zgate/gateway.crt", "2026-11-21T22:55:27", "version 0.1.0",
        "zgate_bpf::maps", "127.0.0.1:9090", "[::]:443", "0.0.0.0/0", "::/0", "1.2.3", "1.2.3.4.5",
        "authority ok", "author: me",
    ],
)  # fmt: skip
def test_what_is_harmless_stays(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "from 198.51.100.7:443 to", "10.20.0.0/16", "[2001:db8::1]:443", "fd7a:7a67:6174:65::2/128",
        "::ffff:198.51.100.7", "at fe80::1%eth0", "(198.51.100.7)", "198.51.100.7.", "fe80::1, x",
        "link/ether 02:fc:00:00:00:05 brd", '"198.51.100.7"', "peer=198.51.100.7", "x198.51.100.7 ",
        "2001:db8:1:2:3:4:5:6",
    ],
)  # fmt: skip
def test_addresses_get_names(text: str) -> None:
    found = clean(text)
    if text.startswith("x198"):
        assert found == text  # part of a word
        return
    assert re.search(r"(ip[46]|mac)-[0-9a-f]{8}", found)
    for part in ("198.51", "10.20", "2001:db8", "fd7a", "fe80", "02:fc"):
        assert part not in found
    assert clean(text, with_addresses=True) == text


def test_one_address_has_one_name() -> None:
    one, two, three = clean("192.0.2.1 192.0.2.2 ::ffff:192.0.2.1").split()
    assert one == three != two
    other = Redactor(b"o" * 16, with_addresses=False).text("192.0.2.1")
    assert other != one


@given(st.ip_addresses(), st.sampled_from(["{}", "[{}]:443", "x {}/24,", "({})", "a={}\n"]))
def test_no_address_comes_through(address: Any, pattern: str) -> None:
    text = clean(pattern.format(address))
    if not (address.is_loopback or address.is_unspecified):
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is None or not (mapped.is_loopback or mapped.is_unspecified):
            assert str(address) not in text


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    assert clean(clean(text)) == clean(text) or "-" in clean(text)


def test_documents_are_masked_by_their_keys() -> None:
    redactor = Redactor(b"k" * 16, with_addresses=False)
    found = redactor.document(
        {
            "store": {"password": {"really": "hunter2"}, "url": "postgresql://u:hunter2@h/db"},
            "list": [{"token": ["hunter2"]}, "192.0.2.1"],
            "metrics": {"port": 9090},
            "auth": None,
        }
    )
    assert "hunter2" not in json.dumps(found) and "192.0.2.1" not in json.dumps(found)
    assert found["metrics"] == {"port": 9090} and found["auth"] is None
    assert redactor.counts["secret"] == 3


SECRETS = ["hunter2", "MIGHAgEAMBMGByqGSM49AgEG", "c2lnbmF0dXJl", "198.51.100.7", "10.100.0.2"]


@pytest.fixture
def members(
    zgatectl: Any, tmp_path: Path, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """An archive of a gateway whose every source holds something that must not get out."""
    policy, config = tmp_path / "policy.yaml", tmp_path / "gateway.yaml"
    policy.write_text(f'version: "1.0"\n# password: hunter2, {JWT}\nclients: {{}}\n')
    config.write_text(f"policy_file: {policy}\nstate_dir: {tmp_path}\n")
    (tmp_path / "gateway.key").write_text(PEM)

    def run(_: Host, *argv: str) -> Ran:
        leak = f"{argv[0]}: peer 198.51.100.7:40000 has 10.100.0.2\ntoken=hunter2\n{PEM}\n{JWT}\n"
        return Ran(0, leak)

    monkeypatch.setattr(Host, "run", run)
    target = tmp_path / "b.tar.gz"
    text = zgatectl("bundle", "--config", str(config), "-o", str(target)).stdout
    assert "Look into it before you send it on." in text
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as archive:
        found = {}
        for one in archive.getmembers():
            assert one.isfile() and one.mode == 0o600
            inner = archive.extractfile(one)
            assert inner is not None
            found[one.name] = inner.read().decode()
    return found


def test_nothing_of_it_is_in_the_archive(members: dict[str, str]) -> None:
    assert len(members) > 20
    for name, text in members.items():
        for secret in SECRETS:
            assert secret not in text, (name, secret)
        for word in re.findall(r"[0-9A-Fa-f:.]+", text):
            try:
                address = ip_address(word.strip(".:"))
            except ValueError:
                continue
            assert address.is_loopback or address.is_unspecified, (name, word)


def test_the_manifest_tells_what_is_there(members: dict[str, str]) -> None:
    report = BundleReport(**json.loads(members["b/manifest.json"]))
    for one in report.files:
        text = members.get(f"b/{one.path}")
        assert (text is None) is (one.error is not None), one
        if text is not None:
            data = text.encode()
            assert (one.size_bytes, one.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    names = {one.path for one in report.files if one.error is None}
    assert names >= {
        "status.json", "sessions.json", "metrics.txt", "doctor.json", "gateway.yaml", "policy.yaml",
        "journal.txt", "nft.txt", "ip-addr.txt", "ip-route.txt", "ip-rule.txt", "tc-qdisc.txt",
        "versions.json",
    }  # fmt: skip
    assert set(members) == {f"b/{one}" for one in names} | {"b/manifest.json"}
    assert report.redactions["pem"] > 10 and report.redactions["address"] > 10


def test_an_existing_file_is_not_overwritten(zgatectl: Any, tmp_path: Path) -> None:
    target = tmp_path / "b.tar.gz"
    target.write_text("mine")
    assert "File exists" in zgatectl("bundle", "-o", str(target), code=2).stderr
    assert target.read_text() == "mine"


def test_a_source_that_fails_is_told(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from zgate_cli.bundle.archive import Plan, write_archive

    def broken() -> str:
        raise RuntimeError("at 198.51.100.7")

    redactor = Redactor(b"k" * 16, with_addresses=False)
    plan = Plan(tmp_path / "b.tar.gz", datetime.now(UTC), with_addresses=False)
    report = write_archive(plan, [Source("x.txt", "x", broken)], redactor, lambda _: None)
    (file,) = report.files
    assert file.error is not None and file.error.startswith("it could not be made: RuntimeError")
    assert "198.51" not in file.error


def test_half_an_archive_is_not_left_behind(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from zgate_cli.bundle.archive import Plan, write_archive

    def interrupted() -> str:
        raise KeyboardInterrupt

    redactor = Redactor(b"k" * 16, with_addresses=False)
    plan = Plan(tmp_path / "b.tar.gz", datetime.now(UTC), with_addresses=False)
    with pytest.raises(KeyboardInterrupt):
        write_archive(plan, [Source("x.txt", "x", interrupted)], redactor, lambda _: None)
    assert not plan.target.exists()
