"""What the base of all models refuses, and the two errors that validators raise."""

import pytest
from pydantic import ValidationError
from zgate_config import StrictModel, expected, misfit


class Model(StrictModel):
    count: int = 1


@pytest.mark.parametrize("keys", [{"count": "1"}, {"count": 1.0}, {"count": True}, {"other": 1}])
def test_strict(keys):
    with pytest.raises(ValidationError):
        Model(**keys)


def test_frozen():
    with pytest.raises(ValidationError):
        Model().count = 2


def test_errors_carry_their_text_and_the_key_they_are_about():
    assert str(expected("a port {x}")) == "a port {x}"
    error = misfit("listen.port", "another port", "443")
    assert error.context == {"what": "another port", "key": "listen.port", "got": "443"}
    assert isinstance(error, ValueError)
