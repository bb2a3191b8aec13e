"""What the program remembers: flows, counters, events, and the policy that is in force."""

import itertools
import threading
from ipaddress import ip_address, ip_network

import pytest
from bpf_support import packets as p
from bpf_support.policies import allow, compiled, deny
from bpf_support.world import ALICE, ALICE4, ALICE6, BOB, BOB4, OTHER4, SERVER4, SERVER6, World
from zgate_bpf.kernel_policy import (
    NO_CLIENT,
    CapacityError,
    Direction,
    EventKind,
    FlowState,
    GenerationError,
    KernelPolicy,
    State,
)
from zgate_bpf.tables import (
    NO_RULE,
    Action,
    CompiledPolicy,
    Destination,
    ServiceList,
    ServicePrefix,
)
from zgate_protocol.drop_reason import DropReason as Reason

EVERYTHING = allow("0.0.0.0/0", "::/0")
SENT = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1000, 53))
REPLY = p.ipv4(SERVER4, ALICE4, p.UDP, p.udp(53, 1000))


# Nothing loaded.


def test_empty_tables_pass_nothing():
    with KernelPolicy(max_clients=4, max_flows=128) as kernel:
        assert kernel.run(SENT, Direction.UP).reason is Reason.NO_CLIENT
        kernel.set_client(ip_address(ALICE4), 1)
        assert kernel.run(SENT, Direction.UP).reason is Reason.NO_POLICY
        generation = kernel.begin(1)
        generation.assign(1, generation.add_policy(compiled([EVERYTHING])))
        generation.verify()
        assert kernel.run(SENT, Direction.UP).reason is Reason.NO_POLICY
        generation.activate()
        assert kernel.run(SENT, Direction.UP).passed


# Change of policy.


def test_established_flow_is_judged_anew(world):
    world.policy(EVERYTHING)
    assert world.up(SENT).passed
    world.policy(deny(f"{SERVER4}/32"), EVERYTHING)
    verdict = world.down(REPLY)
    assert verdict.reason is Reason.POLICY_RULE
    assert verdict.known_flow
    assert world.up(SENT).reason is Reason.POLICY_RULE
    world.policy(EVERYTHING)
    assert world.down(REPLY).reason is Reason.UNSOLICITED


def test_flow_allowed_by_both_policies_goes_on(world):
    world.policy(EVERYTHING)
    assert world.up(SENT).passed
    world.policy(deny(f"{OTHER4}/32"), allow(f"{SERVER4}/32", protocol=p.UDP, ports=(53, 53)))
    verdict = world.down(REPLY)
    assert verdict.passed
    assert verdict.judged
    assert world.generation.rule_of(verdict.rule) == (1, 1)
    again = world.down(REPLY)
    assert again.passed
    assert not again.judged
    assert not world.up(SENT).new_flow


def test_icmp_error_is_about_a_flow_judged_anew(world):
    world.policy(EVERYTHING)
    assert world.up(SENT).passed
    world.policy(deny("0.0.0.0/0"))
    assert world.down(p.icmp_error(OTHER4, ALICE4, SENT)).reason is Reason.POLICY_RULE


def test_generation_is_seen_only_when_active(world):
    world.policy(deny("0.0.0.0/0"))
    world.revision += 1
    generation = world.kernel.begin(world.revision)
    generation.assign(ALICE, generation.add_policy(compiled([EVERYTHING])))
    assert world.up(SENT).reason is Reason.POLICY_RULE
    with pytest.raises(GenerationError, match="building"):
        generation.activate()
    generation.verify()
    assert world.up(SENT).reason is Reason.POLICY_RULE
    generation.activate()
    assert generation.state is State.ACTIVE
    assert world.kernel.active is generation
    assert world.up(SENT).passed


def test_change_after_verify_wants_another(world):
    world.revision += 1
    generation = world.kernel.begin(world.revision)
    generation.verify()
    generation.add_policy(compiled([EVERYTHING]))
    with pytest.raises(GenerationError):
        generation.activate()


