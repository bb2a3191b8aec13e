"""The process in a chamber: `python -m zgate_connector.chamber_child FD PARENT_PID`.

Not for people. It makes a network namespace and lives in it, alone; makes sockets there when it is
asked to, and hands them out. It touches no packet, and ends when its parent does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from zgate_connector import chamber_rules
from zgate_connector.chamber_messages import Message, encode, receive

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_IFA_F_NODAD = 0x02
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_IPV6_HDRINCL = 36
_BACKLOG = 4096
_TUN_DEVICE = Path("/dev/net/tun")
_KEEPALIVE_IDLE_S = 60
_KEEPALIVE_INTERVAL_S = 15
_KEEPALIVE_PROBES = 4
# A peer that acknowledges nothing for some 100 seconds is gone; one that reads slowly, and says so,
# is not (unlike with TCP_USER_TIMEOUT).
_SYSCTLS = {
    "ipv4/ip_forward": "0",
    "ipv6/conf/all/forwarding": "0",
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/addr_gen_mode": "1",
    "ipv4/tcp_retries2": "8",
}

IpAddress = IPv4Address | IPv6Address

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """Something cannot be done; the text names cause and cure."""


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
        notes = _set_sysctls()
        descriptor = open_tun(name, has_vnet_header)
        self._tun_name = name
        try:
            _set_up_links(name, mtu_bytes)
            self._limit(new_flows_per_s=1, udp_idle_timeout_s=60)
        except BaseException:
            os.close(descriptor)
            raise
        return {"notes": notes}, [_Descriptor(descriptor)]

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
        return {}, [_bound(address, port, socket.SOCK_DGRAM)]

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


# -- the namespace


def enter_namespace(is_privileged: bool) -> None:
    """Leave the host's network: a network namespace, and a user namespace if it takes one."""
    if is_privileged and _unshare(_CLONE_NEWNET) == 0:
        return
    uid, gid = os.geteuid(), os.getegid()
    code = _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    if code:
        raise Refused(_explain_unshare(code))
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise Refused(
            f"cannot set up a user namespace: {error.strerror}; something restricts them"
            f"{_restrictions()}"
        ) from error


def _unshare(flags: int) -> int:
    return 0 if _libc.unshare(flags) == 0 else ctypes.get_errno()


def _explain_unshare(code: int) -> str:
    what = "cannot make a private network namespace"
    if code in (errno.ENOSPC, errno.EUSERS):
        return (
            f"{what}: no more namespaces are allowed; raise the sysctls user.max_user_namespaces"
            f" and user.max_net_namespaces{_restrictions()}"
        )
    if code == errno.EINVAL:
        return f"{what}: this kernel has no user namespaces; run the connector as root"
    if code in (errno.EPERM, errno.EACCES):
        return (
            f"{what}: user namespaces are not allowed to this user; allow them, or run the"
            f" connector with CAP_SYS_ADMIN and CAP_NET_ADMIN{_restrictions()}"
        )
    return f"{what}: {os.strerror(code)}"


def _restrictions() -> str:
    """The settings of this host that forbid it, as far as they can be seen."""
    found = []
    for name, forbidding in (
        ("kernel.unprivileged_userns_clone", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
        ("user.max_user_namespaces", "0"),
        ("user.max_net_namespaces", "0"),
    ):
        try:
            value = (Path("/proc/sys") / name.replace(".", "/")).read_text().strip()
        except OSError:
            continue
        if value == forbidding:
            found.append(f"{name} = {value}")
    try:
        status = Path("/proc/self/status").read_text()
        if "Seccomp:\t2" in status:
            found.append("a seccomp filter: in a systemd unit, RestrictNamespaces=")
    except OSError:
        pass
    return f" (here: {'; '.join(found)})" if found else ""


def open_tun(name: str, has_vnet_header: bool) -> int:
    """Make the TUN in this namespace; its descriptor."""
    try:
        descriptor = os.open(_TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        cure = {
            errno.ENOENT: "load the module tun (in a systemd unit: no PrivateDevices=)",
            errno.ENODEV: "load the module tun",
            errno.ENXIO: "load the module tun",
            errno.EACCES: "let the connector's user read and write it (udev's default is 0666)",
            errno.EPERM: "allow the device (in a systemd unit: DeviceAllow=/dev/net/tun rw)",
        }.get(error.errno or 0, "look at its permissions")
        raise Refused(f"cannot open {_TUN_DEVICE}: {error.strerror}; {cure}") from error
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if has_vnet_header else 0)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(descriptor)
        cause = error.strerror or "refused"
        if error.errno in (errno.EPERM, errno.EACCES):
            cause = f"the user namespace gives no CAP_NET_ADMIN{_restrictions()}"
        raise Refused(f"cannot make a TUN device in the private namespace: {cause}") from error
    return descriptor


def _set_sysctls() -> list[str]:
    """Set what can be set; a line for each that cannot. nftables and sockets do not rely on it."""
    notes = []
    for name, value in _SYSCTLS.items():
        try:
            (Path("/proc/sys/net") / name).write_text(value)
        except OSError as error:
            notes.append(f"net/{name}: {error.strerror}")
    return notes


def _set_up_links(name: str, mtu_bytes: int) -> None:
    def set_up(route: Any) -> None:
        route.link("set", index=_index("lo"), state="up")
        index = _index(name)
        route.link("set", index=index, mtu=mtu_bytes)
        route.link("set", index=index, state="up")
        route.route("add", dst="0.0.0.0/0", oif=index, scope=253)
        if Path("/proc/sys/net/ipv6").exists():
            route.route("add", dst="::/0", oif=index)

    _rtnl(set_up)


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
