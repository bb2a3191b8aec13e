"""The file of sources that the edge drops: a CIDR on each line, and comments behind ``#``."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from zgate_config import ConfigError, Mistake
from zgate_config.types import parse_network

Network = IPv4Network | IPv6Network

_MAX_BYTES = 64 << 20


def read_blocklist(path: Path) -> list[Network]:
    """The networks in a file, in its order.

    Raises:
        ConfigError: it cannot be read, or lines of it are no networks; it names each of them.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(path, None, f"expected a readable file ({error.strerror})") from error
    if len(data) > _MAX_BYTES:
        raise _refusal(path, None, f"expected a file of at most {_MAX_BYTES >> 20} MiB")
    networks: list[Network] = []
    mistakes: list[Mistake] = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        try:
            networks.append(parse_network(word))
        except ValueError as error:
            mistakes.append(_mistake(path, number, f"{error}, got {word[:60]!r}"))
    if mistakes:
        raise ConfigError(mistakes)
    return networks


def merge(*lists: Iterable[Network]) -> list[Network]:
    """All networks of several lists, each once."""
    return list(dict.fromkeys(network for networks in lists for network in networks))


def _mistake(path: Path, line: int | None, text: str) -> Mistake:
    return Mistake(str(path), line, (), text if text.startswith("expected") else f"expected {text}")


def _refusal(path: Path, line: int | None, text: str) -> ConfigError:
    return ConfigError([_mistake(path, line, text)])
