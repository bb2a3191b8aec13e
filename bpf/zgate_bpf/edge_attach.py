"""Attaching an XDP program to an interface, and leaving alone what others attached.

The attachment is a BPF link: it ends with the last descriptor of it, so that nothing is left
behind by a process that was killed, unless a child of it lives on with the descriptor.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import IntFlag

from zgate_bpf import syscalls
from zgate_bpf.errors import BpfError


class Mode(IntFlag):
    """Where the kernel runs the program; the values are its flags (XDP_FLAGS_*)."""

    GENERIC = 1 << 1
    NATIVE = 1 << 2


class ForeignProgram(BpfError):
    """Somebody else's XDP program is on the interface."""


class AttachError(BpfError):
    """The kernel did not attach the program, in either mode."""


@dataclass(slots=True)
class Attachment:
    """A program on an interface.

    :ivar mode: where it runs.
    :ivar native_refused: why not in the driver, if it does not run there.
    """

    fd: int
    interface: str
    mode: Mode
    native_refused: str | None = None

    def close(self) -> None:
        """Detach it. Twice is no error."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def attach(
    program_fd: int,
    interface: str,
    interface_index: int,
    *,
    name: str,
    present: int = 0,
    modes: tuple[Mode, ...] = (Mode.NATIVE, Mode.GENERIC),
) -> Attachment:
    """Attach a program in the first of the modes that the interface can.

    `present` is the id of the program that is there already, as rtnetlink tells it (0: none). A
    leftover of the same ``name`` is replaced: choose names that no two living owners share.

    Raises:
        ForeignProgram: another program is attached; it stays.
        AttachError: the kernel refused.
    """
    if present and not _remove_leftover(present, name):
        raise ForeignProgram(
            f"{interface} has an XDP program already{_called(present)}; it was left there"
        )
    refused: dict[Mode, str] = {}
    for mode in modes:
        try:
            fd = syscalls.link_create_xdp(program_fd, interface_index, mode)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                raise ForeignProgram(
                    f"{interface} has an XDP program already; it was left there"
                ) from error
            refused[mode] = os.strerror(error.errno or 0)
        else:
            return Attachment(fd, interface, mode, refused.get(Mode.NATIVE))
    reasons = "; ".join(f"{(mode.name or '').lower()}: {text}" for mode, text in refused.items())
    raise AttachError(f"no XDP program can be attached to {interface}: {reasons}")


def _remove_leftover(program: int, name: str) -> bool:
    """Detach a program of ours that a dead process's child still holds."""
    try:
        fd = syscalls.xdp_link(program) if syscalls.program_name(program) == name else None
    except PermissionError:
        return False  # asking takes CAP_SYS_ADMIN, which a hardened unit does not have
    if fd is None:
        return False
    try:
        syscalls.link_detach(fd)
    finally:
        os.close(fd)
    return True


def _called(program: int) -> str:
    try:
        name = syscalls.program_name(program)
    except PermissionError:
        name = None
    return f" ({name})" if name else ""
