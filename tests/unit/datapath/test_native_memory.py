"""What a session of the native engine holds, by glibc's own account (docs/adr/0016)."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator

import pytest
from zgate_datapath import _native
from zgate_datapath.connection_ids import CONNECTION_ID_BYTES

SESSIONS = 500
MOST_BYTES = 12_000


class Mallinfo2(ctypes.Structure):
    """See mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


def held_bytes() -> int:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("another C library")
    libc.mallinfo2.restype = Mallinfo2
    account = libc.mallinfo2()
    return int(account.uordblks + account.hblkhd)


@pytest.fixture
def carrier() -> Iterator[_native.Carrier]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        yield _native.Carrier(udp.fileno(), CONNECTION_ID_BYTES)


def a_session(carrier: _native.Carrier, number: int) -> _native.Session:
    """With everything that a session has once its handshake is done."""
    session = _native.Session(
        carrier,
        is_client=False,
        congestion=_native.CONGESTION_MODEL,
        max_packet_bytes=1452,
        initial_rtt_ns=20_000_000,
        peer_max_ack_delay_ns=25_000_000,
        peer_ack_delay_exponent=3,
    )
    for set_key in (session.set_receive_key, session.set_next_receive_key, session.set_send_key):
        set_key(_native.AES_128_GCM, os.urandom(16), os.urandom(12), os.urandom(16), 0)
    session.add_cid(number.to_bytes(CONNECTION_ID_BYTES, "big"))
    session.set_peer_cid(bytes(CONNECTION_ID_BYTES))
    session.set_path(("192.0.2.1", 443))
    session.set_limits(1452, 1400)
    session.set_prefix(bytes(2))
    session.add_address(number.to_bytes(4, "big"))
    session.may_send = True
    return session


def test_an_idle_session_is_small_and_gives_all_of_it_back(carrier: _native.Carrier) -> None:
    # What is made once and kept: the tables' places, libcrypto's own.
    for session in [a_session(carrier, number) for number in range(SESSIONS)]:
        session.close()
    before = held_bytes()
    sessions = [a_session(carrier, number) for number in range(SESSIONS)]
    assert (held_bytes() - before) / SESSIONS < MOST_BYTES
    for session in sessions:
        session.close()
    sessions.clear()
    assert (held_bytes() - before) / SESSIONS < 100
