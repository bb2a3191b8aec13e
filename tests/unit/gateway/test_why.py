"""Why, of services: by name, for a narrowed client, and the gateway's own DNS.

What is asked of networks is in test_administration.py.
"""

from __future__ import annotations

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from zgate_bpf.tables import NO_RULE
from zgate_gateway.api import schemas
from zgate_gateway.api.facade import UnknownService
from zgate_gateway.policy import PolicySet
from zgate_gateway.why import why
from zgate_protocol.drop_reason import DropReason

SERVICES = {
    "pacs": (ip_address("10.101.0.1"), ip_address("fd7a:7a67:6174:66::1")),
    "echo-1": (ip_address("10.101.0.2"), ip_address("fd7a:7a67:6174:66::2")),
}
POLICY = PolicySet.parse("""\
version: "1.0"
default_action: allow
clients:
  alice:
    rules:
      - {id: imaging, type: service, action: allow, services: [pacs], ports: [104]}
      - {id: others, type: service, action: deny, services: ["*"]}
""").bound_to(SERVICES)
HELD = ip_address("10.100.0.2"), ip_address("fd7a:7a67:6174:65::2")
OWN = ip_address("10.100.0.1"), ip_address("fd7a:7a67:6174:65::1")


class Programs:
    """A kernel that passes what it is told to pass, by no rule."""

    passes = True

    def evaluate(self, packet: bytes, _: object) -> Any:
        reason = DropReason.NONE if self.passes else DropReason.POLICY_DEFAULT
        return SimpleNamespace(
            passed=self.passes, reason=reason, revision=1, rule=NO_RULE, no_offer=False
        )


def gateway(reaches: tuple[str, ...] | None = None, *, connected: bool = True) -> Any:
    identity = SimpleNamespace(groups=(), reaches=reaches)
    session = SimpleNamespace(client="alice", addresses=HELD, identity=identity)
    return SimpleNamespace(
        kernel=SimpleNamespace(
            policy_set=POLICY,
            revision=4,
            revision_of=lambda _: 4,
            programs=Programs(),
            rule=lambda *_: None,
            is_behind=lambda: None,
        ),
        store=SimpleNamespace(client=lambda _: None),
        sessions=SimpleNamespace(by_client={"alice": session} if connected else {}),
        pools=[SimpleNamespace(gateway=address) for address in OWN],
        services=SimpleNamespace(domain="zgate.internal"),
    )


def ask(asked: Any, **query: Any) -> schemas.Why:
    return why(asked, schemas.WhyQuery(client="alice", **query))


@pytest.mark.parametrize("name", ["pacs", "pacs.zgate.internal"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_service_is_asked_for_by_name(name: str, family: int) -> None:
    answer = ask(gateway(connected=False), service=name, family=family, protocol=6, port=104)
    assert answer.destination == str(SERVICES["pacs"][family == 6])
    assert (answer.service, answer.compiler.action, answer.compiler.rule_id) == (
        "pacs",
        "allow",
        "imaging",
    )
    other = ask(gateway(connected=False), service=name, family=family, protocol=6, port=105)
    assert (other.compiler.action, other.compiler.rule_id) == ("deny", "others")


@pytest.mark.parametrize(("family", "protocol"), [(4, 1), (6, 58)])
def test_icmp_is_the_family_s_own(family: int, protocol: int) -> None:
    for said in (1, 58):
        asked = ask(gateway(), service="pacs", family=family, protocol=said)
        assert asked.protocol == protocol


def test_an_address_is_given_its_service_s_name() -> None:
    assert ask(gateway(), destination="10.101.0.2", protocol=6, port=7).service == "echo-1"
    assert ask(gateway(), destination="10.101.0.3", protocol=6, port=7).service is None


@pytest.mark.parametrize("name", ["wiki", "pacs.example", "zgate.internal", "*"])
def test_a_service_that_nobody_knows(name: str) -> None:
    with pytest.raises(UnknownService, match="no service is called"):
        ask(gateway(), service=name, protocol=6, port=1)


def test_a_certificate_that_narrows_is_reckoned_with() -> None:
    free, narrowed = gateway(), gateway(("echo-1",))
    query = {"service": "pacs", "protocol": 6, "port": 104}
    assert ask(free, **query).compiler.action == "allow"
    answer = ask(narrowed, **query)
    assert (answer.compiler.action, answer.compiler.rule_id) == ("deny", "others")
    assert answer.reaches == ["echo-1"]
    elsewhere = {"destination": "192.0.2.1", "protocol": 6, "port": 80}
    assert ask(free, **elsewhere).compiler.action == "allow"  # default_action
    assert ask(narrowed, **elsewhere).compiler.action == "deny"


@pytest.mark.parametrize("address", OWN)
@pytest.mark.parametrize("protocol", [6, 17])
def test_the_gateway_s_own_dns_needs_no_rule(address: Any, protocol: int) -> None:
    asked = gateway(())  # narrowed to nothing
    answer = ask(asked, destination=str(address), protocol=protocol, port=53)
    assert answer.kernel is not None and answer.agree
    for verdict in (answer.compiler, answer.kernel):
        assert (verdict.action, verdict.reason) == ("allow", "OWN_DNS")
    asked.kernel.programs.passes = False
    refused = ask(asked, destination=str(address), protocol=protocol, port=53)
    assert not refused.agree and refused.kernel is not None
    assert refused.kernel.reason == "POLICY_DEFAULT"
    other = ask(asked, destination=str(address), protocol=protocol, port=5353)
    assert (other.compiler.reason, other.agree) == ("POLICY_DEFAULT", True)


@pytest.mark.parametrize(
    "query",
    [
        {"protocol": 6},
        {"protocol": 6, "service": "pacs", "destination": "10.0.0.1"},
        {"protocol": 6, "service": "pacs", "family": 5},
    ],
)
def test_a_question_has_one_destination(query: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        schemas.WhyQuery(client="alice", **query)
