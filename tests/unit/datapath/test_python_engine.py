"""The Python packet engine against aioquic itself: each opens what the other seals."""

from __future__ import annotations

import pytest
from aioquic.quic.events import DatagramFrameReceived
from hypothesis import given, settings
from hypothesis import strategies as st
from zgate_datapath import aioquic_private as private
from zgate_datapath.python_engine import PythonEngine, _append_datagrams

from .conftest import CLIENT_ADDRESS, SERVER_ADDRESS, Pair


def datagrams(events: list) -> list[bytes]:
    return [event.data for event in events if isinstance(event, DatagramFrameReceived)]


def test_aioquic_opens_what_the_engine_seals(pair: Pair) -> None:
    engine = PythonEngine(pair.client)
    payloads = [b"\x30" + bytes([n]) * (n * 7 + 20) for n in range(40)]
    for packet in engine.seal(payloads, pair.now):
        pair.server.receive_datagram(packet, CLIENT_ADDRESS, pair.now)
    pair.collect()
    assert datagrams(pair.server_events) == [payload[1:] for payload in payloads]


def test_engine_opens_what_aioquic_seals(pair: Pair) -> None:
    engine = PythonEngine(pair.server)
    sent = [bytes([n]) * 1000 for n in range(5)]
    for data in sent:
        pair.client.send_datagram_frame(data)
    found: list[bytes] = []
    for _ in range(5):  # aioquic paces
        packets = [data for data, _ in pair.client.datagrams_to_send(pair.now)]
        opened = engine.open(packets, CLIENT_ADDRESS, pair.now)
        found += opened.datagrams
        assert opened.rest == []
        pair.now += 0.1
    assert found == sent


def test_both_engines_and_acknowledgements_empty_the_flight(pair: Pair) -> None:
    sender, receiver = PythonEngine(pair.client), PythonEngine(pair.server)
    for _ in range(30):
        packets = sender.seal([b"\x30" + bytes(1200)] * 5, pair.now)
        opened = receiver.open(packets, CLIENT_ADDRESS, pair.now)
        assert len(opened.datagrams) == 5
        pair.now += 0.002
        pair.pump()
    assert private.recovery(pair.client).bytes_in_flight == 0
    assert not private.application_space(pair.client).sent_packets
    assert private.smoothed_rtt_s(pair.client) > 0


def test_a_lost_packet_reaches_congestion_control(pair: Pair) -> None:
    sender, receiver = PythonEngine(pair.client), PythonEngine(pair.server)
    before = private.recovery(pair.client).congestion_window
    packets = sender.seal([b"\x30" + bytes(1000)] * 10, pair.now)
    receiver.open(packets[:2] + packets[3:], CLIENT_ADDRESS, pair.now)
    pair.now += 0.002
    pair.pump()
    assert private.recovery(pair.client).bytes_in_flight == 0
    assert private.recovery(pair.client).congestion_window < before


@pytest.mark.parametrize("initiator", ["client", "server"])
def test_key_updates_in_both_directions(pair: Pair, initiator: str) -> None:
    client_engine, server_engine = PythonEngine(pair.client), PythonEngine(pair.server)
    for number in range(6):
        getattr(pair, initiator).request_key_update()
        for source, target, address in (
            (client_engine, pair.server, CLIENT_ADDRESS),
            (server_engine, pair.client, SERVER_ADDRESS),
        ):
            other = server_engine if source is client_engine else client_engine
            packets = source.seal([b"\x30" + bytes([number]) * 500] * 3, pair.now)
            opened = other.open(packets, address, pair.now)
            # A packet of a new key phase is aioquic's; after it the engine follows.
            for packet in opened.rest:
                target.receive_datagram(packet, address, pair.now)
        pair.now += 0.01
        pair.pump()
    assert len(datagrams(pair.server_events)) + server_engine.counters.opened_packets >= 18
    assert server_engine.counters.forged_packets == 0
    assert client_engine.counters.forged_packets == 0


