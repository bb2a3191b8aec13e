"""The audit log: who was here, what was let through, what was not. One JSON object per line.

Every record has ``ts`` (UTC, microseconds) and ``event`` (:class:`AuditEvent`), then the fields of
its event: the methods of :class:`AuditLog` are the list of them.

How safe a record is: each is one ``write`` to a file opened for append, so it survives the death
of the process the moment the method returns, and several processes may share the file. It reaches
the disk within ``sync_interval_s`` (:meth:`AuditLog.run`, ``fdatasync`` in a thread of its own); a
power cut can cost that much. A disk that is full or broken does not stop the gateway: records that
could not be written are counted in ``lost``, reported once in the log, and an ``audit_lost`` record
with their number precedes the first one that can be written again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from zgate_control.store import IPAddress

_log = logging.getLogger(__name__)

_Address = IPAddress | str
_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class AuditEvent(StrEnum):
    """What happened."""

    GATEWAY_STARTED = "gateway_started"
    GATEWAY_STOPPED = "gateway_stopped"
    SESSION_UP = "session_up"
    SESSION_DOWN = "session_down"
    SESSION_REFUSED = "session_refused"
    CLIENT_KICKED = "client_kicked"
    POLICY_LOADED = "policy_loaded"
    POLICY_REFUSED = "policy_refused"
    FLOW_ALLOWED = "flow_allowed"
    FLOW_DENIED = "flow_denied"
    RATE_LIMITED = "rate_limited"
    EVENTS_LOST = "events_lost"
    AUDIT_LOST = "audit_lost"


@dataclass(frozen=True, slots=True)
class Flow:
    """The packet that opened a flow, or that was denied. Ports are None where there are none.

    ``direction`` is ``up`` (from the client) or ``down``; for ICMP the ports are None and
    ``icmp_type`` and ``icmp_code`` are set.
    """

    direction: str
    source: _Address
    destination: _Address
    protocol: int
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields that a record shows: those that the protocol has."""
        shown: dict[str, Any] = {
            "direction": self.direction,
            "source": str(self.source),
            "destination": str(self.destination),
            "protocol": self.protocol,
        }
        for name in ("source_port", "destination_port", "icmp_type", "icmp_code"):
            value = getattr(self, name)
            if value is not None:
                shown[name] = value
        return shown


