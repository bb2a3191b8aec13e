"""The store: what a gateway must remember over a restart.

Every method is one short transaction, is safe to call from any thread and takes the time from
its caller. It raises :class:`StoreError`, or a conflict where it says so, and nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import (
    BindParameter,
    Connection,
    Row,
    bindparam,
    delete,
    exc,
    insert,
    select,
    update,
)

from .engine import WRITE, describe, open_engine, translated
from .errors import LeaseConflict, ServiceConflict
from .records import ClientRecord, IPAddress, Lease, Memory, PolicyRevision, ServiceAddress
from .remembering import keep_text, remember
from .schema import clients, leases, policy_revisions, policy_texts, service_addresses

#: Names per UPDATE: SQLite takes 32766 parameters, PostgreSQL 65535.
_BATCH = 1000
#: Revisions whose text is kept. A text of ten thousand rules is some 100 KiB when compressed.
KEPT_POLICY_TEXTS = 100


class Store:
    """Leases, services, clients and policy revisions in SQLite (a path) or PostgreSQL (a URL)."""

    def __init__(self, target: str | Path, *, lock_timeout_s: float = 2.0) -> None:
        """Open or create the store and bring its schema up to date.

        ``lock_timeout_s`` bounds how long one call waits for another process's lock (SQLite).
        """
        self._engine = open_engine(target, lock_timeout_s=lock_timeout_s)
        self.name = describe(self._engine.url)

    def close(self) -> None:
        """Close every connection. With SQLite this also folds the write-ahead log in."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- leases -----------------------------------------------------------------------------------

    def leases(self, family: int) -> list[Lease]:
        """Return every lease of a family, the longest unused first."""
        query = (
            select(leases)
            .where(leases.c.family == family)
            .order_by(leases.c.last_seen_at, leases.c.client)
        )
        with self._read() as connection:
            return [_lease(row) for row in connection.execute(query)]

    def lease_of(self, client: str, family: int) -> Lease | None:
        """Return a client's lease, if it has one."""
        query = select(leases).where(leases.c.client == client, leases.c.family == family)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _lease(row)

    def add_lease(self, lease: Lease) -> None:
        """Keep a new lease. Raises :class:`LeaseConflict` if client or address has one."""
        values = {
            "client": lease.client,
            "family": lease.family,
            "address": str(lease.address),
            "created_at": lease.created_at,
            "last_seen_at": lease.last_seen_at,
        }
        try:
            with self._write() as connection:
                connection.execute(insert(leases).values(values))
        except _Conflict as error:
            raise LeaseConflict(f"{lease.client}, {lease.address}") from error

    def renew_lease(self, lease: Lease) -> bool:
        """Note ``lease.last_seen_at``; False if client and address no longer belong together."""
        query = update(leases).where(
            leases.c.client == lease.client,
            leases.c.family == lease.family,
            leases.c.address == str(lease.address),
        )
        with self._write() as connection:
            return connection.execute(query.values(last_seen_at=lease.last_seen_at)).rowcount > 0

    def touch_leases(self, family: int, names: Iterable[str], now: datetime) -> None:
        """Note that these clients hold their leases of this family at ``now``."""
        ordered = sorted(set(names))
        mine = update(leases).where(leases.c.family == family).values(last_seen_at=now)
        with self._write() as connection:
            for start in range(0, len(ordered), _BATCH):
                batch = ordered[start : start + _BATCH]
                connection.execute(mine.where(leases.c.client.in_(batch)))

    def note_leases_seen(self, family: int, seen: Mapping[str, datetime]) -> None:
        """Note when each of these clients held its lease of this family, if nobody saw it later."""
        if not seen:
            return
        later: BindParameter[datetime] = bindparam("seen_at")
        query = (
            update(leases)
            .where(
                leases.c.family == family,
                leases.c.client == bindparam("held_by"),
                leases.c.last_seen_at < later,
            )
            .values(last_seen_at=later)
        )
        rows = [{"held_by": client, "seen_at": at} for client, at in sorted(seen.items())]
        with self._write() as connection:
            connection.execute(query, rows)

    def remove_lease(
        self, client: str, family: int, *, unseen_since: datetime | None = None
    ) -> bool:
        """Forget a lease; with ``unseen_since`` only if nobody saw its client after that time.

        The condition is checked in the database, so a gateway cannot take the address of a client
        that is connected to another one. Returns whether a lease was removed.
        """
        query = delete(leases).where(leases.c.client == client, leases.c.family == family)
        if unseen_since is not None:
            query = query.where(leases.c.last_seen_at <= unseen_since)
        with self._write() as connection:
            return connection.execute(query).rowcount > 0

    # --- services ---------------------------------------------------------------------------------

    def service_addresses(self) -> list[ServiceAddress]:
        """Return the virtual IPs of all services, by name and family."""
        query = select(service_addresses).order_by(
            service_addresses.c.service, service_addresses.c.family
        )
        with self._read() as connection:
            return [
                ServiceAddress(row.service, ip_address(row.address), row.created_at)
                for row in connection.execute(query)
            ]

    def add_service(self, service: str, addresses: Sequence[IPAddress], now: datetime) -> None:
        """Keep the addresses of a new service, one of each family: all of them or none.

        Raises :class:`ServiceConflict` if the service or one of the addresses is there already.
        """
        rows = [
            {
                "service": service,
                "family": address.version,
                "address": str(address),
                "created_at": now,
            }
            for address in addresses
        ]
        try:
            with self._write() as connection:
                connection.execute(insert(service_addresses), rows)
        except _Conflict as error:
            raise ServiceConflict(f"{service}, {', '.join(map(str, addresses))}") from error

    def remove_service(self, service: str, addresses: Sequence[IPAddress]) -> bool:
        """Forget that these addresses are a service's; whether one of them was."""
        query = delete(service_addresses).where(
            service_addresses.c.service == service,
            service_addresses.c.address.in_([str(address) for address in addresses]),
        )
        with self._write() as connection:
            return connection.execute(query).rowcount > 0

    # --- clients ----------------------------------------------------------------------------------

    def note_clients(self, records: Sequence[ClientRecord]) -> None:
        """Remember what clients' certificates said, and when they connected last.

        ``created_at`` counts for those that were never noted before.
        """
        if not records:
            return
        try:
            self._note(records)
        except _Conflict:
            # Another gateway met one of them at the same moment; the second time, it is known.
            for record in records:
                try:
                    self._note([record])
                except _Conflict:
                    self._note([record])

    def _note(self, records: Sequence[ClientRecord]) -> None:
        with self._write() as connection:
            for start in range(0, len(records), _BATCH):
                _note(connection, records[start : start + _BATCH])

    def clients(self) -> list[ClientRecord]:
        """Return every client that ever connected, by name."""
        with self._read() as connection:
            rows = connection.execute(select(clients).order_by(clients.c.name))
            return [_client(row) for row in rows]

    def client(self, name: str) -> ClientRecord | None:
        """Return what is known of one client."""
        with self._read() as connection:
            row = connection.execute(select(clients).where(clients.c.name == name)).one_or_none()
        return None if row is None else _client(row)

    # --- policy revisions -------------------------------------------------------------------------

    def record_policy(
        self,
        *,
        sha256: str,
        source: str,
        clients: int,
        groups: int,
        rules: int,
        now: datetime,
        origin: str = "reload",
        text: bytes | None = None,
    ) -> PolicyRevision:
        """Give a policy set its number, and keep its text.

        The newest revision is returned again if its content (``sha256``) is the same, so that a
        restart does not look like a change. Anything else gets a number never used before. Texts
        of all but the newest revisions are forgotten in time.
        """
        values = {
            "sha256": sha256,
            "source": source,
            "loaded_at": now,
            "clients": clients,
            "groups": groups,
            "rules": rules,
            "origin": origin,
        }
        packed = None if text is None else zlib.compress(text)
        with self._write() as connection:
            if packed is not None:
                keep_text(connection, sha256, packed)
            newest = _newest_policy(connection)
            if newest is not None and newest.sha256 == sha256:
                return newest
            result = connection.execute(insert(policy_revisions).values(values))
            key = result.inserted_primary_key
            if key is None:  # pragma: no cover - both dialects return it
                raise RuntimeError("the database returned no revision number")
            _forget_old_texts(connection)
            return PolicyRevision(revision=key[0], **values)  # type: ignore[arg-type]

    def forget_policy(self, revision: int) -> None:
        """Forget a revision that never came into force. Its number is not used again."""
        with self._write() as connection:
            connection.execute(
                delete(policy_revisions).where(policy_revisions.c.revision == revision)
            )

    def policies(self, limit: int) -> list[PolicyRevision]:
        """Return the newest revisions, the newest first."""
        query = select(policy_revisions).order_by(policy_revisions.c.revision.desc()).limit(limit)
        with self._read() as connection:
            return [PolicyRevision(**row._mapping) for row in connection.execute(query)]

    def policy(self, revision: int) -> PolicyRevision | None:
        """Return one revision."""
        query = select(policy_revisions).where(policy_revisions.c.revision == revision)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else PolicyRevision(**row._mapping)

    def policy_text(self, sha256: str) -> bytes | None:
        """Return the text of this content; None if it is not kept (any more)."""
        query = select(policy_texts.c.text_zlib).where(policy_texts.c.sha256 == sha256)
        with self._read() as connection:
            packed = connection.execute(query).scalar_one_or_none()
        return None if packed is None else zlib.decompress(packed)

    def kept_policy_texts(self) -> set[str]:
        """Return the contents (``sha256``) whose text is kept."""
        with self._read() as connection:
            return set(connection.execute(select(policy_texts.c.sha256)).scalars())

    def newest_policy(self) -> PolicyRevision | None:
        """Return the revision that was recorded last."""
        with self._read() as connection:
            return _newest_policy(connection)

    def check(self) -> None:
        """Read something. Raises StoreError where the store is not to be had."""
        with self._read() as connection:
            connection.execute(select(leases.c.client).limit(1))

    # --- all at once ------------------------------------------------------------------------------

    def remember(self, memory: Memory, now: datetime) -> None:
        """Hold what ``memory`` says, and what else is there: in doubt the memory is right."""
        with self._write() as connection:
            remember(connection, memory, now)

    # --- transactions -----------------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with translated(self.name), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        writing = self._engine.execution_options(**{WRITE: True})
        with translated(self.name), writing.connect() as connection:
            try:
                with connection.begin():
                    yield connection
            except exc.IntegrityError as error:
                raise _Conflict from error


