"""Records of the chain, and the bytes that are none."""

import io
import json
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from zgate_gateway.audit_chain import (
    MAX_LINE_BYTES,
    Debris,
    Head,
    digest_of,
    next_line,
    parse_record,
    scan,
    signature_of,
)

HEAD = Head(7, "ab" * 32)


def test_a_chain_record_is_read_as_it_was_written() -> None:
    line = next_line(HEAD, json.dumps({"ts": "t", "event": "x_y", "a": [1]}).encode())
    assert parse_record(line) is None  # json.dumps writes spaces: there is one way to write it
    line = next_line(HEAD, b'{"ts":"t","event":"x_y","a":[1]}')
    record = parse_record(line)
    assert record is not None
    assert (record.seq, record.prev, record.event) == (8, HEAD.digest, "x_y")
    assert record.fields["a"] == [1] and record.head == Head(8, digest_of(line))
    for cut in range(len(line)):
        assert parse_record(line[:cut]) is None
        assert parse_record(line[:cut] + b"\n") is None or cut == len(line) - 1


def test_what_is_no_record() -> None:
    good = next_line(HEAD, b'{"ts":"t","event":"x"}')
    assert parse_record(good) is not None
    deep = b'"a":' + b"[" * 100_000 + b"]" * 100_000
    for bad in (
        b"",
        b"\n",
        b"{}\n",
        good * 2,
        b" " + good,
        good.replace(b"8", b"08", 1),
        good.replace(b"8", b"9" * 30, 1),
        good.replace(b"ab", b"AB", 1),
        good.replace(b'"x"', b'"X"'),
        good.replace(b'"x"', b'"x","y":"\xff"'),
        good.replace(b'"x"', b'"x",' + deep),
    ):
        assert parse_record(bad) is None, bad[:80]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_not(data: bytes) -> None:
    record = parse_record(data)
    assert record is None or record.line == data
    for number, part, found in scan(io.BytesIO(data)):
        assert number >= 1 and part and (found is None or found.line == part)


@given(st.lists(st.binary(max_size=20)), st.booleans())
def test_debris_is_the_same_however_it_comes(parts: list[bytes], newline: bool) -> None:
    debris, whole = Debris(), b"".join(parts)
    for part in [*parts, b"\n" if newline else b""]:
        debris.feed(part)
    text = whole if newline else whole.removesuffix(b"\n")
    assert debris.fields == {"lost_bytes": len(text), "lost_sha256": sha256(text).hexdigest()}


def test_lines_have_numbers_and_bounds() -> None:
    good = next_line(HEAD, b'{"ts":"t","event":"x"}')
    long = b"x" * (MAX_LINE_BYTES + 5)
    found = list(scan(io.BytesIO(good + long + good + good + good[:9])))
    assert [number for number, _, _ in found] == [1, 2, 2, 3, 4]
    # What stands at the end of an overlong line is no record.
    assert [record is not None for _, _, record in found] == [True, False, False, True, False]


def test_a_signature_covers_all_that_stands_before_it() -> None:
    signed = []

    def sign(message: bytes) -> bytes:
        signed.append(message)
        return bytes(range(64))

    body = json.dumps({"ts": "t", "event": "x", "key": "cd" * 32}, separators=(",", ":"))
    record = parse_record(next_line(HEAD, body.encode(), sign))
    assert record is not None
    found = signature_of(record)
    assert found is not None
    assert (found.message, found.signature) == (signed[0], bytes(range(64)))
    assert found.key == b"\xcd" * 32
    assert signed[0].endswith(record.line.partition(b',"signature"')[0])
    unsigned = parse_record(next_line(HEAD, body.encode()))
    assert unsigned is not None and signature_of(unsigned) is None
