"""A document to a model; what pydantic finds wrong becomes one line per mistake."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from zgate_config.document import Document, read_document
from zgate_config.errors import ConfigError, KeyPath, Mistake, quote, show

ModelT = TypeVar("ModelT", bound=BaseModel)

_EXPECTED_BY_TYPE = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
}
_EXPECTED_BY_BOUND = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "greater_than": "more than {gt}",
    "less_than": "less than {lt}",
    "too_short": "a list with entries (at least {min_length})",
    "too_long": "a list of at most {max_length} entries",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
}
_NOT_TEXT = {"string_type", "path_type"}


def load_yaml(path: Path, model: type[ModelT]) -> ModelT:
    """Read ``path`` as a ``model``. Raises :class:`ConfigError`."""
    return validate(read_document(path), model, folder=path.absolute().parent)


def validate(document: Document, model: type[ModelT], *, folder: Path | None = None) -> ModelT:
    """Read ``document`` as a ``model``. Raises :class:`ConfigError` with every mistake in it.

    ``folder`` is where relative paths start (:data:`zgate_config.types.LocalPath`). An empty
    document is an empty mapping.
    """
    value = document.value
    try:
        # As JSON, because pydantic's strict mode takes a path or an enum from text only there.
        context = {"folder": folder}
        return model.model_validate_json(
            to_json({} if value is None else value), strict=True, context=context
        )
    except ValidationError as error:
        found = [
            _mistake(document, model, detail)
            for detail in error.errors(include_url=False)
            if not _is_consequence(document, detail)
        ]
    raise ConfigError(sorted(found, key=lambda mistake: mistake.line or 0))


def _is_consequence(document: Document, detail: ErrorDetails) -> bool:
    """Whether a mistake follows from another one, which is reported itself."""
    if detail["type"] == "too_short":  # entries that are wrong were not counted
        entries = document.value_at(detail["loc"])
        return isinstance(entries, list) and len(entries) >= detail["ctx"]["min_length"]
    return detail["type"] == "default_factory_not_called"


def _mistake(document: Document, model: type[BaseModel], detail: ErrorDetails) -> Mistake:
    path: KeyPath = tuple(key for key in detail["loc"] if key != "[key]")
    context = detail.get("ctx", {})
    if "key" in context:
        path = (*path, *context["key"].split("."))
    return document.mistake(path, _text(document, model, detail, path))


def _text(document: Document, model: type[BaseModel], detail: ErrorDetails, path: KeyPath) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key(model, path)
    if kind == "missing":
        return "expected a value, got nothing (this key is required)"
    context = detail.get("ctx", {})
    if "key" in context:
        got = context.get("got") or show(document.value_at(path))
    else:
        got = show(detail["input"])
    hint = ""
    if kind in _NOT_TEXT and isinstance(detail["input"], bool | int | float):
        hint = " (put it in quotes)"
    return f"expected {_expectation(detail)}, got {got}{hint}"


def _expectation(detail: ErrorDetails) -> str:
    if detail["type"] == "expected":
        return detail["msg"]
    if detail["type"] in _EXPECTED_BY_TYPE:
        return _EXPECTED_BY_TYPE[detail["type"]]
    if detail["type"] in _EXPECTED_BY_BOUND:
        return _EXPECTED_BY_BOUND[detail["type"]].format(**detail["ctx"])
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def _unknown_key(model: type[BaseModel], path: KeyPath) -> str:
    known = _keys_at(model, path[:-1])
    key = str(path[-1])
    text = f"expected one of {', '.join(known)}; got the unknown key {quote(key)}"
    near = difflib.get_close_matches(key, known, n=1)
    return f"{text} (did you mean {near[0]}?)" if near else text


def _keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that the model at ``path`` inside ``model`` has."""
    annotation: Any = model
    for key in path:
        annotation = _step(annotation, key)
    found = _strip(annotation)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        return []
    return [field.alias or name for name, field in found.model_fields.items()]


def _step(annotation: Any, key: str | int) -> Any:
    """The annotation of what stands at ``key`` inside a value of type ``annotation``."""
    annotation = _strip(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if key in (name, field.alias):
                return field.annotation
        return None
    arguments = typing.get_args(annotation)
    if not arguments:
        return None
    is_mapping = typing.get_origin(annotation) in (dict, Mapping)
    return arguments[1] if is_mapping else arguments[0]


def _strip(annotation: Any) -> Any:
    """Without ``Annotated`` and without ``| None``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _strip(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        inner = [item for item in typing.get_args(annotation) if item is not type(None)]
        return _strip(inner[0])
    return annotation
