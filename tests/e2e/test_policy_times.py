"""Rules that begin and end by themselves, with packets, and no reload."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from e2e_support.world import ECHO_PORT, POLICY, World
from zgate_lab.echo import UdpClient, UdpEcho
from zgate_lab.waiting import SLOWNESS

WITHIN = timedelta(seconds=1)
#: By so much the kernel's coarse clock may be off, and a question may be under way.
TICK = timedelta(seconds=0.05)
#: Two command lines start meanwhile.
SOON = timedelta(seconds=6 * SLOWNESS)
ALICE_UDP = "      - id: allow-office-udp\n"


@pytest.fixture
def restored(world: World) -> Iterator[World]:
    """The world, with its own policy in force again afterwards."""
    yield world
    world.zgate.policy_file.write_text(POLICY)
    world.zgate.ask("policy", "reload")


def load(world: World, key: str, at: datetime) -> int:
    """Give alice's UDP rule a time; the revision in force then."""
    rule = f"{ALICE_UDP}        {key}: {at.isoformat()}\n"
    world.zgate.policy_file.write_text(POLICY.replace(ALICE_UDP, rule))
    revision: int = world.zgate.ask("policy", "reload")["summary"]["revision"]
    return revision


@dataclass(frozen=True)
class Asked:
    """A question: when it was sent, and when its answer came or was given up."""

    sent: datetime
    known: datetime


def ask_until(client: UdpClient, end: datetime) -> tuple[list[Asked], list[Asked]]:
    """Ask again and again; the questions that were answered, and the others."""
    answered, unanswered = [], []
    for number in range(10_000):
        sent = datetime.now(UTC)
        if sent > end:
            break
        payload = b"%d" % number
        answer = client.ask(payload, timeout_s=0.2)
        with suppress(TimeoutError):
            while answer not in (payload, None):  # too late, to an earlier question
                answer = client.socket.recv(100)
        kept = answered if answer == payload else unanswered
        kept.append(Asked(sent, datetime.now(UTC)))
        time.sleep(0.02)
    return answered, unanswered


def why(world: World) -> dict[str, Any]:
    office = str(world.internet.office.ipv4)
    answer: dict[str, Any] = world.zgate.ask("why", "alice", office, f"udp/{ECHO_PORT}")
    assert answer["agree"] is True
    return answer


def test_access_ends_for_an_open_flow(restored: World) -> None:
    office = restored.internet.office
    with UdpEcho(office, ECHO_PORT), UdpClient(restored.alice, office.ipv4, ECHO_PORT) as client:
        ends = datetime.now(UTC) + SOON
        revision = load(restored, "expires_at", ends)
        assert why(restored)["kernel"]["action"] == "allow"
        answered, _ = ask_until(client, ends + WITHIN + WITHIN)
        assert len(answered) > 1  # the flow was open
        assert max(one.sent for one in answered) < ends + WITHIN
        after = why(restored)
        port = client.socket.getsockname()[1]
    assert (after["kernel"]["action"], after["kernel"]["revision"]) == ("deny", revision)
    told = restored.zgate.ask("flows", "--denied", "--client", "alice")["denials"]
    denied = next(one for one in told if one["source_port"] == port)
    assert (denied["reason"], denied["revision"]) == ("POLICY_DEFAULT", revision)


def test_access_begins(restored: World) -> None:
    office = restored.internet.office
    with UdpEcho(office, ECHO_PORT), UdpClient(restored.alice, office.ipv4, ECHO_PORT) as client:
        begins = datetime.now(UTC) + SOON
        revision = load(restored, "not_before", begins)
        assert why(restored)["kernel"]["action"] == "deny"
        answered, unanswered = ask_until(client, begins + WITHIN + WITHIN)
        assert min(one.sent for one in unanswered) < begins - TICK
        assert begins - TICK < min(one.known for one in answered)
        assert min(one.sent for one in answered) < begins + WITHIN
        after = why(restored)["kernel"]
    assert (after["action"], after["rule_id"]) == ("allow", "allow-office-udp")
    assert after["revision"] == revision


def test_more_ends_than_the_kernel_holds_at_a_time(restored: World) -> None:
    """Ten rules, one port each, one after the other; the kernel is given the last ones on the way.

    What it holds at first has room for seven ends, and lets nothing through behind them that is
    not for good.
    """
    office, count, apart = restored.internet.office, 10, timedelta(seconds=0.8)
    first = datetime.now(UTC) + SOON
    ends = {ECHO_PORT + number: first + number * apart for number in range(count)}
    rules = "".join(
        f"      - {{id: until-{port}, type: ip_cidr, action: allow, destinations: [10.20.0.0/24],"
        f" protocols: [udp], ports: [{port}], expires_at: {end.isoformat()}}}\n"
        for port, end in ends.items()
    )
    before = POLICY.index(ALICE_UDP)
    behind = POLICY.index("      - id: allow-office-ping")
    restored.zgate.policy_file.write_text(POLICY[:before] + rules + POLICY[behind:])
    revision = restored.zgate.ask("policy", "reload")["summary"]["revision"]
    last = ECHO_PORT + count - 1
    with UdpEcho(office, last), UdpClient(restored.alice, office.ipv4, last) as client:
        answered, _ = ask_until(client, ends[last] + WITHIN + WITHIN)
    assert ends[last - 2] < max(one.sent for one in answered) < ends[last] + WITHIN
    status = restored.zgate.gateway_status()
    assert status["policy"]["revision"] == revision
    assert f"policy revision {revision} built anew" in restored.gateway.output()
