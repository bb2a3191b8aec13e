"""bpf(2), as far as this package needs it.

bcc's library compiles programs, but it has no call for test runs, for maps inside maps of a
size known at run time, or for batches. The attribute layouts are those of ``union bpf_attr``
in the kernel's ``include/uapi/linux/bpf.h``; nothing newer than kernel 6.1 is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from enum import IntEnum

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_libc = ctypes.CDLL(None, use_errno=True)
_NAME_BYTES = 15
_PROGRAM_LOAD_ATTEMPTS = 10


class Command(IntEnum):
    """``enum bpf_cmd``."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    LINK_CREATE = 28
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    LINK_DETACH = 34


class MapType(IntEnum):
    """``enum bpf_map_type``."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    REUSEPORT_SOCKARRAY = 20
    RINGBUF = 27


class ProgramType(IntEnum):
    """``enum bpf_prog_type``."""

    SOCKET_FILTER = 1
    SCHED_CLS = 3
    XDP = 6
    SK_REUSEPORT = 21


NO_PREALLOC = 1
"""Map flag: memory per entry that is there, not per entry that fits."""


def _number() -> int:
    machine = platform.machine()
    if machine not in _SYSCALL_NUMBERS:
        raise OSError(errno.ENOSYS, f"bpf(2) has no known number on {machine}")
    return _SYSCALL_NUMBERS[machine]


def _bpf(command: Command, attributes: bytes | bytearray) -> tuple[int, bytes]:
    """Call bpf(2); gives its result and the attributes as the kernel left them."""
    size = max(len(attributes), 128)
    buffer = ctypes.create_string_buffer(bytes(attributes), size)
    result = _libc.syscall(_number(), int(command), buffer, size)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)} (bpf {command.name})")
    return result, buffer.raw


def _name(name: str) -> bytes:
    return name.encode()[:_NAME_BYTES]


def map_create(
    kind: MapType,
    key_bytes: int,
    value_bytes: int,
    max_entries: int,
    *,
    name: str,
    flags: int = 0,
    inner_fd: int = 0,
) -> int:
    """Make a map; gives its descriptor.

    Raises:
        OSError: EPERM without the privilege, ENOMEM, EINVAL for sizes the kernel refuses.
    """
    attributes = struct.pack(
        "=7I16s", kind, key_bytes, value_bytes, max_entries, flags, inner_fd, 0, _name(name)
    )
    return _bpf(Command.MAP_CREATE, attributes)[0]


def map_lookup(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """The value at a key, or ``None``."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(value_bytes)
    attributes = struct.pack(
        "=iIQQQ", fd, 0, ctypes.addressof(key_buffer), ctypes.addressof(value), 0
    )
    try:
        _bpf(Command.MAP_LOOKUP_ELEM, attributes)
    except FileNotFoundError:
        return None
    return value.raw


class MapReader:
    """Looks many keys of one map up, without making the buffers anew for each."""

    def __init__(self, fd: int, key_bytes: int, value_bytes: int) -> None:
        self._key = ctypes.create_string_buffer(key_bytes)
        self._value = ctypes.create_string_buffer(value_bytes)
        attributes = struct.pack(
            "=iIQQQ", fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), 0
        )
        self._attributes = ctypes.create_string_buffer(attributes, 128)
        self._number = _number()

    def lookup(self, key: bytes) -> bytes | None:
        """The value at a key, or ``None``."""
        ctypes.memmove(self._key, key, len(self._key))
        if _libc.syscall(self._number, int(Command.MAP_LOOKUP_ELEM), self._attributes, 128) < 0:
            code = ctypes.get_errno()
            if code == errno.ENOENT:
                return None
            raise OSError(code, f"{os.strerror(code)} (bpf MAP_LOOKUP_ELEM)")
        return self._value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Write one entry. Raises OSError: E2BIG or ENOSPC when the map is full."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, len(value))
    attributes = struct.pack(
        "=iIQQQ", fd, 0, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0
    )
    _bpf(Command.MAP_UPDATE_ELEM, attributes)


