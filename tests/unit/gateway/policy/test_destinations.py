"""The tree of destination prefixes against pairwise containment."""

from ipaddress import IPv4Network, IPv6Network, ip_network

from hypothesis import given
from hypothesis import strategies as st
from zgate_bpf.tables import Action
from zgate_gateway.policy.destinations import build_tree, own_entries
from zgate_gateway.policy.model import RuleType
from zgate_gateway.policy.rules import Rule
from zgate_gateway.policy.services import ANYTHING, Prefix, Service

EVERY = (Service(-1, 0, 65535),)


def rule(*networks, services=EVERY, ipv6_services=None):
    destinations = tuple(map(ip_network, networks))
    six = services if ipv6_services is None else ipv6_services
    return Rule("r", RuleType.IP_CIDR, Action.ALLOW, destinations, services, six)


@st.composite
def ipv4_networks(draw):
    bits = draw(st.integers(0, 32))
    value = draw(st.sampled_from([0, 1, 2, 3, 0x0A0000FF, 0x0A000000, 0xFFFFFFFF]))
    return IPv4Network((value >> (32 - bits) << (32 - bits), bits))


@given(st.lists(ipv4_networks(), max_size=20), st.booleans())
def test_parents_are_the_narrowest_networks_around(networks, with_ipv6):
    texts = [*map(str, networks), *(["::/0", "::/128"] if with_ipv6 else [])]
    tree = build_tree([rule(text) for text in texts])
    found = [node.network for node in tree]
    assert set(found) == set(map(ip_network, texts))
    assert len(set(found)) == len(found)
    for position, node in enumerate(tree):
        around = [n for n in found if n != node.network and encloses(n, node.network)]
        assert node.depth == len(around)
        parent = tree[node.parent].network if node.parent is not None else None
        assert parent == max(around, key=lambda n: n.prefixlen, default=None)
        assert node.parent is None or node.parent < position
        below = [n for n in tree if n.network != node.network and encloses(node.network, n.network)]
        assert node.height == max((n.depth - node.depth for n in below), default=0)
        assert [texts.index(str(node.network))] <= list(node.rules)
        assert list(node.rules) == [i for i, text in enumerate(texts) if text == str(node.network)]


def encloses(outer, inner):
    return outer.version == inner.version and inner.subnet_of(outer)


def test_a_prefix_is_hidden_when_longer_ones_cover_it():
    tree = build_tree([rule("10.0.0.0/8"), rule("10.0.0.0/9"), rule("10.128.0.0/9")])
    assert [node.is_hidden for node in tree] == [True, False, False]
    tree = build_tree([rule("10.0.0.0/8"), rule("10.0.0.0/9"), rule("10.128.0.0/10")])
    assert not any(node.is_hidden for node in tree)


def test_a_rule_without_services_in_a_family_has_no_prefix_there():
    tree = build_tree([rule("10.0.0.0/8", "fd00::/8", services=())])
    assert tree == []
    (node,) = build_tree([rule("10.0.0.0/8", "fd00::/8", services=(), ipv6_services=EVERY)])
    assert node.network == IPv6Network("fd00::/8")


def test_own_entries_are_those_of_the_node_itself():
    tcp = (Service(6, 80, 80),)
    rules = [rule("10.0.0.0/8", services=tcp), rule("10.0.0.0/9"), rule("10.0.0.0/8")]
    outer, inner = build_tree(rules)
    assert own_entries(rules, outer) == {ANYTHING: 2, Prefix(6, 80, 16): 0}
    assert own_entries(rules, inner) == {ANYTHING: 1}
