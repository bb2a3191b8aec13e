"""The policy: what is in force, what a file would change, what was before."""

from __future__ import annotations

from pydantic import AwareDatetime, Field, model_validator

from zgate_gateway.api.schemas.base import (
    MAX_POLICY_CHARS,
    Answer,
    Limits,
    Request,
    Severity,
    VerdictAction,
)
from zgate_gateway.api.schemas.status import PolicySummary


class RuleView(Answer):
    """One rule as written, with where it is written."""

    rule_id: str
    action: VerdictAction
    kind: str = Field(description="ip_cidr, service or default")
    destinations: list[str] = Field(default_factory=list)
    services: list[str] = Field(
        default_factory=list, description="of kind service: as written; destinations are theirs"
    )
    protocols: list[str] = Field(default_factory=list, description="empty: any")
    ports: list[str] = Field(default_factory=list, description="empty: any")
    icmp_types: list[str] = Field(default_factory=list, description="empty: any")
    not_before: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    holds: bool = Field(True, description="false: it has not begun, or has ended")
    line: int | None = None


class Rights(Answer):
    """What the policy lets a connector offer, as written."""

    services: list[str] = Field(default_factory=list, description="names, * for any characters")
    routes: list[str] = Field(default_factory=list, description="networks, whole or in part")


class PolicyView(Answer):
    """The policy in force, rule by rule (``GET /v1/policy``)."""

    summary: PolicySummary
    clients: dict[str, list[RuleView]] = Field(default_factory=dict)
    groups: dict[str, list[RuleView]] = Field(default_factory=dict)
    client_limits: dict[str, Limits] = Field(default_factory=dict, description="as written")
    group_limits: dict[str, Limits] = Field(default_factory=dict, description="as written")
    default_limits: Limits = Field(default_factory=Limits)
    connectors: dict[str, Rights] = Field(default_factory=dict)
    connector_groups: dict[str, Rights] = Field(default_factory=dict)
    warnings: list[PolicyFinding] = Field(default_factory=list)


class PolicyFinding(Answer):
    """One thing that a check found. ``text`` is one line that names file, key and what is wrong."""

    severity: Severity
    text: str
    line: int | None = None


class PolicyCheckRequest(Request):
    """``POST /v1/policy/check``: the policy itself; the gateway opens no file for a caller."""

    text: str = Field(max_length=MAX_POLICY_CHARS)
    name: str = Field("policy.yaml", max_length=4096, description="the name used in findings")


class PolicyCheck(Answer):
    """What a check found. ``valid`` is true when nothing of severity ``error`` was found."""

    valid: bool
    findings: list[PolicyFinding] = Field(default_factory=list)
    clients: int = 0
    groups: int = 0
    rules: int = 0
    tests: int = Field(0, description="tests that the file carries; all of them passed")


class PolicyTestOutcome(Answer):
    """What came out of one test that a policy file carries."""

    question: str = Field(description="client, destination, protocol and port")
    line: int
    expected: VerdictAction
    expected_rule: str | None = Field(None, description="null: whichever rule decides")
    action: VerdictAction
    rule_id: str | None = Field(None, description="null: no rule matched, the default action did")
    rule_line: int | None = None
    passed: bool


class PolicyTests(Answer):
    """The tests of a policy file. ``valid`` is false if the file itself could not be read."""

    valid: bool
    passed: int = 0
    failed: int = 0
    outcomes: list[PolicyTestOutcome] = Field(default_factory=list)
    findings: list[PolicyFinding] = Field(default_factory=list, description="if it is not valid")


class PolicySubject(Answer):
    """Whom a change is about."""

    kind: str = Field(description="client, group (whoever has only this one), or others")
    name: str = Field("", description="empty for others: clients that have no rule at all")
    groups: list[str] = Field(default_factory=list, description="the client's, where known")


