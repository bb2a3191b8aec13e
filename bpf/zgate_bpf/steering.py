"""Every packet to the worker that knows its session: the steering programs and their maps.

Both directions go by the same number: a worker's UDP socket is in its slot of a socket array, its
TUN queue is the one of that number, and both stay theirs when the process is another one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from contextlib import ExitStack

from zgate_bpf import loader, syscalls
from zgate_bpf.errors import BpfLoadError
from zgate_bpf.maps import Map, index_key
from zgate_bpf.steering_tables import AddressOwners
from zgate_bpf.syscalls import MapType, ProgramType

_SO_ATTACH_REUSEPORT_EBPF = 52
_SO_DETACH_REUSEPORT_BPF = 68
#: The kernel frees a program's maps after a grace period, in a work queue.
_ARRAY_GONE_S = 5.0
_ARRAY_LOOK_S = 0.002


class Steering:
    """The loaded programs.

    `mask_factor` and `mask_offset` are those of `zgate_datapath.connection_ids.OwnerMask`.

    :ivar owners: which worker gets the packets for an address.
    :ivar tun_fd: the program for `Tun.steer`.

    Raises:
        BpfLoadError: the programs or their maps cannot be loaded; the text says what to do.
    """

    def __init__(
        self, *, workers: int, mask_factor: int, mask_offset: int, max_addresses: int
    ) -> None:
        self._undo = ExitStack()
        try:
            self._open(workers, mask_factor, mask_offset, max_addresses)
        except OSError as error:
            self._undo.close()
            raise BpfLoadError(loader.explain_os_error("steering", error)) from error
        except BaseException:
            self._undo.close()
            raise

    def _open(self, workers: int, factor: int, offset: int, max_addresses: int) -> None:
        self.owners = AddressOwners(max_addresses)
        self._undo.callback(self.owners.close)
        self._sockets = Map(MapType.REUSEPORT_SOCKARRAY, "zg_sockets", 4, 4, workers)
        self._undo.callback(self._sockets.close)
        maps = {
            "sockets": self._sockets.fd,
            "owners": self.owners.fd,
            "networks": self.owners.networks_fd,
        }
        made = loader.compile_program(
            "steering",
            ("zg_steer_udp", "zg_steer_tun"),
            {"ZG_WORKERS": workers},
            maps=maps,
            constants={"mask_factor": factor, "mask_offset": offset},
            assertions="",
        )
        self._udp_fd = self._load(made["zg_steer_udp"], "zg_steer_udp", ProgramType.SK_REUSEPORT)
        self.tun_fd = self._load(made["zg_steer_tun"], "zg_steer_tun", ProgramType.SOCKET_FILTER)

    def _load(self, instructions: bytes, name: str, kind: ProgramType) -> int:
        fd = loader.load_program(instructions, name=name, kind=kind)
        self._undo.callback(os.close, fd)
        return fd

    def steer_sockets(self, descriptors: list[int]) -> None:
        """Share out what arrives at one port among its sockets, in the order of the workers.

        A port that outlives its processes (a service manager holds it) comes with the program of
        the last one. A socket can be in one socket array only, so that program goes first, and
        with it the array, a moment later.

        Raises:
            OSError: these are no bound sockets of one port (SO_REUSEPORT).
        """
        with socket.socket(fileno=os.dup(descriptors[0])) as one:
            with contextlib.suppress(OSError):  # there is none
                one.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
            for worker, descriptor in enumerate(descriptors):
                self._put_socket(worker, descriptor)
            one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, self._udp_fd)

    def _put_socket(self, worker: int, descriptor: int) -> None:
        deadline = time.monotonic() + _ARRAY_GONE_S
        value = struct.pack("=i", descriptor)
        while True:
            try:
                syscalls.map_update(self._sockets.fd, index_key(worker), value)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(_ARRAY_LOOK_S)
            else:
                return

    def close(self) -> None:
        """Give everything back; the kernel keeps what sockets and the TUN still use."""
        self._undo.close()
