"""The database's schema, in Alembic's steps."""
