"""The list for the next start, and who believes it."""

from __future__ import annotations

import contextlib
import json
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zgate_agent.leftovers import Leftovers, recall, remember

PINS = (ip_address("203.0.113.10"), ip_address("2001:db8::1"))


def test_what_is_remembered_is_recalled(tmp_path: Path) -> None:
    file = tmp_path / "network.json"
    remember(file, reversed(PINS))
    assert recall(file) == PINS


def test_nothing_to_remember_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "network.json"
    remember(file, PINS)
    remember(file, ())
    assert list(tmp_path.iterdir()) == []
    assert recall(file) == ()


@pytest.mark.parametrize("key", ["boot_id", "namespace"])
def test_another_boot_or_namespace_left_nothing_here(tmp_path: Path, key: str) -> None:
    file = tmp_path / "network.json"
    remember(file, PINS)
    document = json.loads(file.read_text())
    document[key] = "x" if key == "boot_id" else 1
    file.write_text(json.dumps(document))
    assert recall(file) == ()


def test_a_strange_file_is_put_aside(tmp_path: Path) -> None:
    file = tmp_path / "network.json"
    file.write_bytes(b"\xff{")
    assert recall(file) == ()
    assert [one.name for one in tmp_path.iterdir()] == ["network.unreadable"]


def test_a_file_cut_off_anywhere_is_refused() -> None:
    text = Leftovers("boot", 1, PINS).to_json()
    assert Leftovers.from_json(text) == Leftovers("boot", 1, PINS)
    for end in range(len(text)):
        with pytest.raises(ValueError):
            Leftovers.from_json(text[:end])


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"boot_id": 1, "namespace": 1, "pins": []},
        {"boot_id": "x", "namespace": "1", "pins": []},
        {"boot_id": "x", "namespace": 1, "pins": [1]},
        {"boot_id": "x", "namespace": 1, "pins": ["0.0.0.0/0"]},
        {"boot_id": "x", "namespace": 1},
    ],
)
def test_other_documents_are_refused(document: object) -> None:
    with pytest.raises(ValueError):
        Leftovers.from_json(json.dumps(document))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError):
        Leftovers.from_json("[" * 100_000)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        Leftovers.from_json(text)
