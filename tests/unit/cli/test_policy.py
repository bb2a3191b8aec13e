"""zgatectl policy show, check and reload."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from zgate_cli.main import cli
from zgate_gateway.api import schemas
from zgate_gateway.api.facade import PolicyRefused, UnknownPolicy

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


def test_show_names_services_and_what_connectors_may_offer(
    zgatectl: Any, fits: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    imaging = schemas.RuleView(
        rule_id="imaging",
        action=schemas.VerdictAction.ALLOW,
        kind="service",
        destinations=["10.101.0.1/32", "fd7a:7a67:6174:66::1/128"],
        services=["pacs", "echo-*"],
        holds=True,
        line=3,
    )
    later = imaging.model_copy(update={"destinations": [], "services": ["wiki"]})
    update = {
        "clients": {"client-1": [imaging, later]},
        "connectors": {"site-a": schemas.Rights(services=["pacs"], routes=["10.20.0.0/16"])},
        "connector_groups": {"branch": schemas.Rights()},
    }
    view = fake_gateway.policy().model_copy(update=update)
    monkeypatch.setattr(fake_gateway, "policy", lambda: view)
    text = fits(zgatectl("policy", "show"))
    words = " ".join(text.split())
    assert "imaging allow service pacs any any service echo-*" in words
    assert "imaging allow service wiki any any" in words and "10.101.0.1" not in words
    assert "connector site-a may offer: pacs may advertise: 10.20.0.0/16" in words
    assert "connector group branch may offer: no service may advertise: no network" in words


def test_diff_and_test_name_services(zgatectl: Any, tmp_path: Path) -> None:
    """Without a gateway: services stand at addresses that nobody sees."""
    rule = '{id: imaging, type: service, action: allow, services: [pacs, "echo-*"], ports: [104]}'
    test = "{client: client-1, service: pacs, protocol: tcp, port: 104, expect: allow}"
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(GOOD)
    new.write_text(GOOD.replace("staff: {rules: []}", f"staff: {{rules: [{rule}]}}"))
    words = " ".join(
        zgatectl("policy", "diff", str(new), "--against", str(old), code=1).stdout.split()
    )
    change = words.partition("group staff destinations services ")[2]
    assert change == "+ allowed service echo-* tcp/104, udp/104 service pacs"
    new.write_text(new.read_text() + f"tests: [{test}]\n")
    failed = " ".join(zgatectl("policy", "test", str(new), code=1).stdout.split())
    assert "client-1 -> pacs tcp/104" in failed and "0 passed, 1 failed" in failed
    note = zgatectl("policy", "check", str(new), code=2).stderr
    assert "test failed: client-1 -> pacs tcp/104: expected allow, got deny" in note


def test_diff_says_what_connectors_may_offer(zgatectl: Any, tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(GOOD + "connectors: {site-a: {services: [pacs], routes: [10.0.0.0/8]}}\n")
    new.write_text(GOOD + "connectors: {site-a: {services: [pacs, wiki]}}\n")
    text = zgatectl("policy", "diff", str(new), "--against", str(old), code=1).stdout
    assert text.splitlines() == [
        "connector site-a",
        "+ may offer wiki",
        "- may not advertise 10.0.0.0/8 any more",
    ]
    assert "No flow changes" in zgatectl("policy", "diff", str(old), "--against", str(old)).stdout


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


# --- what changes ---------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(GOOD)
    return file


def test_diff_names_who_gains_and_loses_what(zgatectl: Any, fits: Any, good: Path) -> None:
    words = " ".join(fits(zgatectl("policy", "diff", str(good), code=1)).split())
    assert "client client-1 (staff), group staff, clients without any rule" in words
    assert "+ allowed 10.20.0.0/16 tcp/443, udp/8000-8100 10.21.0.5/32" in words
    assert "- denied ::/0 any" in words


def test_diff_as_json(zgatectl_json: Any, fake_gateway: Any, good: Path) -> None:
    found = zgatectl_json("policy", "diff", str(good), code=1)
    assert schemas.PolicyDiff(**found) == fake_gateway.diff
    ((_, request),) = fake_gateway.calls
    assert request == schemas.PolicyDiffRequest(text=GOOD, name=str(good))


def test_diff_of_nothing(zgatectl: Any, fake_gateway: Any, good: Path) -> None:
    fake_gateway.diff = schemas.PolicyDiff(valid=True, revision=7)
    assert zgatectl("policy", "diff", str(good)).stdout.startswith("No flow changes")


def test_diff_of_a_file_that_the_gateway_cannot_read(
    zgatectl: Any, fake_gateway: Any, good: Path
) -> None:
    finding = schemas.PolicyFinding(severity=schemas.Severity.ERROR, text="p.yaml:1: bad")
    fake_gateway.diff = schemas.PolicyDiff(valid=False, findings=[finding])
    result = zgatectl("policy", "diff", str(good), code=2)
    assert (result.stdout, result.stderr) == ("", "error: p.yaml:1: bad\n")


def test_diff_of_two_files_needs_no_gateway(tmp_path: Path, good: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(GOOD.replace("1.1.1.1/32", "9.9.9.9/32"))

    def run(*arguments: str, code: int) -> Any:
        result = CliRunner().invoke(cli, ["--socket", "/nonexistent", "policy", "diff", *arguments])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    words = " ".join(run(str(other), "--against", str(good), code=1).stdout.split())
    services = "tcp/53, tcp/8000-8100, udp/53, udp/8000-8100"
    assert f"client client-1 destinations services + allowed 9.9.9.9/32 {services}" in words
    assert f"- denied 1.1.1.1/32 {services}" in words
    assert "No flow changes" in run(str(good), "--against", str(good), code=0).stdout
    missing = run(str(tmp_path / "no.yaml"), "--against", str(good), code=2)
    assert "no.yaml" in missing.stderr


def test_apply_is_a_dry_run_unless_told(zgatectl: Any, fake_gateway: Any, good: Path) -> None:
    text = zgatectl("policy", "apply", str(good)).stdout
    assert "can be loaded" in text and "+ allowed" in text and "dry run" in text
    assert [call[0] for call in fake_gateway.calls] == ["diff_policy"]


def test_apply(zgatectl: Any, fake_gateway: Any, good: Path) -> None:
    text = zgatectl("policy", "apply", str(good), "--yes").stdout
    assert "+ allowed" in text and "In force: revision 7" in text
    applied = [call for call in fake_gateway.calls if call[0] == "apply_policy"]
    assert applied == [("apply_policy", schemas.PolicyApplyRequest(text=GOOD, expected_revision=7))]


def test_apply_as_json(zgatectl_json: Any, good: Path) -> None:
    dry = schemas.PolicyChange(**zgatectl_json("policy", "apply", str(good)))
    assert dry.check is not None and dry.check.valid and dry.diff is not None and not dry.result
    done = schemas.PolicyChange(**zgatectl_json("policy", "apply", str(good), "--yes"))
    assert done.result is not None and done.result.summary.revision == 7


def test_a_file_that_fails_is_not_sent(zgatectl: Any, fake_gateway: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(TESTED.replace("EXPECTED", "allow"))
    assert "test failed" in zgatectl("policy", "apply", str(file), "--yes", code=2).stderr
    assert fake_gateway.calls == []
    assert '"valid": false' in zgatectl("policy", "apply", str(file), "--json", code=2).stdout
    file.write_bytes(b"\xff")
    assert "no UTF-8" in zgatectl("policy", "apply", str(file), code=2).stderr
    assert "No such file" in zgatectl("policy", "apply", str(tmp_path / "no"), code=2).stderr


def test_history_fits(zgatectl: Any, zgatectl_json: Any, fits: Any) -> None:
    words = " ".join(fits(zgatectl("policy", "history")).split())
    assert "7 2026-03-01 12:00:00Z rollback abababab 1 1 3 now" in words
    assert "5 2026-03-01 12:00:00Z start built-in 1 1 3 no text" in words
    found = schemas.PolicyHistory(**zgatectl_json("policy", "history", "--limit", "3"))
    assert [one.revision for one in found.revisions] == [7, 6, 5]


def test_rollback(zgatectl: Any, zgatectl_json: Any, fake_gateway: Any) -> None:
    assert "dry run" in zgatectl("policy", "rollback", "3").stdout
    assert [call[0] for call in fake_gateway.calls] == ["diff_policy"]
    assert "In force: revision 7" in zgatectl("policy", "rollback", "3", "--yes").stdout
    request = schemas.PolicyRollbackRequest(revision=3, expected_revision=7)
    assert ("rollback_policy", request) in fake_gateway.calls
    assert schemas.PolicyChange(**zgatectl_json("policy", "rollback", "3")).result is None
    zgatectl("policy", "rollback", "zero", code=2)


def test_rollback_to_what_is_not_there(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.error = UnknownPolicy("there is no policy revision 3", "see history")
    assert "no policy revision 3" in zgatectl("policy", "rollback", "3", "--yes", code=1).stderr


def test_status_says_why_the_file_is_not_in_force(
    zgatectl: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = fake_gateway.status()
    policy = status.policy.model_copy(update={"not_in_force_because": "policy.yaml:3: bad"})
    refused = status.model_copy(update={"policy": policy})
    monkeypatch.setattr(fake_gateway, "status", lambda: refused)
    words = " ".join(zgatectl("status").stdout.split())
    assert "the file as it is now is not in force: policy.yaml:3: bad" in words


# --- time and limits ------------------------------------------------------------------------------


def at(hour: int) -> datetime:
    return datetime(2026, 3, 1, hour, tzinfo=UTC)


def test_show_says_when_rules_hold_and_what_is_limited(
    zgatectl: Any, fake_gateway: Any, fits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = fake_gateway.policy()
    first, last = view.clients["client-1"]
    over = first.model_copy(update={"not_before": at(8), "expires_at": at(18), "holds": False})
    changed = view.model_copy(
        update={
            "clients": {"client-1": [over, last]},
            "client_limits": {"client-1": schemas.Limits(bandwidth_mbit=50)},
            "default_limits": schemas.Limits(new_flows_per_s=500),
        }
    )
    monkeypatch.setattr(fake_gateway, "policy", lambda: changed)
    text = " ".join(fits(zgatectl("policy", "show")).split())
    assert "default limits: 500 new flows/s" in text
    assert "client client-1 limits: 50 Mbit/s line" in text
    assert "2026-03-01" in text and "not now" in text and "always" in text


def test_diff_says_from_when_until_when(
    zgatectl: Any, fake_gateway: Any, good: Path, fits: Any
) -> None:
    (difference,) = fake_gateway.diff.differences
    first, *others = difference.changes
    timed = first.model_copy(update={"since": at(8), "until": at(18)})
    limits = schemas.LimitsChange(
        before=schemas.Limits(), after=schemas.Limits(bandwidth_mbit=50, new_flows_per_s=3)
    )
    changes = {"changes": [timed, *others], "limits": limits, "compared_until": at(20)}
    fake_gateway.diff = fake_gateway.diff.model_copy(
        update={"differences": [difference.model_copy(update=changes)]}
    )
    text = " ".join(fits(zgatectl("policy", "diff", str(good), code=1)).split())
    assert "limits: 50 Mbit/s, 3 new flows/s (were: none)" in text
    assert "from" in text and "until" in text and "from now on" in text
    assert "What changes after 2026-03-01 20:00:00Z was not looked at" in text


def test_check_warns_about_a_rule_that_is_over(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        GOOD.replace(
            "        action: allow\n",
            "        action: allow\n        expires_at: 2020-01-01T00:00:00Z\n",
            1,
        )
    )
    result = check(str(file), code=0)
    assert "ended at 2020-01-01T00:00:00Z" in result.stderr
    assert result.stderr.startswith("warning: ")


def test_tests_may_be_about_a_time(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        'version: "1.0"\nclients:\n  a:\n    rules:\n      - {id: visit, type: default,'
        " action: allow, expires_at: 2030-01-01T00:00:00Z}\ntests:\n"
        "  - {client: a, destination: 10.0.0.1, protocol: icmp, expect: allow,"
        " at: 2029-12-31T23:59:59Z}\n"
        "  - {client: a, destination: 10.0.0.1, protocol: icmp, expect: allow}\n"
    )
    result = CliRunner().invoke(cli, ["policy", "test", str(file)], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "1 passed, 1 failed" in result.stdout
    assert "a -> 10.0.0.1 icmp at 2029-12-31T23:59:59Z" in result.stdout
    failed = check(str(file), code=2).stderr
    assert "from 2030-01-01T00:00:00Z on: say with `at` when it is asked" in failed
