from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from zgate_connector.limits import FlowLedger, Refusal, allow_descriptors


def test_each_client_and_all_together_have_a_limit() -> None:
    ledger = FlowLedger(per_client=2, total=3)
    assert [ledger.open("a"), ledger.open("a"), ledger.open("a")] == [True, True, False]
    assert [ledger.open("b"), ledger.open("b")] == [True, False]
    assert ledger.refused == {Refusal.CLIENT_LIMIT: 1, Refusal.TOTAL_LIMIT: 1}
    assert (ledger.open_flows, ledger.open_of("a"), ledger.open_of("b")) == (3, 2, 1)


def test_what_is_closed_makes_room_and_a_client_without_flows_is_forgotten() -> None:
    ledger = FlowLedger(per_client=1, total=10)
    for number in range(1000):
        assert ledger.open(str(number % 7))
        ledger.close(str(number % 7))
    assert ledger.open_flows == 0
    assert not ledger._open


def test_asking_for_the_limit_counts_nothing() -> None:
    ledger = FlowLedger(per_client=1, total=10)
    assert ledger.limit_of("a") is None
    ledger.open("a")
    assert ledger.limit_of("a") is Refusal.CLIENT_LIMIT
    assert not ledger.refused
    assert ledger.limit_of("never seen") is None
    assert list(ledger._open) == ["a"]


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    """The limits of open files: soft and hard; put back afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_files_are_allowed_for_as_many_flows_as_there_may_be(files: tuple[int, int]) -> None:
    _, hard = files
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    fitting = (hard - 1024) // 6
    assert allow_descriptors(fitting) == fitting
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= fitting * 6
    assert allow_descriptors(fitting + 1000) == fitting


def test_a_limit_that_is_high_enough_stays(files: tuple[int, int]) -> None:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert allow_descriptors(1) == 1
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == max(soft, 1030)
