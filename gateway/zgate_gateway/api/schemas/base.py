"""What all answers and requests share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: X.520 bounds a Common Name to 64 characters; control characters would corrupt a terminal.
MAX_CLIENT_NAME_CHARS = 64
#: A day: whoever waits longer needs no deadline.
MAX_DRAIN_S = 86_400
#: A policy of 10,000 clients with 20 rules each is about 40 MiB of YAML.
MAX_POLICY_CHARS = 64 * 1024 * 1024
ClientName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=MAX_CLIENT_NAME_CHARS, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$"
    ),
]


class Answer(BaseModel):
    """What the gateway answers. Frozen; unknown keys are ignored when read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Request(BaseModel):
    """What a caller sends. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewayState(StrEnum):
    """Where the daemon is in its life. Only ``READY`` takes new sessions."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


class VerdictAction(StrEnum):
    """What a verdict does with a packet."""

    ALLOW = "allow"
    DENY = "deny"


class Severity(StrEnum):
    """How much a policy finding matters. ``ERROR`` keeps the policy from being loaded."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Counters(Answer):
    """What the kernel counted for one client. Up is from the client, down is to it.

    Segments of a super-packet count as packets; bytes are inner IP bytes.
    """

    up_packets: int = Field(0, ge=0)
    up_bytes: int = Field(0, ge=0)
    down_packets: int = Field(0, ge=0)
    down_bytes: int = Field(0, ge=0)
    dropped_packets: int = Field(0, ge=0)


class Limits(Answer):
    """What a client may do per second; null: unlimited."""

    bandwidth_mbit: int | None = Field(None, description="10**6 bits per second, up and down each")
    new_flows_per_s: int | None = None


class Probe(Answer):
    """``GET /health`` (the process answers) and ``GET /ready`` (it takes new sessions)."""

    ok: bool
    state: GatewayState
    because: list[str] = Field(default_factory=list, description="what is missing, and why")
    checks: dict[str, bool] = Field(
        default_factory=dict, description="of /ready: what new sessions need, and if it is there"
    )


class Problem(Answer):
    """An error (RFC 9457 ``application/problem+json``) with its cause and its cure."""

    type: str = "about:blank"
    title: str
    status: int
    cause: str
    cure: str
