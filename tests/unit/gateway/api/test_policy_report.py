"""Findings of a policy check in the API's words."""

from pathlib import Path

from zgate_gateway.api.policy_report import check_file, check_text, warnings_among
from zgate_gateway.api.schemas import PolicyCheck, Severity
from zgate_gateway.policy.check import check_policy
from zgate_gateway.policy.policy_set import PolicySet

OPEN = 'version: "1.0"\ndefault_action: allow\nclients: {}\n'


def test_a_warning_names_file_line_and_key() -> None:
    found = check_text(OPEN, "p.yaml")
    (warning,) = found.findings
    assert found.valid
    assert warning.severity is Severity.WARNING and warning.line == 2
    assert warning.text.startswith("p.yaml:2: default_action: ")
    assert warnings_among(check_policy(PolicySet.parse(OPEN)), "p.yaml") == [warning]


def test_every_mistake_is_an_error() -> None:
    found = check_text(OPEN + "nonsense: 1\nmore: 2\n", "p.yaml")
    assert not found.valid
    assert [finding.line for finding in found.findings] == [4, 5]
    assert all(finding.severity is Severity.ERROR for finding in found.findings)


def test_a_file_and_its_text_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(OPEN)
    assert check_file(file) == check_text(OPEN, str(file))


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    found = check_file(tmp_path / "p.yaml")
    assert isinstance(found, PolicyCheck) and not found.valid
    assert str(tmp_path / "p.yaml") in found.findings[0].text
