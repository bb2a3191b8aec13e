"""Packet in, verdict out: a case with a name for every branch of the program."""

from ipaddress import ip_address

import pytest
from bpf_support import packets as p
from bpf_support.policies import allow, deny
from bpf_support.world import (
    ALICE,
    ALICE4,
    ALICE6,
    BOB4,
    OTHER4,
    OTHER6,
    SERVER4,
    SERVER6,
)
from zgate_bpf.kernel_policy import NO_CLIENT
from zgate_bpf.tables import NO_RULE, PASS_MARK, Action
from zgate_protocol.drop_reason import DropReason as Reason

BOTH = pytest.mark.parametrize(
    ("client", "server", "other"),
    [(ALICE4, SERVER4, OTHER4), (ALICE6, SERVER6, OTHER6)],
    ids=["ipv4", "ipv6"],
)
EVERYTHING = allow("0.0.0.0/0", "::/0")


def net(address):
    return f"{address}/{32 if '.' in address else 128}"


# Rules.


@BOTH
def test_first_matching_rule_passes_and_marks(world, client, server, other):
    world.policy(allow(net(server), protocol=p.TCP, ports=(443, 443)))
    verdict = world.up(p.ip(client, server, p.TCP, p.tcp(40000, 443)))
    assert verdict.passed
    assert verdict.reason is Reason.NONE
    assert verdict.client_index == ALICE
    assert world.generation.rule_of(verdict.rule) == (1, 0)
    assert verdict.revision == world.revision
    assert verdict.new_flow
    assert verdict.mark == PASS_MARK


@BOTH
def test_no_rule_is_the_default_deny(world, client, server, other):
    world.policy(allow(net(server)))
    verdict = world.up(p.ip(client, other, p.UDP, p.udp(1, 2)))
    assert verdict.reason is Reason.POLICY_DEFAULT
    assert verdict.rule == NO_RULE
    assert verdict.mark == 0


@BOTH
def test_default_allow_without_a_rule(world, client, server, other):
    world.policy(deny(net(server)), default=Action.ALLOW)
    verdict = world.up(p.ip(client, other, p.UDP, p.udp(1, 2)))
    assert verdict.passed
    assert verdict.rule == NO_RULE
    denied = world.up(p.ip(client, server, p.UDP, p.udp(1, 2)))
    assert denied.reason is Reason.POLICY_RULE


@BOTH
def test_deny_rule_before_a_wider_allow(world, client, server, other):
    world.policy(deny(net(server)), EVERYTHING)
    verdict = world.up(p.ip(client, server, p.UDP, p.udp(1, 2)))
    assert verdict.reason is Reason.POLICY_RULE
    assert world.generation.rule_of(verdict.rule) == (1, 0)
    assert world.up(p.ip(client, other, p.UDP, p.udp(1, 2))).passed


@BOTH
def test_wide_allow_before_a_narrow_deny_wins(world, client, server, other):
    world.policy(EVERYTHING, deny(net(server)))
    verdict = world.up(p.ip(client, server, p.UDP, p.udp(1, 2)))
    assert verdict.passed
    assert world.generation.rule_of(verdict.rule) == (1, 0)


def test_lowest_rule_of_nested_destinations_wins(world):
    """Three levels of prefixes, each with a list of its own: the parents are walked."""
    many = [allow("10.0.0.0/8", protocol=p.TCP, ports=(n, n)) for n in range(1, 400, 2)]
    some = [deny("10.20.0.0/16", protocol=p.TCP, ports=(n, n)) for n in range(1, 400, 4)]
    few = [allow("10.20.0.0/24", protocol=p.UDP, ports=(53, 53))]
    world.policy(*few, *some, *many)
    assert world.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 53))).passed
    denied = world.up(p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(9, 5)))
    assert denied.reason is Reason.POLICY_RULE
    allowed = world.up(p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(9, 7)))
    assert allowed.passed
    assert world.generation.rule_of(allowed.rule) == (1, 1 + len(some) + 3)


