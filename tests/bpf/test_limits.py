"""Limits per client: what they let through, what they charge, and whom they leave alone."""

import itertools
import random
import threading
import time
from ipaddress import ip_address

import pytest
from bpf_support import packets as p
from bpf_support.limited import (
    LimitedClient,
    big,
    bytes_cost_ns,
    meters,
    now_ns,
    udp_down,
    udp_up,
)
from bpf_support.limited import addresses as destinations
from bpf_support.policies import allow, compiled, deny
from bpf_support.world import (
    ALICE,
    ALICE4,
    ALICE6,
    BOB,
    BOB4,
    BOB6,
    OTHER4,
    SERVER4,
    SERVER6,
    World,
)
from zgate_bpf import layouts
from zgate_bpf.kernel_policy import (
    UNLIMITED,
    ClientLimits,
    Direction,
    EventKind,
    FlowState,
    GenerationError,
    KernelPolicy,
)
from zgate_protocol.drop_reason import DropReason as Reason

pytestmark = pytest.mark.paced
BOTH = pytest.mark.parametrize(
    ("client", "server"), [(ALICE4, SERVER4), (ALICE6, SERVER6)], ids=["ipv4", "ipv6"]
)
SLOW = ClientLimits(bandwidth_mbit=1)
BURST_BYTES = 131_072
ALL = ("up_ns", "down_ns", "flows_ns")


def in_debt(alice, *what):
    """Nothing more passes for about a second: less than two bursts, which are forgotten."""
    due = now_ns() + 1_900_000_000
    alice.set_due(**dict.fromkeys(what or ("up_ns", "down_ns"), due))


# Bandwidth.


def test_client_without_limits_is_charged_nothing(world):
    alice = LimitedClient(world)
    for _ in range(100):
        assert alice.kernel.run(udp_up(size=1400), Direction.UP, repeat=10).passed
    assert vars(alice.due) == dict.fromkeys(("up_ns", "down_ns", "flows_ns", "told_ns"), 0)


@BOTH
def test_what_is_beyond_the_burst_is_dropped(world, client, server):
    alice = LimitedClient(world, SLOW)
    packet = udp_up(size=1400, client=client, server=server)
    before = world.drops(Reason.RATE_LIMITED)
    begun = time.monotonic()
    verdict = alice.exhaust(lambda: world.up(packet))
    took_s = time.monotonic() - begun
    assert verdict.reason is Reason.RATE_LIMITED
    assert verdict.client_index == alice.index
    assert verdict.known_flow
    assert verdict.mark == 0
    counted = alice.counters
    assert counted.up_dropped_packets == 1
    assert world.drops(Reason.RATE_LIMITED) == before + 1
    assert BURST_BYTES - 1400 <= counted.up_bytes <= BURST_BYTES + 125_000 * (took_s + 0.02)


@BOTH
def test_directions_are_limited_apart(world, client, server):
    alice = LimitedClient(world, SLOW)
    sent = udp_up(client=client, server=server)
    answer = udp_down(client=client, server=server)
    assert world.up(sent).passed
    in_debt(alice, "up_ns")
    assert world.up(sent).reason is Reason.RATE_LIMITED
    assert world.down(answer).passed
    in_debt(alice, "down_ns")
    alice.set_due(up_ns=0)
    assert world.up(sent).passed
    assert world.down(answer).reason is Reason.RATE_LIMITED
    assert alice.counters.down_dropped_packets == 1


def test_dropped_packet_is_not_charged(world):
    alice = LimitedClient(world, SLOW)
    assert world.up(udp_up()).passed
    in_debt(alice)
    before = alice.due
    assert world.up(udp_up(size=1400)).reason is Reason.RATE_LIMITED
    assert world.down(udp_down(size=1400)).reason is Reason.RATE_LIMITED
    after = alice.due
    assert (after.up_ns, after.down_ns) == (before.up_ns, before.down_ns)


def test_time_pays_the_debt_back(world):
    alice = LimitedClient(world, SLOW)
    assert world.up(udp_up()).passed
    begun = now_ns()
    alice.set_due(up_ns=begun + SLOW.burst_ns)
    alice.waits(lambda: world.up(udp_up(size=1250)))
    # 1250 bytes are 10 ms at 1 Mbit/s.
    assert now_ns() - begun >= 9_000_000


