"""zgatectl clients."""

from typing import Any

import pytest
from zgate_gateway.api import schemas


def test_clients_fit(zgatectl: Any, fits: Any) -> None:
    lines = fits(zgatectl("clients")).splitlines()
    assert lines[0].split() == ["client", "groups", "addresses", "rules", "dropped", "last", "seen"]
    assert lines[1].split() == ["client-1", "staff", "10.100.0.2", "4", "5", "connected"]
    assert lines[2].split() == ["fd7a:7a67:6174:65::2"]
    assert lines[3].split() == ["never-seen", "-", "-", "0", "-", "never"]


def test_clients_as_json(zgatectl_json: Any) -> None:
    found = schemas.ClientList(**zgatectl_json("clients")).clients
    assert [(one.name, one.connected) for one in found] == [
        ("client-1", True),
        ("never-seen", False),
    ]


def test_a_client_that_left_is_shown_with_the_time(
    zgatectl: Any, fake_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = fake_gateway.clients()[1].model_copy(update={"connected": False})
    monkeypatch.setattr(fake_gateway, "clients", lambda: [left])
    assert "2026-03-01 12:00:00Z" in zgatectl("clients").stdout
    monkeypatch.setattr(fake_gateway, "clients", list)
    assert zgatectl("clients").stdout == "No client is known.\n"


def test_limits_are_shown_where_there_are_any(
    zgatectl: Any, fake_gateway: Any, fits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, known = fake_gateway.clients()
    limited = known.model_copy(
        update={"limits": schemas.Limits(bandwidth_mbit=50, new_flows_per_s=200)}
    )
    monkeypatch.setattr(fake_gateway, "clients", lambda: [never, limited])
    text = fits(zgatectl("clients"))
    assert "limits" in text.splitlines()[0]
    assert "50 Mbit/s" in text and "200 new" in text