@pytest.mark.parametrize(
    ("port", "passed"), [(7999, False), (8000, True), (8050, True), (8100, True), (8101, False)]
)
@BOTH
def test_port_range_ends_are_included(world, client, server, other, port, passed):
    world.policy(allow(net(server), protocol=p.TCP, ports=(8000, 8100)))
    assert world.up(p.ip(client, server, p.TCP, p.tcp(4000, port))).passed is passed


@pytest.mark.parametrize("protocol", [p.TCP, p.UDP, p.SCTP])
def test_ports_belong_to_their_protocol(world, protocol):
    world.policy(allow("0.0.0.0/0", protocol=protocol, ports=(53, 53)))
    bodies = {p.TCP: p.tcp(1, 53), p.UDP: p.udp(1, 53), p.SCTP: p.sctp(1, 53)}
    for other, body in bodies.items():
        assert world.up(p.ipv4(ALICE4, SERVER4, other, body)).passed is (other == protocol)


@BOTH
def test_protocol_without_ports(world, client, server, other):
    world.policy(allow(net(server), protocol=p.ESP))
    assert world.up(p.ip(client, server, p.ESP, b"\x01\x02")).passed
    assert world.up(p.ip(client, server, 47, b"\x01\x02")).reason is Reason.POLICY_DEFAULT
    assert world.down(p.ip(server, client, p.ESP, b"\x01\x02")).passed


def test_clients_have_their_own_policies(world):
    world.policy(allow(net(SERVER4)), bob=[allow(net(OTHER4))])
    packet = p.udp(1, 2)
    assert world.up(p.ipv4(ALICE4, SERVER4, p.UDP, packet)).passed
    assert not world.up(p.ipv4(ALICE4, OTHER4, p.UDP, packet)).passed
    assert not world.up(p.ipv4(BOB4, SERVER4, p.UDP, packet)).passed
    bob = world.up(p.ipv4(BOB4, OTHER4, p.UDP, packet))
    assert bob.passed
    assert world.generation.rule_of(bob.rule) == (2, 0)


# Clients.


@BOTH
def test_unknown_source_is_nobody(world, client, server, other):
    world.policy(EVERYTHING)
    verdict = world.up(p.ip(other, server, p.UDP, p.udp(1, 2)))
    assert verdict.reason is Reason.NO_CLIENT
    assert verdict.client_index == NO_CLIENT


@BOTH
def test_unknown_destination_is_nobody(world, client, server, other):
    world.policy(EVERYTHING)
    assert world.down(p.ip(server, other, p.UDP, p.udp(1, 2))).reason is Reason.NO_CLIENT


def test_ipv4_mapped_address_is_not_the_ipv4_client(world):
    world.policy(EVERYTHING)
    verdict = world.up(p.ipv6(f"::ffff:{ALICE4}", SERVER6, p.UDP, p.udp(1, 2)))
    assert verdict.reason is Reason.NO_CLIENT


def test_address_of_the_other_family_with_equal_bytes(world):
    """An IPv4 address lies in the first word of 16 bytes; an IPv6 one must not be taken for it."""
    world.policy(EVERYTHING)
    verdict = world.up(p.ipv6("a64:5::", SERVER6, p.UDP, p.udp(1, 2)))
    assert verdict.reason is Reason.NO_CLIENT


def test_client_without_a_policy_may_nothing(world):
    world.policy(EVERYTHING)
    assert world.up(p.ipv4(BOB4, SERVER4, p.UDP, p.udp(1, 2))).reason is Reason.NO_POLICY


# Replies.


@BOTH
@pytest.mark.parametrize("build", [p.tcp, p.udp, p.sctp], ids=["tcp", "udp", "sctp"])
def test_reply_passes_and_unsolicited_does_not(world, client, server, other, build):
    protocol = {p.tcp: p.TCP, p.udp: p.UDP, p.sctp: p.SCTP}[build]
    world.policy(EVERYTHING)
    reply = p.ip(server, client, protocol, build(443, 40000))
    assert world.down(reply).reason is Reason.UNSOLICITED
    assert world.up(p.ip(client, server, protocol, build(40000, 443))).passed
    verdict = world.down(reply)
    assert verdict.passed
    assert verdict.known_flow
    assert verdict.mark == 0
    for stranger in (
        p.ip(other, client, protocol, build(443, 40000)),
        p.ip(server, client, protocol, build(444, 40000)),
        p.ip(server, client, protocol, build(443, 40001)),
    ):
        assert world.down(stranger).reason is Reason.UNSOLICITED


