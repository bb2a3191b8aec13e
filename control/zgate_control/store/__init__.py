"""State that survives a restart: one schema on SQLite and PostgreSQL."""
