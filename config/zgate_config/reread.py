"""A daemon's configuration, read again while it runs: the log's level is applied, and no more.

What else has changed waits for a restart, and is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from zgate_config.errors import ConfigError
from zgate_config.model import StrictModel

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=StrictModel)


#: What is applied while a daemon runs.
_APPLIED = "log.level"


def read_again(
    running: Settings, load: Callable[[], Settings], apply: Callable[[Settings], None]
) -> None:
    """Have `apply` follow ``log.level``, and tell what else has changed.

    A configuration that cannot be taken changes nothing, and it is logged why.
    """
    try:
        found = load()
    except ConfigError as error:
        logger.error(
            "the configuration is not read again: %(error)s",
            {"event": "configuration_refused", "error": error},
        )
        return
    apply(found)
    if waiting := [key for key in changed_keys(running, found) if key != _APPLIED]:
        logger.warning(
            "changed in the configuration, and applied by a restart only: %(keys)s",
            {"event": "restart_needed", "keys": waiting},
        )


def changed_keys(running: StrictModel, found: StrictModel) -> list[str]:
    """The keys whose values differ, two levels deep: ``log.level``, ``listen.port``, ``routes``."""
    changed = []
    for key in type(running).model_fields:
        one, other = getattr(running, key), getattr(found, key)
        if one == other:
            continue
        if isinstance(one, StrictModel) and type(one) is type(other):
            changed += [
                f"{key}.{inner}"
                for inner in type(one).model_fields
                if getattr(one, inner) != getattr(other, inner)
            ]
        else:
            changed.append(key)
    return changed