@BOTH
@pytest.mark.parametrize("build", [p.tcp, p.udp], ids=["tcp", "udp"])
def test_a_flow_of_before_is_judged_as_if_it_were_new(world, client, server, other, build):
    """The gateway has been started anew, and knows what was open: the remote may speak first."""
    protocol = {p.tcp: p.TCP, p.udp: p.UDP}[build]
    world.policy(allow(net(server), protocol=protocol, ports=(443, 443)))
    for remote, port in ((server, 443), (server, 444), (other, 443)):
        flow = ip_address(client), ip_address(remote), protocol, (40000, port)
        assert world.kernel.restore_flow(*flow)
    verdict = world.down(p.ip(server, client, protocol, build(443, 40000)))
    assert verdict.passed
    assert verdict.known_flow and not verdict.new_flow
    assert verdict.revision == world.revision
    for remote, port in ((server, 444), (other, 443)):
        packet = p.ip(remote, client, protocol, build(port, 40000))
        assert world.down(packet).reason is Reason.POLICY_DEFAULT
        assert world.down(packet).reason is Reason.UNSOLICITED, "and it is forgotten"
    assert not world.kernel.restore_flow(
        ip_address("10.99.0.9"), ip_address(server), protocol, (1, 2)
    ), "of nobody"


@BOTH
def test_a_flow_of_before_does_not_displace_what_was_opened_since(world, client, server, other):
    world.policy(EVERYTHING)
    packet = p.ip(client, server, p.TCP, p.tcp(40000, 443))
    assert world.up(packet).new_flow
    flow = ip_address(client), ip_address(server), p.TCP, (40000, 443)
    assert not world.kernel.restore_flow(*flow)
    verdict = world.up(packet)
    assert verdict.known_flow and not verdict.judged
    world.kernel.set_client(ip_address(client), ALICE)
    assert world.kernel.restore_flow(*flow), "that one was of the client's earlier session"
    assert world.down(p.ip(server, client, p.TCP, p.tcp(443, 40000))).passed


def test_reply_in_another_protocol_is_unsolicited(world):
    world.policy(EVERYTHING)
    assert world.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1000, 53))).passed
    reply = p.ipv4(SERVER4, ALICE4, p.TCP, p.tcp(53, 1000))
    assert world.down(reply).reason is Reason.UNSOLICITED


def test_one_clients_flow_is_not_anothers(world):
    world.policy(EVERYTHING, bob=[EVERYTHING])
    assert world.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1000, 53))).passed
    reply = p.ipv4(SERVER4, BOB4, p.UDP, p.udp(53, 1000))
    assert world.down(reply).reason is Reason.UNSOLICITED


def test_client_to_client_is_unsolicited_at_the_second(world):
    world.policy(EVERYTHING, bob=[EVERYTHING])
    packet = p.ipv4(ALICE4, BOB4, p.UDP, p.udp(1, 2))
    assert world.up(packet).passed
    assert world.down(packet).reason is Reason.UNSOLICITED


# ICMP.


@BOTH
def test_echo_reply_answers_an_echo(world, client, server, other):
    world.policy(EVERYTHING)
    assert world.down(p.pong(server, client, 7)).reason is Reason.UNSOLICITED
    assert world.up(p.ping(client, server, 7)).passed
    assert world.down(p.pong(server, client, 7)).passed
    assert world.down(p.pong(server, client, 8)).reason is Reason.UNSOLICITED
    assert world.down(p.pong(other, client, 7)).reason is Reason.UNSOLICITED