def test_many_changes_use_both_slots(world):
    for turn in range(6):
        world.policy(*([EVERYTHING] if turn % 2 else []))
        assert world.up(SENT).passed is bool(turn % 2)


def test_change_under_traffic(world):
    """Allowed by both: always passes. Denied by both: never. Afterwards: judged by the new one."""
    both = allow(f"{SERVER4}/32")
    policies = [[both, deny("0.0.0.0/0")], [deny(f"{OTHER4}/32"), both]]
    world.policy(*policies[0])
    stop, wrong, judged = threading.Event(), [], []

    def traffic():
        for port in itertools.cycle(range(1, 3000)):
            if stop.is_set():
                return
            passes = world.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(port, 53)))
            answer = world.down(p.ipv4(SERVER4, ALICE4, p.UDP, p.udp(53, port)))
            denied = world.up(p.ipv4(ALICE4, OTHER4, p.UDP, p.udp(port, 53)))
            if not (passes.passed and answer.passed) or denied.passed:
                wrong.append((passes, answer, denied))
            judged.append(passes.revision)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        for turn in itertools.count():
            if turn >= 40 and (len(set(judged)) > 20 or turn >= 2000):
                break
            world.policy(*policies[turn % 2])
            assert world.up(SENT).revision == world.revision
    finally:
        stop.set()
        thread.join()
    assert wrong == []
    assert len(set(judged)) > 20


@pytest.mark.parametrize("revision", [0, 1, 1 << 32])
def test_revisions_only_grow(world, revision):
    world.policy(EVERYTHING)
    with pytest.raises(ValueError, match="revision"):
        world.kernel.begin(revision)
    with pytest.raises(ValueError, match="revision"):
        world.kernel.begin(world.revision)


def test_generation_begun_anew_forgets_the_one_begun(world):
    world.revision += 1
    first = world.kernel.begin(world.revision)
    second = world.kernel.begin(world.revision)
    with pytest.raises(GenerationError, match="retired"):
        first.add_policy(compiled([EVERYTHING]))
    second.verify()


def test_verify_finds_what_was_not_written(world, monkeypatch):
    world.revision += 1
    generation = world.kernel.begin(world.revision)
    monkeypatch.setattr("zgate_bpf.maps.Map.update_many", lambda self, entries: None)
    generation.add_policy(compiled([EVERYTHING]))
    with pytest.raises(GenerationError, match="read back"):
        generation.verify()


def test_policy_added_to_the_active_generation(world):
    generation = world.policy(deny("0.0.0.0/0"))
    policy = generation.add_policy(compiled([allow(f"{OTHER4}/32")]))
    generation.assign(BOB, policy)
    verdict = world.up(p.ipv4(BOB4, OTHER4, p.UDP, p.udp(1, 2)))
    assert verdict.passed
    assert generation.rule_of(verdict.rule) == (policy, 0)


def test_another_policy_in_the_active_generation_ends_flows(world):
    generation = world.policy(EVERYTHING)
    assert world.up(SENT).passed
    generation.assign(ALICE, generation.add_policy(compiled([deny("0.0.0.0/0")])))
    assert world.down(REPLY).reason is Reason.UNSOLICITED
    assert world.up(SENT).reason is Reason.POLICY_RULE


def test_unassigned_client_may_nothing(world):
    generation = world.policy(EVERYTHING)
    assert world.up(SENT).passed
    generation.unassign(ALICE)
    assert world.up(SENT).reason is Reason.NO_POLICY
    assert world.down(REPLY).reason is Reason.UNSOLICITED
    generation.unassign(ALICE)


