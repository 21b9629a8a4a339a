"""Projects, step 2 of 3 (backfill): sets `project_id` of existing rows, in batches that are committed one by one.

If it is interrupted, run it again: rows that have a project are skipped.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

BATCH = 5000
# Tables whose primary key is `id`. `idempotency_keys`, whose rows live for a day, is filled in one statement.
TABLES = ("jobs", "files", "batches")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        for table in TABLES:
            step = sa.text(
                f"""
                WITH batch AS (
                    SELECT id FROM {table} WHERE id > :after AND project_id IS NULL ORDER BY id LIMIT :limit
                ), filled AS (
                    UPDATE {table} SET project_id = api_keys.project_id
                    FROM api_keys, batch
                    WHERE batch.id = {table}.id AND api_keys.id = {table}.key_id
                )
                SELECT max(id) FROM batch
                """  # noqa: S608  # `table` is one of TABLES
            )
            after: str | None = ""
            while after is not None:
                after = connection.execute(step, {"after": after, "limit": BATCH}).scalar()
        op.execute(
            """
            UPDATE idempotency_keys SET project_id = api_keys.project_id
            FROM api_keys WHERE api_keys.id = idempotency_keys.key_id AND idempotency_keys.project_id IS NULL
            """
        )


def downgrade() -> None:
    """Nothing: the column is dropped with step 1."""
