"""The compiled tables against a first-match evaluator that shares nothing with the compiler."""

import json
import time
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from zgate_bpf.tables import MAX_LIST_DEPTH, NO_RULE, Action, CompiledPolicy
from zgate_gateway.policy import PolicySet, PolicyTooLarge, Rule, compile_policy, compiler
from zgate_gateway.policy.capacity import MAX_RULES
from zgate_gateway.policy.lookup import Tables
from zgate_gateway.policy.model import RuleModel

# -- what "first match" means, from the words of the file format ---------------------------------

ICMP_NUMBER = {4: 1, 6: 58}
ICMP_NAMED = {"echo-request": {4: 8, 6: 128}, "time-exceeded": {4: 11, 6: 3}}


def reference(rules, destination, protocol, port):
    """Index of the first rule that matches a packet; `port` is type << 8 | code for ICMP."""
    for index, rule in enumerate(rules):
        if rule["type"] == "default" or (
            any(destination in ip_network(text) for text in rule["destinations"])
            and service_matches(rule, destination.version, protocol, port)
        ):
            return index
    return NO_RULE


def service_matches(rule, family, protocol, port):
    protocols = rule.get("protocols")
    if "ports" in rule:
        named = protocols or ["tcp", "udp"]
        ranges = [[int(end) for end in str(text).split("-")] for text in rule["ports"]]
        return any(protocol_matches(name, family, protocol) for name in named) and any(
            ends[0] <= port <= ends[-1] for ends in ranges
        )
    if "icmp_types" in rule:
        named = protocols or ["icmp"]
        return (
            protocol == ICMP_NUMBER[family]
            and any(protocol_matches(name, family, protocol) for name in named)
            and any(icmp_matches(text, family, port) for text in rule["icmp_types"])
        )
    return protocols is None or any(protocol_matches(name, family, protocol) for name in protocols)


def protocol_matches(name, family, protocol):
    match name:
        case "any":
            return True
        case "tcp" | "udp" | "sctp":
            return protocol == {"tcp": 6, "udp": 17, "sctp": 132}[name]
        case "icmp":
            return protocol == ICMP_NUMBER[family]
        case "icmpv6":
            return family == 6 and protocol == 58
        case _:
            return protocol == int(name)


def icmp_matches(text, family, port):
    if text in ICMP_NAMED:
        return port >> 8 == ICMP_NAMED[text][family]
    number, _, code = str(text).partition("/")
    return port >> 8 == int(number) and (not code or port & 0xFF == int(code))


# -- what the kernel does with the tables --------------------------------------------------------


class Kernel:
    """The lookups of the BPF program, and how many lists the last one visited."""

    def __init__(self, policy: CompiledPolicy):
        self.policy = policy
        self.destinations = {
            (d.network.version, int(d.network.network_address), d.network.prefixlen): d.service_list
            for d in policy.destinations
        }
        assert len(self.destinations) == len(policy.destinations)
        self.services = [
            {(entry.protocol, entry.port, entry.port_bits): entry.rule for entry in item.entries}
            for item in policy.lists
        ]
        for item, services in zip(policy.lists, self.services, strict=True):
            assert len(services) == len(item.entries)
            for entry in item.entries:
                assert entry.protocol is not None or (entry.port, entry.port_bits) == (0, 0)
                assert entry.port & (0xFFFF >> entry.port_bits) == 0

    def lookup(self, destination, protocol, port):
        self.visited = 0
        best, current = NO_RULE, self._list(destination)
        while current is not None:
            self.visited += 1
            best = min(best, self._service(self.services[current], protocol, port))
            current = self.policy.lists[current].parent
        return best

    def _list(self, destination):
        width = destination.max_prefixlen
        for bits in range(width, -1, -1):
            network = int(destination) >> (width - bits) << (width - bits)
            found = self.destinations.get((destination.version, network, bits))
            if found is not None:
                return found
        return None

    @staticmethod
    def _service(services, protocol, port):
        for bits in range(16, -1, -1):
            found = services.get((protocol, port & ~(0xFFFF >> bits), bits))
            if found is not None:
                return found
        return services.get((None, 0, 0), NO_RULE)


