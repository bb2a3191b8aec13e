import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.varint import MAX_VARINT, Truncated, decode_varint, encode_varint

# RFC 9000 appendix A.1.
RFC_EXAMPLES = [
    ("c2197c5eff14e88c", 151288809941952652),
    ("9d7f3e7d", 494878333),
    ("7bbd", 15293),
    ("25", 37),
]


@pytest.mark.parametrize(("encoded", "value"), RFC_EXAMPLES)
def test_rfc_examples(encoded: str, value: int) -> None:
    assert decode_varint(bytes.fromhex(encoded)) == (value, len(encoded) // 2)
    assert encode_varint(value) == bytes.fromhex(encoded)


def test_longer_encoding_than_needed_is_read() -> None:
    assert decode_varint(bytes.fromhex("4025")) == (37, 2)


@given(st.integers(0, MAX_VARINT), st.binary(max_size=9), st.binary(max_size=9))
def test_round_trip_at_any_offset(value: int, before: bytes, after: bytes) -> None:
    encoded = encode_varint(value)
    found = decode_varint(before + encoded + after, len(before))
    assert found == (value, len(before) + len(encoded))


@given(st.integers(0, MAX_VARINT))
def test_the_encoding_is_the_shortest(value: int) -> None:
    expected = 1 if value < 2**6 else 2 if value < 2**14 else 4 if value < 2**30 else 8
    assert len(encode_varint(value)) == expected


@given(st.integers(0, MAX_VARINT))
def test_truncated_at_every_byte(value: int) -> None:
    encoded = encode_varint(value)
    for length in range(len(encoded)):
        with pytest.raises(Truncated):
            decode_varint(encoded[:length])


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match="varint"):
        encode_varint(value)


def test_offset_behind_the_end() -> None:
    with pytest.raises(Truncated):
        decode_varint(b"\x01", 5)


def test_memoryview_is_read() -> None:
    assert decode_varint(memoryview(b"\x7b\xbd"), 0) == (15293, 2)
