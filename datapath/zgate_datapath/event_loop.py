"""An asyncio event loop in whose waiting packets are carried.

asyncio asks its selector what is ready. `CarryingSelector` answers for the native engine's own
descriptors by itself: as long as only they are ready it moves packets, in C, and returns to Python
for everything else. So a bulk transfer costs no turn of the event loop, and an idle one as little
as `epoll` does.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zgate_datapath.native_carrier import NativeCarrier

_EPOLLIN = 0x001
_EPOLLOUT = 0x004
_FOREVER = -1.0

_Ready = list[tuple[selectors.SelectorKey, int]]


class CarryingSelector(selectors.EpollSelector):
    """`selectors.EpollSelector` that carries packets while it waits."""

    def __init__(self) -> None:
        super().__init__()
        self._carrier: NativeCarrier | None = None

    def attach(self, carrier: NativeCarrier) -> None:
        """Carry for this one from now on; one at a time, the last one counts."""
        before, self._carrier = self._carrier, carrier
        if before is not None and before is not carrier:
            before.arm()  # from here on it has to look after its deadlines

    def detach(self, carrier: NativeCarrier) -> None:
        """Carry for this one no more."""
        if self._carrier is carrier:
            self._carrier = None

    @property
    def is_busy(self) -> bool:
        """Whether it carries for one that has a TUN: whoever has none yet does not disturb it."""
        return self._carrier is not None and self._carrier.has_tun

    def carries_for(self, carrier: NativeCarrier) -> bool:
        """Whether this is the one whose packets it carries."""
        return self._carrier is carrier

    def select(self, timeout: float | None = None) -> _Ready:
        """See `selectors.BaseSelector.select`."""
        carrier = self._carrier
        if carrier is None:
            return super().select(timeout)
        wait_s = _FOREVER if timeout is None else max(timeout, 0.0)
        events, is_wanted = carrier.native.wait(self.fileno(), wait_s)
        ready: _Ready = []
        keys = self.get_map()
        for descriptor, event in events:
            key = keys.get(descriptor)
            if key is None:
                continue
            # As EpollSelector: an error or a hang-up is ready for everything.
            mask = 0
            if event & ~_EPOLLIN:
                mask |= selectors.EVENT_WRITE
            if event & ~_EPOLLOUT:
                mask |= selectors.EVENT_READ
            if mask & key.events:
                ready.append((key, mask & key.events))
        if is_wanted:
            own = keys.get(carrier.udp_fd)
            if own is not None:
                ready.append((own, selectors.EVENT_READ))
        return ready


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of a process that carries packets."""
    return asyncio.SelectorEventLoop(CarryingSelector())


def selector_of(loop: asyncio.AbstractEventLoop) -> CarryingSelector | None:
    """The loop's selector, if it is one that carries."""
    selector = getattr(loop, "_selector", None)
    return selector if isinstance(selector, CarryingSelector) else None