@BOTH
def test_echo_request_to_a_client_is_unsolicited(world, client, server, other):
    """Even after the client sent what looks like the answer to it."""
    world.policy(EVERYTHING)
    assert world.up(p.pong(client, server, 7)).passed
    assert world.up(p.ping(client, server, 7)).passed
    assert world.down(p.ping(server, client, 7)).reason is Reason.UNSOLICITED


@BOTH
def test_icmp_type_and_code_are_the_port(world, client, server, other):
    protocol, request, _ = p.echo_types(4 if "." in client else 6)
    world.policy(allow(net(server), protocol=protocol, ports=(request << 8, request << 8 | 255)))
    assert world.up(p.ping(client, server)).passed
    other_type = p.ip(client, server, protocol, p.icmp(200))
    assert world.up(other_type).reason is Reason.POLICY_DEFAULT


def test_other_icmp_is_judged_and_never_answered(world):
    world.policy(EVERYTHING)
    assert world.up(p.ipv4(ALICE4, SERVER4, p.ICMP, p.icmp(13))).passed
    answer = p.ipv4(SERVER4, ALICE4, p.ICMP, p.icmp(14))
    assert world.down(answer).reason is Reason.UNSOLICITED
    for kind in (13, 255):
        again = p.ipv4(SERVER4, ALICE4, p.ICMP, p.icmp(kind, kind))
        assert world.down(again).reason is Reason.UNSOLICITED


def test_icmp_of_the_other_family_is_a_protocol_without_ports(world):
    world.policy(allow("0.0.0.0/0", "::/0", protocol=p.ICMPV6, ports=(0, 0)))
    verdict = world.up(p.ipv4(ALICE4, SERVER4, p.ICMPV6, p.icmp(128)))
    assert verdict.passed


@BOTH
@pytest.mark.parametrize("build", [p.tcp, p.udp], ids=["tcp", "udp"])
def test_icmp_error_about_an_allowed_flow(world, client, server, other, build):
    protocol = {p.tcp: p.TCP, p.udp: p.UDP}[build]
    world.policy(EVERYTHING)
    sent = p.ip(client, server, protocol, build(40000, 443))
    assert world.up(sent).passed
    for router in (server, other):
        verdict = world.down(p.icmp_error(router, client, sent))
        assert verdict.passed
        assert verdict.related
    strange = p.ip(client, server, protocol, build(40001, 443))
    assert world.down(p.icmp_error(server, client, strange)).reason is Reason.UNSOLICITED


@BOTH
def test_icmp_error_about_an_echo(world, client, server, other):
    world.policy(EVERYTHING)
    assert world.up(p.ping(client, server, 9)).passed
    assert world.down(p.icmp_error(other, client, p.ping(client, server, 9))).passed
    verdict = world.down(p.icmp_error(other, client, p.ping(client, server, 10)))
    assert verdict.reason is Reason.UNSOLICITED


@pytest.mark.parametrize("kind", [3, 11, 12])
def test_every_icmpv4_error(world, kind):
    world.policy(EVERYTHING)
    sent = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2))
    world.up(sent)
    assert world.down(p.icmp_error(OTHER4, ALICE4, sent, kind=kind)).related


@pytest.mark.parametrize("kind", [4, 5, 13, 30])
def test_icmpv4_that_is_no_error_brings_nothing_in(world, kind):
    """Among them redirects and source quench."""
    world.policy(EVERYTHING)
    sent = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2))
    world.up(sent)
    error = p.icmp_error(OTHER4, ALICE4, sent, kind=kind)
    assert world.down(error).reason is Reason.UNSOLICITED


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_every_icmpv6_error(world, kind):
    world.policy(EVERYTHING)
    sent = p.ipv6(ALICE6, SERVER6, p.UDP, p.udp(1, 2))
    world.up(sent)
    assert world.down(p.icmp_error(OTHER6, ALICE6, sent, kind=kind)).related