# -- made policies -------------------------------------------------------------------------------

BASES = {4: int(ip_address("10.85.0.0")), 6: int(ip_address("fd00::5500"))}
WIDTHS = {4: 32, 6: 128}


@st.composite
def networks(draw):
    """Prefixes that often nest: few bits differ from one base address."""
    family = draw(st.sampled_from([4, 6]))
    width = WIDTHS[family]
    value = BASES[family] ^ (draw(st.integers(0, 7)) << draw(st.sampled_from([0, 3, 16, 24])))
    if draw(st.booleans()):  # the last address of its enclosing networks
        value |= (1 << draw(st.sampled_from([3, 8, 16]))) - 1
    bits = width - draw(st.one_of(st.integers(0, 8), st.integers(0, width)))
    return str(ip_network((value >> (width - bits) << (width - bits), bits)))


ports = st.one_of(
    st.integers(0, 65535),
    st.sampled_from([0, 53, 80, 443, 65535]),
    st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(
        lambda ends: f"{min(ends)}-{max(ends)}"
    ),
    st.tuples(st.integers(75, 85), st.integers(0, 8)).map(lambda r: f"{r[0]}-{r[0] + r[1]}"),
    st.just("0-65535"),
)
port_protocols = st.sampled_from(["tcp", "udp", "sctp", "6", "17"])
icmp_types = st.one_of(
    st.sampled_from(["echo-request", "time-exceeded", "3/4", "128/0"]),
    st.sampled_from([3, 8, 11, 128]),
)
protocols = st.one_of(
    st.sampled_from(["tcp", "udp", "sctp", "icmp", "icmpv6", "any", "0", "1", "58", "255"]),
    st.integers(0, 255).map(str),
)


def some(strategy):
    return st.lists(strategy, min_size=1, max_size=3)


actions = st.sampled_from(["allow", "deny"])
cidr = {"type": st.just("ip_cidr"), "action": actions, "destinations": some(networks())}
rule_dicts = st.one_of(
    st.fixed_dictionaries(cidr),
    st.fixed_dictionaries({**cidr, "protocols": some(protocols)}),
    st.fixed_dictionaries({**cidr, "ports": some(ports)}),
    st.fixed_dictionaries({**cidr, "ports": some(ports), "protocols": some(port_protocols)}),
    st.fixed_dictionaries({**cidr, "icmp_types": some(icmp_types)}),
    st.fixed_dictionaries(
        {
            **cidr,
            "icmp_types": some(icmp_types),
            "protocols": some(st.sampled_from(["icmp", "icmpv6", "1", "58"])),
        }
    ),
    st.fixed_dictionaries({"type": st.just("default"), "action": actions}),
)


def make_rules(dicts) -> tuple[Rule, ...]:
    return tuple(
        Rule.from_model(
            RuleModel.model_validate_json(json.dumps({"id": f"r{index}", **rule}), strict=True),
            f"rules[{index}]",
            index + 1,
        )
        for index, rule in enumerate(dicts)
    )


@st.composite
def packets(draw, dicts):
    """Mostly packets at the edges of what some rule means."""
    texts = [text for rule in dicts for text in rule.get("destinations", ())]
    if texts and draw(st.integers(0, 9)):
        network = ip_network(draw(st.sampled_from(texts)))
        edges = [int(network.network_address), int(network.broadcast_address)]
        value = draw(st.sampled_from(edges)) + draw(st.integers(-1, 1))
        value = min(max(value, 0), (1 << network.max_prefixlen) - 1)
        destination = (IPv4Address if network.version == 4 else IPv6Address)(value)
    else:
        destination = draw(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
    protocol = draw(st.one_of(st.sampled_from([6, 17, 1, 58, 132]), st.integers(0, 255)))
    ends = [int(e) for r in dicts for text in r.get("ports", ()) for e in str(text).split("-")]
    if protocol in (1, 58):
        number = draw(st.sampled_from([3, 8, 11, 128, 0]))
        return destination, protocol, number << 8 | draw(st.sampled_from([0, 4, 255]))
    if ends and draw(st.booleans()):
        port = draw(st.sampled_from(ends)) + draw(st.integers(-1, 1))
        return destination, protocol, min(max(port, 0), 65535)
    return destination, protocol, draw(st.integers(0, 65535))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.data(),
    st.lists(rule_dicts, max_size=12),
    st.sampled_from([(16, 2, 4096), (-1, 0, 0), (2, 0, 0), (0, 1, 0), (0, 0, 20)]),
)
def test_the_tables_decide_as_the_first_matching_rule(data, dicts, merging):
    rules = make_rules(dicts)
    with pytest.MonkeyPatch.context() as patch:
        set_merging(patch, *merging)
        policy = compile_policy(rules, Action.DENY)
    kernel, tables = Kernel(policy), Tables(policy)
    assert policy.rules == tuple(rule.action for rule in rules)
    for packet in data.draw(st.lists(packets(dicts), min_size=10, max_size=20)):
        expected = reference(dicts, *packet)
        assert kernel.lookup(*packet) == expected, packet
        assert tables.rule(*packet) == (None if expected == NO_RULE else expected), packet
        assert kernel.visited <= MAX_LIST_DEPTH


