import io
import json
from collections import Counter

import pytest
from rich.console import Console

from bench import metrics, report
from bench.results import PeerResults, Results, SectionResults, Settings
from bench.targets import TARGETS


@pytest.fixture
def results() -> Results:
    def sample(mbit: float, rtt_ms: float, udp: float) -> metrics.Sample:
        return {
            metrics.TCP_UP.key: mbit,
            metrics.TCP_DOWN.key: mbit,
            metrics.RTT_IDLE.key: rtt_ms,
            metrics.UDP[64].key: udp,
        }

    return Results(
        Settings(rounds=3, tcp_seconds=3.0, offloads=True),
        {"date": "2025-01-02 03:04:05 UTC", "commit": "abc1234", "command": "python -m bench"},
        [
            PeerResults(
                "plain",
                "no tunnel",
                "veth",
                [sample(9000, 0.05, 6e5)],
                generator_limited_rounds=Counter([64]),
            ),
            PeerResults("openvpn", "OpenVPN", "OpenVPN 2.6", [sample(300, 0.4, 60_000)]),
            PeerResults(
                "zgate", "zgate", "zgate 1", [sample(150, 1.6, 30_000)], ["it | fell\n--- its log"]
            ),
        ],
    )


def _row(results: Results, metric: metrics.Metric) -> list[str]:
    return report.rows(results)[metrics.METRICS.index(metric)]


def test_rows_have_values_and_ratios(results: Results) -> None:
    assert _row(results, metrics.TCP_UP) == [
        "TCP up (Mbit/s)", "9,000", "300", "150", "0.50 (worse)",
    ]  # fmt: skip
    assert _row(results, metrics.RTT_IDLE)[-1] == "4.00 (worse)"
    assert len(report.header(results)) == len(_row(results, metrics.TCP_UP))


def test_what_the_generator_limited_is_marked(results: Results) -> None:
    row = _row(results, metrics.UDP[64])
    assert row[1:4] == ["≥ 600.0", "60.0", "30.0"]
    assert any("load generator was the limit" in note for note in report.notes(results))


def test_what_was_not_measured_is_a_dash(results: Results) -> None:
    assert _row(results, metrics.CPU_UP)[1:] == ["-"] * 4


def test_ratios_only_with_peers_of_this_run(results: Results) -> None:
    results.peers = results.peers[:2]
    assert report.references(results) == []
    assert len(report.rows(results)[0]) == 3


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (metrics.TCP_UP, 1.0, "1.00"),
        (metrics.TCP_UP, 0.99, "0.99 (worse)"),
        (metrics.RTT_IDLE, 0.5, "0.50"),
        (metrics.RTT_IDLE, 1.5, "1.50 (worse)"),
        (metrics.RTT_IDLE, None, "-"),
    ],
)
def test_ratios_say_which_way_is_good(
    metric: metrics.Metric, value: float | None, text: str
) -> None:
    assert report.format_ratio(value, metric) == text


def test_markdown_is_a_table_with_facts_failures_and_targets(results: Results) -> None:
    text = report.to_markdown(results)
    assert "- commit: abc1234" in text
    assert "- OpenVPN: OpenVPN 2.6" in text
    assert "zgate failed in 1 of 3 rounds: it | fell  \n" in text
    assert "its log" not in text
    row = "| TCP up | 150 Mbit/s | 300 Mbit/s | 0.50 | ≥ 6 x openvpn | ≥ 10 x openvpn | ✘ missed |"
    assert row in text
    peers = text.partition("## Peers")[2]
    table = [line for line in peers.splitlines() if line.startswith("|")]
    assert len(table) == len(metrics.METRICS) + 2
    assert {line.count("|") for line in table} == {len(report.header(results)) + 1}


def test_the_file_shows_the_spread_of_rounds(results: Results) -> None:
    results.peers[1].samples.append({metrics.TCP_UP.key: 500.0})
    text = report.to_markdown(results)
    assert "| 400 (300..500) |" in text
    assert "| 0.400 |" in text


def test_a_busy_machine_is_said_so(results: Results) -> None:
    assert not any("do not trust" in note for note in report.notes(results))
    results.is_busy = True
    assert any("do not trust" in note for note in report.notes(results))


def test_json_holds_every_sample(results: Results) -> None:
    document = json.loads(report.to_json(results))
    assert document["schema"] == 2
    assert document["settings"] == {
        "rounds": 3,
        "tcp_seconds": 3.0,
        "offloads": True,
        "steps": ["idle", "tcp", "udp"],
    }
    assert document["peers"]["openvpn"]["rounds"][0][metrics.TCP_UP.key] == 300
    assert document["peers"]["plain"]["generator_limited_rounds"] == {"64": 1}
    assert document["peers"]["zgate"]["failures"] == ["it | fell\n--- its log"]
    assert len(document["targets"]) == len(TARGETS)
    assert [one["met"] for one in document["targets"]][:3] == [False, False, None]


def test_a_sections_findings_are_medians_with_their_spread(results: Results) -> None:
    found = SectionResults("wan", "long path", {"up": [1.0, 3.0, 2.0]}, ["a note"])
    found.tables.append(("steps", ["", "ns"], [["seal", "300"]]))
    results.sections = [found]
    assert results.findings()["wan.up"] == 2
    assert report.section_lines(found) == ["long path: up 2 (1..3)", "long path: a note"]
    assert "| seal | 300 |" in report.to_markdown(results)
    assert json.loads(report.to_json(results))["sections"]["wan"]["samples"] == {"up": [1, 3, 2]}
    found.failure = "no perf"
    assert results.has_failures
    assert report.section_lines(found)[0] == "long path: failed: no perf"


def test_the_terminal_shows_it_all(results: Results) -> None:
    out = io.StringIO()
    report.show(Console(file=out, width=150), results)
    for words in ("abc1234", "OpenVPN 2.6", "≥ 600.0", "✘ missed", "? not measured"):
        assert words in out.getvalue()


def test_one_line_has_the_headlines() -> None:
    line = report.one_line({metrics.TCP_UP.key: 312.4, metrics.CPU_UP.key: 1.0})
    assert line == "TCP up 312 Mbit/s"
