"""What zgatectl says by itself, where it does not hand on the gateway's words.

With ``--json`` these are printed; ``docs/cli-json.md`` describes them. Keys are only ever added.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field
from zgate_gateway.api.schemas import SessionList, Status
from zgate_gateway.api.schemas.base import Answer


class TopSnapshot(Answer):
    """``zgatectl top --json``: what the screen is made of."""

    at: AwareDatetime
    status: Status
    sessions: SessionList


class PingReport(Answer):
    """``zgatectl ping --json``."""

    client: str
    peer: str = Field(description="the client's outer address and port")
    addresses: list[str] = Field(default_factory=list, description="virtual IPs")
    sent: int = Field(ge=0)
    received: int = Field(ge=0)
    rtts_ms: list[float | None] = Field(description="in order; null: no answer in time")
    min_ms: float | None = None
    mean_ms: float | None = None
    max_ms: float | None = None


class Verdict(StrEnum):
    """What a check found: nothing to do, something to look at, something broken."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"
    """It could not be checked here; the text says why."""


class Finding(Answer):
    """One check of ``doctor`` or ``netcheck``."""

    name: str = Field(description="stable: kernel_version, udp, mtu, ...")
    title: str = Field(description="what was looked at, for people")
    verdict: Verdict
    text: str = Field(description="what was found")
    fix: str = Field("", description="what to do; empty: nothing")
    values: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict, description="the numbers behind the text; units stand in the keys"
    )


class CheckReport(Answer):
    """``zgatectl doctor --json`` and ``zgatectl netcheck --json``."""

    at: AwareDatetime
    version: str
    verdict: Verdict = Field(description="the worst of all")
    findings: list[Finding]


class BundleFile(Answer):
    """One file of a support archive."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: str
    source: str = Field(description="the command or the file that it is made of")
    error: str | None = Field(None, description="why there is nothing in it")


class BundleReport(Answer):
    """``zgatectl bundle --json``, and ``manifest.json`` in the archive."""

    at: AwareDatetime
    version: str
    archive: str = Field(description="the file's name")
    with_addresses: bool
    redactions: dict[str, int] = Field(default_factory=dict, description="what was masked, by kind")
    files: list[BundleFile]


class AuthorityAnswer(Answer):
    """``zgatectl pki crl --json``: the authority, and its revocation list."""

    authority: str = Field(description="the subject of its certificate (RFC 4514)")
    not_after: AwareDatetime
    ca_file: str
    crl_file: str
    crl_number: int
    crl_next_update: AwareDatetime


class AuthorityMade(AuthorityAnswer):
    """``zgatectl pki init --json``."""

    created: bool = Field(description="false: it was there already")


class CertificateAnswer(Answer):
    """One of the list that ``zgatectl pki list --json`` prints."""

    name: str
    groups: list[str]
    usage: str = Field(description="client or server")
    serial: str = Field(description="hexadecimal")
    not_before: AwareDatetime
    not_after: AwareDatetime
    fingerprint_sha256: str
    dns_names: list[str]
    ips: list[str]
    offers: list[str] = Field(description="services that it may offer")
    reaches: list[str] | None = Field(
        description="services that it is narrowed to; null: it is not"
    )
    revoked_at: AwareDatetime | None
    status: str = Field(description="valid, revoked or expired")


class CertificateFiles(Answer):
    """Where an issued certificate was written."""

    ca: str
    certificate: str
    key: str


class CertificateIssued(CertificateAnswer):
    """``zgatectl pki issue --json``."""

    files: CertificateFiles


class CertificatesRevoked(AuthorityAnswer):
    """``zgatectl pki revoke --json``."""

    revoked: list[CertificateAnswer]


class AuditFinding(Answer):
    """Something that was done to an audit log."""

    kind: str
    file: str
    line: int | None
    seq: int | None = Field(description="the record's number")
    text: str
    expected: str | None
    found: str | None


class AuditReport(Answer):
    """``zgatectl audit verify --json``."""

    intact: bool
    files: list[str]
    records: int
    first_seq: int | None
    last_seq: int
    last_sha256: str
    signed_heads: int
    signed_seq: int = Field(description="nothing up to there can change unnoticed")
    keys: list[str] = Field(description="public keys, in hexadecimal")
    findings: list[AuditFinding]
    findings_left_out: int
    notes: list[str]
