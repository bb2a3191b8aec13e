"""Sysctls that make the host a router: set, remembered, put back.

What they were is written to a state file *before* the first one is changed, so that the next start
can put them back after a SIGKILL. A value that somebody else has changed since is left alone.
Boot and network namespace are in the file too: after a reboot there is nothing to put back.

Two of them change others by themselves (kernel, Documentation/networking/ip-sysctl.rst):
`ip_forward` sets every interface's `forwarding` and `accept_redirects`, and IPv6's
`all.forwarding` sets every interface's; so those are remembered along. And an IPv6 router stops
listening to router advertisements, and drops the default route that it has from one, wherever
`accept_ra` is 1: such an interface is set to 2 first.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from zgate_host.errors import NetError

PROC_SYS = Path("/proc/sys/net")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
OWN_NAMESPACE = Path("/proc/thread-self/ns/net")

IPV4_FORWARD = "ipv4/ip_forward"
IPV6_FORWARD = "ipv6/conf/all/forwarding"


@dataclass(frozen=True, slots=True)
class Change:
    """One sysctl: its path below /proc/sys/net, what it was, what we made of it."""

    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Whether the host forwards."""

    is_on_ipv4: bool
    is_on_ipv6: bool


@dataclass(frozen=True, slots=True)
class SysctlState:
    """The content of the state file."""

    boot_id: str
    namespace: int  # inode of the network namespace
    changes: tuple[Change, ...]  # in the order in which they were made

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(
            {
                "boot_id": self.boot_id,
                "namespace": self.namespace,
                "changes": [[one.key, one.before, one.after] for one in self.changes],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the text of the file; ValueError when it is not one."""
        document = json.loads(text)
        match document:
            case {
                "boot_id": str() as boot_id,
                "namespace": int() as namespace,
                "changes": list() as rows,
            }:
                return cls(boot_id, namespace, tuple(_change(row) for row in rows))
        raise ValueError("keys missing")


def _change(row: object) -> Change:
    match row:
        case [str() as key, str() as before, str() as after] if _is_safe(key):
            return Change(key, before, after)
    raise ValueError(f"not a sysctl change: {row!r}")


def _is_safe(key: str) -> bool:
    """Whether a key from the file stays below /proc/sys/net."""
    return bool(key) and not key.startswith("/") and ".." not in key.split("/")


def read_forwarding() -> Forwarding:
    """Read whether the host forwards now."""
    return Forwarding(_read(IPV4_FORWARD) != "0", _read(IPV6_FORWARD) != "0")


class Sysctls:
    """The sysctls of one daemon; `role` is what messages call it."""

    def __init__(self, state_file: Path, role: str = "gateway"):
        self._state_file = state_file
        self._role = role
        self._changes: tuple[Change, ...] = ()

    def enable_forwarding(self, tun_name: str, versions: Collection[int] = (4, 6)) -> None:
        """Let the host forward, these IP versions.

        Call `restore_leftovers` before: else a killed predecessor's values pass for the host's.
        """
        before = read_forwarding()
        changes: list[Change] = []
        if 4 in versions and not before.is_on_ipv4:
            changes += _ipv4_changes(tun_name)
        if 6 in versions and not before.is_on_ipv6:
            changes += _ipv6_changes(tun_name)
        self._save(tuple(changes))
        self._changes = tuple(changes)
        for change in self._changes:
            self._write(change.key, change.after)

    def verify(self) -> None:
        """Raise NetError if somebody has switched forwarding off again."""
        for key in (IPV4_FORWARD, IPV6_FORWARD):
            if _read(key) == "0":
                raise NetError(
                    f"net/{key} was set to 0 by somebody else: no packet passes the"
                    f" {self._role}; restart it to set it again"
                )

    def restore(self) -> None:
        """Put back what this object changed, and forget it. Idempotent."""
        if not self._changes:
            return
        self._put_back(self._changes)
        self._changes = ()
        self._state_file.unlink(missing_ok=True)

    def keep_file(self) -> None:
        """Write the state file again if it is gone. Raises NetError when it cannot be written."""
        if self._changes and not self._state_file.exists():
            self._save(self._changes)

    def restore_leftovers(self) -> int:
        """Put back what an earlier process changed and did not put back; return how many."""
        try:
            state = SysctlState.from_json(self._state_file.read_text())
        except FileNotFoundError:
            return 0
        except (ValueError, RecursionError):
            # It is replaced by rename, so this is not a crash: somebody else wrote there.
            self._state_file.rename(self._state_file.with_suffix(".unreadable"))
            return 0
        restored = 0
        if (state.boot_id, state.namespace) == (_boot_id(), _namespace()):
            restored = self._put_back(state.changes)
        self._state_file.unlink(missing_ok=True)
        return restored

    def _save(self, changes: tuple[Change, ...]) -> None:
        if not changes:
            return
        temporary = self._state_file.with_suffix(".new")
        try:
            self._state_file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(SysctlState(_boot_id(), _namespace(), changes).to_json())
            temporary.replace(self._state_file)
        except OSError as error:
            raise NetError(
                f"cannot remember the host's sysctls in {self._state_file}: {error.strerror}"
                f" (the {self._role}'s runtime directory must be writable)"
            ) from error

    def _put_back(self, changes: tuple[Change, ...]) -> int:
        """Write the old values, but only where the new ones still stand; return how many."""
        # Decided before anything is written, as the first write changes what the others read.
        ours = [one for one in changes if _read_or_none(one.key) == one.after]
        # The forwarding switches first: they overwrite what the rest of the list puts right.
        switches = [one for one in ours if one.key in {IPV4_FORWARD, IPV6_FORWARD}]
        rest = [one for one in ours if one not in switches]
        for one in [*switches, *rest]:
            if _read_or_none(one.key) is not None:
                self._write(one.key, one.before)
        return len(ours)

    def _write(self, key: str, value: str) -> None:
        try:
            (PROC_SYS / key).write_text(value)
        except OSError as error:
            raise NetError(
                f"cannot set the sysctl {PROC_SYS / key} to {value}: {error.strerror}"
                f" (the {self._role} needs CAP_NET_ADMIN and a writable /proc/sys/net)"
            ) from error


def _ipv4_changes(tun_name: str) -> Iterator[Change]:
    yield Change(IPV4_FORWARD, "0", "1")
    yield _change_to("ipv4/conf/all/accept_redirects", "0")
    # What comes in by the TUN and leaves by it is on no detour, but the kernel would say so: either
    # of `all` and the TUN's own setting makes it. Each other interface goes on as it is set itself.
    yield _change_to("ipv4/conf/all/send_redirects", "0")
    for interface in _interfaces("ipv4", tun_name):
        yield _change_to(f"ipv4/conf/{interface}/forwarding", "1")


def _ipv6_changes(tun_name: str) -> Iterator[Change]:
    for interface in _interfaces("ipv6", tun_name):
        key = f"ipv6/conf/{interface}/accept_ra"
        if _read(key) == "1":
            yield Change(key, "1", "2")
    yield Change(IPV6_FORWARD, "0", "1")
    for interface in _interfaces("ipv6", tun_name):
        yield _change_to(f"ipv6/conf/{interface}/forwarding", "1")


def _change_to(key: str, after: str) -> Change:
    """A change, or what looks like none: putting the switch back would change it then."""
    return Change(key, _read(key), after)


def _interfaces(family: str, tun_name: str) -> list[str]:
    """Interfaces with settings of a family (`default` too); the TUN's own die with it."""
    names = (path.name for path in (PROC_SYS / family / "conf").iterdir())
    return sorted(name for name in names if name not in {"all", tun_name})


def _read(key: str) -> str:
    try:
        return (PROC_SYS / key).read_text().strip()
    except OSError as error:
        raise NetError(f"cannot read the sysctl {PROC_SYS / key}: {error.strerror}") from error


def _read_or_none(key: str) -> str | None:
    """A sysctl's value; None when its interface is gone."""
    try:
        return (PROC_SYS / key).read_text().strip()
    except FileNotFoundError:
        return None


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


def _namespace() -> int:
    return OWN_NAMESPACE.stat().st_ino