class AuditError(Exception):
    """The audit log cannot be opened. The text names the file, the cause and the cure."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """An append-only file of JSON lines.

    ``written`` and ``lost`` count records since start; ``last_error`` is None while all is well.
    Methods may be called from any thread. The file's mode is 0640 when it is created here.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = _utc_now) -> None:
        """Open the file. Raises :class:`AuditError`: a gateway does not start without its audit."""
        self.path = path
        self.written = 0
        self.lost = 0
        self.last_error: str | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._unreported = 0
        self._dirty = False
        self._fd, self._torn = _open(path)

    # --- the records ------------------------------------------------------------------------------

    def gateway_started(self, *, version: str, pid: int, listen: Sequence[str]) -> None:
        """Record that the daemon is ready."""
        self.write(AuditEvent.GATEWAY_STARTED, version=version, pid=pid, listen=list(listen))

    def gateway_stopped(self, *, cause: str) -> None:
        """Record that the daemon ends in an orderly way."""
        self.write(AuditEvent.GATEWAY_STOPPED, cause=cause)

    def session_up(
        self,
        *,
        client: str,
        groups: Sequence[str],
        session: str,
        peer: str,
        addresses: Sequence[_Address],
        certificate_serial: str,
    ) -> None:
        """Record who came, from where (outer address and port), and the virtual IPs it holds."""
        self.write(
            AuditEvent.SESSION_UP,
            client=client,
            groups=list(groups),
            session=session,
            peer=peer,
            addresses=[str(address) for address in addresses],
            certificate_serial=certificate_serial,
        )

    def session_down(
        self,
        *,
        client: str,
        session: str,
        peer: str,
        addresses: Sequence[_Address],
        cause: str,
        duration_s: float,
        up_bytes: int = 0,
        down_bytes: int = 0,
    ) -> None:
        """Record who left, why, and what the kernel had counted."""
        self.write(
            AuditEvent.SESSION_DOWN,
            client=client,
            session=session,
            peer=peer,
            addresses=[str(address) for address in addresses],
            cause=cause,
            duration_s=round(duration_s, 3),
            up_bytes=up_bytes,
            down_bytes=down_bytes,
        )

    def session_refused(
        self, *, peer: str, reason: str, text: str, client: str | None = None
    ) -> None:
        """Record who was not let in; ``client`` is what it claimed to be, if it got that far."""
        self.write(AuditEvent.SESSION_REFUSED, client=client, peer=peer, reason=reason, text=text)

    def client_kicked(self, *, client: str, sessions: int, reason: str) -> None:
        """Record that an administrator closed a client's sessions."""
        self.write(AuditEvent.CLIENT_KICKED, client=client, sessions=sessions, reason=reason)

    def policy_loaded(
        self,
        *,
        revision: int,
        source: str | None,
        sha256: str | None,
        clients: int,
        groups: int,
        rules: int,
    ) -> None:
        """Record that this revision is in force from now on."""
        self.write(
            AuditEvent.POLICY_LOADED,
            revision=revision,
            source=source,
            sha256=sha256,
            clients=clients,
            groups=groups,
            rules=rules,
        )

    def policy_refused(self, *, source: str | None, text: str, revision: int) -> None:
        """Record that a policy was not loaded; ``revision`` stays in force."""
        self.write(AuditEvent.POLICY_REFUSED, source=source, text=text, revision=revision)

    def flow_allowed(self, *, client: str, flow: Flow, rule: str | None, revision: int) -> None:
        """Record the first packet of a flow that passes; ``rule`` None: the default action."""
        self.write(
            AuditEvent.FLOW_ALLOWED, client=client, rule=rule, revision=revision, **flow.fields()
        )

    def flow_denied(
        self, *, client: str | None, flow: Flow, reason: str, rule: str | None, revision: int
    ) -> None:
        """Record a packet that the kernel dropped, with the drop reason's name."""
        self.write(
            AuditEvent.FLOW_DENIED,
            client=client,
            reason=reason,
            rule=rule,
            revision=revision,
            **flow.fields(),
        )

    def rate_limited(self, *, client: str | None, suppressed: int) -> None:
        """Record how many flow records of a client were left out since the last such record."""
        self.write(AuditEvent.RATE_LIMITED, client=client, suppressed=suppressed)

    def events_lost(self, *, count: int) -> None:
        """Record how many kernel events a full ring buffer swallowed since the last such record."""
        self.write(AuditEvent.EVENTS_LOST, count=count)

    # --- the file ---------------------------------------------------------------------------------

    def write(self, event: AuditEvent, **fields: Any) -> None:
        """Append one record. What the disk does is never raised: see ``lost``, ``last_error``."""
        line = self._line(event, fields)
        with self._lock:
            if self._unreported:
                line = self._line(AuditEvent.AUDIT_LOST, {"count": self._unreported}) + line
            self._append(line)

    def reopen(self) -> None:
        """Open the path again, after a rotation (SIGHUP); if that fails, keep the old file."""
        try:
            fd, torn = _open(self.path)
        except AuditError as error:
            _log.error("%s; the old file stays in use", error)
            self.last_error = str(error)
            return
        with self._lock:
            old, self._fd, self._torn = self._fd, fd, torn
        os.close(old)

    def sync(self) -> None:
        """Bring what was written to the disk. Blocks; :meth:`run` calls it in a thread."""
        with self._lock:
            if not self._dirty:
                return
            self._dirty = False
            fd = os.dup(self._fd)  # a reopen meanwhile may close ours
        try:
            os.fdatasync(fd)
        except OSError as error:
            self._complain(error)
        finally:
            os.close(fd)

    async def run(self, sync_interval_s: float = 1.0) -> None:
        """Sync at intervals until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(sync_interval_s)
                await asyncio.to_thread(self.sync)
        finally:
            self.sync()

    def close(self) -> None:
        """Sync and close. Further records are lost, and counted."""
        self.sync()
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _line(self, event: AuditEvent, fields: dict[str, Any]) -> bytes:
        stamp = self._clock().astimezone(UTC).isoformat(timespec="microseconds")
        record = {"ts": stamp.replace("+00:00", "Z"), "event": event.value, **fields}
        return _encode(record).encode("ascii", "backslashreplace") + b"\n"

    def _append(self, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        try:
            count = os.write(self._fd, line)
        except OSError as error:
            self._not_written(error)
            return
        if count < len(line):
            # The disk became full within the line. What stands there is no record: the next one
            # starts with a newline, and readers skip what does not parse.
            self._torn = True
            self._not_written(OSError(f"only {count} of {len(line)} bytes fitted"))
            return
        self._torn = False
        self._dirty = True
        self.written += 1
        self._unreported = 0
        if self.last_error is not None:
            _log.warning("audit log %s: written again, %d records lost", self.path, self.lost)
            self.last_error = None

    def _not_written(self, error: OSError) -> None:
        self.lost += 1
        self._unreported += 1
        self._complain(error)

    def _complain(self, error: OSError) -> None:
        if self.last_error is None:
            _log.error(
                "audit log %s: %s; records are lost until that is cured",
                self.path,
                error.strerror or error,
            )
        self.last_error = error.strerror or str(error)


def _open(path: Path) -> tuple[int, bool]:
    """Open for append; also tell whether the last line lacks its end, as after a power cut."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        raise AuditError(
            f"audit log {path}: {error.strerror}; create its directory, or make it writable, "
            "or set audit.path"
        ) from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
        return fd, False
    return fd, os.pread(fd, 1, found.st_size - 1) != b"\n"