def test_rule_of_policies_without_rules(world):
    world.revision += 1
    generation = world.kernel.begin(world.revision)
    empty = compiled([])
    full = compiled([EVERYTHING, deny("10.0.0.0/8")])
    ids = [generation.add_policy(policy) for policy in (empty, full, empty, empty, full)]
    assert ids == [1, 2, 3, 4, 5]
    assert [generation.rule_of(rule) for rule in range(4)] == [(2, 0), (2, 1), (5, 0), (5, 1)]
    with pytest.raises(KeyError):
        generation.rule_of(4)
    with pytest.raises(KeyError):
        generation.rule_of(NO_RULE)


# Capacity.


def test_what_does_not_fit_is_refused_before_anything_changes():
    from zgate_bpf.kernel_policy import Capacity

    capacity = Capacity(max_clients=2, max_flows=128, max_rules=3, max_policies=3)
    with KernelPolicy(capacity=capacity) as kernel:
        generation = kernel.begin(1)
        generation.add_policy(compiled([EVERYTHING, EVERYTHING]))
        before = generation.used
        with pytest.raises(CapacityError, match="rules: 4 needed, 3 fit"):
            generation.add_policy(compiled([EVERYTHING, deny("10.0.0.0/8")]))
        assert generation.used == before
        generation.add_policy(compiled([EVERYTHING]))
        generation.add_policy(compiled([]))
        with pytest.raises(CapacityError, match="policies: 4 needed, 3 fit"):
            generation.add_policy(compiled([]))
        with pytest.raises(ValueError, match="client index"):
            generation.assign(2, 1)
        with pytest.raises(ValueError, match="policy 9"):
            generation.assign(1, 9)
        for number in range(4):
            kernel.set_client(ip_address(f"10.0.0.{number}"), 0)
        with pytest.raises(CapacityError, match="zg_clients"):
            kernel.set_client(ip_address("10.0.0.9"), 1)
        with pytest.raises(ValueError, match="client index"):
            kernel.set_client(ip_address("10.0.0.1"), 2)


# Clients.


def test_removed_client_is_nobody_and_its_flows_are_gone(world):
    world.policy(EVERYTHING)
    assert world.up(SENT).passed
    world.kernel.remove_client(ip_address(ALICE4))
    assert world.up(SENT).reason is Reason.NO_CLIENT
    assert world.down(REPLY).reason is Reason.NO_CLIENT
    assert list(world.kernel.flows()) == []
    world.kernel.set_client(ip_address(ALICE4), ALICE)
    assert world.down(REPLY).reason is Reason.UNSOLICITED


def test_next_holder_of_an_address_inherits_no_flow(world):
    world.policy(EVERYTHING, bob=[deny("0.0.0.0/0")])
    assert world.up(SENT).passed
    world.kernel.set_client(ip_address(ALICE4), BOB)
    assert world.down(REPLY).reason is Reason.UNSOLICITED
    assert world.up(SENT).reason is Reason.POLICY_RULE


def test_removing_who_is_not_there(world):
    world.kernel.remove_client(ip_address("203.0.113.9"))


# Flows.


def test_flows_are_listed(world):
    world.policy(EVERYTHING)
    world.up(p.ipv6(ALICE6, SERVER6, p.TCP, p.tcp(4000, 443)))
    (flow,) = world.kernel.flows()
    assert (flow.client, flow.remote) == (ip_address(ALICE6), ip_address(SERVER6))
    assert (flow.client_port, flow.remote_port, flow.protocol) == (4000, 443, p.TCP)
    assert flow.client_index == ALICE
    assert flow.revision == world.revision
    assert flow.state == FlowState(0)


def test_tcp_flow_follows_its_connection(world):
    world.policy(EVERYTHING)

    def state():
        return next(world.kernel.flows()).state

    def up(flags):
        return world.up(p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(4000, 443, flags)))

    def down(flags):
        return world.down(p.ipv4(SERVER4, ALICE4, p.TCP, p.tcp(443, 4000, flags)))

    assert up(p.SYN).new_flow
    assert down(p.SYN | p.ACK).passed
    assert state() == FlowState.ANSWERED
    assert not up(p.SYN).new_flow, "a repeated SYN opens nothing new"
    up(p.FIN | p.ACK)
    assert state() == FlowState.ANSWERED | FlowState.CLIENT_FIN
    down(p.FIN | p.ACK)
    assert FlowState.REMOTE_FIN in state()
    assert up(p.ACK).passed, "the last ACK belongs to the flow"
    assert up(p.SYN).new_flow
    assert state() == FlowState(0)
    down(p.RST)
    assert FlowState.RESET in state()
    assert up(p.SYN).new_flow