class _Conflict(Exception):
    """A constraint said no. Not a database error: it passes through ``translated``."""


def _lease(row: Row[*tuple[object, ...]]) -> Lease:
    return Lease(row.client, ip_address(row.address), row.created_at, row.last_seen_at)


def _client(row: Row[*tuple[object, ...]]) -> ClientRecord:
    return ClientRecord(
        row.name,
        tuple(row.groups),
        row.certificate_serial,
        row.certificate_not_after,
        row.created_at,
        row.last_seen_at,
    )


def _note(connection: Connection, records: Sequence[ClientRecord]) -> None:
    names = select(clients.c.name).where(clients.c.name.in_([one.name for one in records]))
    known = set(connection.execute(names).scalars())
    rows = [
        {
            "name": one.name,
            "groups": list(one.groups),
            "certificate_serial": one.certificate_serial,
            "certificate_not_after": one.certificate_not_after,
            "created_at": one.created_at,
            "last_seen_at": one.last_seen_at,
        }
        for one in records
    ]
    new = [row for row in rows if row["name"] not in known]
    if new:
        connection.execute(insert(clients), new)
    columns = ("groups", "certificate_serial", "certificate_not_after", "last_seen_at")
    changed = [
        {"who": row["name"], **{f"new_{column}": row[column] for column in columns}}
        for row in rows
        if row["name"] in known
    ]
    if changed:
        values: dict[str, BindParameter[Any]] = {
            column: bindparam(f"new_{column}") for column in columns
        }
        change = update(clients).where(clients.c.name == bindparam("who"))
        connection.execute(change.values(values), changed)


def _newest_policy(connection: Connection) -> PolicyRevision | None:
    query = select(policy_revisions).order_by(policy_revisions.c.revision.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else PolicyRevision(**row._mapping)


def _forget_old_texts(connection: Connection) -> None:
    newest = (
        select(policy_revisions.c.sha256)
        .order_by(policy_revisions.c.revision.desc())
        .limit(KEPT_POLICY_TEXTS)
    )
    connection.execute(delete(policy_texts).where(policy_texts.c.sha256.not_in(newest)))
