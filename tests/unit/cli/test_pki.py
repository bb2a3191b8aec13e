import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from zgate_cli.pki import pki
from zgate_identity.authority import CertificateAuthority


class Shell:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(pki, [*words, "--dir", str(self.directory)])
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout)


@pytest.fixture
def empty(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "pki")


@pytest.fixture
def shell(empty: Shell) -> Shell:
    empty.run("init")
    return empty


def one_line(result: Result) -> str:
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    return result.stderr


def test_init_twice_says_so_and_changes_nothing(empty: Shell) -> None:
    assert empty.json("init")["created"]
    before = (empty.directory / "ca.key").read_bytes()
    assert "is there already, nothing was changed" in empty.run("init").stdout
    assert not empty.json("init")["created"]
    assert (empty.directory / "ca.key").read_bytes() == before


def test_issue_prints_the_files_that_an_agent_needs(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = shell.run("issue", "alice", "--group", "staff", "--out", str(out)).stdout
    for file in ("alice.crt", "alice.key", "ca.crt"):
        assert str(out / file) in shown
        assert (out / file).exists()
    assert (out / "alice.key").stat().st_mode & 0o777 == 0o600


def test_issue_says_what_it_has_to_do_with_services(shell: Shell) -> None:
    shown = shell.run("issue", "site", "--connector", "pacs", "--connector", "echo-1").stdout
    assert "may offer    pacs, echo-1" in shown and "narrowed" not in shown
    assert "narrowed to  wiki" in shell.run("issue", "guest", "--agent", "wiki").stdout
    plain = shell.run("issue", "alice").stdout
    assert "narrowed" not in plain and "offer" not in plain
    listed = {one["name"]: (one["offers"], one["reaches"]) for one in shell.json("list")}
    assert listed == {
        "site": (["pacs", "echo-1"], None),
        "guest": ([], ["wiki"]),
        "alice": ([], None),
    }
    assert "connector.echo-1.zgate" in shell.run("list").stdout
    refused = one_line(shell.run("issue", "bob", "--agent", "a.b", code=2))
    assert "'a.b' is no service that a certificate can name" in refused
    server = shell.run("issue", "gw", "--usage", "server", "--connector", "pacs", code=2)
    assert "services are a client's" in one_line(server)


def test_issue_json(shell: Shell) -> None:
    issued = shell.json("issue", "alice", "-g", "staff", "-g", "admins", "--days", "7")
    assert issued["groups"] == ["staff", "admins"]
    assert (issued["usage"], issued["status"]) == ("client", "valid")
    assert set(issued["files"]) == {"ca", "certificate", "key"}
    assert all(Path(file).exists() for file in issued["files"].values())


def test_issue_server(shell: Shell) -> None:
    words = ("--usage", "server", "--dns", "gw.example", "--ip", "192.0.2.1", "--ip", "::1")
    issued = shell.json("issue", "gw", *words)
    assert (issued["dns_names"], issued["ips"]) == (["gw.example"], ["192.0.2.1", "::1"])
    assert shell.json("issue", "gw2.example", "--usage", "server")["dns_names"] == ["gw2.example"]


def test_issue_again_needs_replace_and_issues_nothing_without(shell: Shell) -> None:
    shell.run("issue", "alice")
    assert "alice.key: exists already" in one_line(shell.run("issue", "alice", code=1))
    assert len(shell.json("list")) == 1
    shell.run("issue", "alice", "--replace")
    assert len(shell.json("list")) == 2


def test_issue_that_cannot_be_written_names_the_serial(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    failed = shell.run("issue", "alice", "--out", str(tmp_path / "file" / "below"), code=1)
    serial = shell.json("list")[0]["serial"]
    assert f"{serial} was issued, but could not be written" in failed.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["issue", ""], "the name is empty"),
        (["issue", "a\nb"], "the name holds control"),
        (["issue", "alice", "--group", ""], "a group is empty"),
        (["issue", "alice", "--dns", "gw.example"], "a client's certificate names no host"),
        (["issue", "g w", "--usage", "server"], "no host name"),
        (["issue", "alice", "--days", "99999"], "lifetime"),
    ],
)
def test_bad_input_is_one_line_and_2(shell: Shell, words: list[str], text: str) -> None:
    assert text in one_line(shell.run(*words, code=2))


@pytest.mark.parametrize(
    "words",
    [
        ["issue", "a", "--ip", "300.1.1.1"],
        ["issue", "a", "--days", "0"],
        ["issue", "a", "--usage", "both"],
        ["issue"],
        ["revoke"],
    ],
)
def test_usage_errors_are_2(shell: Shell, words: list[str]) -> None:
    assert "Error: " in shell.run(*words, code=2).stderr


@pytest.mark.parametrize(
    "words",
    [["issue", "alice"], ["revoke", "alice"], ["list"], ["crl"]],
    ids=lambda words: words[0],
)
def test_without_an_authority_it_says_how_to_make_one(empty: Shell, words: list[str]) -> None:
    assert "zgatectl pki init" in one_line(empty.run(*words, code=1))


def test_revoke_by_name_and_by_serial(shell: Shell) -> None:
    alice, bob = shell.json("issue", "alice"), shell.json("issue", "bob")
    assert [each["name"] for each in shell.json("revoke", "alice")["revoked"]] == ["alice"]
    shown = shell.run("revoke", bob["serial"].upper()).stdout
    assert f"Revoked bob, serial {bob['serial']}" in shown
    serials = {
        f"{serial:040x}" for serial in CertificateAuthority.load(shell.directory).crl.serials
    }
    assert serials == {alice["serial"], bob["serial"]}


def test_revoke_twice_is_fine(shell: Shell) -> None:
    shell.run("issue", "alice")
    shell.run("revoke", "alice")
    assert "Nothing to do" in shell.run("revoke", "alice").stdout
    assert shell.json("revoke", "alice")["revoked"] == []


def test_revoke_unknown_is_1(shell: Shell) -> None:
    assert "'nobody' was issued here" in one_line(shell.run("revoke", "nobody", code=1))


def test_list(shell: Shell) -> None:
    shell.run("issue", "[red]alice", "--group", "staff")
    shell.run("issue", "gw.example", "--usage", "server")
    shell.run("revoke", "gw.example")
    records = shell.json("list")
    assert [(each["name"], each["status"]) for each in records] == [
        ("[red]alice", "valid"),
        ("gw.example", "revoked"),
    ]
    shown = shell.run("list").stdout
    assert "[red]alice" in shown
    for record in records:
        assert record["serial"] in shown


def test_crl_is_signed_anew(shell: Shell) -> None:
    before = shell.json("crl")["crl_number"]
    assert "0 revoked, number" in shell.run("crl").stdout
    assert shell.json("crl")["crl_number"] == before + 2