def test_eviction_fails_closed():
    with KernelPolicy(max_clients=4, max_flows=64) as kernel:
        world = World(kernel, 1)
        kernel.set_client(ip_address(ALICE4), ALICE)
        world.policy(EVERYTHING)
        for port in range(1, 5000):
            assert world.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(port, 53))).passed
        assert sum(1 for _ in kernel.flows()) < 1000
        assert world.down(p.ipv4(SERVER4, ALICE4, p.UDP, p.udp(53, 4999))).passed
        old = p.ipv4(SERVER4, ALICE4, p.UDP, p.udp(53, 1))
        assert world.down(old).reason is Reason.UNSOLICITED


def test_full_flow_table_denies_new_flows():
    with KernelPolicy(max_clients=4, max_flows=8, evict_flows=False) as kernel:
        world = World(kernel, 1)
        kernel.set_client(ip_address(ALICE4), ALICE)
        world.policy(EVERYTHING)
        packets = [p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(port, 53)) for port in range(1, 10)]
        assert all(world.up(packet).passed for packet in packets[:8])
        assert world.up(packets[8]).reason is Reason.FLOW_TABLE_FULL
        assert world.up(packets[0]).passed, "a known flow goes on"
        assert world.drops(Reason.FLOW_TABLE_FULL) == 1
        assert kernel.map_usage()["flows"].used == kernel.map_usage()["flows"].capacity == 8


# Counters.


def test_counters_of_one_client(world):
    world.policy(allow(f"{SERVER4}/32"))
    denied = p.ipv4(ALICE4, OTHER4, p.UDP, p.udp(1, 2))
    for _ in range(3):
        world.up(SENT)
    world.down(REPLY)
    world.up(denied)
    world.down(p.ipv4(OTHER4, ALICE4, p.UDP, p.udp(2, 1)))
    world.up(SENT[:25])
    counted = world.kernel.counters(ALICE)
    assert (counted.up_packets, counted.up_bytes) == (3, 3 * len(SENT))
    assert (counted.down_packets, counted.down_bytes) == (1, len(REPLY))
    assert (counted.up_dropped_packets, counted.down_dropped_packets) == (1, 1)
    assert counted.dropped_packets == 2
    assert counted.flows == 1
    assert world.kernel.counters(BOB).up_packets == 0
    world.kernel.reset_counters(ALICE)
    assert world.kernel.counters(ALICE).up_packets == 0


@pytest.mark.parametrize(
    ("gso_segs", "gso_size", "packets"), [(0, 0, 1), (7, 500, 7), (0, 500, 6), (0, 5000, 1)]
)
def test_segments_of_a_super_packet_are_packets(world, gso_segs, gso_size, packets):
    """A TUN gives the size of a segment and leaves their number at zero."""
    world.policy(EVERYTHING)
    packet = p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2, p.ACK, bytes(2600)))
    assert world.up(packet, gso_segs=gso_segs, gso_size=gso_size).passed
    counted = world.kernel.counters(ALICE)
    assert counted.up_packets == packets
    assert counted.up_bytes == len(packet) + (packets - 1) * 40
    assert counted.flows == 1


