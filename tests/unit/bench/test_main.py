import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import __main__ as main
from bench import facts
from bench.errors import BenchError
from bench.peers.peer import Step
from bench.results import PeerResults, Results, Settings


@pytest.fixture(autouse=True)
def _keep_sigterm() -> object:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _results(failures: list[str]) -> Results:
    return Results(
        Settings(1, 3.0, offloads=True),
        {"date": "2025-01-02 03:04:05 UTC", "commit": "abc1234"},
        [PeerResults("plain", "no tunnel", "veth", failures=failures)],
    )


def _invoke(
    monkeypatch: pytest.MonkeyPatch, outcome: Results | BaseException, *arguments: str
) -> tuple[int, str]:
    def run_bench(*_: object) -> Results:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(main, "run_bench", run_bench)
    done = CliRunner().invoke(main.main, arguments)
    return done.exit_code, done.output


def test_files_are_named_by_date_and_commit_and_never_overwritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(facts, "commit", lambda: "abc1234")
    directory = tmp_path / "results"
    names = [[path.name for path in main.write(_results([]), directory)] for _ in range(2)]
    assert names == [
        ["2025-01-02-abc1234.md", "2025-01-02-abc1234.json"],
        ["2025-01-02-abc1234-2.md", "2025-01-02-abc1234-2.json"],
    ]
    assert json.loads((directory / names[0][1]).read_text())["schema"] == 2
    assert directory.stat().st_uid == tmp_path.stat().st_uid == os.geteuid()


@pytest.mark.parametrize(("failures", "code"), [([], 0), (["it fell"], 1)])
def test_the_exit_code_tells_of_failed_peers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failures: list[str], code: int
) -> None:
    got, output = _invoke(monkeypatch, _results(failures), "--output", str(tmp_path))
    assert got == code
    assert "written: " in output


@pytest.mark.parametrize(
    ("arguments", "peers", "sections"),
    [
        ((), 6, len(main.SECTIONS)),
        (("--only", "zgate"), 1, 0),
        (("--section", "wan"), 0, 1),
        (("--only", "zgate", "--section", "peers", "--section", "wan"), 1, 1),
        (("--quick",), 1, 0),
    ],
)
def test_what_runs(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    peers: int,
    sections: int,
) -> None:
    def run_bench(
        _console: object,
        settings: Settings,
        kinds: list[object],
        _command: str,
        parts: list[object],
    ) -> Results:
        assert (len(kinds), len(parts)) == (peers, sections)
        assert (Step.UDP in settings.steps) == ("--quick" not in arguments)
        return _results([])

    monkeypatch.setattr(main, "run_bench", run_bench)
    done = CliRunner().invoke(main.main, [*arguments, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert bool(list(tmp_path.iterdir())) == ("--quick" not in arguments)


def test_an_interrupt_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, output = _invoke(monkeypatch, KeyboardInterrupt(), "--output", str(tmp_path))
    assert (code, list(tmp_path.iterdir())) == (130, [])
    assert "interrupted" in output


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = _invoke(monkeypatch, BenchError("missing: iperf3; install with: ..."))
    assert code == 1
    assert output == "bench: missing: iperf3; install with: ...\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rounds", "0"),
        ("--seconds", "1"),
        ("--only", "ipsec"),
        ("--section", "none"),
        ("--seconds", "x"),
    ],
)
def test_bad_input(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    code, output = _invoke(monkeypatch, _results([]), *arguments)
    assert code == 2
    assert "Traceback" not in output


def test_facts_name_the_machine() -> None:
    found = facts.collect("python -m bench")
    assert found["kernel"] == os.uname().release
    assert found["command"] == "python -m bench"
    assert found["processor"].startswith(f"{os.cpu_count()} x ")
