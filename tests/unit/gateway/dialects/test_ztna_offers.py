"""Registrations one by one, and the list that the supervisor wants."""

from ipaddress import ip_address

from zgate_gateway.dialects.ztna_offers import ZtnaOffers
from zgate_protocol.dialects.ztna_v1 import RefusalCode
from zgate_protocol.service_capsule import (
    Health,
    OfferKind,
    Register,
    Registered,
    RegistrationAnswer,
    RegistrationCode,
)

VIP, OFFER = ip_address("10.101.0.1"), ip_address("10.101.255.254")


def answer(name: str, code: RegistrationCode = RegistrationCode.ACCEPTED) -> RegistrationAnswer:
    addresses = ((VIP,), (OFFER,)) if code is RegistrationCode.ACCEPTED else ((), ())
    return RegistrationAnswer(OfferKind.SERVICE, name, code, "", *addresses)


def names(register: Register | None) -> list[str]:
    return [service.name for service in register.services] if register else []


def test_the_list_grows_by_one() -> None:
    offers = ZtnaOffers()
    first, second = offers.add("a"), offers.add("b")
    assert names(first) == ["a"]
    assert names(second) == ["a", "b"]
    assert first is not None and second is not None
    assert second.revision > first.revision
    assert offers.add("b") is None
    ports = [(one.protocol, one.first, one.last) for one in first.services[0].ports]
    assert ports == [(6, 1, 65535), (17, 1, 65535)]


def test_an_answer_is_told_once() -> None:
    offers = ZtnaOffers()
    offers.add("a")
    news = offers.answered(Registered(1, (answer("a"),)))
    assert news.outcomes == [("a", None)]
    assert news.served == {"a": {OFFER.packed: VIP.packed}}
    assert [(one.name, one.health) for one in news.statuses] == [("a", Health.UP)]
    assert offers.is_accepted("a")
    news = offers.answered(Registered(1, (answer("a"),)))
    assert (news.outcomes, news.statuses) == ([], [])
    assert news.served == {"a": {OFFER.packed: VIP.packed}}


def test_the_codes_of_the_dialect() -> None:
    for code in RegistrationCode:
        offers = ZtnaOffers()
        offers.add("a")
        ((_, told),) = offers.answered(Registered(1, (answer("a", code),))).outcomes
        expected = {
            RegistrationCode.ACCEPTED: None,
            RegistrationCode.INVALID: RefusalCode.INVALID,
        }.get(code, RefusalCode.NOT_AUTHORIZED)
        assert told is expected


def test_the_supervisor_may_change_its_mind() -> None:
    offers = ZtnaOffers()
    offers.add("a")
    offers.answered(Registered(1, (answer("a"),)))
    news = offers.answered(Registered(1, (answer("a", RegistrationCode.NOT_AUTHORIZED),)))
    assert news.outcomes == [("a", RefusalCode.NOT_AUTHORIZED)]
    assert news.served == {}
    assert offers.answered(Registered(1, (answer("a"),))).outcomes == [("a", None)]


def test_what_was_refused_is_asked_for_again_when_the_client_does() -> None:
    offers = ZtnaOffers()
    offers.add("a")
    offers.add("b")
    refused = answer("a", RegistrationCode.NOT_AUTHORIZED)
    offers.answered(Registered(2, (refused, answer("b"))))
    assert names(offers.add("c")) == ["b", "c"]
    assert names(offers.add("a")) == ["a", "b", "c"]
    assert offers.count == 3


def test_routes_are_no_registrations() -> None:
    offers = ZtnaOffers()
    route = RegistrationAnswer(OfferKind.ROUTE, "10.2.0.0/16", RegistrationCode.INVALID, "")
    assert offers.answered(Registered(0, (route,))).outcomes == []


def test_what_is_remembered_of_refusals_is_bounded() -> None:
    offers = ZtnaOffers()
    for number in range(1000):
        name = f"s{number}"
        offers.add(name)
        offers.answered(Registered(1, (answer(name, RegistrationCode.NOT_AUTHORIZED),)))
    assert len(offers.names) <= 256
