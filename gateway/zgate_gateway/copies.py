"""Copies in memory of files that workers read: what was found to be good, and nothing later.

A worker that is started anew must not depend on what stands in a file at that moment: half of a new
certificate, or nothing because the disk is gone. So workers get the files as descriptors of memory
(memfd_create(2)), which the supervisor fills with what it has checked.
"""

from __future__ import annotations

import os
from pathlib import Path

from zgate_identity.files import PRIVATE_MODE


class MemoryFile:
    """A file without a name. Its descriptor may be handed to workers."""

    def __init__(self, name: str) -> None:
        """``name`` is for /proc only. Raises OSError."""
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.fchmod(self.fd, PRIVATE_MODE)

    def write(self, data: bytes) -> None:
        """Replace the content. Raises OSError."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)

    def close(self) -> None:
        """Give the memory back when the last worker has."""
        os.close(self.fd)


def path_of(descriptor: int) -> Path:
    """Where this process can open a descriptor's file by name."""
    return Path(f"/proc/self/fd/{descriptor}")
