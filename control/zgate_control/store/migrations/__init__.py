"""Alembic migrations, run by :func:`zgate_control.store.engine.migrate`, never by hand."""
