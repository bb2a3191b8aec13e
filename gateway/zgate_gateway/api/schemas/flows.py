"""Flows, as they are and as they come."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from zgate_gateway.api.schemas.base import Answer, ClientName, Request


class FlowStage(StrEnum):
    """What is known of a flow's course. A closed one is kept for stragglers, for some seconds."""

    UNANSWERED = "unanswered"
    ANSWERED = "answered"
    CLOSED = "closed"


class FlowView(Answer):
    """One flow that the kernel passes without asking the policy again, until the next revision."""

    client: str | None
    protocol: int = Field(ge=0, le=255)
    client_address: str
    client_port: int | None = Field(None, description="null for ICMP")
    remote_address: str
    remote_port: int | None = None
    stage: FlowStage
    idle_s: float = Field(ge=0, description="since its last packet, to within a second")
    rule_id: str | None = Field(
        None, description="null: no rule, but the default action or the gateway's own DNS"
    )
    rule_line: int | None = None
    revision: int = Field(description="of the policy that judged it last")


class FlowNewsKind(StrEnum):
    """What happened. ``LOST``: the reader was too slow, and ``lost`` events are missing here."""

    ALLOWED = "allowed"
    DENIED = "denied"
    LOST = "lost"


class FlowNews(Answer):
    """A new flow or a denial (a line of ``GET /v1/flows/events``)."""

    kind: FlowNewsKind
    ts: AwareDatetime
    client: str | None = Field(None, description="null: nobody's address")
    direction: str | None = Field(None, description="up (from the client) or down")
    source: str | None = None
    destination: str | None = None
    protocol: int | None = None
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    reason: str | None = Field(None, description="of a denial: the drop reason's name")
    rule_id: str | None = Field(None, description="null: no rule decided")
    rule_line: int | None = Field(None, description="where the policy file has it")
    revision: int | None = None
    suppressed: int = Field(0, ge=0, description="events of this client left out before this one")
    lost: int = Field(0, ge=0)


class FlowQuery(Request):
    """The question of ``GET /v1/flows``."""

    client: ClientName | None = None
    denied: bool = Field(False, description="the last denials instead of the open flows")
    limit: int = Field(1000, ge=1, le=100_000)


class FlowEventQuery(Request):
    """The question of ``GET /v1/flows/events``."""

    client: ClientName | None = None
    denied: bool = Field(False, description="denials only")


class FlowList(Answer):
    """``GET /v1/flows``: newest first; ``total`` is more than there are if ``limit`` cut them."""

    flows: list[FlowView] = Field(default_factory=list)
    total: int = Field(0, ge=0, description="open flows")
    denials: list[FlowNews] = Field(default_factory=list)
