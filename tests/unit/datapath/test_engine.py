"""Which packet engine a configured choice means."""

from __future__ import annotations

import pytest
from zgate_datapath.engine import EngineCounters, Opened, engine_name, make_engine
from zgate_datapath.python_engine import PythonEngine

from .conftest import Pair


@pytest.mark.parametrize("choice", ["auto", "python"])
def test_the_choices_that_are_there(pair: Pair, choice: str) -> None:
    assert engine_name(choice) == "python"
    engine = make_engine(choice, pair.client)
    assert isinstance(engine, PythonEngine)
    assert engine.name == "python"
    assert engine.counters == EngineCounters()


@pytest.mark.parametrize("choice", ["native", "", "Python"])
def test_the_choices_that_are_not(choice: str) -> None:
    with pytest.raises(ValueError, match="expected auto or python"):
        engine_name(choice)


def test_each_connection_has_lists_of_its_own() -> None:
    assert Opened().datagrams is not Opened().datagrams
    assert Opened().rest is not Opened().rest
