"""Bringing a database to the newest version of the schema."""

from __future__ import annotations

from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, text

from .engine import WRITE
from .errors import StoreError

#: Any number: two gateways that start at once must not migrate one PostgreSQL at the same time.
_MIGRATION_LOCK = 0x7A67617465


def alembic_config(**attributes: Any) -> Config:
    """Return the configuration of the migrations that this package ships."""
    config = Config()
    config.set_main_option("script_location", "zgate_control.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes.update(attributes)
    return config


def migrate(engine: Engine, name: str) -> None:
    """Bring the schema to the newest version, in one transaction."""
    writing = engine.execution_options(**{WRITE: True})
    with writing.connect() as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK}
            )
        try:
            command.upgrade(alembic_config(connection=connection), "head")
        except CommandError as error:
            raise StoreError(
                name,
                f"a newer zgate wrote it ({error})",
                "install that version again, or restore the backup from before the upgrade",
            ) from error
