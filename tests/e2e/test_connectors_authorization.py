"""Who may offer what: by certificate, by policy, by nothing else; each refusal has its code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from e2e_support.service_world import (
    POLICY,
    ServiceWorld,
    common_services,
    service,
    who_answers,
)
from zgate_lab.backend_server import NAME_PORT
from zgate_lab.process import Process
from zgate_lab.waiting import wait_until


@pytest.fixture
def world(service_world: ServiceWorld) -> Iterator[ServiceWorld]:
    service_world.stop_all()
    yield service_world
    service_world.stop_all()


def answers(world: ServiceWorld, name: str, process: Process) -> dict[str, dict[str, Any]]:
    """What a connector was answered, by service."""

    def told() -> dict[str, dict[str, Any]]:
        (gateway,) = world.connectors.status(name).get("gateways") or [{}]
        return {one["name"]: one for one in gateway.get("answers", ())}

    return process.wait_for(told, 15.0, "answers to its registration")


def who(world: ServiceWorld, name: str, number: int = 1) -> Any:
    return service(name, "tcp", [NAME_PORT], str(world.sites[number - 1].backend.ipv4))


def test_what_neither_certificate_nor_policy_names_is_refused(world: ServiceWorld) -> None:
    process = world.connectors.spawn(
        "stranger",
        world.sites[0].connector,
        services=[who(world, "who"), who(world, "extra-only")],
    )
    told = answers(world, "stranger", process)
    assert told["extra-only"]["code"] == "accepted"
    assert told["who"]["code"] == "not_authorized"
    assert told["who"]["text"], "it says why"
    record = world.zgate.wait_audit("offer_refused", client="stranger", offer="who")
    assert record["code"] == "not_authorized"
    # Refused is without any effect, and what was accepted works.
    world.connectors.wait_offering("stranger")
    assert who_answers(world.alice, world.vip("extra-only")) == "hospital1"
    with pytest.raises(OSError):
        who_answers(world.alice, world.vip("who"), timeout_s=2.0)
    assert "not_authorized" in world.zgate.run(
        "--socket", str(world.zgate.socket), "connectors"
    ).replace(" ", "_")


def test_a_certificate_for_all_and_a_policy_for_some(world: ServiceWorld) -> None:
    world.start_both()
    for name in ("east", "west"):
        told = answers(world, name, world.connectors.processes[name])
        assert {one["code"] for one in told.values()} == {"accepted"}


def test_an_agent_that_offers_a_service_gets_nothing(world: ServiceWorld) -> None:
    """The same kind of certificate: what is in it and in the policy makes a connector."""
    world.zgate.agents["bob"].stop()
    try:
        process = world.connectors.spawn(
            "bob", world.sites[0].connector, services=[who(world, "who")]
        )
        assert answers(world, "bob", process)["who"]["code"] == "not_authorized"
        world.connectors.stop("bob")
    finally:
        world.zgate.start_agent("bob", world.internet.device2)


def test_rights_that_the_policy_takes_away_end_at_once(world: ServiceWorld) -> None:
    world.connectors.start("west", world.sites[1].connector, services=[who(world, "who", 2)])
    assert who_answers(world.alice, world.vip("who")) == "hospital2"
    try:
        world.zgate.policy_file.write_text(POLICY.replace('[web, who, "echo*"]', "[web]"))
        world.zgate.ask("policy", "reload")
        wait_until(
            lambda: (
                not any(
                    one["state"] == "up"
                    for one in world.connectors.seen("west").get("services", ())
                )
            ),
            5.0,
            "the offer to be taken away",
        )
        with pytest.raises(OSError):
            who_answers(world.alice, world.vip("who"), timeout_s=2.0)
    finally:
        world.zgate.policy_file.write_text(POLICY)
        world.zgate.ask("policy", "reload")


def test_a_connector_begins_nothing_with_a_client(world: ServiceWorld) -> None:
    """Its own virtual IP has no more rights than any client's without rules."""
    world.connectors.start(
        "west", world.sites[1].connector, services=common_services(world.sites[1])
    )
    assert who_answers(world.alice, world.vip("who")) == "hospital2"
    counters = world.zgate.counters("alice")
    assert counters["down_packets"] > 0
    assert not world.zgate.audit("flow_allowed", client="west")
