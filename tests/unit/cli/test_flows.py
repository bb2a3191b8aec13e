"""zgatectl flows: open flows, denials, and both as they happen."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from zgate_cli.client import _lines
from zgate_cli.flows import news_line
from zgate_cli.protocols import NUMBERS, protocol_name
from zgate_gateway.api import schemas
from zgate_gateway.api.facade import TooManyReaders

DENIED = "12:00:00Z denied client-1 icmpv6 type 128 code 0 10.100.0.2 -> fd00:20::5 POLICY_DEFAULT"


def test_open_flows_fit(zgatectl: Any, fits: Any, fake_gateway: Any) -> None:
    lines = fits(zgatectl("flows")).splitlines()
    assert lines[0].split() == ["client", "protocol", "from", "to", "state", "idle", "rule"]
    words = lines[1].split()
    assert words[:2] == ["client-1", "tcp"] and "answered" in words and "3s" in words
    assert "icmp" in " ".join(lines)


def test_open_flows_on_a_wide_terminal(zgatectl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    _, tcp, ping = zgatectl("flows").stdout.splitlines()
    assert tcp.split()[:4] == ["client-1", "tcp", "10.100.0.2:40000", "10.20.0.5:443"]
    assert tcp.split()[4:] == ["answered", "3s", "allow-https", "(line", "9)"]
    assert ping.split()[1:4] == ["icmp", "10.100.0.2", "10.20.0.5"]


def test_the_question_is_the_callers(zgatectl: Any, fake_gateway: Any) -> None:
    zgatectl("flows")
    assert fake_gateway.calls == [("flows", schemas.FlowQuery())]


def test_what_the_limit_cuts_is_told(zgatectl: Any, fake_gateway: Any) -> None:
    text = zgatectl("flows", "--client", "client-1", "--limit", "1").stdout
    assert text.endswith("1 more are open (--limit).\n")
    assert fake_gateway.calls == [("flows", schemas.FlowQuery(client="client-1", limit=1))]


def test_flows_as_json(zgatectl_json: Any) -> None:
    answer = schemas.FlowList(**zgatectl_json("flows"))
    assert answer.flows[0].rule_id == "allow-https" and answer.total == 2


def test_no_flow(zgatectl: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_query: object) -> schemas.FlowList:
        return schemas.FlowList()

    monkeypatch.setattr(fake_gateway, "flows", nothing)
    assert zgatectl("flows").stdout == "No flow is open.\n"
    words = "Nothing was denied since the gateway started.\n"
    assert zgatectl("flows", "--denied").stdout == words


def test_the_last_denials(zgatectl: Any, fake_gateway: Any) -> None:
    (line,) = zgatectl("flows", "--denied").stdout.splitlines()
    assert line == f"{DENIED}, revision 7 (and 12 not shown before it)"
    assert fake_gateway.calls == [("flows", schemas.FlowQuery(denied=True))]


def allowed(denial: schemas.FlowNews) -> schemas.FlowNews:
    changes = {
        "kind": schemas.FlowNewsKind.ALLOWED,
        "protocol": 17,
        "destination_port": 53,
        "source_port": 4000,
        "icmp_type": None,
        "reason": None,
        "rule_id": "dns",
        "suppressed": 0,
    }
    return denial.model_copy(update=changes)


def test_news_until_the_gateway_ends(zgatectl: Any, fake_gateway: Any) -> None:
    denial = fake_gateway.denial
    lost = schemas.FlowNews(kind=schemas.FlowNewsKind.LOST, ts=denial.ts, lost=7)
    fake_gateway.news = [[denial], [], [allowed(denial), lost]]
    result = zgatectl("flows", "--follow", "--denied", "--client", "client-1", code=4)
    assert result.stdout.splitlines() == [
        f"{DENIED}, revision 7 (and 12 not shown before it)",
        "12:00:00Z allowed client-1 udp 10.100.0.2:4000 -> [fd00:20::5]:53 rule dns, revision 7",
        "12:00:00Z lost 7 events: this terminal is too slow",
    ]
    assert "has ended; follow again" in result.stderr
    query = schemas.FlowEventQuery(client="client-1", denied=True)
    assert fake_gateway.calls == [("follow_flows", query)]


def test_news_as_json_are_lines(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.news = [[fake_gateway.denial] * 2]
    lines = zgatectl("flows", "--follow", "--json", code=4).stdout.splitlines()
    assert [schemas.FlowNews(**json.loads(line)) for line in lines] == [fake_gateway.denial] * 2


def test_a_refusal_is_told(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.error = TooManyReaders("16 readers follow already", "end one")
    result = zgatectl("flows", "-f", code=1)
    assert result.stderr == "zgatectl: 16 readers follow already; end one\n"


def test_no_gateway(zgatectl: Any, tmp_path: Any) -> None:
    socket = str(tmp_path / "api.sock")
    for words in (["flows"], ["flows", "--follow"]):
        assert "not running" in zgatectl(*words, "--socket", socket, code=4).stderr


def test_a_bad_name_is_bad_input(zgatectl: Any, fake_gateway: Any) -> None:
    assert "--client" in zgatectl("flows", "--client", "x" * 65, code=2).stderr
    zgatectl("flows", "--limit", "0", code=2)
    assert fake_gateway.calls == []


def test_control_c_ends_it_quietly(live_gateway: Any, fake_gateway: Any) -> None:
    async def without_end(_query: object) -> Any:
        import asyncio

        yield [fake_gateway.denial]
        await asyncio.sleep(60)

    fake_gateway.follow_flows = without_end
    program = [sys.executable, "-c", "from zgate_cli.main import main; main()"]
    words = ["--socket", str(live_gateway.socket_path), "flows", "--follow"]
    process = subprocess.Popen(
        [*program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(DENIED.encode())  # not held back in a buffer
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, b"")


def test_a_hostile_name_cannot_steer_the_terminal(fake_gateway: Any) -> None:
    evil = fake_gateway.denial.model_copy(update={"client": "a\x1b[2Jb", "rule_id": "\u202e"})
    assert not {"\x1b", "\u202e"} & set(news_line(evil).plain)


def test_lines_end_at_newlines_only() -> None:
    assert list(_lines([b"a\xe2\x80", b"\xa8b\n\n", b"c", b"\nd"])) == [b"a\xe2\x80\xa8b", b"c"]


def test_protocols_have_names() -> None:
    assert all(protocol_name(number) == name for name, number in NUMBERS.items())
    assert protocol_name(253) == "protocol 253"
