"""What is looked at: files, name servers, the gateway's addresses, the agent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address

import dns.exception
import dns.message
import dns.query
from zgate_agent.config import AgentConfig, DnsMode
from zgate_agent.status import AgentStatus
from zgate_config.dialling import GatewayAddress
from zgate_datapath.client import ClientConfig, TunnelError
from zgate_datapath.path_probe import PathProbe, PathReport
from zgate_host.resolve import ResolveError, resolve
from zgate_identity.files import IdentityFileError
from zgate_identity.tls_files import check_ca_file, check_client_files

from zgate_cli.answers import Finding, Verdict
from zgate_cli.findings import fail, ok, skip, warn
from zgate_cli.netcheck.judge import (
    Reach,
    judge_certificate_life,
    judge_clock,
    judge_failure,
    judge_path,
)
from zgate_cli.netcheck.nat import Observation, judge_nat

_TCP_TIMEOUT_S = 3.0
_DNS_TIMEOUT_S = 2.0
_PROBE_INTERVAL_S = 0.05
#: More gateway addresses than this say nothing new.
_MAX_ADDRESSES = 6

IpAddress = IPv4Address | IPv6Address


@dataclass(slots=True)
class Work:
    """What is to be checked, and what was found so far.

    :ivar status: the agent's; None if none answers, then `status_problem` says why.
    :ivar step: told what is looked at next.
    """

    config: AgentConfig
    probes: int
    timeout_s: float
    status: AgentStatus | None
    status_problem: str
    step: Callable[[str], None]
    findings: list[Finding] = field(default_factory=list)


STEPS = 5


def check_everything(work: Work) -> list[Finding]:
    """All checks; nothing on this device changes."""
    work.step("the agent")
    work.findings += check_agent(work)
    work.step("the certificate")
    files = check_identity(work.config)
    work.findings += files
    asyncio.run(_check_paths(work, has_identity=_is_good(files)))
    work.step("names")
    work.findings += check_names(work)
    return work.findings


def _is_good(findings: list[Finding]) -> bool:
    return all(one.verdict in {Verdict.OK, Verdict.WARN} for one in findings)


# The agent.


def check_agent(work: Work) -> Iterator[Finding]:
    """Whether it runs, and what it says."""
    status, title = work.status, "agent"
    if status is None:
        yield skip("agent", title, work.status_problem, "zgate-agent run, if it should run")
        return
    if status.is_connected:
        where = f"{status.gateway_address or status.gateway}, as {', '.join(status.addresses)}"
        yield ok("agent", title, f"connected to {where}", reconnects=status.reconnects)
    else:
        text = f"{status.state.value}: {status.reason or 'no session yet'}"
        yield fail("agent", title, text, "see what else is wrong below; then its log")
    for note in status.notes:
        yield warn("agent_note", "agent", note, "see docs/operations.md")


# Files.


def check_identity(config: AgentConfig) -> list[Finding]:
    """The certificate, its key, the authority."""
    now = datetime.now(UTC)
    try:
        check_ca_file(config.ca, now)
        found = check_client_files(config.certificate, config.key, now)
    except IdentityFileError as error:
        fix = (
            "run zgatectl netcheck as the agent's user"
            if _is_denied(error)
            else ("have the certificate issued anew, with its key and the CA's certificate")
        )
        return [fail("certificate", "own certificate", str(error), fix)]
    lifetime = found.leaf.not_valid_after_utc - found.leaf.not_valid_before_utc
    return [judge_certificate_life(found.time_left, lifetime)]


def _is_denied(error: IdentityFileError) -> bool:
    return isinstance(error.__cause__, PermissionError)


# The paths.


async def _check_paths(work: Work, *, has_identity: bool) -> None:
    work.step("the gateway's name")
    targets = []
    for gateway in work.config.all_gateways:
        try:
            async with asyncio.timeout(work.timeout_s):
                found = await resolve(gateway.host)
        except (ResolveError, TimeoutError) as error:
            text = str(error) or f"cannot resolve {gateway.host}: no answer in time"
            fix = "see /etc/resolv.conf; write the gateway's address into the configuration"
            work.findings.append(fail("resolve", "gateway's name", text, fix))
            continue
        if gateway.host != str(found[0]):
            shown = ", ".join(map(str, found))
            work.findings.append(ok("resolve", "gateway's name", f"{gateway.host} is {shown}"))
        targets += [(gateway, address) for address in found]
    work.step("the path")
    reports: list[PathReport] = []
    # The same port towards all of a family's: that is what shows a NAT's mapping.
    ports: dict[int, int] = {}
    for gateway, address in targets[:_MAX_ADDRESSES]:
        report = await _check_path(
            work, gateway, address, ports.get(address.version, 0), has_identity=has_identity
        )
        if report is not None:
            reports.append(report)
            ports.setdefault(address.version, report.local_address[1])
    if reports:
        work.findings.append(judge_nat(await _observations(work, targets, reports)))
        work.findings.append(judge_clock(reports))


async def _check_path(
    work: Work, gateway: GatewayAddress, address: IpAddress, port: int, *, has_identity: bool
) -> PathReport | None:
    where = str(GatewayAddress(str(address), gateway.port))
    is_ipv6 = address.version == 6
    config = _client_config(work.config, gateway, address, port, has_identity=has_identity)
    try:
        report = await _measure(config, work.probes, work.timeout_s)
    except TunnelError as error:
        reach = await _reach(str(address), gateway.port)
        found = list(judge_failure(where, error, reach))
        if not has_identity:
            found = [one for one in found if one.name != "admission"]
        if is_ipv6 and "unreachable" in str(error).lower():
            # Most networks have no IPv6; the gateway's other address is there for them.
            found = [skip("udp_ipv6", "udp", f"{where}: this network has no IPv6")]
        work.findings += found
        return None
    work.findings += judge_path(where, report, is_ipv6=is_ipv6)
    return report


async def _measure(config: ClientConfig, probes: int, timeout_s: float) -> PathReport:
    probe = PathProbe(config)
    return await probe.measure(probes=probes, interval_s=_PROBE_INTERVAL_S, timeout_s=timeout_s)


def _client_config(
    config: AgentConfig,
    gateway: GatewayAddress,
    address: IpAddress,
    port: int,
    *,
    has_identity: bool,
) -> ClientConfig:
    return ClientConfig(
        host=str(address),
        port=gateway.port,
        server_name=config.expected_name_of(gateway),
        ca_file=str(config.ca),
        # Without one the gateway refuses us, but it answers.
        certificate_file=str(config.certificate) if has_identity else "",
        key_file=str(config.key) if has_identity else "",
        engine="python",
        local_port=port,
    )


async def _observations(
    work: Work, targets: list[tuple[GatewayAddress, IpAddress]], reports: list[PathReport]
) -> list[Observation]:
    """Where the gateway sees us; from one more port, too, if there was only one path."""
    found = list(reports)
    if len(reports) == 1:
        gateway, address = next(
            (g, a) for g, a in targets if str(a) == str(reports[0].gateway_address[0])
        )
        config = _client_config(work.config, gateway, address, 0, has_identity=True)
        # It has answered once; if it does not now, there is one observation less.
        with contextlib.suppress(TunnelError):
            found.append(await _measure(config, 1, work.timeout_s))
    families = [":" in str(one.local_address[0]) for one in found]
    wanted = not all(families)  # IPv4 if there is any: IPv6 is seldom translated
    return [
        Observation(
            (str(one.local_address[0]), int(one.local_address[1])),
            (str(one.gateway_address[0]), int(one.gateway_address[1])),
            (str(one.observed.address), one.observed.port),
        )
        for one, is_ipv6 in zip(found, families, strict=True)
        if one.observed is not None and is_ipv6 is not wanted
    ]


async def _reach(host: str, port: int) -> Reach:
    """Whether the host answers to TCP: a refusal is an answer."""
    try:
        async with asyncio.timeout(_TCP_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return Reach("timeout")
    except ConnectionRefusedError:
        return Reach("refused")
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        return Reach(f"{error.strerror or error} {name}".strip())
    writer.close()
    return Reach("open")


# Names.


def check_names(work: Work) -> Iterator[Finding]:
    """Whether names of services are asked from the gateway, and answered."""
    title, status = "names", work.status
    if work.config.dns is DnsMode.OFF:
        yield skip("dns", title, "names of services are not asked for (dns: off)")
        return
    if status is None or not status.is_connected:
        yield skip("dns", title, "the gateway's name servers are asked through the tunnel only")
        return
    if not status.dns.domains:
        yield warn(
            "dns", title, "the gateway has named no domain", "see services.domain of the gateway"
        )
        return
    domain = status.dns.domains[0]
    answered = [server for server in status.dns.servers if _answers(server, domain)]
    text = f"*.{domain} from {', '.join(status.dns.servers)}, by {status.dns.method.value}"
    if not answered:
        yield fail(
            "dns", title, f"{text}: no answer",
            "does the tunnel carry anything (ping the server's address)? See the gateway's status",
        )  # fmt: skip
    elif status.dns.method.value == "none":
        fix = "see the agent's notes: it could not change how this host resolves names"
        yield warn("dns", title, f"{text}: programs do not ask there", fix)
    else:
        yield ok("dns", title, text)


def _answers(server: str, domain: str) -> bool:
    """Whether a name server says anything at all, and be it no."""
    question = dns.message.make_query(domain, "SOA")
    try:
        dns.query.udp(question, server, timeout=_DNS_TIMEOUT_S)
    except (dns.exception.DNSException, OSError, socket.gaierror):
        return False
    return True
