import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from rich.console import Console
from zgate_lab.errors import ProcessExited

from bench import run
from bench.errors import MeasurementFailed
from bench.hosts import Hosts
from bench.measure import Turn
from bench.peers.peer import Peer
from bench.results import PeerResults, Results, Settings
from bench.sections.section import Record, Section

HOSTS = cast(Hosts, None)


class FakePeer(Peer):
    """Writes down when it runs."""

    title = "fake"

    def __init__(self, name: str, log: list[str], fails_in_round: int = 0):
        super().__init__(HOSTS)
        self.name = name  # type: ignore[misc]
        self._log = log
        self._fails_in_round = fails_in_round

    def start(self) -> None:
        self._undo.callback(self._log.append, f"{self.name} stopped")
        if self._starts == self._fails_in_round:
            raise ProcessExited("it ended with 1")
        self._log.append(self.name)

    def version(self) -> str:
        return f"{self.name} 1.0"

    def _server_answers(self) -> bool:
        return True


def _run(monkeypatch: pytest.MonkeyPatch, peers: list[FakePeer], rounds: int) -> Results:
    def measure(turn: Turn) -> dict[str, float]:
        turn.sample["tcp_up_mbit_per_s"] = float(len(turn.peer.name))
        return turn.sample

    monkeypatch.setattr(Turn, "run", measure)
    settings = Settings(rounds, 3.0, offloads=True)
    results = Results(settings, {}, [PeerResults(peer.name, peer.title) for peer in peers])
    run.Runner(Console(file=io.StringIO()), settings, results).run(HOSTS, peers)
    return results


def test_rounds_are_interleaved_and_one_peer_runs_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    results = _run(monkeypatch, [FakePeer("a", log), FakePeer("bb", log)], rounds=2)
    assert log == ["a", "a stopped", "bb", "bb stopped"] * 2
    assert [peer.medians()["tcp_up_mbit_per_s"] for peer in results.peers] == [1, 2]
    assert results.peers[1].version == "bb 1.0"


def test_a_failed_turn_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    peers = [FakePeer("a", log, fails_in_round=2), FakePeer("b", log)]
    results = _run(monkeypatch, peers, rounds=3)
    assert results.peers[0].failures == ["it ended with 1"]
    assert len(results.peers[0].samples) == 2
    assert len(results.peers[1].samples) == 3
    assert log.count("a stopped") == 3


def test_what_was_measured_before_a_failure_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(turn: Turn) -> dict[str, float]:
        turn.sample["rtt_idle_ms"] = 0.5
        raise MeasurementFailed("iperf3: broken pipe")

    log: list[str] = []
    peer = FakePeer("a", log)
    with monkeypatch.context() as patch:
        patch.setattr(Turn, "run", measure)
        settings = Settings(1, 3.0, offloads=True)
        results = Results(settings, {}, [PeerResults("a", "A")])
        run.Runner(Console(file=io.StringIO()), settings, results).run(HOSTS, [peer])
    assert results.peers[0].samples == [{"rtt_idle_ms": 0.5}]
    assert results.peers[0].failures == ["iperf3: broken pipe"]
    assert log[-1] == "a stopped"


def test_an_interrupt_stops_the_peer_and_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Interrupted(FakePeer):
        @contextmanager
        def running(self) -> Iterator[None]:
            with super().running():
                raise KeyboardInterrupt
                yield

    with pytest.raises(KeyboardInterrupt):
        _run(monkeypatch, [Interrupted("a", log), FakePeer("b", log)], rounds=1)
    assert log == ["a", "a stopped"]


def test_a_section_that_fails_keeps_what_it_found() -> None:
    def measure(record: Record) -> None:
        record.put("rate", 2.0)
        record.note("as ever")
        record.note("as ever")
        raise MeasurementFailed("iperf3: broken pipe")

    out = io.StringIO()
    settings = Settings(1, 3.0, offloads=True)
    found = run.run_section(Console(file=out), settings, Section("x", "a part", measure))
    assert found.samples == {"rate": [2.0]}
    assert found.notes == ["as ever"]
    assert found.failure == "iperf3: broken pipe"
    assert "broken pipe" in out.getvalue()