def set_merging(patch, free_entries, free_factor, extra_entries):
    """Merge parents more or less eagerly; (-1, 0, 0) leaves every chain to be walked."""
    patch.setattr(compiler, "_cache", type(compiler._cache)())
    patch.setattr(compiler, "_FREE_ENTRIES", free_entries)
    patch.setattr(compiler, "_FREE_FACTOR", free_factor)
    patch.setattr(compiler, "_EXTRA_ENTRIES", extra_entries)


def refuse_to_merge(patch):
    set_merging(patch, -1, 0, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(0, 128), min_size=30, max_size=100, unique=True),
    st.randoms(use_true_random=False),
    st.integers(0, 128),
)
@example(list(range(129)), Random(1), 128)
def test_nests_deeper_than_the_kernel_walks_are_cut(lengths, random, common_bits):
    random.shuffle(lengths)
    dicts = [
        {
            "type": "ip_cidr",
            "action": "allow",
            "destinations": [str(ip_network((BASES[6] >> (128 - n) << (128 - n), n)))],
            "ports": [f"{random.randrange(40)}-{random.randrange(40, 80)}", random.randrange(80)],
        }
        for n in lengths
    ]
    with pytest.MonkeyPatch.context() as patch:
        refuse_to_merge(patch)
        kernel = Kernel(compile_policy(make_rules(dicts), Action.DENY))
    flipped = BASES[6] ^ ((1 << (127 - common_bits)) if common_bits < 128 else 0)
    for port in range(81):
        for protocol in (6, 17):
            packet = IPv6Address(flipped), protocol, port
            assert kernel.lookup(*packet) == reference(dicts, *packet)
            assert kernel.visited <= MAX_LIST_DEPTH


# -- properties that cost ------------------------------------------------------------------------


def host_rules(count):
    return make_rules(
        [
            {
                "type": "ip_cidr",
                "action": "allow",
                "destinations": [f"10.{i >> 8}.{i & 255}.5/32"],
                "protocols": ["tcp"],
                "ports": [i],
            }
            for i in range(count)
        ]
        + [{"type": "default", "action": "deny"}]
    )


def entries_of(policy):
    return sum(len(item.entries) for item in policy.lists)


def test_ten_thousand_rules_compile_in_seconds_to_one_list_visited():
    rules = host_rules(9_999)
    started = time.process_time()
    policy = compile_policy(rules, Action.DENY)
    assert time.process_time() - started < 5
    assert all(item.parent is None for item in policy.lists)
    assert entries_of(policy) <= 2 * 10_000 + 2


def test_memory_stays_linear_where_merging_would_multiply():
    """5,000 rules for one network around 5,000 hosts with a rule each."""
    wide = {"type": "ip_cidr", "action": "allow", "destinations": ["10.0.0.0/8"]}
    dicts = [{**wide, "ports": [i]} for i in range(0, 10_000, 2)]
    dicts += [
        {**wide, "destinations": [f"10.{i >> 8}.{i & 255}.5"], "protocols": [str(i % 256)]}
        for i in range(5_000)
    ]
    policy = compile_policy(make_rules(dicts), Action.DENY)
    named = 2 * 5_000 + 5_000
    assert entries_of(policy) <= 3 * named + 16 * len(policy.lists) + 4096
    assert max(depths(policy)) == 2


