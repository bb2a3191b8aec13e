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