@pytest.mark.parametrize("direction", list(Direction))
def test_rate_over_time(world, direction):
    """8 Mbit/s are 1,000 bytes in a millisecond, whatever is offered."""
    alice = LimitedClient(world, ClientLimits(bandwidth_mbit=8))
    assert world.up(udp_up()).passed
    packet = udp_up(size=1250) if direction is Direction.UP else udp_down(size=1250)
    before, begun = alice.counters, time.monotonic_ns()
    while time.monotonic_ns() - begun < 1_000_000_000:
        world.kernel.run(packet, direction, repeat=20)
    took_ns = time.monotonic_ns() - begun
    passed = sum(
        getattr(alice.counters, name) - getattr(before, name) for name in ("up_bytes", "down_bytes")
    )
    fair = took_ns / 1_000
    # The coarse clock may be a tick of 10 ms behind at the start.
    assert 0.7 * fair < passed <= BURST_BYTES + fair + 10_000 + 1_250


@pytest.mark.parametrize("limits", [SLOW, ClientLimits(bandwidth_mbit=1, new_flows_per_s=10)])
def test_super_packet_is_charged_what_is_on_the_wire(world, limits):
    """And what the counters count: each segment has headers of its own."""
    alice = LimitedClient(world, limits)
    packet = p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2, p.ACK, bytes(2600)))
    before = now_ns()
    assert world.up(packet, gso_size=500).passed
    after = now_ns()
    wire = alice.counters.up_bytes
    assert wire == len(packet) + 5 * 40
    assert before <= alice.due.up_ns - bytes_cost_ns(limits, wire) <= after


def test_packet_larger_than_the_burst_passes_when_nothing_is_owed(world):
    """A limit never shuts a client out for good."""
    alice = LimitedClient(world, SLOW)
    packet, segments, wire = big(200_000)
    alice.set_due(up_ns=now_ns())
    assert world.up(packet, gso_segs=segments).passed
    assert alice.due.up_ns > now_ns() + SLOW.burst_ns
    assert wire > BURST_BYTES
    assert world.up(udp_up()).reason is Reason.RATE_LIMITED


def test_unsolicited_and_denied_packets_are_not_charged(world):
    alice = LimitedClient(world, SLOW, compiled([allow(f"{SERVER4}/32")]))
    assert world.down(udp_down()).reason is Reason.UNSOLICITED
    assert world.up(udp_up(server=OTHER4)).reason is Reason.POLICY_DEFAULT
    assert (alice.due.up_ns, alice.due.down_ns) == (0, 0)


def test_later_fragments_are_charged(world):
    alice = LimitedClient(world, SLOW)
    first = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 53, length=64), identification=77, more=True)
    later = p.ipv4(ALICE4, SERVER4, p.UDP, bytes(1000), identification=77, offset=2)
    assert world.up(first).passed
    before = alice.due.up_ns
    assert world.up(later).passed
    assert alice.due.up_ns >= before + bytes_cost_ns(SLOW, len(later))
    in_debt(alice)
    assert world.up(later).reason is Reason.RATE_LIMITED


def test_fragments_of_a_first_that_did_not_fit(world):
    alice = LimitedClient(world, SLOW)
    in_debt(alice)
    first = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 53, length=64), identification=78, more=True)
    later = p.ipv4(ALICE4, SERVER4, p.UDP, bytes(1000), identification=78, offset=2)
    assert world.up(first).reason is Reason.RATE_LIMITED
    alice.set_due(up_ns=0)
    assert world.up(later).reason is Reason.FRAGMENT_WITHOUT_FIRST


def test_icmp_error_about_a_flow_is_charged_to_its_client(world):
    alice = LimitedClient(world, SLOW)
    assert world.up(udp_up()).passed
    error = p.icmp_error(OTHER4, ALICE4, udp_up())
    assert world.down(error).related
    assert alice.due.down_ns > 0
    in_debt(alice)
    assert world.down(error).reason is Reason.RATE_LIMITED


def test_limited_packet_does_not_change_its_flow(world):
    """The other side has not seen it either."""
    alice = LimitedClient(world, SLOW)
    assert world.up(p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2))).passed
    in_debt(alice)
    reset = p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2, p.RST))
    assert world.up(reset).reason is Reason.RATE_LIMITED
    (flow,) = world.kernel.flows()
    assert flow.state == FlowState(0)