def depths(policy):
    for index in range(len(policy.lists)):
        depth, current = 0, index
        while current is not None:
            depth, current = depth + 1, policy.lists[current].parent
        yield depth


def test_a_rule_with_many_destinations_has_one_list():
    rule = {
        "type": "ip_cidr",
        "action": "allow",
        "destinations": [f"10.0.{i}.0/24" for i in range(256)],
        "ports": ["1-65534"],
    }
    policy = compile_policy(make_rules([rule]), Action.DENY)
    assert (len(policy.lists), len(policy.destinations)) == (1, 256)


def test_a_rule_for_everything_that_comes_first_needs_no_parent():
    net = {"type": "ip_cidr", "action": "deny", "destinations": ["10.0.0.0/24"]}
    wide = {"type": "ip_cidr", "action": "allow", "destinations": ["10.0.0.0/8"]}
    with pytest.MonkeyPatch.context() as patch:
        refuse_to_merge(patch)
        policy = compile_policy(make_rules([net, wide]), Action.DENY)
        other = compile_policy(make_rules([{**net, "ports": [1]}, wide]), Action.DENY)
    assert [item.parent for item in policy.lists] == [None, None]
    assert [item.parent for item in other.lists] == [None, 0]


def test_a_destination_that_changes_nothing_is_left_out():
    wide = {"type": "ip_cidr", "action": "allow", "destinations": ["10.0.0.0/8"]}
    policy = compile_policy(make_rules([wide, {**wide, "destinations": ["10.1.0.0/16"]}]), 0)
    assert [str(d.network) for d in policy.destinations] == ["10.0.0.0/8"]
    assert len(policy.rules) == 2


# -- sharing and limits --------------------------------------------------------------------------


def test_rules_that_mean_the_same_share_one_object_whatever_their_names():
    text = (
        'version: "1.0"\nclients:\n'
        "  a: {rules: [{id: x, type: ip_cidr, action: allow, destinations: [10.0.0.0/8, 1.1.1.1],"
        " protocols: [tcp], ports: [80-81]}]}\n"
        "  b: {rules: [{id: y, type: ip_cidr, action: allow, destinations: [1.1.1.1/32,10.0.0.0/8],"
        " protocols: ['6'], ports: [81, 80], metadata: {z: 1}}]}\n"
        "  c: {rules: [{id: x, type: ip_cidr, action: deny, destinations: [10.0.0.0/8, 1.1.1.1],"
        " protocols: [tcp], ports: [80-81]}]}\n"
    )
    policy_set = PolicySet.parse(text)
    assert policy_set.compiled_for("a") is policy_set.compiled_for("b")
    assert policy_set.compiled_for("a") != policy_set.compiled_for("c")
    rules = policy_set.rules_for("a")
    assert compile_policy(rules, Action.ALLOW) is not compile_policy(rules, Action.DENY)
    assert compile_policy(rules, Action.ALLOW).default_action is Action.ALLOW


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(compiler, "_CACHED_POLICIES", 2)
    monkeypatch.setattr(compiler, "_cache", type(compiler._cache)())
    rules = host_rules(3)
    first = compile_policy(rules, Action.DENY)
    compile_policy(rules[1:], Action.DENY)
    assert compile_policy(rules, Action.DENY) is first
    compile_policy(rules[2:], Action.DENY)
    assert compile_policy(rules, Action.DENY) is first
    assert len(compiler._cache) == 2


def test_no_rules_at_all_leave_the_default():
    policy = compile_policy((), Action.DENY)
    assert policy == CompiledPolicy((), (), (), Action.DENY)
    assert Kernel(policy).lookup(ip_address("10.0.0.1"), 6, 80) == NO_RULE


def test_more_rules_than_a_policy_can_hold_are_refused():
    (rule,) = make_rules([{"type": "default", "action": "deny"}])
    with pytest.raises(PolicyTooLarge, match=f"{MAX_RULES + 1} rules"):
        compile_policy((rule,) * (MAX_RULES + 1), Action.DENY)
