"""The pinned aioquic has every private name that zgate uses; a missing one is told by name."""

from __future__ import annotations

import pytest
from aioquic.h3.connection import H3Connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from zgate_datapath import aioquic_private as private


def test_the_pinned_version_has_every_name() -> None:
    assert private.missing_names() == []
    private.check()


@pytest.mark.parametrize("name", ["_idle_timeout", "_initialize"])
def test_a_missing_name_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(private, "CONNECTION_NAMES", (name + "_renamed",))
    with pytest.raises(private.IncompatibleAioquic, match=name + "_renamed"):
        private.check()


def test_every_name_in_the_list_is_used_by_the_datapath() -> None:
    from pathlib import Path

    import zgate_datapath

    source = (
        "".join(
            path.read_text()
            for path in Path(next(iter(zgate_datapath.__path__))).glob("*.py")
            if path.name != "aioquic_private.py"
        )
        + Path(private.__file__).read_text().split("def application_space")[1]
    )
    unused = [
        name
        for name in (*private.CONNECTION_NAMES, *private.SPACE_NAMES, *private.TLS_NAMES)
        if name not in source
    ]
    assert unused == []
    assert QuicConnection is not None


def test_goaway_names_the_first_request_that_was_not_begun() -> None:
    quic = QuicConnection(configuration=QuicConfiguration(is_client=True))
    quic.connect(("192.0.2.1", 443), now=0.0)
    h3 = H3Connection(quic)
    control = quic._streams[h3._local_control_stream_id].sender
    before = len(control._buffer)
    private.send_goaway(h3, quic)
    quic.send_stream_data(quic.get_next_available_stream_id(), b"a request")
    quic.send_stream_data(quic.get_next_available_stream_id(), b"another")
    private.send_goaway(h3, quic)
    # RFC 9114 section 7.2.6: type 0x07, length, stream ID.
    assert bytes(control._buffer[before:]) == b"\x07\x01\x00" + b"\x07\x01\x08"
