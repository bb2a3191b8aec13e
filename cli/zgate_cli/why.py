"""``zgatectl why``: the policy's answer and the kernel's, side by side."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import click
from pydantic import ValidationError
from rich.text import Text
from zgate_gateway.api import schemas
from zgate_protocol.service_capsule import service_name_problem

from .client import GatewayClient
from .completion import complete_client
from .errors import BadInput, VerdictsDiffer
from .options import Invocation, gateway_command
from .output import cell, console, facts, limits_text, print_json, time_text
from .protocols import ICMP, ICMPV6, NUMBERS, WITH_PORTS, protocol_name

#: What was meant as an address: no service is called so.
_ADDRESS_LIKE = re.compile(r"[0-9.]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(%.*)?|.*/[0-9]+")
_ACTION_STYLE = {schemas.VerdictAction.ALLOW: "green", schemas.VerdictAction.DENY: "red"}


Destination = IPv4Address | IPv6Address | str
"""An address, or the name of a service."""


class DestinationType(click.ParamType[Destination]):
    """An address or a service; other names are not looked up: the client might get another one."""

    name = "destination"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Destination:
        """Return the address or the service's name, or a usage error."""
        try:
            address = ip_address(value)
        except ValueError:
            problem = service_name_problem(value)
            if problem is not None or _ADDRESS_LIKE.fullmatch(value):
                self.fail(f"{value!r} is no IP address and no service's name", param, ctx)
            return str(value)
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            self.fail(f"{value!r} has a zone, and never leaves its link", param, ctx)
        return address


class ServiceType(click.ParamType[tuple[int, int | None]]):
    """``tcp/443``, ``udp/53``, ``icmp``, ``gre`` or a protocol's number."""

    name = "service"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int | None]:
        """Return protocol and port (None for protocols without ports), or a usage error."""
        name, slash, port_text = str(value).lower().partition("/")
        protocol = NUMBERS.get(name, _number(name, 255))
        if protocol is None:
            self.fail(f"{name!r} is no protocol; use one of {', '.join(NUMBERS)} or 0-255")
        if protocol not in WITH_PORTS:
            if slash:
                self.fail(f"{name} has no ports; leave {slash}{port_text} out", param, ctx)
            return protocol, None
        port = _number(port_text, 65535)
        if port is None:
            self.fail(f"{name} needs a port from 0 to 65535, as in {name}/443", param, ctx)
        return protocol, port


@click.command()
@click.argument("client", shell_complete=complete_client)
@click.argument("destination", type=DestinationType())
@click.argument("service", metavar="[PROTO/PORT]", type=ServiceType(), required=False)
@click.option("--ipv6", "-6", "is_ipv6", is_flag=True, help="The service's IPv6 address.")
@gateway_command
def why(
    invocation: Invocation,
    *,
    client: str,
    destination: Destination,
    service: tuple[int, int | None] | None,
    is_ipv6: bool,
) -> None:
    """Would a packet of CLIENT to DESTINATION pass, and which rule says so?

    DESTINATION is an address, or a service by its name: its IPv4 address, unless --ipv6 is given.
    PROTO/PORT is tcp/443, udp/53, icmp, gre, ...; without it the question is whether a ping
    passes. The compiler's answer stands beside the loaded kernel program's; if the two differ, the
    exit code is 3.
    """
    query = _query(client, destination, service, 6 if is_ipv6 else 4)
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.why(query)
    if invocation.as_json:
        print_json(answer)
    else:
        console().print(facts(_rows(answer)))
    if not answer.agree:
        raise VerdictsDiffer(
            "the kernel does not do what the policy says",
            "load it again (zgatectl policy reload), and report this: it is a bug",
        )


