"""Which packet engine a configured choice means."""

from __future__ import annotations

import logging

import pytest
from zgate_datapath import engine as engine_module
from zgate_datapath.engine import EngineCounters, Opened, engine_name, make_engine
from zgate_datapath.python_engine import PythonEngine

from .conftest import Pair

PROBLEM = "the native engine is not built (no compiler)"


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "native_problem", lambda: PROBLEM)
    engine_module._tell_fallback.cache_clear()


@pytest.mark.parametrize(
    ("choice", "name"), [("auto", "native"), ("native", "native"), ("python", "python")]
)
def test_the_choices(choice: str, name: str) -> None:
    assert engine_name(choice) == name


@pytest.mark.parametrize("choice", ["", "Python"])
def test_the_choices_that_are_not(choice: str) -> None:
    with pytest.raises(ValueError, match="expected auto, native or python"):
        engine_name(choice)


@pytest.mark.usefixtures("not_built")
def test_without_the_native_engine_auto_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert [engine_name("auto") for _ in range(3)] == ["python"] * 3
    assert caplog.text.count(PROBLEM) == 1


@pytest.mark.usefixtures("not_built")
def test_without_the_native_engine_native_is_an_error_with_a_cure() -> None:
    with pytest.raises(ValueError, match=r"no compiler.*install a compiler"):
        engine_name("native")


def test_without_a_carrier_the_engine_is_pythons(pair: Pair) -> None:
    engine = make_engine(pair.client, None, None)  # type: ignore[arg-type]
    assert isinstance(engine, PythonEngine)
    assert engine.name == "python"
    assert engine.direct is None
    assert engine.counters == EngineCounters()


def test_each_connection_has_lists_of_its_own() -> None:
    assert Opened().datagrams is not Opened().datagrams
    assert Opened().rest is not Opened().rest
