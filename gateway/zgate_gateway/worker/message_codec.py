"""How the fields of a message are written as JSON, and read back: exactly, or not at all."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import IntEnum
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Codec:
    """One type: to what JSON knows, and back; TypeError or ValueError if it does not fit."""

    to_plain: Callable[[Any], Any]
    from_plain: Callable[[Any], Any]


def _exactly(kind: type) -> Codec:
    def check(plain: Any) -> Any:
        if type(plain) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {plain!r}")
        return plain

    return Codec(check, check)


def _by_text(write: Callable[[Any], str], read: Callable[[str], Any]) -> Codec:
    text = _exactly(str)
    return Codec(write, lambda plain: read(text.from_plain(plain)))


def _aware(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise ValueError(f"a time without a zone: {text}")
    return value


_PLAIN: dict[Any, Codec] = {
    str: _exactly(str),
    int: _exactly(int),
    bool: _exactly(bool),
    float: Codec(float, _exactly(float).from_plain),
    bytes: _by_text(bytes.hex, bytes.fromhex),
    Path: _by_text(str, Path),
    datetime: _by_text(datetime.isoformat, _aware),
    IPv4Address: _by_text(str, IPv4Address),
    IPv6Address: _by_text(str, IPv6Address),
    IPv4Address | IPv6Address: _by_text(str, ip_address),
}


@cache
def codec_of(hint: Hashable) -> Codec:
    """How values of a type are written. Raises TypeError: no message can hold it."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    if is_dataclass(hint):
        return _record(hint)
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return _enumeration(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence(codec_of(arguments[0]))
    if origin is dict and arguments[0] is str:
        return _mapping(codec_of(arguments[1]))
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        return _optional(codec_of(next(one for one in arguments if one is not type(None))))
    raise TypeError(f"no message can hold {hint}")


def _record(kind: Any) -> Codec:
    hints = get_type_hints(kind)
    parts = [(one.name, codec_of(hints[one.name])) for one in fields(kind)]

    def to_plain(value: Any) -> list[Any]:
        return [codec.to_plain(getattr(value, name)) for name, codec in parts]

    def from_plain(plain: Any) -> Any:
        if type(plain) is not list or len(plain) != len(parts):
            raise TypeError(f"expected the {len(parts)} fields of {kind.__name__}")
        return kind(*(codec.from_plain(one) for one, (_, codec) in zip(plain, parts, strict=True)))

    return Codec(to_plain, from_plain)


def _enumeration(kind: type[IntEnum]) -> Codec:
    number = _exactly(int)
    return Codec(int, lambda plain: kind(number.from_plain(plain)))


def _sequence(of: Codec) -> Codec:
    plain_list = _exactly(list)
    return Codec(
        lambda value: [of.to_plain(one) for one in value],
        lambda plain: tuple(of.from_plain(one) for one in plain_list.from_plain(plain)),
    )


def _mapping(of: Codec) -> Codec:
    plain_dict = _exactly(dict)
    return Codec(
        lambda value: {key: of.to_plain(one) for key, one in value.items()},
        lambda plain: {k: of.from_plain(one) for k, one in plain_dict.from_plain(plain).items()},
    )


def _optional(of: Codec) -> Codec:
    return Codec(
        lambda value: None if value is None else of.to_plain(value),
        lambda plain: None if plain is None else of.from_plain(plain),
    )
