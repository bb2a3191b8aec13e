"""Which services a pattern means, and what stands for a name."""

from __future__ import annotations

import re
import time
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_gateway.config import ServicesConfig
from zgate_gateway.policy.service_names import (
    DEFAULT_POOLS,
    ServicePools,
    addresses_of,
    is_pattern,
    matches,
    name_of,
    network_of,
    with_stand_ins,
)

PACS = (ip_address("10.101.0.1"), ip_address("fd7a:7a67:6174:66::1"))
ECHO = (ip_address("10.101.0.3"), ip_address("fd7a:7a67:6174:66::3"))
KNOWN = {"pacs": PACS, "echo-1": ECHO}


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("pacs", ["pacs"], ["pac", "pacs2", "PACS", ""]),
        ("*", ["", "x", "a*b"], []),
        ("echo-*", ["echo-", "echo-1", "echo-a-b"], ["echo", "xecho-1"]),
        ("*-eu", ["a-eu", "-eu"], ["a-eu-1", "eu"]),
        ("a*a", ["aa", "aba", "aaa"], ["a", "ab"]),
        ("a*b*c", ["abc", "aXbYc", "abbc"], ["acb", "ab", "ac"]),
        ("**", ["", "x"], []),
        ("a?[b]", ["a?[b]"], ["axb", "a?b"]),
    ],
)
def test_only_the_star_is_special(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [name for name in yes if not matches(pattern, name)] == []
    assert [name for name in no if matches(pattern, name)] == []


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_as_the_regular_expression_says(pattern: str, name: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(pattern, name) is (re.fullmatch(expression, name) is not None)
    assert is_pattern(pattern) is ("*" in pattern)


def test_a_pattern_made_to_be_slow_is_not() -> None:
    began = time.process_time()
    assert not matches("a*" * 127 + "b", "a" * 255)
    assert time.process_time() - began < 0.1


def test_addresses_are_those_of_all_that_match_each_once() -> None:
    assert addresses_of(["pacs"], KNOWN) == PACS
    assert addresses_of(["*", "pacs", "echo-1"], KNOWN) == (*PACS, *ECHO)
    assert addresses_of(["wiki", "x*"], KNOWN) == ()


def test_stand_ins_are_free_addresses_of_the_pools_in_the_names_order() -> None:
    made = with_stand_ins(["wiki", "pacs", "a-*"], KNOWN, DEFAULT_POOLS)
    assert made == {
        **KNOWN,
        "a-*": (ip_address("10.101.0.2"), ip_address("fd7a:7a67:6174:66::2")),
        "wiki": (ip_address("10.101.0.4"), ip_address("fd7a:7a67:6174:66::4")),
    }
    small = ServicePools(IPv4Network("10.9.0.0/30"), IPv6Network("fd00::/126"))
    assert len(with_stand_ins("abcdef", {}, small)) == 2
    assert (small.room, DEFAULT_POOLS.room) == (1, 32_767)


def test_the_default_pools_are_the_configuration_s() -> None:
    assert (ServicesConfig().ipv4, ServicesConfig().ipv6) == DEFAULT_POOLS


def test_networks_are_named_by_their_service() -> None:
    assert name_of(network_of(ECHO[1]), KNOWN) == "service echo-1"
    assert name_of(ip_network("10.101.0.2/31"), KNOWN) == "10.101.0.2/31"
    assert name_of(ip_network("10.101.0.9"), KNOWN) == "10.101.0.9/32"
