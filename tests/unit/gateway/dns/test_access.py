"""Who may ask for what."""

from __future__ import annotations

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_gateway.dns import access
from zgate_gateway.dns.access import Access
from zgate_gateway.policy import PolicySet

SERVICES = {
    "pacs": (ip_address("10.101.0.1"), ip_address("fd7a:7a67:6174:66::1")),
    "wiki": (ip_address("10.101.0.2"), ip_address("fd7a:7a67:6174:66::2")),
}
POLICY = """\
version: "1.0"
clients:
  alice: {rules: [{id: a, type: service, action: allow, services: [pacs], ports: [104]}]}
groups:
  staff: {rules: [{id: w, type: ip_cidr, action: allow, destinations: [10.101.0.2]%s}]}
"""


class World:
    def __init__(self, text: str = POLICY % "") -> None:
        self.policy_set = PolicySet.parse(text).bound_to(SERVICES)
        self.now_s = 0.0
        self.asked = 0
        self.access = Access(
            session_at=lambda _: None,
            policy_set=lambda: self.policy_set,
            time_s=lambda: self.now_s,
        )

    def may(self, name: str, service: str, *groups: str, reaches: Any = None) -> bool:
        identity = SimpleNamespace(name=name, groups=groups, reaches=reaches)
        session: Any = SimpleNamespace(session_id=f"{name}{groups}{reaches}", identity=identity)
        found = self.access.addresses(session, service)
        assert found in ((), SERVICES.get(service))
        return bool(found)


def test_only_what_the_policy_lets_through_is_there() -> None:
    world = World()
    assert world.may("alice", "pacs") and not world.may("alice", "wiki")
    assert not world.may("bob", "pacs") and world.may("bob", "wiki", "staff")
    assert not world.may("alice", "no-such")
    assert not world.may("alice", "pacs", reaches=("wiki",))
    assert world.may("alice", "pacs", reaches=("pacs",))


def test_what_was_worked_out_is_remembered_as_long_as_the_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    real, calls = PolicySet.may_reach, []

    def may_reach(self: PolicySet, *args: Any, **kwargs: Any) -> bool:
        calls.append(args)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(PolicySet, "may_reach", may_reach)
    assert world.may("alice", "pacs") and world.may("alice", "pacs")
    for number in range(50):
        assert not world.may("alice", f"no-such-{number}")
    assert len(calls) == 1
    world.policy_set = PolicySet.parse('version: "1.0"').bound_to(SERVICES)
    assert not world.may("alice", "pacs") and len(calls) == 2
    monkeypatch.setattr(access, "_MAX_REMEMBERED", 3)
    for client in "abcdefgh":
        world.may(client, "pacs")
    assert len(world.access._known) <= 3


def test_rules_that_hold_for_a_time_are_asked_again() -> None:
    world = World(POLICY % ', expires_at: "2036-01-01T00:00:00Z"')
    assert world.may("bob", "wiki", "staff")
    known = world.access._known
    assert {one.until_s for one in known.values()} == {access._REMEMBERED_S}
    (key,) = known
    known[key] = known[key]._replace(addresses=())
    assert not world.may("bob", "wiki", "staff")  # remembered
    world.now_s = access._REMEMBERED_S
    assert world.may("bob", "wiki", "staff")