@BOTH
def test_icmp_error_quoting_no_more_than_eight_bytes(world, client, server, other):
    world.policy(EVERYTHING)
    sent = p.ip(client, server, p.TCP, p.tcp(40000, 443, data=bytes(500)))
    world.up(sent)
    header = 20 if "." in client else 40
    assert world.down(p.icmp_error(other, client, sent[: header + 8])).passed
    for length in range(header + 8):
        error = p.icmp_error(other, client, sent[:length])
        assert world.down(error).reason is Reason.UNSOLICITED


@BOTH
def test_icmp_error_must_go_to_the_client_it_is_about(world, client, server, other):
    world.policy(EVERYTHING, bob=[EVERYTHING])
    sent = p.ip(client, server, p.UDP, p.udp(1, 2))
    world.up(sent)
    bob = BOB4 if "." in client else "fd7a::6"
    assert world.down(p.icmp_error(server, bob, sent)).reason is Reason.UNSOLICITED


@BOTH
def test_icmp_error_about_an_icmp_error(world, client, server, other):
    world.policy(EVERYTHING)
    inner = p.icmp_error(client, server, p.ip(server, client, p.UDP, p.udp(1, 2)))
    assert world.up(inner).passed
    assert world.down(p.icmp_error(server, client, inner)).reason is Reason.UNSOLICITED


@BOTH
def test_icmp_error_from_a_client_about_an_answer(world, client, server, other):
    """Passes although the policy knows no ICMP; about anything else the policy decides."""
    world.policy(allow(net(server), protocol=p.UDP))
    sent = p.ip(client, server, p.UDP, p.udp(1000, 53))
    answer = p.ip(server, client, p.UDP, p.udp(53, 1000))
    world.up(sent)
    assert world.up(p.icmp_error(client, server, answer)).related
    elsewhere = world.up(p.icmp_error(client, other, answer))
    assert elsewhere.reason is Reason.POLICY_DEFAULT
    own_packet = world.up(p.icmp_error(client, server, sent))
    assert own_packet.reason is Reason.POLICY_DEFAULT


def test_icmpv6_error_quoting_extension_headers(world):
    world.policy(EVERYTHING)
    first, body = p.chain(p.options_header(p.DESTINATION_OPTIONS), upper=p.UDP, payload=p.udp(1, 2))
    sent = p.ipv6(ALICE6, SERVER6, first, body)
    assert world.up(sent).passed
    assert world.down(p.icmp_error(OTHER6, ALICE6, sent)).related


def test_icmp_error_that_is_fragmented(world):
    world.policy(EVERYTHING)
    sent = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2))
    world.up(sent)
    error = p.ipv4(OTHER4, ALICE4, p.ICMP, p.icmp(3, data=sent), more=True)
    assert world.down(error).reason is Reason.MALFORMED


def test_icmp_error_quoting_a_later_fragment(world):
    world.policy(EVERYTHING)
    world.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2)))
    quoted = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2), offset=100)
    assert world.down(p.icmp_error(OTHER4, ALICE4, quoted)).reason is Reason.UNSOLICITED


# Link-local.


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("169.254.0.1", SERVER4),
        (ALICE4, "169.254.169.254"),
        (ALICE4, "224.0.0.251"),
        ("fe80::1", SERVER6),
        (ALICE6, "fe80::1"),
        (ALICE6, "febf:ffff::1"),
        (ALICE6, "ff02::fb"),
        (ALICE6, "ff11::1"),
    ],
)
def test_link_local_is_never_forwarded(world, source, destination):
    world.policy(EVERYTHING)
    packet = p.ip(source, destination, p.UDP, p.udp(1, 2))
    assert world.up(packet).reason is Reason.LINK_LOCAL
    assert world.down(packet).reason is Reason.LINK_LOCAL


@pytest.mark.parametrize("destination", ["169.253.255.255", "169.255.0.0", "224.0.1.1"])
def test_next_to_link_local_ipv4(world, destination):
    world.policy(EVERYTHING)
    assert world.up(p.ipv4(ALICE4, destination, p.UDP, p.udp(1, 2))).passed