def map_delete(fd: int, key: bytes) -> bool:
    """Remove one entry; False if there was none."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(
            Command.MAP_DELETE_ELEM,
            struct.pack("=iIQQQ", fd, 0, ctypes.addressof(key_buffer), 0, 0),
        )
    except FileNotFoundError:
        return False
    return True


_BATCH = struct.Struct("=QQQQIiQQ")  # in, out, keys, values, count, map fd, elem flags, flags


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Write many entries in one call. Raises OSError; some may then have been written."""
    if not count:
        return
    key_buffer = ctypes.create_string_buffer(keys, len(keys))
    value_buffer = ctypes.create_string_buffer(values, len(values))
    attributes = _BATCH.pack(
        0, 0, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), count, fd, 0, 0
    )
    _bpf(Command.MAP_UPDATE_BATCH, attributes)


def map_lookup_batch(
    fd: int, position: bytes | None, key_bytes: int, value_bytes: int, count: int
) -> tuple[bytes | None, bytes, bytes, int]:
    """Read up to ``count`` entries from ``position`` on (``None``: the beginning).

    Gives the next position (``None``: that was all), the keys, the values, and how many.
    """
    start = ctypes.create_string_buffer(position, len(position)) if position else None
    # A hash table's position is a bucket number: 4 bytes, however short the key.
    after = ctypes.create_string_buffer(max(key_bytes, 4))
    keys = ctypes.create_string_buffer(key_bytes * count)
    values = ctypes.create_string_buffer(value_bytes * count)
    attributes = _BATCH.pack(
        ctypes.addressof(start) if start else 0,
        ctypes.addressof(after),
        ctypes.addressof(keys),
        ctypes.addressof(values),
        count,
        fd,
        0,
        0,
    )
    # The kernel says how many it gave even where it answers ENOENT, "that was all".
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = _libc.syscall(_number(), int(Command.MAP_LOOKUP_BATCH), buffer, len(buffer))
    code = ctypes.get_errno() if result < 0 else 0
    if code not in (0, errno.ENOENT):
        raise OSError(code, f"{os.strerror(code)} (bpf MAP_LOOKUP_BATCH)")
    given = _BATCH.unpack_from(buffer.raw)[4]
    return (None if code else after.raw), keys.raw, values.raw, given


def program_load(
    kind: ProgramType,
    instructions: bytes,
    *,
    name: str,
    license_name: str,
    log_bytes: int = 0,
    flags: int = 0,
) -> int:
    """Have the kernel verify and take a program; gives its descriptor.

    Raises:
        ProgramRefused: the verifier refused it, with its log if ``log_bytes`` asked for one.
        OSError: anything else, EPERM above all.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(license_name.encode())
    log = ctypes.create_string_buffer(max(log_bytes, 1))
    attributes = struct.pack(
        "=IIQQIIQII16s",
        kind,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(license_text),
        1 if log_bytes else 0,
        log_bytes,
        ctypes.addressof(log) if log_bytes else 0,
        0,
        flags,
        _name(name),
    )
    try:
        return _again_after_signals(Command.PROG_LOAD, attributes)
    except OSError as error:
        if log_bytes:
            raise ProgramRefused(error, log.value.decode(errors="replace")) from error
        raise


def _again_after_signals(command: Command, attributes: bytes) -> int:
    """The verifier gives up with EAGAIN when a signal comes, or the process is frozen or traced."""
    for _ in range(_PROGRAM_LOAD_ATTEMPTS - 1):
        with contextlib.suppress(BlockingIOError):
            return _bpf(command, attributes)[0]
    return _bpf(command, attributes)[0]


class ProgramRefused(OSError):
    """The kernel did not take a program. :ivar log: what its verifier wrote."""

    def __init__(self, cause: OSError, log: str) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.log = log


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a test run gave.

    :ivar result: what the program returned.
    :ivar data: the packet as the program left it.
    :ivar context: the context as the program left it.
    :ivar duration_ns: the mean of all repetitions.
    """

    __test__ = False  # not a test case, whatever its name makes pytest think

    result: int
    data: bytes
    context: bytes
    duration_ns: int