# New flows.


@BOTH
def test_no_more_new_flows_than_the_limit(world, client, server):
    alice = LimitedClient(world, ClientLimits(new_flows_per_s=3))
    for port in range(3):
        assert world.up(udp_up(port, client=client, server=server)).new_flow
    verdict = world.up(udp_up(3, client=client, server=server))
    assert verdict.reason is Reason.NEW_FLOW_LIMITED
    assert not verdict.new_flow
    assert verdict.judged
    assert sum(1 for _ in world.kernel.flows()) == alice.counters.flows == 3
    assert alice.counters.up_dropped_packets == 1
    assert world.up(udp_up(0, client=client, server=server)).passed, "a known flow goes on"
    assert world.down(udp_down(0, client=client, server=server)).passed
    assert world.down(udp_down(3, client=client, server=server)).reason is Reason.UNSOLICITED
    assert alice.due.up_ns == 0


def test_new_flows_over_time(world):
    alice = LimitedClient(world, ClientLimits(new_flows_per_s=50))
    begun = time.monotonic_ns()
    for port in itertools.count(1):
        world.up(udp_up(port % 60_000))
        if time.monotonic_ns() - begun >= 1_500_000_000:
            break
    took_s = (time.monotonic_ns() - begun) / 1e9
    assert 0.7 * 50 * took_s < alice.counters.flows <= 50 + 50 * (took_s + 0.01) + 1


@pytest.mark.parametrize(
    "packet",
    [
        p.ping(ALICE4, SERVER4),
        p.ipv4(ALICE4, SERVER4, p.ICMP, p.icmp(13)),
        p.ipv4(ALICE4, SERVER4, p.ESP, bytes(20)),
        p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2)),
        p.ipv6(ALICE6, SERVER6, p.SCTP, p.sctp(1, 2)),
    ],
    ids=["echo", "icmp", "esp", "tcp", "sctp"],
)
def test_every_kind_of_flow_is_one(world, packet):
    alice = LimitedClient(world, ClientLimits(new_flows_per_s=1))
    in_debt(alice, "flows_ns")
    assert world.up(packet).reason is Reason.NEW_FLOW_LIMITED
    alice.set_due(flows_ns=0)
    assert world.up(packet).new_flow


def test_connection_on_the_ports_of_a_closed_one_is_a_new_flow(world):
    alice = LimitedClient(world, ClientLimits(new_flows_per_s=1))
    assert world.up(p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2))).new_flow
    assert world.up(p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2, p.RST))).passed
    in_debt(alice, "flows_ns")
    assert world.up(p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2))).reason is Reason.NEW_FLOW_LIMITED


def test_denied_flow_costs_nothing(world):
    alice = LimitedClient(
        world, ClientLimits(new_flows_per_s=1), compiled([allow(f"{SERVER4}/32")])
    )
    for port in range(5):
        assert world.up(udp_up(port, server=OTHER4)).reason is Reason.POLICY_DEFAULT
    assert alice.due.flows_ns == 0
    assert world.up(udp_up()).new_flow


def test_new_flow_without_bandwidth_costs_no_flow(world):
    alice = LimitedClient(world, ClientLimits(bandwidth_mbit=1, new_flows_per_s=2))
    in_debt(alice)
    before = now_ns()
    verdict = world.up(udp_up())
    assert verdict.reason is Reason.RATE_LIMITED
    assert not verdict.new_flow
    assert before <= alice.due.flows_ns <= now_ns(), "given back"
    assert list(world.kernel.flows()) == []
    alice.set_due(up_ns=0)
    assert world.up(udp_up(1)).new_flow
    assert world.up(udp_up(2)).new_flow
    assert world.up(udp_up(3)).reason is Reason.NEW_FLOW_LIMITED


def test_new_flow_beyond_the_limit_costs_no_bandwidth(world):
    alice = LimitedClient(world, ClientLimits(bandwidth_mbit=1, new_flows_per_s=1))
    in_debt(alice, "flows_ns")
    assert world.up(udp_up()).reason is Reason.NEW_FLOW_LIMITED
    assert alice.due.up_ns == 0