def test_dropped_super_packet_counts_its_segments(world):
    world.policy()
    before = world.drops(Reason.POLICY_DEFAULT)
    world.up(p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2, p.ACK, bytes(2600))), gso_size=500)
    assert world.drops(Reason.POLICY_DEFAULT) - before == 6
    assert world.kernel.counters(ALICE).up_dropped_packets == 6


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (p.ipv4(OTHER4, SERVER4, p.UDP, p.udp(1, 2)), Reason.NO_CLIENT),
        (SENT[:27], Reason.MALFORMED),
        (p.ipv4(ALICE4, OTHER4, p.UDP, p.udp(1, 2)), Reason.POLICY_RULE),
        (p.ipv4(BOB4, OTHER4, p.UDP, p.udp(1, 2)), Reason.NO_POLICY),
        (p.ipv4(ALICE4, "169.254.1.1", p.UDP, p.udp(1, 2)), Reason.LINK_LOCAL),
    ],
)
def test_every_drop_is_counted_by_its_reason(world, packet, reason):
    world.policy(deny(f"{OTHER4}/32"))
    before = world.kernel.drops()
    world.up(packet)
    after = world.kernel.drops()
    assert {r: after[r] - before[r] for r in after if after[r] != before[r]} == {reason: 1}


# Asking leaves no trace.


def test_evaluate_leaves_no_trace(world):
    world.policy(EVERYTHING)
    kernel = world.kernel
    drops = kernel.drops()
    verdict = kernel.evaluate(SENT, Direction.UP)
    assert verdict.passed
    assert verdict.new_flow
    assert world.generation.rule_of(verdict.rule) == (1, 0)
    first = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 53), identification=900, more=True)
    assert kernel.evaluate(first, Direction.UP).passed
    later = p.ipv4(ALICE4, SERVER4, p.UDP, bytes(8), identification=900, offset=2)
    assert kernel.evaluate(later, Direction.UP).reason is Reason.FRAGMENT_WITHOUT_FIRST
    assert kernel.evaluate(REPLY, Direction.DOWN).reason is Reason.UNSOLICITED
    assert list(kernel.flows()) == []
    assert kernel.counters(ALICE).up_packets == 0
    assert kernel.drops() == drops
    assert world.events() == []


def test_evaluate_of_a_known_flow_changes_nothing(world):
    world.policy(EVERYTHING)
    world.up(p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2)))
    before = list(world.kernel.flows())
    reset = p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2, p.RST))
    assert world.kernel.evaluate(reset, Direction.UP).known_flow
    world.policy(deny("0.0.0.0/0"))
    assert world.kernel.evaluate(reset, Direction.UP).reason is Reason.POLICY_RULE
    assert list(world.kernel.flows()) == before


def test_evaluate_of_what_the_kernel_does_not_take(world):
    with pytest.raises(ValueError, match="tests no packet of 0 bytes"):
        world.kernel.evaluate(b"", Direction.UP)
    with pytest.raises(ValueError, match="tests no packet"):
        world.kernel.evaluate(bytes(60_000), Direction.UP)


# Events.


def test_event_of_a_new_flow(world):
    world.policy(EVERYTHING)
    world.up(SENT)
    world.up(SENT)
    world.down(REPLY)
    (event,) = world.events()
    assert event.kind is EventKind.FLOW_ALLOWED
    assert event.client_index == ALICE
    assert (event.source, event.destination) == (ip_address(ALICE4), ip_address(SERVER4))
    assert (event.protocol, event.source_port, event.destination_port) == (p.UDP, 1000, 53)
    assert event.revision == world.revision
    assert world.generation.rule_of(event.rule) == (1, 0)
    assert event.length_bytes == len(SENT)
    assert event.direction is Direction.UP
    assert event.reason is Reason.NONE
    assert event.time_ns > 0
    assert event.suppressed == 0


