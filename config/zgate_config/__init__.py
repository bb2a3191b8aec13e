"""Files that people write, read strictly: one clear line for every mistake.

YAML is read, and JSON, which is a part of it. Values mean what they look like: ``no``, ``on`` and
``010`` are text, only ``true`` and ``false`` are truth values. A key given twice, an unknown key
and a value of another type are mistakes. Whatever the bytes are, reading them either gives a valid
model or raises :class:`ConfigError`.

>>> config = load_yaml(Path("gateway.yaml"), GatewayConfig)          # doctest: +SKIP
ConfigError: gateway.yaml:7: listen.port: expected a port (0 to 65535), got 70000
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zgate_config.document import Document, parse_document, read_bytes, read_document
    from zgate_config.errors import ConfigError, KeyPath, Mistake, format_key_path
    from zgate_config.load import load_yaml, validate
    from zgate_config.model import StrictModel, expected, misfit

__all__ = [
    "ConfigError",
    "Document",
    "KeyPath",
    "Mistake",
    "StrictModel",
    "expected",
    "format_key_path",
    "load_yaml",
    "misfit",
    "parse_document",
    "read_bytes",
    "read_document",
    "validate",
]

_HOMES = {
    "document": ("Document", "parse_document", "read_bytes", "read_document"),
    "errors": ("ConfigError", "KeyPath", "Mistake", "format_key_path"),
    "load": ("load_yaml", "validate"),
    "model": ("StrictModel", "expected", "misfit"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for.

    A process that only logs as its configuration says does not pay for the models: 10 MB.
    """
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"zgate_config.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
