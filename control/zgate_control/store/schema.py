"""The tables. A change here needs a migration beside it; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
)

#: The migration that makes what is below.
REVISION = "0003"

metadata = MetaData(
    # Constraints have names, or a later migration could not change them on every database.
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC. SQLite drops the offset, so it is put back when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Refuse naive times: which zone they mean is a guess."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"a time without an offset reached the store: {value!r}")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return the time as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


leases = Table(
    "leases",
    metadata,
    Column("client", String(64), primary_key=True),
    Column("family", Integer, primary_key=True, autoincrement=False),
    Column("address", String(39), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    UniqueConstraint("address"),
    CheckConstraint("family IN (4, 6)", name="family"),
)
Index(None, leases.c.family, leases.c.last_seen_at)

clients = Table(
    "clients",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("groups", JSON, nullable=False),
    Column("certificate_serial", String(64), nullable=False),
    Column("certificate_not_after", UtcDateTime, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
)

policy_revisions = Table(
    "policy_revisions",
    metadata,
    Column("revision", Integer, primary_key=True, autoincrement=True),
    Column("sha256", String(64), nullable=False),
    Column("source", String(4096), nullable=False),
    Column("loaded_at", UtcDateTime, nullable=False),
    Column("clients", Integer, nullable=False),
    Column("groups", Integer, nullable=False),
    Column("rules", Integer, nullable=False),
    Column("origin", String(16), nullable=False, server_default="reload"),
    sqlite_autoincrement=True,
)

#: What revisions said, compressed; revisions of the same content share one.
policy_texts = Table(
    "policy_texts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("text_zlib", LargeBinary, nullable=False),
)

#: The virtual IPs of services, one for each family. A name has up to 255 bytes.
service_addresses = Table(
    "service_addresses",
    metadata,
    Column("service", String(255), primary_key=True),
    Column("family", Integer, primary_key=True, autoincrement=False),
    Column("address", String(39), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("address"),
    CheckConstraint("family IN (4, 6)", name="family"),
)
