"""The words of the administration API: what a request may say and what an answer holds.

``zgatectl``, the control API and a dashboard share these models. Requests refuse unknown keys;
answers ignore them when read, so that an older ``zgatectl`` understands a newer gateway.
Times are UTC with an offset; durations and sizes carry their unit in their name.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyAddress,
    StringConstraints,
    model_validator,
)

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


# --- counters and parts ---------------------------------------------------------------------------


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


class PoolUse(Answer):
    """One family's address pool."""

    family: int = Field(description="4 or 6", ge=4, le=6)
    network: str
    gateway: str
    capacity: int = Field(description="addresses that clients can hold", ge=0)
    leased: int = Field(description="addresses that belong to a client, connected or not", ge=0)
    connected: int = Field(description="leased addresses whose client is connected now", ge=0)


class PolicySummary(Answer):
    """The policy in force. Revision 0 is the deny-all policy of a gateway without a policy file."""

    revision: int = Field(ge=0)
    source: str | None = Field(None, description="policy file; null: no file, everything is denied")
    sha256: str | None = None
    loaded_at: AwareDatetime | None = None
    default_action: VerdictAction = VerdictAction.DENY
    clients: int = Field(0, ge=0)
    groups: int = Field(0, ge=0)
    rules: int = Field(0, ge=0)
    kernel_policies: int = Field(0, ge=0, description="distinct rule lists loaded into the kernel")
    not_in_force_because: str | None = Field(
        None, description="why what the policy file says now was refused; null: it was not"
    )


class Alert(Answer):
    """Something that somebody should look at, as long as it lasts."""

    name: str = Field(description="map_flows, ...; the label of zgate_alert")
    text: str = Field(description="what it is, and what helps")
    since: AwareDatetime


class MapUse(Answer):
    """How full one kernel table is."""

    used: int = Field(ge=0)
    size: int = Field(ge=0)


class AuditState(Answer):
    """The audit log's own health. ``lost`` above zero means records are missing from the file."""

    path: str
    written: int = Field(0, ge=0)
    lost: int = Field(0, ge=0)
    last_error: str | None = None


class DnsState(Answer):
    """The responder for names of services, at the gateway's virtual IPs."""

    domain: str = Field(description="services have names under it")
    problem: str | None = Field(None, description="why not every address is answered at")
    queries: dict[str, int] = Field(default_factory=dict, description="by what became of them")


class EdgeState(Answer):
    """The XDP program before the UDP port, and whether new clients have to prove their address."""

    mode: str = Field("off", description="native (in the driver), generic, or off")
    interface: str | None = None
    note: str | None = Field(None, description="why it is off, or not in the driver")
    passed: dict[str, int] = Field(
        default_factory=dict, description="packets to the port that it let through, by kind"
    )
    dropped: dict[str, int] = Field(default_factory=dict, description="packets, by reason")
    blocked: int = Field(0, ge=0, description="networks in the blocklist")
    blocklist_problem: str | None = Field(
        None, description="why the blocklist's file as it is now is not in force"
    )
    retry_active: bool = Field(False, description="a first packet now is answered with Retry")


class EventState(Answer):
    """The kernel's event ring: flow records that did not reach the audit log, and why."""

    received: int = Field(0, ge=0)
    lost: int = Field(0, ge=0, description="the ring buffer was full")
    suppressed: int = Field(0, ge=0, description="rate limited per client, in the kernel")


# --- answers --------------------------------------------------------------------------------------


class Worker(Answer):
    """A process that carries packets."""

    worker: int = Field(ge=0, description="its number")
    pid: int | None = Field(description="null: it has ended, and is being started again")
    sessions: int = Field(0, ge=0)
    restarts: int = Field(0, ge=0, description="since the gateway's start")
    misdirected_packets: int = Field(0, ge=0, description="of another worker's sessions; lost")


class Status(Answer):
    """The gateway at a glance (``GET /v1/status``)."""

    version: str
    state: GatewayState
    not_ready_because: list[str] = Field(default_factory=list)
    started_at: AwareDatetime
    uptime_s: float = Field(ge=0)
    pid: int = Field(gt=0)
    listen: list[str] = Field(description="UDP address:port, one per socket")
    engine: str
    workers: list[Worker] = Field(default_factory=list)
    tun_name: str
    tun_mtu_bytes: int
    sessions: int = Field(ge=0)
    sessions_max: int = Field(ge=0)
    sessions_total: int = Field(0, ge=0, description="established since start")
    sessions_refused: dict[str, int] = Field(default_factory=dict, description="by reason")
    services: int = Field(0, ge=0, description="services that the gateway knows")
    services_up: int = Field(0, ge=0, description="those of them that take new flows")
    connectors: int = Field(0, ge=0)
    networks: int = Field(0, ge=0, description="networks behind connectors")
    pools: list[PoolUse] = Field(default_factory=list)
    policy: PolicySummary
    alerts: list[Alert] = Field(default_factory=list)
    kernel_maps: dict[str, MapUse] = Field(default_factory=dict)
    kernel_events: EventState = Field(default_factory=EventState)
    drops: dict[str, int] = Field(default_factory=dict, description="packets, by drop reason")
    audit: AuditState | None = None
    edge: EdgeState | None = None
    dns: DnsState | None = None


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


