"""Why a packet goes where it goes."""

from __future__ import annotations

from pydantic import AwareDatetime, Field, IPvAnyAddress, model_validator

from zgate_gateway.api.schemas.base import Answer, ClientName, Limits, Request, VerdictAction


class Verdict(Answer):
    """One party's answer to "may this packet pass?"."""

    action: VerdictAction
    reason: str = Field(description="NONE when it passes, else the drop reason's name")
    rule_id: str | None = Field(
        None, description="null: no rule matched, the default action decided"
    )
    rule_file: str | None = None
    rule_line: int | None = None
    not_before: AwareDatetime | None = Field(None, description="when the rule began")
    expires_at: AwareDatetime | None = Field(None, description="when the rule ends")
    revision: int


class RuleOutOfTime(Answer):
    """A rule that would decide, did it hold now."""

    rule_id: str
    rule_line: int
    action: VerdictAction
    not_before: AwareDatetime | None = Field(None, description="set if it has not begun yet")
    expired_at: AwareDatetime | None = Field(None, description="set if it has ended")


class NextChange(Answer):
    """When time alone will give another answer, under the same revision."""

    at: AwareDatetime
    action: VerdictAction
    rule_id: str | None = Field(None, description="null: the default action will decide")
    rule_line: int | None = None


class Why(Answer):
    """Why a packet goes where it goes (``GET /v1/why``): the compiler's answer and the kernel's."""

    client: str
    groups: list[str] = Field(default_factory=list)
    reaches: list[str] | None = Field(
        None, description="services that its certificate narrows it to; null: none, or not known"
    )
    connected: bool
    source: str | None = Field(None, description="virtual IP the question was asked for")
    destination: str
    service: str | None = Field(None, description="the service that has this virtual IP")
    protocol: int = Field(ge=0, le=255)
    port: int | None = Field(None, description="destination port; null for protocols without ports")
    compiler: Verdict
    kernel: Verdict | None = Field(None, description="null: the kernel could not be asked")
    kernel_note: str | None = Field(None, description="why the kernel could not be asked")
    agree: bool = Field(description="false only if both answered and the answers differ")
    at: AwareDatetime | None = Field(None, description="the time that the answer is for: now")
    out_of_time: list[RuleOutOfTime] = Field(default_factory=list)
    next_change: NextChange | None = Field(None, description="null: time changes nothing")
    limits: Limits = Field(
        default_factory=Limits, description="what bounds the client whatever its rules allow"
    )


class WhyQuery(Request):
    """The question of ``GET /v1/why``. Protocol 1 or 58 means an ICMP echo request."""

    client: ClientName
    destination: IPvAnyAddress | None = None
    service: str | None = Field(None, max_length=512, description="in place of destination")
    family: int = Field(4, description="4 or 6: which virtual IP of the service")
    protocol: int = Field(ge=0, le=255)
    port: int | None = Field(None, ge=0, le=65535)

    @model_validator(mode="after")
    def _has_one_destination(self) -> WhyQuery:
        if (self.destination is None) is (self.service is None):
            raise ValueError("expected either destination or service")
        if self.family not in {4, 6}:
            raise ValueError("expected family 4 or 6")
        return self
