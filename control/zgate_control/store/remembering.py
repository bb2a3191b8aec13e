"""Writing what a gateway knows into a store that may know less, or something else."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from .records import ClientRecord, IPAddress, Lease, Memory, PolicyRevision
from .schema import clients, leases, policy_revisions, policy_texts, service_addresses


def remember(connection: Connection, memory: Memory, now: datetime) -> None:
    """See `Store.remember`; in one transaction."""
    _remember_leases(connection, memory.leases)
    for service, addresses in memory.services.items():
        _remember_service(connection, service, addresses, now)
    _remember_clients(connection, memory.clients)
    for revision, text in memory.policies:
        _remember_policy(connection, revision, text)


def keep_text(connection: Connection, sha256: str, packed: bytes) -> None:
    """Keep what a policy said, compressed, if that is not kept already."""
    known = select(policy_texts.c.sha256).where(policy_texts.c.sha256 == sha256)
    if connection.execute(known).one_or_none() is None:
        connection.execute(insert(policy_texts).values(sha256=sha256, text_zlib=packed))


def _remember_leases(connection: Connection, held: Sequence[Lease]) -> None:
    query = select(leases.c.client, leases.c.family, leases.c.address)
    known = {(row.client, row.family): row.address for row in connection.execute(query)}
    missing = [one for one in held if known.get((one.client, one.family)) != str(one.address)]
    for lease in missing:
        connection.execute(
            delete(leases).where(
                (leases.c.address == str(lease.address))
                | ((leases.c.client == lease.client) & (leases.c.family == lease.family))
            )
        )
    if missing:
        connection.execute(insert(leases), [_lease_row(one) for one in missing])


def _lease_row(lease: Lease) -> dict[str, object]:
    return {
        "client": lease.client,
        "family": lease.family,
        "address": str(lease.address),
        "created_at": lease.created_at,
        "last_seen_at": lease.last_seen_at,
    }


def _remember_service(
    connection: Connection, service: str, addresses: Sequence[IPAddress], now: datetime
) -> None:
    texts = [str(address) for address in addresses]
    query = select(service_addresses.c.address).where(service_addresses.c.service == service)
    if set(connection.execute(query).scalars()) == set(texts):
        return
    connection.execute(
        delete(service_addresses).where(
            (service_addresses.c.service == service) | service_addresses.c.address.in_(texts)
        )
    )
    rows = [
        {"service": service, "family": one.version, "address": str(one), "created_at": now}
        for one in addresses
    ]
    connection.execute(insert(service_addresses), rows)


def _remember_clients(connection: Connection, seen: Sequence[ClientRecord]) -> None:
    known = set(connection.execute(select(clients.c.name)).scalars())
    for one in seen:
        values = {
            "groups": list(one.groups),
            "certificate_serial": one.certificate_serial,
            "certificate_not_after": one.certificate_not_after,
            "last_seen_at": one.last_seen_at,
        }
        if one.name in known:
            connection.execute(update(clients).where(clients.c.name == one.name).values(values))
        else:
            row = {"name": one.name, "created_at": one.created_at, **values}
            connection.execute(insert(clients).values(row))


def _remember_policy(connection: Connection, revision: PolicyRevision, text: bytes | None) -> None:
    known = select(policy_revisions.c.revision).where(
        policy_revisions.c.revision == revision.revision
    )
    if text is not None:
        keep_text(connection, revision.sha256, zlib.compress(text))
    if connection.execute(known).one_or_none() is None:
        names = (column.name for column in policy_revisions.columns)
        values = {name: getattr(revision, name) for name in names}
        connection.execute(insert(policy_revisions).values(values))
