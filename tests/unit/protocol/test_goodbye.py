"""What a session's end says about when to come back."""

import pytest
from zgate_protocol import goodbye


@pytest.mark.parametrize("reason", [goodbye.STOPPING, goodbye.CONNECTION_LOST])
def test_who_is_there_again_in_a_moment(reason: str) -> None:
    assert goodbye.is_there_soon(reason)


@pytest.mark.parametrize("reason", [goodbye.DRAINED, goodbye.REPLACED, "", "kicked"])
def test_who_is_not(reason: str) -> None:
    assert not goodbye.is_there_soon(reason)


def test_they_fit_into_a_packet() -> None:
    phrases = [goodbye.STOPPING, goodbye.DRAINED, goodbye.REPLACED, goodbye.CONNECTION_LOST]
    assert len(set(phrases)) == 4
    assert all(phrase.isascii() and len(phrase) < 64 for phrase in phrases)
