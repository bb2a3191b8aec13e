"""Alembic's entry: run the migrations on the connection that the store hands over."""

from __future__ import annotations

from alembic import context

from zgate_control.store.schema import metadata

context.configure(
    connection=context.config.attributes.get("connection"),
    dialect_name=context.config.attributes.get("dialect"),
    target_metadata=metadata,
    # SQLite alters a table by copying it; and its DDL is transactional once the driver's own
    # transaction handling is off (engine.py), so a migration that fails leaves nothing behind.
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