@pytest.mark.parametrize("destination", ["fe7f::1", "fec0::1", "ff05::1", "ff0e::1"])
def test_next_to_link_local_ipv6(world, destination):
    world.policy(EVERYTHING)
    assert world.up(p.ipv6(ALICE6, destination, p.UDP, p.udp(1, 2))).passed


# IPv6 extension headers.


def extended(*headers, upper=p.UDP, payload=None, **keywords):
    first, body = p.chain(
        *headers, upper=upper, payload=p.udp(1, 53) if payload is None else payload
    )
    return p.ipv6(ALICE6, SERVER6, first, body, **keywords)


@pytest.mark.parametrize(
    "headers",
    [
        [p.options_header()],
        [p.options_header(units=3)],
        [p.routing_header(0)],
        [p.options_header(p.DESTINATION_OPTIONS)],
        [p.authentication_header()],
        [p.fragment_header()],
        [p.options_header(), p.options_header(p.DESTINATION_OPTIONS), p.routing_header()],
        [p.options_header(p.DESTINATION_OPTIONS)] * 8,
    ],
    ids=["hop-by-hop", "long", "routing", "destination", "ah", "atomic-fragment", "three", "eight"],
)
def test_extension_headers_are_walked(world, headers):
    world.policy(allow("::/0", protocol=p.UDP, ports=(53, 53)))
    assert world.up(extended(*headers)).passed
    wrong = extended(*headers, payload=p.udp(1, 54))
    assert world.up(wrong).reason is Reason.POLICY_DEFAULT


@pytest.mark.parametrize("number", [135, 139, 140, 253, 254])
def test_header_that_cannot_be_walked(world, number):
    world.policy(EVERYTHING)
    packet = extended(p.options_header(), upper=number, payload=bytes(8))
    assert world.up(packet).reason is Reason.UNKNOWN_NEXT_HEADER


def test_nine_extension_headers(world):
    world.policy(EVERYTHING)
    packet = extended(*[p.options_header(p.DESTINATION_OPTIONS)] * 9)
    assert world.up(packet).reason is Reason.UNKNOWN_NEXT_HEADER


def test_routing_header_with_segments_left(world):
    world.policy(EVERYTHING)
    assert world.up(extended(p.routing_header(1))).reason is Reason.UNKNOWN_NEXT_HEADER


def test_hop_by_hop_anywhere_but_first(world):
    world.policy(EVERYTHING)
    packet = extended(p.options_header(p.DESTINATION_OPTIONS), p.options_header())
    assert world.up(packet).reason is Reason.MALFORMED


def test_two_fragment_headers(world):
    world.policy(EVERYTHING)
    packet = extended(p.fragment_header(), p.fragment_header())
    assert world.up(packet).reason is Reason.MALFORMED


def test_extension_header_longer_than_the_packet(world):
    world.policy(EVERYTHING)
    first, body = p.chain((p.HOP_BY_HOP, bytes([200]) + bytes(6)), upper=p.UDP, payload=p.udp(1, 2))
    packet = p.ipv6(ALICE6, SERVER6, first, body)
    assert world.up(packet).reason is Reason.MALFORMED


def test_no_next_header(world):
    world.policy(EVERYTHING)
    assert world.up(p.ipv6(ALICE6, SERVER6, p.NO_NEXT, b"")).passed


# Fragments.


def fragment4(payload, **keywords):
    return p.ipv4(ALICE4, SERVER4, p.UDP, payload, **keywords)


def test_ipv4_fragments_follow_the_first(world):
    world.policy(allow("0.0.0.0/0", protocol=p.UDP, ports=(53, 53)))
    first = fragment4(p.udp(1, 53, bytes(16), length=56), identification=501, more=True)
    later = fragment4(bytes(24), identification=501, offset=3, more=True)
    last = fragment4(bytes(8), identification=501, offset=6)
    assert world.up(later).reason is Reason.FRAGMENT_WITHOUT_FIRST
    assert world.up(first).passed
    assert world.up(later).passed
    assert world.up(last).passed
    orphan = fragment4(bytes(8), identification=502, offset=6)
    assert world.up(orphan).reason is Reason.FRAGMENT_WITHOUT_FIRST