def test_flow_judged_anew_is_no_new_flow(world):
    limits = ClientLimits(new_flows_per_s=1)
    alice = LimitedClient(world, limits)
    assert world.up(udp_up()).new_flow
    alice.policy(limits)
    verdict = world.up(udp_up())
    assert verdict.passed
    assert verdict.judged


@pytest.mark.parametrize("limited", [True, False])
def test_scan_does_not_disturb_the_flows_of_others(limited):
    """Alice scans a /16 with a table that holds far less; without a limit Bob pays for it."""
    with KernelPolicy(max_clients=4, max_flows=1024) as kernel:
        for index, address in ((ALICE, ALICE4), (BOB, BOB4)):
            kernel.set_client(ip_address(address), index)
        generation = kernel.begin(1)
        policy = generation.add_policy(compiled([allow("0.0.0.0/0")]))
        rate = 20
        generation.assign(
            ALICE, policy, ClientLimits(new_flows_per_s=rate) if limited else UNLIMITED
        )
        generation.assign(BOB, policy)
        generation.verify()
        generation.activate()
        assert kernel.run(udp_up(client=BOB4), Direction.UP).new_flow
        begun = time.monotonic()
        probe = p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(4000, 445))
        for destination in destinations("10.99.0.0", 65_536):
            kernel.run(probe[:16] + destination + probe[20:], Direction.UP)
        took_s = time.monotonic() - begun
        answer = kernel.run(udp_down(client=BOB4), Direction.DOWN)
        assert answer.passed is limited
        counted = kernel.counters(ALICE)
        assert counted.flows + counted.up_dropped_packets == 65_536
        if limited:
            assert counted.flows <= rate * (took_s + 1.01) + 1
            assert kernel.drops()[Reason.NEW_FLOW_LIMITED] == 65_536 - counted.flows


# With the policy.


def test_limits_change_with_the_policy(world):
    alice = LimitedClient(world, SLOW)
    assert world.up(udp_up()).passed
    generation = alice.begin(UNLIMITED)
    generation.verify()
    in_debt(alice)
    assert world.up(udp_up()).reason is Reason.RATE_LIMITED
    generation.activate()
    assert world.up(udp_up()).passed
    assert world.down(udp_down()).passed
    alice.policy(SLOW)
    in_debt(alice)
    assert world.down(udp_down()).reason is Reason.RATE_LIMITED
    assert world.up(udp_up()).reason is Reason.RATE_LIMITED
    alice.set_due(up_ns=0, down_ns=0)
    assert world.down(udp_down()).passed, "the flow is still known"
    assert not world.up(udp_up()).new_flow


def test_limited_client_does_not_lose_a_flow_that_is_judged_anew(world):
    alice = LimitedClient(world, SLOW)
    assert world.up(udp_up()).passed
    alice.policy(SLOW)
    in_debt(alice)
    assert world.down(udp_down()).reason is Reason.RATE_LIMITED
    assert sum(1 for _ in world.kernel.flows()) == 1


def test_flow_that_the_new_policy_denies_ends_without_a_charge(world):
    alice = LimitedClient(world, SLOW)
    assert world.up(udp_up()).passed
    before = alice.due
    alice.policy(SLOW, compiled([deny("0.0.0.0/0")]))
    assert world.up(udp_up()).reason is Reason.POLICY_RULE
    assert alice.due == before
    assert list(world.kernel.flows()) == []


def test_debt_of_a_lower_limit_is_forgotten(world):
    """A second's worth at 1 Mbit/s is not held against a client that has 1,000 now."""
    alice = LimitedClient(world, SLOW)
    assert world.up(udp_up()).passed
    fast = ClientLimits(bandwidth_mbit=1000)
    alice.policy(fast)
    in_debt(alice)
    assert world.up(udp_up()).reason is Reason.RATE_LIMITED
    assert alice.due.up_ns <= now_ns() + fast.burst_ns
    alice.waits(lambda: world.up(udp_up()))


