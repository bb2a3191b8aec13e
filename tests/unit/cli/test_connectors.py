"""zgatectl services, connectors and drain."""

from datetime import UTC, datetime
from typing import Any

import pytest
from zgate_cli import connectors as connectors_module
from zgate_gateway.api import schemas

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectors_module, "_POLL_S", 0.0)


def test_services_fit(zgatectl: Any, fits: Any) -> None:
    text = fits(zgatectl("services"))
    for expected in (
        "pacs.zgate.internal", "10.101.0.1", "fd7a:7a67:6174:66::1", "site-a: up",
        "site-b: keep", "räume", "not offered",
    ):  # fmt: skip
        assert expected in text


def test_services_as_json(zgatectl_json: Any, fake_gateway: Any) -> None:
    assert schemas.ServiceList(**zgatectl_json("services")).services == fake_gateway.services()


def test_no_service(zgatectl: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_gateway, "services", list)
    text = zgatectl("services").stdout
    assert text == "No service is known: none is offered, and the policy names none.\n"


def test_connectors_fit(zgatectl: Any, fits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fits(zgatectl("connectors"))
    monkeypatch.setenv("COLUMNS", "160")
    text = zgatectl("connectors").stdout
    for expected in (
        "site-a", "connected", "tcp/104", "tcp/11112-11120", "12.3 MB", "987.7 GB",
        "down: connection refused by 10.0.5.9", "10.20.0.0/16", "up, stands by",
        "not authorized: the policy does not let it", "[2001:db8:1234:5678:9abc:def0:1234:5678]",
    ):  # fmt: skip
        assert expected in text
    assert "drained" not in text and "silent" not in text


def test_connectors_that_are_not_as_they_should_be(
    zgatectl: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    silent = fake_gateway.offering[0].model_copy(
        update={"silent": True, "drain": schemas.DrainState(since=NOW, deadline_at=NOW)}
    )
    away = schemas.Connector(name="away", connected=False, drain=schemas.DrainState(since=NOW))
    fake_gateway.offering = [silent, away]
    text = " ".join(zgatectl("connectors").stdout.split())
    for expected in ("silent", "drained, until 2026-03-01", "away", "not connected"):
        assert expected in text


def test_connectors_as_json(zgatectl_json: Any, fake_gateway: Any) -> None:
    found = schemas.ConnectorList(**zgatectl_json("connectors")).connectors
    assert found == fake_gateway.offering


def test_no_connector(zgatectl: Any, fake_gateway: Any) -> None:
    fake_gateway.offering = []
    assert zgatectl("connectors").stdout == "No connector is there.\n"


def test_a_hostile_connector_cannot_steer_the_terminal(zgatectl: Any, fake_gateway: Any) -> None:
    offer = (
        fake_gateway.offering[1]
        .services[0]
        .model_copy(update={"name": "a\x1b[2J", "reason": "\u202eb\u009b[red]x[/red]"})
    )
    fake_gateway.offering = [fake_gateway.offering[1].model_copy(update={"services": [offer]})]
    for command in ("connectors", "services"):
        text = zgatectl(command).stdout
        assert not {"\x1b", "\u202e", "\u009b"} & set(text)


# Drain.


class Draining:
    """A connector whose flows go: each look takes the next count. A state ends the drain."""

    def __init__(self, fake_gateway: Any, *looks: int | schemas.DrainState | None) -> None:
        self._before = fake_gateway.offering[0]
        self._looks = iter(looks)
        self.seen: list[int] = []
        fake_gateway.connectors = self.connectors

    def connectors(self) -> list[schemas.Connector]:
        look = next(self._looks)
        changes: dict[str, Any] = {"drain": schemas.DrainState(since=NOW), "open_flows": 0}
        changes |= {"open_flows": look} if isinstance(look, int) else {"drain": look}
        self.seen.append(changes["open_flows"])
        return [self._before.model_copy(update=changes)]


def test_a_drain_waits_until_the_flows_are_gone(zgatectl: Any, fake_gateway: Any) -> None:
    draining = Draining(fake_gateway, 3, 2, 0, 1, 0, 0)
    lines = zgatectl("drain", "site-a").stdout.splitlines()
    assert lines == [
        "site-a gets no new flows; it has 3",
        "site-a gets no new flows; it has 2",
        "site-a gets no new flows; it has 0",
        "site-a gets no new flows; it has 1",
        "site-a gets no new flows; it has 0",
        "site-a has no flows any more.",
    ]
    assert draining.seen == [3, 2, 0, 1, 0, 0]
    assert fake_gateway.calls == [("drain", "site-a", schemas.DrainRequest())]


def test_a_deadline_that_is_over_with_flows_left_fails(zgatectl: Any, fake_gateway: Any) -> None:
    over = schemas.DrainState(since=NOW, deadline_at=NOW, is_over=True)
    Draining(fake_gateway, 2, over)
    result = zgatectl("drain", "site-a", "--deadline", "1.5", code=1)
    assert "the deadline is over, and site-a still had 2 flows" in result.stderr
    assert fake_gateway.calls == [("drain", "site-a", schemas.DrainRequest(deadline_s=1.5))]


def test_a_deadline_that_is_over_without_flows(zgatectl: Any, fake_gateway: Any) -> None:
    Draining(fake_gateway, 0, schemas.DrainState(since=NOW, is_over=True))
    assert zgatectl("drain", "site-a").stdout.endswith("site-a has no flows any more.\n")


def test_a_drain_that_somebody_undoes_fails(zgatectl: Any, fake_gateway: Any) -> None:
    Draining(fake_gateway, 2, None)
    assert "somebody has undone it" in zgatectl("drain", "site-a", code=1).stderr


def test_a_connector_that_goes_has_no_flows(
    zgatectl: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = schemas.Connector(name="site-a", connected=False, drain=schemas.DrainState(since=NOW))
    monkeypatch.setattr(fake_gateway, "connectors", lambda: [away])
    assert zgatectl("drain", "site-a").stdout.endswith("site-a has no flows any more.\n")


def test_who_interrupts_ends_the_waiting_only(
    zgatectl: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(connectors_module.time, "sleep", interrupt)
    # Not 0: what follows in a script is for a connector that has no flows any more.
    assert "stays drained" in zgatectl("drain", "site-a", code=1).stderr
    assert [call[0] for call in fake_gateway.calls] == ["drain"]


def test_nobody_waits_where_nobody_wants_to(zgatectl: Any, zgatectl_json: Any) -> None:
    text = zgatectl("drain", "site-a", "--no-wait").stdout
    assert text == "site-a gets no new flows; it has 3.\n"
    answer = schemas.Drain(**zgatectl_json("drain", "site-a"))
    assert (answer.connector, answer.open_flows, answer.drain is not None) == ("site-a", 3, True)


def test_undo(zgatectl: Any, fake_gateway: Any) -> None:
    assert zgatectl("drain", "site-a", "--undo").stdout == "site-a gets new flows again.\n"
    assert fake_gateway.calls == [("drain", "site-a", schemas.DrainRequest(undo=True))]


@pytest.mark.parametrize(
    "arguments", [["--undo", "--deadline", "3"], ["--deadline", "-1"], ["--deadline", "x"]]
)
def test_what_makes_no_sense_is_bad_input(zgatectl: Any, arguments: list[str]) -> None:
    zgatectl("drain", "site-a", *arguments, code=2)


def test_who_is_no_connector_fails(zgatectl: Any) -> None:
    result = zgatectl("drain", "nobody", code=1)
    assert result.stderr == (
        "zgatectl: nobody offers nothing, and is not drained; "
        "zgatectl connectors lists those that do\n"
    )
