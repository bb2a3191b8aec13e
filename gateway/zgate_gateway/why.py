"""Why a packet goes where it goes: the compiler's answer beside the loaded program's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from zgate_bpf.kernel_policy import Direction
from zgate_bpf.tables import NO_RULE, Action
from zgate_protocol.drop_reason import DropReason

from zgate_gateway.api import schemas
from zgate_gateway.api.facade import UnknownClient, UnknownService
from zgate_gateway.api.policy_report import action_of, limits_in
from zgate_gateway.policy.policy_set import Explanation, NextChange
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import ICMP, ICMPV6, TCP, UDP, IpAddress
from zgate_gateway.probe_packet import build_probe_packet
from zgate_gateway.registry import SessionRecord

if TYPE_CHECKING:
    from zgate_gateway.daemon import Gateway

DNS_PORT = 53
#: The reason of a verdict that no rule gave: questions to the gateway's own DNS responder.
_OWN_DNS = "OWN_DNS"
#: The kernel's coarse clock is behind by a tick at most: 10 ms where HZ is 100.
_KERNEL_TICK = timedelta(milliseconds=10)


@dataclass(frozen=True, slots=True)
class _Packet:
    """What is asked about, and for whom."""

    client: str
    session: SessionRecord | None
    groups: tuple[str, ...]
    reaches: tuple[str, ...] | None
    destination: IpAddress
    service: str | None
    protocol: int
    port: int | None


@dataclass(frozen=True, slots=True)
class _KernelsAnswer:
    """The verdict of the loaded program, or why it could not be asked."""

    verdict: schemas.Verdict | None
    note: str | None
    source: IpAddress | None = None


def why(gateway: Gateway, query: schemas.WhyQuery) -> schemas.Why:
    """Answer. Raises UnknownClient, UnknownService."""
    packet = _packet(gateway, query)
    policy_set = gateway.kernel.policy_set
    began = datetime.now(UTC) - _KERNEL_TICK
    kernel = _ask_kernel(gateway, packet)
    # A rule may begin or end while the two are asked: then both answers are right.
    for at in (datetime.now(UTC), began):
        explained = policy_set.explain(
            packet.client,
            packet.groups,
            packet.destination,
            packet.protocol,
            packet.port,
            at=at,
            reaches=packet.reaches,
        )
        compiler = _compilers_verdict(gateway, packet, explained)
        agree = kernel.verdict is None or _same(kernel.verdict, compiler)
        if agree:
            break
    return schemas.Why(
        client=packet.client,
        groups=list(packet.groups),
        reaches=None if packet.reaches is None else list(packet.reaches),
        connected=packet.session is not None,
        source=None if kernel.source is None else str(kernel.source),
        destination=str(packet.destination),
        service=packet.service,
        protocol=packet.protocol,
        port=packet.port,
        compiler=compiler,
        kernel=kernel.verdict,
        kernel_note=kernel.note,
        agree=agree,
        at=at,
        out_of_time=[_out_of_time(rule, at) for rule in explained.out_of_time],
        next_change=_next_change(explained.next_change),
        limits=limits_in(policy_set.limits_for(packet.client, packet.groups)),
    )


def _packet(gateway: Gateway, query: schemas.WhyQuery) -> _Packet:
    session = gateway.sessions.by_client.get(query.client)
    policy_set = gateway.kernel.policy_set
    record = gateway.store.client(query.client)
    if session is None and record is None and query.client not in policy_set.clients:
        raise UnknownClient(
            f"no client is called {query.client}",
            "zgatectl clients lists those that the gateway knows",
        )
    groups = session.identity.groups if session else record.groups if record else ()
    destination, protocol = query.destination, query.protocol
    if destination is None:
        destination = _virtual_ip(gateway, query.service or "", query.family)
        if protocol in {ICMP, ICMPV6}:  # whoever says icmp means the one of this family
            protocol = ICMP if query.family == 4 else ICMPV6
    return _Packet(
        client=query.client,
        session=session,
        groups=groups,
        reaches=session.identity.reaches if session else None,
        destination=destination,
        service=_service_at(gateway, destination),
        protocol=protocol,
        port=query.port,
    )


def _virtual_ip(gateway: Gateway, service: str, family: int) -> IpAddress:
    """The address of a service, which may be called by its DNS name."""
    services = gateway.kernel.policy_set.services
    label = service.removesuffix(f".{gateway.services.domain}")
    for address in services.get(service, services.get(label, ())):
        if address.version == family:
            return address
    raise UnknownService(
        f"no service is called {service}",
        "zgatectl services lists those that there are; look the name of a host up first",
    )


def _service_at(gateway: Gateway, destination: IpAddress) -> str | None:
    services = gateway.kernel.policy_set.services
    return next((name for name, held in services.items() if destination in held), None)


def _is_own_dns(gateway: Gateway, packet: _Packet) -> bool:
    return (
        packet.port == DNS_PORT
        and packet.protocol in {TCP, UDP}
        and any(packet.destination == pool.gateway for pool in gateway.pools)
    )


def _compilers_verdict(
    gateway: Gateway, packet: _Packet, explained: Explanation
) -> schemas.Verdict:
    source = gateway.kernel.policy_set.source
    revision = gateway.kernel.revision
    if _is_own_dns(gateway, packet):
        return schemas.Verdict(
            action=schemas.VerdictAction.ALLOW, reason=_OWN_DNS, revision=revision
        )
    return _verdict(
        action=action_of(explained.action),
        reason=_reason(explained.action, by_rule=explained.rule is not None).name,
        rule=explained.rule,
        rule_file=str(source) if source else None,
        revision=revision,
    )


def _ask_kernel(gateway: Gateway, packet: _Packet) -> _KernelsAnswer:
    session = packet.session
    if session is None:
        return _KernelsAnswer(
            None, "the client is not connected: the kernel knows no address of it"
        )
    family = packet.destination.version
    source = next((a for a in session.addresses if a.version == family), None)
    if source is None:
        return _KernelsAnswer(None, f"the client holds no IPv{family} address")
    probe = build_probe_packet(source, packet.destination, packet.protocol, packet.port)
    kernel = gateway.kernel
    try:
        verdict = kernel.programs.evaluate(probe, Direction.UP)
    except (OSError, RuntimeError) as error:
        return _KernelsAnswer(None, f"the kernel could not be asked: {error}", source)
    rule = kernel.rule(session.client, verdict.revision, verdict.rule)
    source_file = kernel.policy_set.source
    reason = DropReason(verdict.reason).name
    answer = _verdict(
        action=action_of(Action.ALLOW if verdict.passed else Action.DENY),
        reason=_OWN_DNS if verdict.passed and _is_own_dns(gateway, packet) else reason,
        rule=rule,
        rule_file=str(source_file) if rule and source_file else None,
        revision=kernel.revision_of(verdict.revision),
    )
    note = None
    if rule is None and verdict.rule != NO_RULE:
        note = f"rule {verdict.rule} of generation {verdict.revision} has no name any more"
    if verdict.no_offer:
        note = "no connector takes new flows to it now: NO_BACKEND"
    behind = kernel.is_behind()
    if behind is not None:
        note = f"{behind}: the times in the policy are being worked out anew"
    return _KernelsAnswer(answer, note, source)


def _reason(action: Action, *, by_rule: bool) -> DropReason:
    if action is Action.ALLOW:
        return DropReason.NONE
    return DropReason.POLICY_RULE if by_rule else DropReason.POLICY_DEFAULT


def _verdict(
    *,
    action: schemas.VerdictAction,
    reason: str,
    rule: Rule | None,
    rule_file: str | None,
    revision: int,
) -> schemas.Verdict:
    return schemas.Verdict(
        action=action,
        reason=reason,
        rule_id=rule.id if rule else None,
        rule_file=rule_file,
        rule_line=rule.line if rule else None,
        not_before=rule.not_before if rule else None,
        expires_at=rule.expires_at if rule else None,
        revision=revision,
    )


def _same(one: schemas.Verdict, other: schemas.Verdict) -> bool:
    return (one.action, one.rule_id, one.rule_line) == (
        other.action,
        other.rule_id,
        other.rule_line,
    )


def _out_of_time(rule: Rule, at: datetime) -> schemas.RuleOutOfTime:
    is_over = rule.is_expired(at)
    return schemas.RuleOutOfTime(
        rule_id=rule.id,
        rule_line=rule.line,
        action=action_of(rule.action),
        not_before=None if is_over else rule.not_before,
        expired_at=rule.expires_at if is_over else None,
    )


def _next_change(change: NextChange | None) -> schemas.NextChange | None:
    if change is None:
        return None
    return schemas.NextChange(
        at=change.at,
        action=action_of(change.action),
        rule_id=change.rule.id if change.rule else None,
        rule_line=change.rule.line if change.rule else None,
    )