class FlowChange(Answer):
    """Destinations and services whose verdict is another one from now on."""

    action: VerdictAction = Field(description="the new verdict")
    destinations: list[str] = Field(
        description='the fewest prefixes; services by name: "service pacs", and "service pacs '
        '(IPv4)" where only one of its virtual IPs is meant'
    )
    services: list[str] = Field(description="tcp/443, udp/8000-8100, icmp type 8, any, ...")
    since: AwareDatetime | None = Field(None, description="null: from the moment it is in force")
    until: AwareDatetime | None = Field(None, description="null: for good")


class LimitsChange(Answer):
    """Other limits than before."""

    before: Limits
    after: Limits


class SubjectChange(Answer):
    """What changes, in the same way, for each of these."""

    subjects: list[PolicySubject]
    changes: list[FlowChange]
    limits: LimitsChange | None = Field(None, description="null: they stay")
    compared_until: AwareDatetime | None = Field(
        None, description="so many times lie ahead that what changes later was not looked at"
    )


class RightsChange(Answer):
    """A connector, or a group of them, that may offer something else from now on."""

    kind: str = Field(description="connector or connector group")
    name: str
    before: Rights
    after: Rights


class PolicyDiff(Answer):
    """What a policy changes in flows, and in what connectors may offer.

    ``changed`` is false if every packet is judged as before and every connector may what it might.

    ``revision`` is what it was compared with; null: another file, not a gateway's policy.
    """

    valid: bool
    changed: bool = False
    revision: int | None = None
    differences: list[SubjectChange] = Field(default_factory=list)
    rights: list[RightsChange] = Field(default_factory=list)
    findings: list[PolicyFinding] = Field(default_factory=list, description="if it is not valid")


class PolicyDiffRequest(Request):
    """``POST /v1/policy/diff``: compare a text, or an earlier revision, with what is in force."""

    text: str | None = Field(None, max_length=MAX_POLICY_CHARS)
    revision: int | None = Field(None, ge=1)
    name: str = Field("policy.yaml", max_length=4096, description="the name used in findings")

    @model_validator(mode="after")
    def _one_of_both(self) -> PolicyDiffRequest:
        if (self.text is None) == (self.revision is None):
            raise ValueError("give text or revision, one of them")
        return self


class PolicyApplyRequest(Request):
    """``POST /v1/policy/apply``: the policy itself."""

    text: str = Field(max_length=MAX_POLICY_CHARS)
    expected_revision: int | None = Field(
        None, description="refuse if another one is in force; null: whatever is"
    )


class PolicyRollbackRequest(Request):
    """``POST /v1/policy/rollback``."""

    revision: int = Field(ge=1)
    expected_revision: int | None = Field(
        None, description="refuse if another one is in force; null: whatever is"
    )


class PolicyRevision(Answer):
    """A policy that was in force from ``loaded_at`` on."""

    revision: int
    loaded_at: AwareDatetime
    sha256: str | None = Field(None, description="null: the built-in policy that denies everything")
    origin: str = Field(description="start, reload, apply or rollback")
    source: str
    clients: int
    groups: int
    rules: int
    in_force: bool
    has_text: bool = Field(description="its text is kept: it can be rolled back to")


class PolicyHistory(Answer):
    """``GET /v1/policy/history``: revisions, the newest first."""

    revisions: list[PolicyRevision]


class PolicyReload(Answer):
    """What a reload, an apply or a rollback did.

    The kernel uses ``revision`` from the moment of this answer.
    """

    previous_revision: int
    summary: PolicySummary
    changed: bool = Field(description="false: the file is what was in force already")
    duration_ms: float
    warnings: list[PolicyFinding] = Field(default_factory=list)


class PolicyChange(Answer):
    """What ``zgatectl policy apply`` and ``rollback`` print: what would change, and what did."""

    check: PolicyCheck | None = Field(None, description="null: rollback; the gateway checks")
    diff: PolicyDiff | None = Field(None, description="null: the policy cannot be loaded")
    result: PolicyReload | None = Field(None, description="null: a dry run")


PolicyView.model_rebuild()