class SessionList(Answer):
    """``GET /v1/sessions``."""

    sessions: list[Session]


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


class OfferState(StrEnum):
    """What becomes of flows to an offer. ``UP``: it takes new ones. ``KEEP``: it keeps those that
    it has. ``GONE``: they choose another.
    """

    UP = "up"
    KEEP = "keep"
    GONE = "gone"


class OfferHealth(StrEnum):
    """Whether a service's backend answers, as the connector says; ``UNKNOWN``: not said yet."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class ServiceOffer(Answer):
    """One connector's offer of one service; counts are the connector's own."""

    name: str = Field(description="the service")
    connector: str
    state: OfferState
    health: OfferHealth
    reason: str = Field("", description="why it is not healthy")
    offered_at: AwareDatetime
    changed_at: AwareDatetime = Field(description="since when state and health are these")
    ports: list[str] = Field(default_factory=list, description="tcp/104, udp/5000-5010")
    addresses: list[str] = Field(
        default_factory=list, description="that the connector serves it at; nobody else sees them"
    )
    open_flows: int = Field(0, ge=0)
    total_flows: int = Field(0, ge=0)
    bytes_up: int = Field(0, ge=0, description="to the backend")
    bytes_down: int = Field(0, ge=0)


class RouteOffer(Answer):
    """One connector's leading to one network."""

    network: str
    connector: str
    state: OfferState
    active: bool = Field(description="it leads there now; else it stands by")
    changed_at: AwareDatetime | None = Field(
        None, description="since when whoever leads there does"
    )


class RefusedOffer(Answer):
    """What a connector wants, and may not or cannot have."""

    kind: str = Field(description="service or route")
    name: str
    code: str = Field(description="not_authorized, invalid, no_address, overlap, limit, internal")
    text: str


class DrainState(Answer):
    """A connector that gets no new flows."""

    since: AwareDatetime
    deadline_at: AwareDatetime | None = Field(
        None, description="when it loses the flows that it has; null: never"
    )
    is_over: bool = Field(False, description="the deadline has passed")


class Service(Answer):
    """A service that the gateway knows by name."""

    name: str
    addresses: list[str] = Field(description="its virtual IPs, for good")
    dns_name: str | None = Field(None, description="null: its name is none that DNS knows")
    state: OfferState = Field(description="of the best offer; gone: nobody offers it now")
    offers: list[ServiceOffer] = Field(default_factory=list)


class ServiceList(Answer):
    """``GET /v1/services``."""

    services: list[Service]


class Connector(Answer):
    """A client that offers something, or that is drained and not connected."""

    name: str
    connected: bool
    session_id: str | None = None
    peer: str | None = None
    since: AwareDatetime | None = Field(None, description="when its session began")
    silent: bool = Field(False, description="nothing is heard of it, though it has a session")
    drain: DrainState | None = None
    services: list[ServiceOffer] = Field(default_factory=list)
    routes: list[RouteOffer] = Field(default_factory=list)
    refused: list[RefusedOffer] = Field(default_factory=list)
    open_flows: int = Field(0, ge=0)
    bytes_up: int = Field(0, ge=0)
    bytes_down: int = Field(0, ge=0)


class ConnectorList(Answer):
    """``GET /v1/connectors``."""

    connectors: list[Connector]


class Drain(Answer):
    """How a connector's drain goes (``POST /v1/connectors/{name}/drain``)."""

    connector: str
    connected: bool
    drain: DrainState | None = Field(description="null: it is drained no more")
    open_flows: int = Field(ge=0, description="flows that it has")


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
    rule_id: str | None = Field(None, description="null: the default action")
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


class DrainRequest(Request):
    """The body of ``POST /v1/connectors/{name}/drain``."""

    undo: bool = Field(False, description="give it new flows again")
    deadline_s: float | None = Field(
        None, ge=0, le=MAX_DRAIN_S, description="then it loses the flows that it has; null: never"
    )


class KickRequest(Request):
    """``POST /v1/sessions/{client}/kick``."""

    reason: str = Field("", max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")


class Kick(Answer):
    """What a kick closed. The lease stays; the client may connect again."""

    client: str
    sessions_closed: int = Field(ge=0)
    addresses: list[str] = Field(default_factory=list)


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


class Probe(Answer):
    """``GET /health`` (the process answers) and ``GET /ready`` (it takes new sessions)."""

    ok: bool
    state: GatewayState
    because: list[str] = Field(default_factory=list)


class Problem(Answer):
    """An error (RFC 9457 ``application/problem+json``) with its cause and its cure."""

    type: str = "about:blank"
    title: str
    status: int
    cause: str
    cure: str


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


PolicyView.model_rebuild()