def test_limit_changed_in_the_active_generation(world):
    alice = LimitedClient(world, SLOW)
    assert world.up(udp_up()).passed
    in_debt(alice)
    world.generation.assign(alice.index, 1, UNLIMITED)
    assert not world.up(udp_up()).new_flow
    world.generation.assign(alice.index, 1, SLOW)
    verdict = world.up(udp_up())
    assert verdict.reason is Reason.RATE_LIMITED
    assert not verdict.known_flow, "it knew of no limit"
    alice.set_due(up_ns=0)
    assert world.up(udp_up()).new_flow
    world.generation.assign(alice.index, 1, ClientLimits(bandwidth_mbit=2))
    assert world.up(udp_up()).known_flow


def test_limits_are_read_back(world, monkeypatch):
    alice = LimitedClient(world)
    generation = alice.begin(SLOW)
    generation._write_assignment(alice.index, bytes(16))
    with pytest.raises(GenerationError, match="assignments does not read back"):
        generation.verify()


def test_dialling_anew_pays_no_debt(world):
    alice = LimitedClient(world, SLOW)
    in_debt(alice)
    world.kernel.remove_client(ip_address(ALICE4))
    world.kernel.reset_counters(alice.index)
    world.kernel.set_client(ip_address(ALICE4), alice.index)
    assert world.up(udp_up()).reason is Reason.RATE_LIMITED


@BOTH
def test_asking_charges_nothing_and_knows_no_limit(world, client, server):
    """What the policy says does not depend on how busy the client is."""
    limits = ClientLimits(bandwidth_mbit=1, new_flows_per_s=1)
    alice = LimitedClient(world, limits)
    sent = udp_up(client=client, server=server)
    verdict = world.kernel.evaluate(sent, Direction.UP)
    assert verdict.passed
    assert verdict.new_flow
    assert (alice.due.up_ns, alice.due.flows_ns) == (0, 0)
    assert world.up(sent).passed
    in_debt(alice, *ALL)
    before = alice.due
    assert world.kernel.evaluate(sent, Direction.UP).known_flow
    assert world.kernel.evaluate(udp_up(9, client=client, server=server), Direction.UP).passed
    assert world.kernel.evaluate(udp_down(client=client, server=server), Direction.DOWN).passed
    assert alice.due == before


# Events.


def test_limit_is_told_once_a_second_with_the_number_left_out(world):
    alice = LimitedClient(world, ClientLimits(bandwidth_mbit=1, new_flows_per_s=1))
    assert world.up(udp_up()).new_flow
    world.events()
    in_debt(alice, *ALL)
    total = world.kernel.suppressed_events()
    for port in (4000, 1):
        for _ in range(50):
            assert not world.up(udp_up(port)).passed
    (event,) = world.events()
    assert event.kind is EventKind.DENIED
    assert event.reason is Reason.RATE_LIMITED
    assert event.client_index == alice.index
    assert event.suppressed == 0
    assert world.kernel.suppressed_events(alice.index) == 99
    assert world.kernel.suppressed_events() == total + 99
    again = _next_event(world, alice)
    assert again.time_ns - event.time_ns > 1_000_000_000
    assert again.suppressed >= 99


