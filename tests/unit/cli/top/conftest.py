"""A screen of its own for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from zgate_lab.screen import Screen, zgatectl

Open = Callable[..., Screen]


@pytest.fixture
def open_top(live_gateway: Any) -> Iterator[Open]:
    """Start `zgatectl top` on a terminal, and wait until it shows sessions."""
    with ExitStack() as stack:

        def open_(*arguments: str, text: str = "client-1", **options: Any) -> Screen:
            socket = ["--socket", str(live_gateway.socket_path)]
            argv = zgatectl(*socket, "top", "--interval", "0.2", *arguments)
            made = stack.enter_context(Screen(*argv, **options))
            made.wait_for(text)
            return made

        yield open_
