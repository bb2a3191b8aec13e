"""Policy history: where a revision came from, and its text."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the origin of revisions, and their texts."""
    op.add_column(
        "policy_revisions",
        sa.Column("origin", sa.String(16), nullable=False, server_default="reload"),
    )
    op.create_table(
        "policy_texts",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("text_zlib", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_policy_texts"),
    )


def downgrade() -> None:
    """Forget origins and texts."""
    op.drop_table("policy_texts")
    op.drop_column("policy_revisions", "origin")