def test_event_of_every_denial(world):
    world.policy(deny("::/0"))
    packet = p.ipv6(ALICE6, SERVER6, p.ICMPV6, p.icmp(128, 0, 77))
    world.up(packet)
    world.down(p.ipv6(SERVER6, ALICE6, p.UDP, p.udp(53, 9)))
    world.up(p.ipv4(OTHER4, SERVER4, p.UDP, p.udp(1, 2)))
    denied, unsolicited, nobody = world.events()
    assert denied.kind is EventKind.DENIED
    assert denied.reason is Reason.POLICY_RULE
    assert denied.destination_port == 128 << 8
    assert world.generation.rule_of(denied.rule) == (1, 0)
    assert unsolicited.direction is Direction.DOWN
    assert unsolicited.reason is Reason.UNSOLICITED
    assert unsolicited.rule == NO_RULE
    assert nobody.client_index == NO_CLIENT
    assert nobody.reason is Reason.NO_CLIENT


def test_too_many_denials_of_one_client_are_counted_instead(world):
    """Ten a second fit; others are not disturbed, and the next event says how many are missing."""
    world.policy(bob=[EVERYTHING])
    total = world.kernel.suppressed_events()
    for _ in range(100):
        world.up(SENT)
    world.up(p.ipv4(BOB4, SERVER4, p.UDP, p.udp(1, 2)))
    world.down(p.ipv4(SERVER4, BOB4, p.TCP, p.tcp(1, 2)))
    events = world.events()
    alice = [event for event in events if event.client_index == ALICE]
    # A new window may begin meanwhile.
    assert 10 <= len(alice) <= 20
    assert [e.kind for e in events if e.client_index == BOB] == [
        EventKind.FLOW_ALLOWED,
        EventKind.DENIED,
    ]
    suppressed = world.kernel.suppressed_events(ALICE)
    assert suppressed == 100 - len(alice)
    assert world.kernel.suppressed_events() - total == suppressed
    told = sum(event.suppressed for event in alice)
    while not (later := world.up(SENT) and world.events()):
        pass
    assert told + later[0].suppressed >= suppressed


def test_events_that_find_no_room_are_counted_as_lost():
    from zgate_bpf.kernel_policy import Capacity

    capacity = Capacity(max_clients=4, max_flows=4096, event_buffer_bytes=4096)
    with KernelPolicy(capacity=capacity, allowed_events_per_s=100_000) as kernel:
        world = World(kernel, 1)
        kernel.set_client(ip_address(ALICE4), ALICE)
        world.policy(EVERYTHING)
        for port in range(200):
            world.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(port, 53)))
        events = world.events()
        assert 0 < len(events) < 200
        assert kernel.lost_events() == 200 - len(events)
        world.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(999, 53)))
        assert len(world.events()) == 1


def test_event_descriptor_is_readable_while_events_wait(world):
    import select

    world.policy(EVERYTHING)
    world.events()
    poller = select.epoll()
    poller.register(world.kernel.event_fd, select.EPOLLIN)
    assert poller.poll(0) == []
    world.up(SENT)
    assert poller.poll(1)
    world.events()
    assert poller.poll(0) == []


# Tables that contradict themselves.


PREFIX = ServicePrefix(p.UDP, 53, 16, 0)
ANYWHERE = Destination(ip_network("0.0.0.0/0"), 0)


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (
            CompiledPolicy((), (ServiceList(None, (PREFIX,)),), (ANYWHERE,), Action.DENY),
            "names a rule",
        ),
        (
            CompiledPolicy(
                (Action.ALLOW,), (ServiceList(None, (PREFIX, PREFIX)),), (ANYWHERE,), Action.DENY
            ),
            "twice",
        ),
        (CompiledPolicy((), (), (ANYWHERE,), Action.DENY), "has no list"),
        (CompiledPolicy((), (ServiceList(4, ()),), (), Action.DENY), "parent"),
        (
            CompiledPolicy((), (ServiceList(None, ()),), (ANYWHERE, ANYWHERE), Action.DENY),
            "there twice",
        ),
    ],
)
def test_policy_that_contradicts_itself(world, policy, complaint):
    world.revision += 1
    with pytest.raises(ValueError, match=complaint):
        world.kernel.begin(world.revision).add_policy(policy)
