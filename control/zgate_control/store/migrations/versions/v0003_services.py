"""The virtual IPs of services."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the services' addresses."""
    op.create_table(
        "service_addresses",
        sa.Column("service", sa.String(255), nullable=False),
        sa.Column("family", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("address", sa.String(39), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("service", "family", name="pk_service_addresses"),
        sa.UniqueConstraint("address", name="uq_service_addresses_address"),
        sa.CheckConstraint("family IN (4, 6)", name=op.f("ck_service_addresses_family")),
    )


def downgrade() -> None:
    """Forget them: services get new addresses."""
    op.drop_table("service_addresses")
