"""Leases, clients and policy revisions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "leases",
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("family", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("address", sa.String(39), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("last_seen_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("client", "family", name="pk_leases"),
        sa.UniqueConstraint("address", name="uq_leases_address"),
        sa.CheckConstraint("family IN (4, 6)", name=op.f("ck_leases_family")),
    )
    op.create_index("ix_leases_family_last_seen_at", "leases", ["family", "last_seen_at"])
    op.create_table(
        "clients",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("groups", sa.JSON, nullable=False),
        sa.Column("certificate_serial", sa.String(64), nullable=False),
        sa.Column("certificate_not_after", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("last_seen_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_clients"),
    )
    op.create_table(
        "policy_revisions",
        # AUTOINCREMENT: a number is never used twice, even after the newest row was deleted.
        sa.Column("revision", sa.Integer, nullable=False, autoincrement=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("source", sa.String(4096), nullable=False),
        sa.Column("loaded_at", _TIME, nullable=False),
        sa.Column("clients", sa.Integer, nullable=False),
        sa.Column("groups", sa.Integer, nullable=False),
        sa.Column("rules", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_policy_revisions"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Drop everything."""
    for table in ("policy_revisions", "clients", "leases"):
        op.drop_table(table)
