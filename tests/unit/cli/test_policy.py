"""zgatectl policy show, check and reload."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from zgate_cli.main import cli
from zgate_gateway.api import schemas
from zgate_gateway.api.facade import PolicyRefused

GOOD = """\
version: "1.0"
metadata: {name: zgate-policy}
default_action: deny
clients:
  client-1:
    description: "Restricted"
    rules:
      - id: allow-dns
        type: ip_cidr
        action: allow
        destinations: [8.8.8.8/32, 1.1.1.1/32]
        protocols: [udp, tcp]
        ports: [53, 8000-8100]
      - id: deny-default
        type: default
        action: deny
groups:
  staff: {rules: []}
"""


def test_show_fits(zgatectl: Any, fits: Any) -> None:
    text = fits(zgatectl("policy", "show"))
    words = " ".join(text.split())
    assert "revision 7 of 2026-03-01 12:00:00Z, /etc/zgate/policy.yaml: 1 clients" in words
    assert "client client-1" in text and "group staff" in text
    assert "9 allow-dns allow 8.8.8.8/32 udp, tcp 53, 8000-8100" in words
    assert "15 deny-default deny any any any" in words
    assert "warning: policy.yaml:12: x: never reached" in text


def test_show_as_json(zgatectl_json: Any, fake_gateway: Any) -> None:
    assert schemas.PolicyView(**zgatectl_json("policy", "show")) == fake_gateway.policy()


def test_reload(zgatectl: Any, zgatectl_json: Any, fake_gateway: Any) -> None:
    text = " ".join(zgatectl("policy", "reload").stdout.split())
    assert text.startswith("Loaded: revision 7") and "(was 6, 12 ms)" in text
    assert "never reached" in text
    assert zgatectl_json("policy", "reload")["changed"] is True


def test_reload_of_what_is_in_force(
    zgatectl: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unchanged() -> schemas.PolicyReload:
        summary = fake_gateway.policy().summary
        return schemas.PolicyReload(
            previous_revision=7, summary=summary, changed=False, duration_ms=1
        )

    monkeypatch.setattr(fake_gateway, "reload_policy", unchanged)
    assert zgatectl("policy", "reload").stdout.startswith("Nothing has changed: revision 7")


def test_a_refused_reload_is_bad_input(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.error = PolicyRefused("policy.yaml:3: bad", "revision 7 stays in force")
    result = zgatectl("policy", "reload", code=2)
    assert result.stderr == "zgatectl: policy.yaml:3: bad; revision 7 stays in force\n"


# --- check works without a gateway ----------------------------------------------------------------


def check(*arguments: str, code: int) -> Any:
    result = CliRunner().invoke(cli, ["--socket", "/nonexistent", "policy", "check", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_check_of_a_good_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(GOOD)
    result = check(str(file), code=0)
    assert result.stdout == f"{file}: can be loaded (1 clients, 1 groups, 2 rules)\n"
    assert result.stderr == ""
    found = schemas.PolicyCheck(**json.loads(check(str(file), "--json", code=0).stdout))
    assert found == schemas.PolicyCheck(valid=True, clients=1, groups=1, rules=2)


def test_check_warns_about_a_rule_that_is_never_reached(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        GOOD.replace("8.8.8.8/32, 1.1.1.1/32", "8.8.8.8/32").replace(
            "      - id: deny-default\n",
            "      - {id: hidden, type: ip_cidr, action: deny, destinations: [8.8.8.8/32],"
            " protocols: [udp], ports: [53]}\n      - id: deny-default\n",
        )
    )
    result = check(str(file), code=0)
    assert "can be loaded" in result.stdout
    assert result.stderr.startswith(f"warning: {file}:14: clients.client-1.rules[1]: ")
    assert '"hidden" is never reached' in result.stderr


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (GOOD.replace("8.8.8.8/32", "8.8.8.300/32"), "destinations"),
        (GOOD.replace("    rules:", "    rulez:"), "rulez"),
        ("{", ""),
        ("", ""),
    ],
)
def test_check_of_a_bad_file(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    result = check(str(file), code=2)
    first = result.stderr.splitlines()[0]
    assert first.startswith(f"error: {file}") and named in first
    assert "can be loaded" not in result.stdout and "Traceback" not in result.output
    found = schemas.PolicyCheck(**json.loads(check(str(file), "--json", code=2).stdout))
    assert not found.valid and found.findings[0].severity is schemas.Severity.ERROR


def test_every_mistake_is_named(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(GOOD.replace("8.8.8.8/32", "nonsense").replace("[53, 8", "[70000, 8"))
    assert len(check(str(file), code=2).stderr.splitlines()) == 2


def test_check_of_a_missing_file(tmp_path: Path) -> None:
    assert str(tmp_path / "no.yaml") in check(str(tmp_path / "no.yaml"), code=2).stderr


# --- so does test ---------------------------------------------------------------------------------

TESTED = (
    GOOD
    + """\
tests:
  - {client: client-1, destination: 8.8.8.8, protocol: udp, port: 53, expect: allow}
  - {client: client-1, destination: 9.9.9.9, protocol: udp, port: 53, expect: EXPECTED,
     rule: deny-default}
"""
)


def run_test(file: Path, *arguments: str, code: int) -> Any:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["policy", "test", str(file), *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.mark.parametrize(("expected", "code"), [("deny", 0), ("allow", 1)])
def test_the_tests_of_a_file(tmp_path: Path, fits: Any, expected: str, code: int) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(TESTED.replace("EXPECTED", expected))
    text = fits(run_test(file, code=code))
    assert text.count("ok") == 2 - code and text.count("FAILED") == code
    assert f"{2 - code} passed, {code} failed" in text
    found = schemas.PolicyTests(**json.loads(run_test(file, "--json", code=code).stdout))
    assert found.valid and (found.passed, found.failed) == (2 - code, code)
    assert [one.line for one in found.outcomes] == [20, 21]
    assert (found.outcomes[1].rule_id, found.outcomes[1].rule_line) == ("deny-default", 14)


def test_a_file_whose_tests_fail_cannot_be_loaded(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(TESTED.replace("EXPECTED", "allow"))
    assert check(str(file), code=2).stderr == (
        f"error: {file}:21: tests[1]: test failed: client-1 -> 9.9.9.9 udp/53: expected allow by "
        'rule "deny-default", got deny by rule "deny-default" (line 14)\n'
    )
    file.write_text(TESTED.replace("EXPECTED", "deny"))
    assert "2 tests passed" in check(str(file), code=0).stdout


def test_the_tests_of_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert run_test(tmp_path / "no.yaml", code=2).stderr.startswith("error: ")
    file = tmp_path / "p.yaml"
    file.write_text(GOOD)
    assert run_test(file, code=0).stdout == "0 passed, 0 failed\n"
