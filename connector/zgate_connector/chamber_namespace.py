"""Leaving the host's network: the namespaces of a chamber, its TUN and its sysctls.

Called in the chamber's process only, while it has one thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_DEVICE = Path("/dev/net/tun")
_IPV6_SYSCTLS = Path("/proc/sys/net/ipv6")
_SYSCTLS = {
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv4/ip_forward": "0",
    "ipv6/conf/all/forwarding": "0",
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/addr_gen_mode": "1",
    # A peer that acknowledges nothing for some 100 seconds is gone. One that reads slowly, and says
    # so, is not: TCP_USER_TIMEOUT would end it.
    "ipv4/tcp_retries2": "8",
}

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """Something cannot be done; the text names cause and cure."""


def has_ipv6() -> bool:
    """Whether this kernel has IPv6."""
    return _IPV6_SYSCTLS.exists()


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


def set_sysctls() -> list[str]:
    """Set what can be set; a line for each that cannot. nftables and sockets do not rely on it."""
    notes = []
    for name, value in _SYSCTLS.items():
        try:
            (Path("/proc/sys/net") / name).write_text(value)
        except OSError as error:
            notes.append(f"net/{name}: {error.strerror}")
    return notes