def test_keys_are_updated_before_the_aead_limit(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zgate_datapath.python_engine._KEY_UPDATE_PACKETS", 10)
    engine = PythonEngine(pair.client)
    phase = private.crypto_pair(pair.client).send.key_phase
    engine.seal([b"\x30x" * 20] * 11, pair.now)
    engine.seal([b"\x30x" * 20], pair.now)
    assert private.crypto_pair(pair.client).send.key_phase != phase


def test_a_forged_packet_costs_one_aead_and_nothing_else(pair: Pair) -> None:
    sender, receiver = PythonEngine(pair.client), PythonEngine(pair.server)
    (packet,) = sender.seal([b"\x30" + bytes(300)], pair.now)
    forged = packet[:-1] + bytes([packet[-1] ^ 1])
    opened = receiver.open([forged, packet], CLIENT_ADDRESS, pair.now)
    assert opened.rest == []
    assert len(opened.datagrams) == 1
    assert receiver.counters.forged_packets == 1


def test_a_replayed_packet_is_dropped(pair: Pair) -> None:
    sender, receiver = PythonEngine(pair.client), PythonEngine(pair.server)
    packets = sender.seal([b"\x30" + bytes(300)] * 3, pair.now)
    assert len(receiver.open(packets, CLIENT_ADDRESS, pair.now).datagrams) == 3
    again = receiver.open(packets, CLIENT_ADDRESS, pair.now)
    assert again.datagrams == []
    assert receiver.counters.duplicate_packets == 3
    # ... and aioquic knows of them too.
    for packet in packets:
        pair.server.receive_datagram(packet, CLIENT_ADDRESS, pair.now)
    pair.collect()
    assert datagrams(pair.server_events) == []


def test_reordering_by_a_thousand_packets_loses_none(pair: Pair) -> None:
    sender, receiver = PythonEngine(pair.client), PythonEngine(pair.server)
    packets = sender.seal([b"\x30" + bytes(50)] * 1000, pair.now)
    opened = receiver.open(packets[1:] + packets[:1], CLIENT_ADDRESS, pair.now)
    assert len(opened.datagrams) == 1000


def test_packets_from_another_address_are_aioquics(pair: Pair) -> None:
    sender, receiver = PythonEngine(pair.client), PythonEngine(pair.server)
    packets = sender.seal([b"\x30" + bytes(300)], pair.now)
    opened = receiver.open(packets, ("192.0.2.99", 1), pair.now)
    assert opened.datagrams == []
    assert opened.rest == packets


def test_packets_with_other_frames_are_aioquics(pair: Pair) -> None:
    receiver = PythonEngine(pair.server)
    pair.client.send_ping(1)
    packets = [data for data, _ in pair.client.datagrams_to_send(pair.now)]
    assert receiver.open(packets, CLIENT_ADDRESS, pair.now).rest == packets


def test_no_window_on_an_unproved_path_beyond_three_times(pair: Pair) -> None:
    engine = PythonEngine(pair.server)
    path = private.active_path(pair.server)
    assert path is not None
    path.is_validated = False
    path.bytes_received, path.bytes_sent = 100, 250
    assert engine.window_bytes() == 50


def test_no_window_after_close(pair: Pair) -> None:
    engine = PythonEngine(pair.client)
    assert engine.window_bytes() > 0
    pair.client.close()
    assert engine.window_bytes() == 0


def test_a_probe_has_exactly_its_size_and_reports_back(pair: Pair) -> None:
    sender, receiver = PythonEngine(pair.client), PythonEngine(pair.server)
    results: list[tuple[bool, int]] = []
    packet = sender.seal_probe(1452, lambda ok, size: results.append((ok, size)), pair.now)
    assert len(packet) == 1452
    opened = receiver.open([packet], CLIENT_ADDRESS, pair.now)
    pair.server.receive_datagram(opened.rest[0], CLIENT_ADDRESS, pair.now)
    pair.now += 0.01
    pair.pump()
    assert results == [(True, 1452)]


def test_a_lost_probe_says_nothing_about_congestion(pair: Pair) -> None:
    engine = PythonEngine(pair.client)
    before = private.recovery(pair.client).congestion_window
    results: list[bool] = []
    engine.seal_probe(1452, lambda ok, size: results.append(ok), pair.now)
    for _ in range(200):
        timer = pair.client.get_timer()
        if results or timer is None:
            break
        pair.now = timer
        pair.client.handle_timer(pair.now)
        pair.pump()
    assert results == [False]
    assert private.recovery(pair.client).congestion_window >= before


@given(st.lists(st.binary(max_size=20000), min_size=1, max_size=5), st.binary(max_size=30))
@settings(max_examples=100, deadline=None)
def test_frames_with_lengths_come_back_in_order(parts: list[bytes], last: bytes) -> None:
    plain = b""
    for part in parts:
        size = len(part)
        length = bytes([size]) if size < 64 else (0x4000 | size).to_bytes(2, "big")
        if size >= 16384:
            length = (0x80000000 | size).to_bytes(4, "big")
        plain += b"\x00\x31" + length + part
    found: list[bytes] = []
    assert _append_datagrams(plain + b"\x30" + last, found)
    assert found == [*parts, last]


@given(st.binary(max_size=60))
def test_any_bytes_are_frames_or_not_but_never_an_error(plain: bytes) -> None:
    found: list[bytes] = []
    if not _append_datagrams(plain, found):
        assert found == []


def test_every_truncation_of_a_frame_is_left_to_aioquic() -> None:
    plain = b"\x31\x40\x50" + bytes(80)
    for end in range(1, len(plain)):
        found: list[bytes] = []
        assert not _append_datagrams(plain[:end], found)
        assert found == []
