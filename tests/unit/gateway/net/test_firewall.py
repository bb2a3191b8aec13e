from ipaddress import IPv4Network, IPv6Network
from typing import Any

from zgate_gateway.net.firewall import FirewallSettings, table_content

POOLS = (IPv4Network("10.100.0.0/16"), IPv6Network("fd7a:7a67:6174:65::/64"))


def rules(**settings: Any) -> list[tuple[str, str]]:
    content = table_content(FirewallSettings("zgate0", *POOLS, **settings))
    return [(one["rule"]["chain"], one["rule"]["comment"]) for one in content if "rule" in one]


def test_everything_is_in_the_gateways_own_table() -> None:
    for entry in table_content(FirewallSettings("zgate0", *POOLS)):
        for kind, fields in entry.items():
            assert fields["family"] == "inet"
            assert fields["name" if kind == "table" else "table"] == "zgate"


def test_what_the_program_did_not_pass_is_judged_first() -> None:
    assert rules()[0] == ("input", "not-passed")
    assert next(one for one in rules() if one[0] == "forward") == ("forward", "not-passed")


def test_answers_come_before_what_is_unsolicited() -> None:
    found = rules()
    assert found.index(("forward", "answers")) < found.index(("forward", "unsolicited"))


def test_without_masquerade_there_is_no_such_chain() -> None:
    content = table_content(FirewallSettings("zgate0", *POOLS, masquerade=False))
    assert not any("masquerade" in str(one.get("chain", "")) for one in content)
    assert ("masquerade", "pool-ipv4") in rules()


def test_forwarding_of_others_is_closed_for_each_family_by_itself() -> None:
    assert ("forward", "only-tunnel-ipv4") in rules(only_tunnel_ipv4=True)
    assert ("forward", "only-tunnel-ipv6") not in rules(only_tunnel_ipv4=True)
    assert ("forward", "only-tunnel-ipv6") in rules(only_tunnel_ipv6=True)


def test_services_addresses_are_nobodys_to_borrow() -> None:
    found = rules(service_pools=(IPv4Network("10.101.0.0/16"), IPv6Network("fd7b::/64")))
    for version in (4, 6):
        spoofed = ("forward", f"spoofed-services-ipv{version}")
        assert found.index(spoofed) < found.index(("forward", "answers"))
        assert spoofed not in rules()


def test_networks_behind_connectors_are_nobodys_to_borrow() -> None:
    found = rules()
    for version in (4, 6):
        spoofed = ("forward", f"spoofed-networks-ipv{version}")
        assert found.index(spoofed) < found.index(("forward", "answers"))