def test_ipv4_fragments_of_another_protocol(world):
    world.policy(EVERYTHING)
    assert world.up(fragment4(p.udp(1, 53), identification=503, more=True)).passed
    other = p.ipv4(ALICE4, SERVER4, p.TCP, bytes(8), identification=503, offset=1)
    assert world.up(other).reason is Reason.FRAGMENT_WITHOUT_FIRST


def test_fragments_of_a_denied_first(world):
    world.policy(deny("0.0.0.0/0"))
    first = fragment4(p.udp(1, 53), identification=504, more=True)
    assert world.up(first).reason is Reason.POLICY_RULE
    later = fragment4(bytes(8), identification=504, offset=2)
    assert world.up(later).reason is Reason.FRAGMENT_WITHOUT_FIRST


def test_fragments_are_judged_anew_with_the_policy(world):
    world.policy(EVERYTHING)
    first = fragment4(p.udp(1, 53), identification=505, more=True)
    later = fragment4(bytes(8), identification=505, offset=2)
    assert world.up(first).passed
    world.policy(allow("0.0.0.0/0", protocol=p.TCP))
    assert world.up(later).reason is Reason.POLICY_DEFAULT
    world.policy(allow("0.0.0.0/0", protocol=p.UDP))
    assert world.up(later).passed


def test_ipv6_fragments_follow_the_first(world):
    world.policy(allow("::/0", protocol=p.UDP, ports=(53, 53)))
    first = extended(p.fragment_header(0, True, 601), payload=p.udp(1, 53, bytes(16), length=40))
    later = extended(p.fragment_header(3, False, 601), payload=bytes(16))
    assert world.up(later).reason is Reason.FRAGMENT_WITHOUT_FIRST
    assert world.up(first).passed
    assert world.up(later).passed


def test_fragmented_reply(world):
    world.policy(EVERYTHING)
    world.up(p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1000, 53)))
    reply = p.ipv4(
        SERVER4, ALICE4, p.UDP, p.udp(53, 1000, length=24), identification=506, more=True
    )
    rest = p.ipv4(SERVER4, ALICE4, p.UDP, bytes(8), identification=506, offset=2)
    assert world.down(rest).reason is Reason.FRAGMENT_WITHOUT_FIRST
    assert world.down(reply).passed
    assert world.down(rest).passed


def test_fragmented_echo(world):
    world.policy(EVERYTHING)
    echo = p.ipv4(ALICE4, SERVER4, p.ICMP, p.icmp(8, 0, 5), identification=507, more=True)
    rest = p.ipv4(ALICE4, SERVER4, p.ICMP, bytes(8), identification=507, offset=2)
    assert world.up(echo).passed
    assert world.up(rest).known_flow


def test_first_fragment_without_the_whole_tcp_header(world):
    world.policy(EVERYTHING)
    tiny = p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2)[:16], identification=508, more=True)
    assert world.up(tiny).reason is Reason.MALFORMED


def test_fragment_beyond_the_largest_packet(world):
    world.policy(EVERYTHING)
    huge = fragment4(bytes(100), identification=509, offset=8190)
    assert world.up(huge).reason is Reason.MALFORMED


# Malformed.


MALFORMED4 = {
    "version": p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2), version=5),
    "header-too-short": p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2), header_words=4),
    "header-beyond-the-packet": p.ipv4(ALICE4, SERVER4, 99, b"", header_words=15),
    "total-length-below-header": p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2), total_length=19),
    "total-length-beyond-packet": p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2), total_length=40),
    "total-length-cuts-udp": p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2), total_length=27),
    "udp-length-below-header": p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2, length=7)),
    "udp-length-beyond-packet": p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2, length=13)),
    "tcp-header-too-short": p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2, words=4)),
    "tcp-header-beyond-packet": p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2, words=6)[:20]),
    "loose-source-route": p.ipv4(
        ALICE4, SERVER4, p.UDP, p.udp(1, 2), options=b"\x01\x83\x07\x04\x0a\x00\x00\x01"
    ),
    "strict-source-route": p.ipv4(
        ALICE4, SERVER4, p.UDP, p.udp(1, 2), options=b"\x89\x07\x04\x0a\x00\x00\x01\x00"
    ),
    "option-cut-before-its-length": p.ipv4(
        ALICE4, SERVER4, p.UDP, p.udp(0x0300, 2), options=b"\x01\x01\x01\x07"
    ),
    "option-beyond-the-header": p.ipv4(
        ALICE4, SERVER4, p.UDP, p.udp(1, 2), options=b"\x07\x05\x00\x00"
    ),
    "option-of-length-zero": p.ipv4(
        ALICE4, SERVER4, p.UDP, p.udp(1, 2), options=b"\x07\x00\x00\x00"
    ),
}