def program_test_run(fd: int, data: bytes, context: bytes, *, repeat: int = 1) -> TestRun:
    """Run a loaded program on a packet.

    Raises:
        OSError: EINVAL if the kernel does not take such a packet (too short, too long).

    XDP programs may go without a ``context``.
    """
    data_in = ctypes.create_string_buffer(data, len(data))
    data_out = ctypes.create_string_buffer(len(data))
    context_in = ctypes.create_string_buffer(context, len(context))
    context_out = ctypes.create_string_buffer(len(context))
    attributes = struct.pack(
        "=iIIIQQIIIIQQ",
        fd,
        0,
        len(data),
        len(data),
        ctypes.addressof(data_in),
        ctypes.addressof(data_out),
        repeat,
        0,
        len(context),
        len(context),
        ctypes.addressof(context_in) if context else 0,
        ctypes.addressof(context_out) if context else 0,
    )
    _, answer = _bpf(Command.PROG_TEST_RUN, attributes)
    fields = struct.unpack_from("=IIIIQQII", answer)
    return TestRun(
        result=fields[1],
        data=data_out.raw[: fields[3]],
        duration_ns=fields[7],
        context=context_out.raw,
    )


_VERIFIED_INSTRUCTIONS_OFFSET = 216
_PROGRAM_INFO_BYTES = 232


def verified_instructions(fd: int) -> int:
    """How many instructions the verifier walked through: the program's complexity."""
    info = ctypes.create_string_buffer(_PROGRAM_INFO_BYTES)
    attributes = struct.pack("=iIQ", fd, _PROGRAM_INFO_BYTES, ctypes.addressof(info))
    _bpf(Command.OBJ_GET_INFO_BY_FD, attributes)
    (count,) = struct.unpack_from("=I", info.raw, _VERIFIED_INSTRUCTIONS_OFFSET)
    return int(count)


_ATTACH_TYPE_XDP = 37
_LINK_TYPE_XDP = 6
_LINK_INFO_BYTES = 32
_PROGRAM_NAME_OFFSET, _PROGRAM_NAME_BYTES = 64, 16


def link_create_xdp(program_fd: int, interface_index: int, flags: int) -> int:
    """Attach an XDP program for as long as the returned descriptor is open anywhere.

    Raises:
        OSError: EBUSY or EEXIST if there is one already, EOPNOTSUPP if the driver cannot.
    """
    attributes = struct.pack("=iIII", program_fd, interface_index, _ATTACH_TYPE_XDP, flags)
    return _bpf(Command.LINK_CREATE, attributes)[0]


def link_detach(fd: int) -> None:
    """Detach a link, whoever else holds it."""
    _bpf(Command.LINK_DETACH, struct.pack("=i", fd))


def program_name(program: int) -> str | None:
    """The name of a loaded program; None if it is gone."""
    try:
        fd, _ = _bpf(Command.PROG_GET_FD_BY_ID, struct.pack("=III", program, 0, 0))
    except FileNotFoundError:
        return None
    try:
        info = _object_info(fd, _PROGRAM_INFO_BYTES)
    finally:
        os.close(fd)
    name = info[_PROGRAM_NAME_OFFSET : _PROGRAM_NAME_OFFSET + _PROGRAM_NAME_BYTES]
    return name.rstrip(b"\0").decode(errors="replace")


def program_id(fd: int) -> int:
    """The number by which the kernel knows a program, in every network namespace."""
    (number,) = struct.unpack_from("=I", _object_info(fd, _PROGRAM_INFO_BYTES), 4)
    return int(number)


def xdp_link(program: int) -> int | None:
    """A descriptor of the link that holds an XDP program; the caller closes it.

    None if no link does (what netlink attached has none). Links are found by program, not by
    interface: links of all network namespaces are listed, and interface numbers are each one's own.
    """
    link_id = 0
    while True:
        try:
            _, answer = _bpf(Command.LINK_GET_NEXT_ID, struct.pack("=III", link_id, 0, 0))
        except FileNotFoundError:
            return None
        (link_id,) = struct.unpack_from("=I", answer, 4)
        try:
            fd, _ = _bpf(Command.LINK_GET_FD_BY_ID, struct.pack("=III", link_id, 0, 0))
        except FileNotFoundError:
            continue  # it has just gone
        kind, _, holds = struct.unpack_from("=3I", _object_info(fd, _LINK_INFO_BYTES))
        if (kind, holds) == (_LINK_TYPE_XDP, program):
            return fd
        os.close(fd)


def _object_info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    _bpf(Command.OBJ_GET_INFO_BY_FD, struct.pack("=iIQ", fd, size, ctypes.addressof(info)))
    return info.raw
