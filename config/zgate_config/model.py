"""The base of every file's model, and the errors that its validators raise."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class StrictModel(BaseModel):
    """A mapping in a file: unknown keys are mistakes, types are not converted, nothing changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def expected(what: str) -> PydanticCustomError:
    """Return the error of a field's validator: ``expected <what>, got <the value>``."""
    return PydanticCustomError("expected", "{what}", {"what": what})


def misfit(key: str, what: str, got: str | None = None) -> PydanticCustomError:
    """Return the error of a model's validator: the value of ``key`` does not fit the others.

    ``key`` may be a path with dots (``sessions.max``). ``got`` replaces the value in the message
    where the value says too little.
    """
    return PydanticCustomError("expected", "{what}", {"what": what, "key": key, "got": got})
