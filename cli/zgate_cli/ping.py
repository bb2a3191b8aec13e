"""``zgatectl ping``: is a client there, and how far away?"""

from __future__ import annotations

import time

import click
from zgate_gateway.api import schemas

from .answers import PingReport
from .client import GatewayClient
from .completion import complete_client
from .durations import Seconds
from .errors import CommandError, check_client_name
from .options import Invocation, gateway_command
from .output import cell, print_json


@click.command()
@click.argument("client", shell_complete=complete_client)
@click.option(
    "--count", "-c", type=click.IntRange(1, 1_000_000), default=4, show_default=True,
    help="How many.",
)  # fmt: skip
@click.option(
    "--interval", "-i", "interval_s", type=Seconds(0.1, 3600), default=1.0,
    show_default=True, metavar="SECONDS", help="Between two of them.",
)  # fmt: skip
@gateway_command
def ping(invocation: Invocation, *, client: str, count: int, interval_s: float) -> None:
    """Measure the round trip between the gateway and CLIENT.

    The gateway sends a QUIC PING on the client's connection; what the client answers with is its
    acknowledgement. No packet goes through the tunnel, and no rule of the policy matters. Exit
    code 1 if none was answered. Ctrl-C ends it early.
    """
    check_client_name(client)
    answers: list[schemas.Ping] = []
    with GatewayClient(invocation.socket_path) as gateway:
        try:
            for number in range(count):
                if number:
                    time.sleep(interval_s)
                answers.append(gateway.ping(client))
                if not invocation.as_json:
                    click.echo(cell(_line(answers[-1], number + 1)).plain)
        except KeyboardInterrupt:
            if not answers:
                raise
    report = report_of(answers)
    if invocation.as_json:
        print_json(report)
    else:
        click.echo(_summary(report))
    if not report.received:
        raise CommandError(
            f"{client} did not answer",
            "its session ends by itself if it stays silent; see zgatectl sessions",
        )


def report_of(answers: list[schemas.Ping]) -> PingReport:
    """All of the answers in one; there is at least one."""
    last = answers[-1]
    rtts_ms = [one.rtt_ms for one in answers]
    known = [one for one in rtts_ms if one is not None]
    return PingReport(
        client=last.client,
        peer=last.peer,
        addresses=last.addresses,
        sent=len(answers),
        received=len(known),
        rtts_ms=rtts_ms,
        min_ms=min(known, default=None),
        mean_ms=sum(known) / len(known) if known else None,
        max_ms=max(known, default=None),
    )


def _line(answer: schemas.Ping, number: int) -> str:
    who = f"{answer.client} ({', '.join(answer.addresses)}) at {answer.peer}: {number}: "
    if answer.rtt_ms is None:
        return f"{who}no answer in {answer.timeout_s:g} s"
    return f"{who}{answer.rtt_ms:.2f} ms"


def _summary(report: PingReport) -> str:
    text = f"{report.sent} sent, {report.received} answered"
    if report.mean_ms is None:
        return text
    times = f"{report.min_ms:.2f} / {report.mean_ms:.2f} / {report.max_ms:.2f}"
    return f"{text}; {times} ms (least, mean, most)"
