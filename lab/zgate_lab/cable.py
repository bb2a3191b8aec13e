"""Two TUNs joined as by a cable: what is read from one is written to the other."""

import os
import select
import threading
from types import TracebackType
from typing import Self

MAX_PACKET_BYTES = 65535


class Cable:
    """A thread that copies packets between two TUN descriptors while the context lasts.

    It stands in for a session between a client and a gateway. The descriptors stay the caller's.
    """

    def __init__(self, one: int, other: int):
        self._towards = {one: other, other: one}
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._copy, name="cable")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._stop_write)
        self._thread.join()
        os.close(self._stop_read)

    def _copy(self) -> None:
        poll = select.poll()
        for descriptor in (*self._towards, self._stop_read):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._stop_read:
                    return
                self._copy_one(descriptor)

    def _copy_one(self, descriptor: int) -> None:
        try:
            os.write(self._towards[descriptor], os.read(descriptor, MAX_PACKET_BYTES))
        except OSError:
            return  # an interface is down: the packet is lost, as on a cable that is cut
