"""Waiting in the loop for what other ends do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

WAIT_S = 5.0


async def eventually(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Wait until the condition holds, and return its value."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.002)
    return value
