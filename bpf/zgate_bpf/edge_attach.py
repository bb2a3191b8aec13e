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


def attach(program_fd: int, interface: str, interface_index: int, *, name: str) -> Attachment:
    """Attach a program in the driver where it can, else in the kernel's generic hook.

    A leftover of the same ``name`` is replaced: choose names that no two living owners share.

    Raises:
        ForeignProgram: another program is attached; it stays.
        AttachError: the kernel refused.
    """
    _remove_leftover(interface_index, name)
    refused: dict[Mode, str] = {}
    for mode in (Mode.NATIVE, Mode.GENERIC):
        try:
            fd = syscalls.link_create_xdp(program_fd, interface_index, mode)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                raise ForeignProgram(
                    f"{interface} has an XDP program already{_whose(interface_index)}; "
                    f"it was left there"
                ) from error
            refused[mode] = os.strerror(error.errno or 0)
        else:
            return Attachment(fd, interface, mode, refused.get(Mode.NATIVE))
    reasons = "; ".join(f"{(mode.name or '').lower()}: {text}" for mode, text in refused.items())
    raise AttachError(f"no XDP program can be attached to {interface}: {reasons}")


def _remove_leftover(interface_index: int, name: str) -> bool:
    """Detach a program of ours that a dead process's child still holds."""
    found = _find(interface_index)
    if found is None:
        return False
    fd, program = found
    try:
        if program != name:
            return False
        syscalls.link_detach(fd)
        return True
    finally:
        os.close(fd)


def _find(interface_index: int) -> tuple[int, str | None] | None:
    """The link on an interface, and its program's name. None too if we may not ask."""
    try:
        found = syscalls.xdp_link(interface_index)
    except PermissionError:
        return None  # listing links takes CAP_SYS_ADMIN, which a hardened unit does not have
    if found is None:
        return None
    fd, program_id = found
    return fd, syscalls.program_name(program_id)


def _whose(interface_index: int) -> str:
    found = _find(interface_index)
    if found is None:
        return ""
    os.close(found[0])
    return f" ({found[1]})" if found[1] else ""
