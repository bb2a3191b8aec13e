"""Fields of capsules; what they are made into is tested with the capsules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_protocol.errors import MalformedCapsule
from zgate_protocol.wire import FieldReader, encode_text


@given(st.text(), st.integers(0, 300))
def test_text_is_cut_at_a_character(text: str, max_bytes: int) -> None:
    reader = FieldReader(encode_text(text, max_bytes))
    taken = reader.text(max_bytes)
    reader.finish()
    assert text.startswith(taken)
    assert len(taken.encode()) > max_bytes - 4 or taken == text


@given(st.binary(max_size=8), st.integers(0, 9))
def test_a_reader_gives_what_is_there_or_raises(value: bytes, length: int) -> None:
    reader = FieldReader(value)
    if length <= len(value):
        assert reader.take(length) == value[:length]
    else:
        with pytest.raises(MalformedCapsule):
            reader.take(length)
