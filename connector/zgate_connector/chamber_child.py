"""The process in a chamber: `python -m zgate_connector.chamber_child FD PARENT_PID`.

Not for people. It makes a network namespace and lives in it, alone; makes sockets there when it is
asked to, and hands them out. It touches no packet, and ends when its parent does.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from zgate_connector import chamber_rules
from zgate_connector.chamber_messages import Message, encode, receive
from zgate_connector.chamber_namespace import (
    Refused,
    enter_namespace,
    has_ipv6,
    open_tun,
    set_sysctls,
)

_PR_SET_PDEATHSIG = 1
_IFA_F_NODAD = 0x02
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_IPV6_HDRINCL = 36
_BACKLOG = 4096
_UDP_BUFFER_BYTES = 2 << 20
_KEEPALIVE_IDLE_S = 60
_KEEPALIVE_INTERVAL_S = 15
_KEEPALIVE_PROBES = 4

IpAddress = IPv4Address | IPv6Address

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Answer until the parent goes."""
    descriptor, parent_pid = (int(word) for word in sys.argv[1:3])
    # Ctrl-C and a service manager's SIGTERM reach every process: the parent decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _end_with(parent_pid)
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(True)
    child = _Child(parent_pid)
    while True:
        try:
            received = receive(sock)
        except (OSError, ValueError):
            return 1
        if received is None:
            return 0
        answer, made = child.answer(received[0])
        try:
            socket.send_fds(sock, [encode(answer)], [one.fileno() for one in made])
        except OSError:
            return 0
        for one in made:
            one.close()


def _end_with(parent_pid: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit("the connector has ended")


class _Descriptor:
    """A descriptor that is handed out like a socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)


_Made = list["socket.socket | _Descriptor"]


class _Child:
    """What can be asked for."""

    def __init__(self, parent_pid: int) -> None:
        self._parent_pid = parent_pid
        self._tun_name = ""
        self._addresses: set[IpAddress] = set()
        self._silent: set[IpAddress] = set()
        self._operations: dict[str, Callable[..., tuple[Message, _Made]]] = {
            "open": self._open,
            "limit": self._limit,
            "mtu": self._set_mtu,
            "addresses": self._set_addresses,
            "silence": self._silence,
            "tcp": self._listen_tcp,
            "udp": self._bind_udp,
            "raw": self._raw,
            "counters": self._counters,
        }

    def answer(self, question: Message) -> tuple[Message, _Made]:
        """Do what is asked; never raises."""
        try:
            operation = self._operations[question.pop("op")]
            return operation(**question)
        except Refused as refused:
            return {"error": str(refused)}, []
        except Exception as error:  # a mistake here must not look like a dead chamber
            return {"error": f"{type(error).__name__}: {error}"}, []

    def _open(
        self, name: str, mtu_bytes: int, has_vnet_header: bool, is_privileged: bool
    ) -> tuple[Message, _Made]:
        enter_namespace(is_privileged)
        _end_with(self._parent_pid)
        notes = set_sysctls()
        descriptor = open_tun(name, has_vnet_header)
        self._tun_name = name
        try:
            _set_up_links(name, mtu_bytes)
            self._limit(new_flows_per_s=1, udp_idle_timeout_s=60)
        except BaseException:
            os.close(descriptor)
            raise
        return {"notes": notes, "has_ipv6": has_ipv6()}, [_Descriptor(descriptor)]

    def _limit(self, new_flows_per_s: int, udp_idle_timeout_s: int) -> tuple[Message, _Made]:
        text = chamber_rules.table_text(
            self._tun_name,
            new_flows_per_s=new_flows_per_s,
            udp_idle_timeout_s=udp_idle_timeout_s,
        )
        _nft(text + chamber_rules.silence_text(self._silent))
        return {}, []

    def _silence(self, addresses: list[str]) -> tuple[Message, _Made]:
        self._silent = {ip_address(one) for one in addresses}
        _nft(chamber_rules.silence_text(self._silent))
        return {}, []

    def _set_mtu(self, mtu_bytes: int) -> tuple[Message, _Made]:
        name = self._tun_name
        _rtnl(lambda route: route.link("set", index=_index(name), mtu=mtu_bytes))
        return {}, []

    def _set_addresses(self, addresses: list[str]) -> tuple[Message, _Made]:
        wanted = {ip_address(one) for one in addresses}
        _rtnl(lambda route: self._change_addresses(route, wanted))
        return {}, []

    def _change_addresses(self, route: Any, wanted: set[IpAddress]) -> None:
        index = _index(self._tun_name)
        for address in sorted(wanted - self._addresses, key=str):
            flags = _IFA_F_NODAD if address.version == 6 else 0
            length = address.max_prefixlen
            route.addr("replace", index=index, address=str(address), prefixlen=length, flags=flags)
            self._addresses.add(address)
        for address in sorted(self._addresses - wanted, key=str):
            length = address.max_prefixlen
            route.addr("delete", index=index, address=str(address), prefixlen=length)
            self._addresses.discard(address)
        # With the last address of a family the kernel takes its routes away, too.
        _put_default_routes(route, index)

    def _listen_tcp(self, address: str, port: int) -> tuple[Message, _Made]:
        sock = _bound(address, port, socket.SOCK_STREAM)
        # What is accepted inherits all of these.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        sock.listen(_BACKLOG)
        return {}, [sock]

    def _bind_udp(self, address: str, port: int) -> tuple[Message, _Made]:
        sock = _bound(address, port, socket.SOCK_DGRAM)
        # All clients' datagrams wait here. The host may have a lower limit (net.core.rmem_max).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_BUFFER_BYTES)
        return {}, [sock]

    def _raw(self, version: int) -> tuple[Message, _Made]:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        return {}, [sock]

    def _counters(self) -> tuple[Message, _Made]:
        found = _nft(f"list counters table {chamber_rules.FAMILY} {chamber_rules.TABLE}")
        counters = (one["counter"] for one in found if "counter" in one)
        return {"counters": {one["name"]: one["packets"] for one in counters}}, []


def _set_up_links(name: str, mtu_bytes: int) -> None:
    def set_up(route: Any) -> None:
        route.link("set", index=_index("lo"), state="up")
        index = _index(name)
        route.link("set", index=index, mtu=mtu_bytes)
        route.link("set", index=index, state="up")
        _put_default_routes(route, index)

    _rtnl(set_up)


def _put_default_routes(route: Any, index: int) -> None:
    route.route("replace", dst="0.0.0.0/0", oif=index, scope=253)
    if has_ipv6():
        route.route("replace", dst="::/0", oif=index)


def _index(name: str) -> int:
    return socket.if_nametoindex(name)


def _rtnl(function: Callable[[Any], object]) -> None:
    # Only now: unshare(CLONE_NEWUSER) wants a process without threads.
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as route:
            function(route)
    except (NetlinkError, OSError) as error:
        raise Refused(f"cannot set up the private network namespace: {error}") from error


def _nft(text: str) -> list[Any]:
    try:
        import nftables
    except ImportError:
        raise Refused("python3-nftables is missing (apt install it)") from None
    nft = nftables.Nftables()
    nft.set_json_output(True)
    code, output, error = nft.cmd(text)
    if code != 0:
        first_line = error.strip().partition("\n")[0] or f"nft error {code}"
        raise Refused(f"cannot set up nftables in the private network namespace: {first_line}")
    return list(json.loads(output)["nftables"]) if output else []


def _bound(address: str, port: int, kind: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The address may come a moment later, or go.
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise Refused(f"cannot serve {address} port {port}: {error.strerror}") from error
    return sock


if __name__ == "__main__":
    sys.exit(main())