@pytest.mark.parametrize("packet", MALFORMED4.values(), ids=MALFORMED4)
def test_malformed_ipv4(world, packet):
    world.policy(EVERYTHING)
    assert world.up(packet).reason is Reason.MALFORMED
    assert world.down(packet).reason is Reason.MALFORMED


def test_harmless_options_pass(world):
    world.policy(EVERYTHING)
    for options in (b"\x01\x01\x01\x00", b"\x94\x04\x00\x00", b"\x00\x83\x00\x00"):
        packet = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2), options=options)
        assert world.up(packet).passed


def test_full_length_of_options(world):
    world.policy(EVERYTHING)
    packet = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2), options=b"\x01" * 40)
    assert world.up(packet).passed


def test_bytes_behind_the_packet_are_nothing(world):
    world.policy(EVERYTHING)
    packet = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2)) + bytes(100)
    before = world.kernel.counters(ALICE).up_bytes
    assert world.up(packet).passed
    assert world.kernel.counters(ALICE).up_bytes - before == len(packet) - 100


def test_malformed_ipv6(world):
    world.policy(EVERYTHING)
    for packet in (
        p.ipv6(ALICE6, SERVER6, p.UDP, p.udp(1, 2), payload_length=13),
        p.ipv6(ALICE6, SERVER6, p.UDP, p.udp(1, 2), payload_length=7),
        p.ipv6(ALICE6, SERVER6, p.UDP, p.udp(1, 2), payload_length=0),
        p.ipv6(ALICE6, SERVER6, p.TCP, p.tcp(1, 2, words=4)),
    ):
        assert world.up(packet).reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "whole",
    [
        p.ipv4(ALICE4, SERVER4, p.TCP, p.tcp(1, 2)),
        p.ipv4(ALICE4, SERVER4, p.ICMP, p.icmp(8)),
        p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2), options=b"\x01" * 8),
        p.ipv6(ALICE6, SERVER6, p.TCP, p.tcp(1, 2)),
        extended(p.options_header(), p.routing_header(), p.fragment_header()),
        p.icmp_error(ALICE6, SERVER6, p.ipv6(SERVER6, ALICE6, p.UDP, p.udp(1, 2))),
    ],
    ids=["tcp4", "icmp4", "options4", "tcp6", "extensions6", "error6"],
)
def test_truncated_at_every_length(world, whole):
    world.policy(EVERYTHING)
    assert world.up(whole).passed
    header = 20 if whole[0] >> 4 == 4 else 40
    for length in range(header, len(whole)):
        assert world.up(whole[:length]).reason is Reason.MALFORMED, length


def test_not_ip(world):
    world.policy(EVERYTHING)
    packet = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2))
    assert world.up(packet, ethertype=0x0806).reason is Reason.NOT_IP


def test_version_that_contradicts_the_packets_type(world):
    world.policy(EVERYTHING)
    four = p.ipv4(ALICE4, SERVER4, p.UDP, p.udp(1, 2, bytes(40)))
    assert world.up(four, ethertype=0x86DD).reason is Reason.MALFORMED
    six = p.ipv6(ALICE6, SERVER6, p.UDP, p.udp(1, 2))
    assert world.up(six, ethertype=0x0800).reason is Reason.MALFORMED
