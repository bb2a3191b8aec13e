"""The audit log: who was here, what was let through, what was not. One JSON object per line.

Every record has ``seq`` and ``prev``, which chain it to the one before
(`zgate_gateway.audit_chain`), ``ts`` (UTC, microseconds) and ``event`` (:class:`AuditEvent`), then
the fields of its event: the methods of :class:`AuditLog` are the list of them.

How safe a record is: each is one ``write`` to a file opened for append, so it survives the death
of the process the moment the method returns. It reaches the disk within ``sync_interval_s``
(:meth:`AuditLog.run`, ``fdatasync`` in a thread of its own); a power cut can cost that much. A disk
that is full or broken does not stop the gateway: records that could not be written are counted in
``lost``, reported once in the log, and an ``audit_lost`` record with their number precedes the
first one that can be written again.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from zgate_control.store import IPAddress

from zgate_gateway import audit_chain
from zgate_gateway.audit_chain import GENESIS, AuditError, Head
from zgate_gateway.audit_file import AuditFile, furthest_sibling
from zgate_gateway.audit_head import HeadKeeper

__all__ = ["AuditError", "AuditEvent", "AuditLog", "Flow"]

logger = logging.getLogger(__name__)

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
    OFFER_ACCEPTED = "offer_accepted"
    OFFER_REFUSED = "offer_refused"
    OFFER_WITHDRAWN = "offer_withdrawn"
    OFFER_HEALTH = "offer_health"
    CONNECTOR_SILENT = "connector_silent"
    CONNECTOR_HEARD = "connector_heard"
    GATEWAY_DRAINED = "gateway_drained"
    GATEWAY_UNDRAINED = "gateway_undrained"
    CONNECTOR_DRAINED = "connector_drained"
    CONNECTOR_UNDRAINED = "connector_undrained"
    ROUTE_HANDED_OVER = "route_handed_over"
    FLOW_ALLOWED = "flow_allowed"
    FLOW_DENIED = "flow_denied"
    RATE_LIMITED = "rate_limited"
    EVENTS_LOST = "events_lost"
    AUDIT_LOST = "audit_lost"
    CLOCK_JUMPED = "clock_jumped"
    CHAIN_OPENED = audit_chain.CHAIN_OPENED
    CHAIN_REPAIRED = audit_chain.CHAIN_REPAIRED
    CHAIN_HEAD = audit_chain.CHAIN_HEAD


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


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """An append-only file of JSON lines, one chain over restarts and rotations.

    ``written`` and ``lost`` count records since start; ``last_error`` is None while all is well:
    what the newest record met, or bringing it to the disk; ``head`` is the last record's number
    and hash. Methods may be called from any thread. The file's mode is 0640 when it is created
    here.

    With a ``keeper`` the chain's head is signed when the file is rotated and when the log is
    closed. Beyond ``max_bytes`` the file gets the number of its last record as a suffix, and a new
    one begins.
    """

    def __init__(
        self,
        path: Path,
        *,
        keeper: HeadKeeper | None = None,
        max_bytes: int | None = None,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Open the file. Raises :class:`AuditError`: a gateway does not start without its audit."""
        self.path = path
        self.written = 0
        self.lost = 0
        self._write_error: str | None = None
        self._sync_error: str | None = None
        self._keeper = keeper
        self._max_bytes = self._rotate_at = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._unreported = 0
        self._dirty = False
        self._retired: list[int] = []
        self._file: AuditFile | None = AuditFile(path)
        self.head = _further(self._file, keeper)
        self._signed_seq = self.head.seq
        self._open_chain(self._file)

    @property
    def last_error(self) -> str | None:
        """See the class's text."""
        return self._write_error or self._sync_error

    # --- the records ------------------------------------------------------------------------------

    def gateway_started(self, *, version: str, pid: int, listen: Sequence[str]) -> None:
        """Record that the daemon is ready."""
        self.write(AuditEvent.GATEWAY_STARTED, version=version, pid=pid, listen=list(listen))

    def gateway_stopped(self, *, cause: str) -> None:
        """Record that the daemon ends in an orderly way."""
        self.write(AuditEvent.GATEWAY_STOPPED, cause=cause)

    def gateway_drained(self, *, deadline_s: float, sessions: int) -> None:
        """Record that an administrator has the clients go elsewhere, and how many there are."""
        self.write(AuditEvent.GATEWAY_DRAINED, deadline_s=deadline_s, sessions=sessions)

    def gateway_undrained(self) -> None:
        """Record that they may come again."""
        self.write(AuditEvent.GATEWAY_UNDRAINED)

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
        """Record the first packet of a flow that passes; ``rule`` None: no rule had to."""
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

    def clock_jumped(self, *, seconds: float) -> None:
        """Record that somebody set the wall clock: the times before and after do not fit."""
        self.write(AuditEvent.CLOCK_JUMPED, seconds=round(seconds, 3))

    # --- the file ---------------------------------------------------------------------------------

    def write(self, event: AuditEvent, **fields: Any) -> None:
        """Append one record. What the disk does is never raised: see ``lost``, ``last_error``."""
        body = self._body(event, fields)
        with self._lock:
            try:
                self._write_due()
                self._append(body)
            except OSError as error:
                self._not_written(error)
                return
            self._written_again()
            if self._rotate_at is not None and self._size_bytes() >= self._rotate_at:
                self._rotate()

    def reopen(self) -> None:
        """Follow a rotation (SIGHUP): sign the old file's end, and go on in the one at the path.

        Nothing happens while the path still leads to the open file, and if the new one cannot be
        opened.
        """
        with self._lock:
            if self._file is None or self._file.is_at_path():
                return
            try:
                self._move_on(self._file)
            except AuditError as error:
                self._stay(error)

    def look(self) -> None:
        """Try again what could not be written, and follow a file that was moved or deleted.

        To be called now and then: without it an idle log would not notice that all is well again.
        """
        self.reopen()
        with self._lock:
            if self._write_error is None or self._file is None or not self._file.is_at_path():
                return
            try:
                self._write_due()
            except OSError as error:
                self._complain(error)
            else:
                self._written_again()

    def _written_again(self) -> None:
        if self._write_error is not None:
            logger.warning(
                "audit log %(path)s: written again, %(lost)d records lost",
                {"event": "audit_written_again", "path": self.path, "lost": self.lost},
            )
            self._write_error = None

    def sync(self) -> None:
        """Bring what was written to the disk. Blocks; :meth:`run` calls it in a thread."""
        with self._lock:
            fds, self._retired = self._retired, []
            if self._dirty and self._file is not None:
                fds.append(os.dup(self._file.fd))  # a rotation meanwhile may close ours
            self._dirty = False
            head = self.head
        if not fds:
            return
        try:
            for fd in fds:
                os.fdatasync(fd)
            if self._keeper is not None:
                self._keeper.note(head)
        except OSError as error:
            self._dirty = True  # what did not get there is tried again
            if self._sync_error is None:
                logger.error(
                    "audit log %(path)s: not brought to the disk: %(error)s",
                    {
                        "event": "audit_not_synced",
                        "path": self.path,
                        "error": error.strerror or error,
                    },
                )
            self._sync_error = f"not brought to the disk: {error.strerror or error}"
        else:
            self._sync_error = None
        finally:
            for fd in fds:
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
        """Sign the head, sync and close. Further records are lost, and counted."""
        with self._lock:
            if self._file is not None:
                self._retire(self._file, "stop")
                self._file = None
        self.sync()

    def _body(self, event: AuditEvent, fields: dict[str, Any]) -> bytes:
        stamp = self._clock().astimezone(UTC).isoformat(timespec="microseconds")
        record = {"ts": stamp.replace("+00:00", "Z"), "event": event.value, **fields}
        return _encode(record).encode("ascii", "backslashreplace")

    def _append(self, body: bytes, *, signed: bool = False) -> None:
        if self._file is None:
            raise OSError(errno.EBADF, "the log is closed")
        sign = self._keeper.sign if signed and self._keeper is not None else None
        self._file.append(body, self.head, sign)
        self.head = self._file.head or self.head
        self._dirty = True
        self.written += 1

    def _write_due(self) -> None:
        """What has to be told before the next record."""
        file = self._file
        if file is not None and (file.debris is not None or not file.has_records):
            event = AuditEvent.CHAIN_REPAIRED if file.has_records else AuditEvent.CHAIN_OPENED
            self._append(self._body(event, file.debris.fields if file.debris else {}))
        if self._unreported:
            self._append(self._body(AuditEvent.AUDIT_LOST, {"count": self._unreported}))
            self._unreported = 0

    def _open_chain(self, file: AuditFile) -> None:
        """The file's first record, or what a torn one needs; due later if the disk is full."""
        if file.debris is None and file.has_records:
            return
        try:
            self._write_due()
        except OSError as error:
            self._complain(error)

    # --- the end of a file ------------------------------------------------------------------------

    def _size_bytes(self) -> int:
        return self._file.size_bytes if self._file is not None else 0

    def _rotate(self) -> None:
        """Give the file the number of its last record, and begin a new one."""
        file = self._file
        assert file is not None
        try:
            if file.is_at_path():
                self._sign_head("rotation")
                target = self.path.with_name(f"{self.path.name}.{self.head.seq:012}")
                if target.exists():
                    raise FileExistsError(errno.EEXIST, f"{target} exists")
                self.path.rename(target)
            self._move_on(file)
        except (OSError, AuditError) as error:
            self._stay(error)

    def _move_on(self, old: AuditFile) -> None:
        """Raises AuditError: the new file cannot be opened; the old one stays in use."""
        fresh = AuditFile(self.path)
        self._retire(old, "rotation")
        if not fresh.has_records and old.debris is not None:
            fresh.debris = old.debris  # not told yet: the first record of the new file does it
        self._file = fresh
        self._rotate_at = self._max_bytes
        self._open_chain(fresh)

    def _retire(self, file: AuditFile, cause: str) -> None:
        try:
            self._sign_head(cause)
        except OSError as error:
            self._complain(error)
        self._retired.append(file.fd)

    def _sign_head(self, cause: str) -> None:
        """Raises OSError: it could not be written."""
        if self._keeper is None or self.head.seq == self._signed_seq:
            return
        fields = {"cause": cause, "key": self._keeper.public_key}
        self._write_due()
        self._append(self._body(AuditEvent.CHAIN_HEAD, fields), signed=True)
        self._signed_seq = self.head.seq

    def _stay(self, error: OSError | AuditError) -> None:
        text = f"audit log {self.path}: not rotated: {error}"
        if isinstance(error, AuditError):
            text = str(error)
        if text != self._write_error:
            logger.error(
                "%(problem)s; the old file stays in use",
                {"event": "audit_not_reopened", "problem": text},
            )
        self._write_error = text
        if self._max_bytes is not None:
            self._rotate_at = self._size_bytes() + self._max_bytes

    # --- errors -----------------------------------------------------------------------------------

    def _not_written(self, error: OSError) -> None:
        self.lost += 1
        self._unreported += 1
        self._complain(error)

    def _complain(self, error: OSError) -> None:
        if self._write_error is None:
            logger.error(
                "audit log %(path)s: %(error)s; records are lost until that is cured",
                {"event": "audit_not_written", "path": self.path, "error": error.strerror or error},
            )
        self._write_error = error.strerror or str(error)


def _further(file: AuditFile, keeper: HeadKeeper | None) -> Head:
    """Return where to go on: at the end of the file, or where the chain is known to have been.

    A file without records follows one that was put aside. A log that was shortened or changed at
    its end while no gateway ran is continued with the number and the hash that it had: the gap is
    what `zgatectl audit verify` will find.
    """
    found = file.head or GENESIS
    if not file.has_records:
        before = furthest_sibling(file.path)
        found = before.head or GENESIS
        file.debris = file.debris or before.debris
    noted = keeper.noted() if keeper is not None else None
    if noted is None or noted.seq < found.seq or noted == found:
        return found
    if file.has_records:
        logger.error(
            "audit log %(path)s ends at record %(records)d, but had come to"
            " %(noted_records)d (%(noted_sha256)s): records are missing or were changed;"
            " zgatectl audit verify tells which",
            {
                "event": "audit_cut",
                "path": file.path,
                "records": found.seq,
                "noted_records": noted.seq,
                "noted_sha256": noted.digest,
            },
        )
    return noted
