"""Sessions, and the clients that had some."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from zgate_gateway.api.schemas.base import Answer, Counters, Limits, Request


class SessionSort(StrEnum):
    """What sessions are sorted by: names from A to Z, numbers from the largest down."""

    CLIENT = "client"
    PEER = "peer"
    AGE = "age"
    IDLE = "idle"
    RTT = "rtt"
    RATE = "rate"
    BYTES = "bytes"
    DROPS = "drops"


class SessionQuery(Request):
    """The question of ``GET /v1/sessions``: all of them, unless it says which."""

    sort: SessionSort = SessionSort.CLIENT
    reverse: bool = Field(False, description="names from Z to A, numbers from the smallest up")
    filter: str = Field(
        "",
        max_length=200,
        description="part of a name, group, virtual IP or outer address; case is no matter",
    )
    limit: int | None = Field(None, ge=1, le=100_000, description="null: all")
    offset: int = Field(0, ge=0, description="so many are left out at the beginning")
    rates: bool = Field(False, description="with bits per second, which sort=rate has anyway")


class Session(Answer):
    """One CONNECT-IP session that is up."""

    client: str
    groups: list[str] = Field(default_factory=list)
    session_id: str
    peer: str = Field(description="the client's outer UDP address and port, as seen now")
    worker: int = Field(0, ge=0, description="the process that carries its packets")
    addresses: list[str] = Field(description="virtual IPs with prefix length")
    established_at: AwareDatetime
    age_s: float = Field(ge=0)
    idle_s: float | None = Field(None, ge=0)
    rtt_ms: float | None = Field(None, ge=0)
    mtu_bytes: int = Field(description="largest inner packet that fits one datagram now")
    scope_target: str = "*"
    scope_protocol: int | None = None
    certificate_serial: str
    certificate_not_after: AwareDatetime
    counters: Counters = Field(default_factory=Counters)
    drops: dict[str, int] = Field(default_factory=dict, description="in userspace, by drop reason")
    up_bit_per_s: float | None = Field(
        None, ge=0, description="from the client, lately; null: not measured, or not long enough"
    )
    down_bit_per_s: float | None = Field(None, ge=0, description="to the client, as up_bit_per_s")


class SessionList(Answer):
    """``GET /v1/sessions``."""

    sessions: list[Session]
    total: int = Field(0, ge=0, description="sessions that are up")
    matched: int = Field(0, ge=0, description="those of them that the filter lets through")
    up_bit_per_s: float | None = Field(
        None, ge=0, description="from all clients, shown or not; null: not measured"
    )
    down_bit_per_s: float | None = Field(None, ge=0, description="to all clients")


class Ping(Answer):
    """``POST /v1/sessions/{client}/ping``: one QUIC PING, and its acknowledgement."""

    client: str
    session_id: str
    peer: str
    addresses: list[str] = Field(default_factory=list, description="virtual IPs")
    rtt_ms: float | None = Field(
        None, ge=0, description="null: no answer in time; with what the client waits with its ACK"
    )
    timeout_s: float = Field(gt=0, description="how long an answer was waited for")


class Client(Answer):
    """A client the gateway knows: it holds a lease, has a session or is named by the policy."""

    name: str
    groups: list[str] = Field(default_factory=list, description="from its last certificate")
    connected: bool
    addresses: list[str] = Field(default_factory=list, description="virtual IPs kept for it")
    in_policy: bool = Field(False, description="the policy has an entry under this very name")
    rules: int = Field(0, ge=0, description="its rules, those of its groups included")
    limits: Limits = Field(
        default_factory=Limits, description="its own, its groups', or the default ones"
    )
    created_at: AwareDatetime | None = None
    last_seen_at: AwareDatetime | None = None
    counters: Counters | None = Field(None, description="null: not known to the kernel now")


class ClientList(Answer):
    """``GET /v1/clients``."""

    clients: list[Client]


class KickRequest(Request):
    """``POST /v1/sessions/{client}/kick``."""

    reason: str = Field("", max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")


class Kick(Answer):
    """What a kick closed. The lease stays; the client may connect again."""

    client: str
    sessions_closed: int = Field(ge=0)
    addresses: list[str] = Field(default_factory=list)
