from __future__ import annotations

from ipaddress import ip_address

from zgate_connector.chamber_rules import COUNTERS, silence_text, table_text

TEXT = table_text("zgate0", new_flows_per_s=25, udp_idle_timeout_s=90)


def test_the_table_replaces_an_earlier_one() -> None:
    assert TEXT.startswith("add table inet zgate_chamber\ndelete table inet zgate_chamber\ntable")


def test_every_drop_is_counted() -> None:
    for name in COUNTERS:
        assert f"counter {name} {{" in TEXT
        assert f"counter name {name}" in TEXT
    assert "policy drop" in TEXT.partition("chain input")[2].partition("}")[0]


def test_both_families_have_the_same_rules() -> None:
    for name in ("tcp_new", "udp_new"):
        for version, ip in ((4, "ip"), (6, "ip6")):
            limit = "limit rate 25/second burst 25 packets"
            assert f"update @{name}{version} {{ {ip} saddr . {ip} daddr {limit} }}" in TEXT


def test_udp_flows_are_forgotten_with_the_relays() -> None:
    assert TEXT.partition("set flows4 {")[2].partition("}")[0].count("timeout 90s") == 1


def test_who_is_silent() -> None:
    text = silence_text([ip_address("10.0.0.2"), ip_address("10.0.0.1"), ip_address("fd00::1")])
    assert text.splitlines() == [
        "flush set inet zgate_chamber silent4",
        "add element inet zgate_chamber silent4 { 10.0.0.1, 10.0.0.2 }",
        "flush set inet zgate_chamber silent6",
        "add element inet zgate_chamber silent6 { fd00::1 }",
    ]


def test_nobody_is_silent() -> None:
    assert "add" not in silence_text([])
