"""Generic receive offload under an XDP program on a veth.

A veth with XDP in its driver hands packets up one by one, and its peer no longer sends segments
whole. Cards join them again by default; a veth only where GRO is switched on. Without it a tunnel
through a veth (a container's uplink, a lab) loses half of its throughput, or more.
"""

from __future__ import annotations

import array
import fcntl
import logging
import socket
import struct
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_SIOCETHTOOL = 0x8946
_ETHTOOL_GGRO, _ETHTOOL_SGRO = 0x2B, 0x2C


@dataclass(slots=True)
class GroSwitch:
    """GRO that was switched on, to be switched off again."""

    interface: str
    index: int

    @classmethod
    def on(cls, interface: str) -> GroSwitch | None:
        """Switch it on; None if it is on already, or if the kernel does not let us."""
        try:
            if _ethtool(interface, _ETHTOOL_GGRO):
                return None
            _ethtool(interface, _ETHTOOL_SGRO, 1)
            return cls(interface, socket.if_nametoindex(interface))
        except OSError as error:
            logger.warning(
                "edge: GRO not switched on at %(interface)s: %(error)s",
                {"event": "edge_gro_not_set", "interface": interface, "error": error.strerror},
            )
            return None

    def close(self) -> None:
        """As it was. An interface that is gone, or another of its name, is left alone."""
        try:
            if socket.if_nametoindex(self.interface) != self.index:
                return
            _ethtool(self.interface, _ETHTOOL_SGRO, 0)
        except OSError as error:
            logger.info(
                "edge: GRO not put back at %(interface)s: %(error)s",
                {
                    "event": "edge_gro_not_restored",
                    "interface": self.interface,
                    "error": error.strerror,
                },
            )


def _ethtool(interface: str, command: int, value: int = 0) -> int:
    """One `struct ethtool_value` there and back."""
    data = array.array("I", [command, value])
    request = struct.pack("16sQ16x", interface.encode(), data.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    return data[1]