def _query(
    client: str,
    destination: Destination,
    service: tuple[int, int | None] | None,
    family: int,
) -> schemas.WhyQuery:
    named = destination if isinstance(destination, str) else None
    address = None if isinstance(destination, str) else destination
    if address is not None:
        family = address.version
    protocol, port = service if service is not None else (ICMP, None)
    if protocol in {ICMP, ICMPV6}:  # whoever says icmp means the one of this family
        protocol = ICMP if family == 4 else ICMPV6
    try:
        return schemas.WhyQuery(
            client=client,
            destination=address,
            service=named,
            family=family,
            protocol=protocol,
            port=port,
        )
    except ValidationError as error:
        raise BadInput(
            "CLIENT is a name of 1 to 64 printable characters",
            "zgatectl clients lists those that the gateway knows",
        ) from error


def _rows(answer: schemas.Why) -> list[tuple[str, Text | str]]:
    who = f"{answer.client} (groups: {', '.join(answer.groups) or 'none'})"
    rows: list[tuple[str, Text | str]] = [("client", who)]
    if answer.reaches is not None:
        narrowed_to = ", ".join(answer.reaches) or "nothing"
        rows.append(("", f"its certificate narrows it to services: {narrowed_to}"))
    rows += [("packet", _packet(answer)), ("policy says", _verdict(answer.compiler))]
    if answer.kernel is not None:
        rows.append(("kernel says", _verdict(answer.kernel)))
    rows += [("", cell(_out_of_time(rule), "yellow")) for rule in answer.out_of_time]
    if answer.next_change is not None:
        rows.append(("changes", _next_change(answer.next_change)))
    if limits_text(answer.limits):
        rows.append(("limits", f"{limits_text(answer.limits)}, whatever the rules allow"))
    if not answer.agree:
        rows.append(("", cell("the kernel does not do what the policy says", "bold red")))
    if answer.kernel_note is not None:
        rows.append(("kernel" if answer.kernel is None else "", cell(answer.kernel_note, "yellow")))
    return rows


def _out_of_time(rule: schemas.RuleOutOfTime) -> str:
    what = f"rule {rule.rule_id} (line {rule.rule_line}) would {rule.action.value} it, but "
    if rule.expired_at is not None:
        return f"{what}expired at {time_text(rule.expired_at)}"
    return f"{what}does not hold before {time_text(rule.not_before)}"


def _next_change(change: schemas.NextChange) -> Text:
    text = cell(f"at {time_text(change.at)}: ")
    text.append_text(cell(change.action.value, _ACTION_STYLE[change.action]))
    by = "the default action" if change.rule_id is None else f"rule {change.rule_id}"
    return text.append_text(cell(f", {by}"))


def _packet(answer: schemas.Why) -> str:
    protocol = protocol_name(answer.protocol)
    if answer.protocol in {ICMP, ICMPV6}:
        protocol += " echo request"
    port = "" if answer.port is None else f" port {answer.port}"
    service = "" if answer.service is None else f" (service {answer.service})"
    source = answer.source or "any address"
    return f"{source} -> {answer.destination}{service}, {protocol}{port}"


def _verdict(verdict: schemas.Verdict) -> Text:
    text = cell(verdict.action.value, _ACTION_STYLE[verdict.action])
    if verdict.rule_id is not None:
        text.append_text(cell(f", rule {verdict.rule_id}"))
    elif verdict.reason in {"NONE", "POLICY_DEFAULT"}:
        text.append_text(cell(", no rule matches: the default action"))
    elif verdict.reason == "OWN_DNS":
        text.append_text(cell(", whatever the rules say: the gateway's own DNS"))
    else:
        text.append_text(cell(f", {verdict.reason}"))
    if verdict.rule_file is not None and verdict.rule_line is not None:
        text.append_text(cell(f", {verdict.rule_file}:{verdict.rule_line}"))
    if verdict.expires_at is not None:
        text.append_text(cell(f", until {time_text(verdict.expires_at)}"))
    return text.append_text(cell(f", revision {verdict.revision}"))


def _number(text: str, largest: int) -> int | None:
    if not (text.isascii() and text.isdecimal()) or len(text) > 5:
        return None
    number = int(text)
    return number if number <= largest else None