def _next_event(world, alice):
    """Limited all the while, until it is told again."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        in_debt(alice)
        assert world.up(udp_up()).reason is Reason.RATE_LIMITED
        if found := world.events():
            return found[0]
        time.sleep(0.005)
    raise TimeoutError("never told again")


def test_new_flow_limit_is_told_with_the_rule_that_allows(world):
    alice = LimitedClient(
        world, ClientLimits(new_flows_per_s=1), compiled([deny("10.0.0.0/32"), allow("0.0.0.0/0")])
    )
    in_debt(alice, "flows_ns")
    assert world.up(udp_up()).reason is Reason.NEW_FLOW_LIMITED
    (event,) = world.events()
    assert event.reason is Reason.NEW_FLOW_LIMITED
    assert event.destination == ip_address(SERVER4)
    assert world.generation.rule_of(event.rule) == (1, 1)


def test_other_events_have_limits_of_their_own(world):
    """Denials beyond theirs do not hide that a limit bites, nor the other way round."""
    policy = compiled([allow(f"{SERVER4}/32")])
    alice = LimitedClient(world, ClientLimits(new_flows_per_s=1000), policy)
    for _ in range(100):
        world.up(udp_up(server=OTHER4))
    in_debt(alice, "flows_ns")
    for port in range(20):
        world.up(udp_up(port))
    alice.set_due(flows_ns=0)
    assert world.up(udp_up(99)).new_flow
    events = world.events()
    limited = [e for e in events if e.reason is Reason.NEW_FLOW_LIMITED]
    denied = [e for e in events if e.reason is Reason.POLICY_DEFAULT]
    (opened,) = [e for e in events if e.kind is EventKind.FLOW_ALLOWED]
    assert len(limited) == 1
    assert limited[0].suppressed == 0, "denials are counted apart"
    assert 10 <= len(denied) <= 20
    told = opened.suppressed + sum(event.suppressed for event in denied)
    assert told == 100 - len(denied), "and what the limit left out is not among them"


# Two CPUs.


def test_no_charge_is_lost_between_cpus(world):
    """Both charge the same limit at once, millions of times: it knows of every packet."""
    limits = ClientLimits(bandwidth_mbit=100_000)
    alice = LimitedClient(world, limits)
    packet, repeat = udp_up(size=1250), 1_000_000
    assert world.up(packet).passed
    # A burst in which all of them have room, and a debt that does not run out meanwhile.
    value = layouts.ASSIGNMENT.pack(1, limits.byte_cost, 0xFFFFFFFF, 0)
    world.generation._write_assignment(alice.index, value)
    owed_ns = now_ns() + 4_000_000_000
    alice.set_due(up_ns=owed_ns)
    threads = [
        threading.Thread(
            target=world.kernel.run, args=(packet, Direction.UP), kwargs={"repeat": repeat}
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alice.counters.up_packets == 2 * repeat + 1
    assert alice.due.up_ns - owed_ns == 2 * repeat * bytes_cost_ns(limits, 1250)


# Everything at once, against limits in plain words.


@pytest.mark.parametrize("seed", range(6))
def test_limits_against_a_reference(world, seed):
    """Random limits, sizes and flows: every verdict and every charge is the reference's.

    The clock moves on while a packet is decided: the reference is asked for the time before and
    the time after, and where the two differ in their answer, the kernel's is taken.
    """
    choose = random.Random(f"limits/{seed}")
    limits = ClientLimits(
        bandwidth_mbit=choose.choice([1, 2, 10, 100]),
        new_flows_per_s=choose.choice([1, 7, 50, None]),
    )
    alice = LimitedClient(world, limits)
    up, down, flows = meters(limits)
    known, reasons, exact = set(), set(), 0
    for _ in range(3_000):
        port, size = choose.randrange(60), choose.randrange(40, 3_000)
        is_up = port not in known or choose.random() < 0.5
        before = now_ns()
        verdict = world.up(udp_up(port, size)) if is_up else world.down(udp_down(port, size))
        after = now_ns()
        due = alice.due
        if before == after:
            exact += 1
            opens = limits.new_flows_per_s is not None and port not in known
            meter = up if is_up else down
            expected = _expected(limits, meter, flows if opens else None, size, before)
            assert verdict.reason is expected
            assert (up.due_ns, down.due_ns) == (due.up_ns, due.down_ns)
            if flows.due_ns > before or due.flows_ns > before:
                assert flows.due_ns == due.flows_ns
        if verdict.passed:
            known.add(port)
        up.due_ns, down.due_ns, flows.due_ns = due.up_ns, due.down_ns, due.flows_ns
        reasons.add(verdict.reason)
        if choose.random() < 0.002:
            time.sleep(choose.random() * 0.1)
    print(f"{exact} packets compared exactly; {limits}: {sorted(r.name for r in reasons)}")
    assert exact > 1_500
    assert Reason.NONE in reasons


def _expected(limits, meter, flows, size, now):
    if flows is not None and not flows.takes(limits.flow_cost_ns, now):
        return Reason.NEW_FLOW_LIMITED
    if meter.takes(bytes_cost_ns(limits, size), now):
        return Reason.NONE
    if flows is not None:
        flows.due_ns -= limits.flow_cost_ns
    return Reason.RATE_LIMITED


def test_two_clients_do_not_share_a_limit(world: World):
    alice = LimitedClient(world, SLOW)
    for address in (BOB4, BOB6):
        world.kernel.set_client(ip_address(address), BOB)
    world.generation.assign(BOB, 1, SLOW)
    in_debt(alice)
    assert world.up(udp_up()).reason is Reason.RATE_LIMITED
    assert world.up(udp_up(client=BOB4)).passed
