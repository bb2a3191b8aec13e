"""What clients say that they offer: kept until there is a session, bounded in rate and number."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from zgate_gateway.offer_intake import OfferIntake, TooMuchOffered
from zgate_protocol.ip_range import IpRange
from zgate_protocol.service_capsule import (
    Health,
    OfferedService,
    OfferState,
    OfferStatus,
    Register,
    ServicePorts,
)


class Heard:
    """What the supervisor would hear."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def offer_services(self, session_id: str, register: Register) -> None:
        self.said.append((session_id, register))

    def offer_states(self, session_id: str, statuses: Sequence[OfferStatus]) -> None:
        self.said.append((session_id, tuple(statuses)))

    def offer_routes(self, session_id: str, networks: tuple[str, ...]) -> None:
        self.said.append((session_id, networks))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def intake(heard: Heard, clock: Clock) -> OfferIntake:
    return OfferIntake(heard, clock)  # type: ignore[arg-type]


def register(revision: int) -> Register:
    return Register(revision, (OfferedService("pacs", (ServicePorts(6, 104, 104),)),))


def state(open_flows: int) -> OfferState:
    return OfferState((OfferStatus("pacs", Health.UP, open_flows, open_flows, 0, 0, ""),))


def ranges(*networks: str) -> list[IpRange]:
    return [IpRange.of(ip_network(network)) for network in networks]


def test_the_last_word_of_each_kind_waits_for_the_session(
    intake: OfferIntake, heard: Heard
) -> None:
    for number in (1, 2):
        intake.services(register(number))
        intake.state(state(number))
        intake.routes(ranges(f"10.{number}.0.0/16"))
    assert heard.said == []
    assert intake.beats
    intake.begin("s1")
    assert heard.said == [("s1", register(2)), ("s1", ("10.2.0.0/16",)), ("s1", state(2).statuses)]
    intake.services(register(3))
    intake.state(state(3))
    assert heard.said[3:] == [("s1", register(3)), ("s1", state(3).statuses)]


def test_a_client_that_only_leads_to_networks_need_not_beat(
    intake: OfferIntake, heard: Heard
) -> None:
    intake.routes(ranges("10.20.0.0/16"))
    intake.begin("s1")
    assert not intake.beats
    intake.state(OfferState(()))
    assert intake.beats


def test_the_same_networks_are_told_once_and_their_end_is_told(
    intake: OfferIntake, heard: Heard
) -> None:
    intake.begin("s1")
    for networks in ((), ("10.20.0.0/16", "fd00:20::/32"), ("10.20.0.0/16", "fd00:20::/32"), ()):
        intake.routes(ranges(*networks))
    assert heard.said == [("s1", ("10.20.0.0/16", "fd00:20::/32")), ("s1", ())]


def test_a_connector_that_leads_nowhere_says_so_once(intake: OfferIntake, heard: Heard) -> None:
    intake.begin("s")
    intake.services(Register(1, ()))
    heard.said.clear()
    intake.routes([])
    intake.routes([])
    assert heard.said == [("s", ())]


def test_a_range_is_the_networks_that_it_consists_of(intake: OfferIntake, heard: Heard) -> None:
    intake.begin("s1")
    for_one_protocol = IpRange(ip_address("192.0.2.0"), ip_address("192.0.2.255"), 6)
    intake.routes([IpRange(ip_address("10.0.0.1"), ip_address("10.0.0.6")), for_one_protocol])
    assert heard.said == [("s1", ("10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"))]


def test_more_networks_than_a_session_may_lead_to_end_it(intake: OfferIntake, heard: Heard) -> None:
    intake.begin("s1")
    intake.routes(ranges(*(f"10.{number}.0.0/25" for number in range(256))))
    with pytest.raises(TooMuchOffered, match="more than 256 networks"):
        intake.routes(ranges(*(f"10.{number}.0.0/25" for number in range(256)), "192.0.2.0/24"))
    # Two of these are 252 networks, and a third is too many; not all of them are made.
    wide = [
        IpRange(ip_address(f"{start:x}::1"), ip_address(f"{start + 1:x}:ffff::fffe"))
        for start in range(0x2000, 0x3000, 2)
    ]
    with pytest.raises(TooMuchOffered, match="more than 256 networks"):
        intake.routes(wide)
    assert len(heard.said) == 1


def test_who_speaks_too_often_is_ended(intake: OfferIntake, heard: Heard, clock: Clock) -> None:
    intake.begin("s1")
    with pytest.raises(TooMuchOffered, match="too often"):
        for number in range(60):
            intake.state(state(number))
    assert len(heard.said) == 50
    # A change now and then, and a beat each second, are no trouble.
    clock.now += 5
    for number in range(600):
        clock.now += 0.1
        intake.state(state(number))
