import dataclasses
from typing import get_args

import pytest
from zgate_protocol import events


@pytest.mark.parametrize("event", get_args(events.Event))
def test_events_are_frozen_documented_and_slotted(event: type) -> None:
    assert event.__doc__
    assert "__slots__" in vars(event)
    assert event.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_every_event_class_is_in_the_union() -> None:
    here = {
        value
        for value in vars(events).values()
        if dataclasses.is_dataclass(value) and value.__module__ == events.__name__
    }
    assert here == set(get_args(events.Event))
