"""Projects, step 2 of 3 (backfill): `project_id` of existing rows, in batches that are committed one by one.

Rows that another transaction has locked are skipped and filled in the next pass, so that the backfill never waits for
a writer while it holds locks. If it is interrupted, run it again: rows that have a project are skipped.
"""

from __future__ import annotations

import time

from alembic import op

from migrations.online import execute

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

BATCH = 500
PASS_PAUSE_S = 0.1
TABLES = ("jobs", "files", "batches")
# Few rows, which live for a day: no order is needed to find them.
IDEMPOTENCY_KEYS = f"""
UPDATE idempotency_keys SET project_id = api_keys.project_id
FROM api_keys
WHERE api_keys.id = idempotency_keys.key_id AND (key_id, key) IN (
    SELECT key_id, key FROM idempotency_keys WHERE project_id IS NULL LIMIT {BATCH} FOR UPDATE SKIP LOCKED
)
"""  # noqa: S608  # the value is the number above


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table in TABLES:
            _fill_by_id(table)
        while _unfilled("idempotency_keys"):
            while execute(IDEMPOTENCY_KEYS).rowcount:
                pass
            time.sleep(PASS_PAUSE_S)


def _fill_by_id(table: str) -> None:
    """Fill a table that may be large: each pass reads it once, in the order of its ids."""
    step = f"""
        WITH batch AS (
            SELECT id FROM {table} WHERE id > :after AND project_id IS NULL
            ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
        ), filled AS (
            UPDATE {table} SET project_id = api_keys.project_id
            FROM api_keys, batch
            WHERE batch.id = {table}.id AND api_keys.id = {table}.key_id
        )
        SELECT max(id) FROM batch
        """  # noqa: S608  # the names are those above
    while _unfilled(table):
        after: str | None = ""
        while after is not None:
            after = execute(step, {"after": after, "limit": BATCH}).scalar()
        time.sleep(PASS_PAUSE_S)


def _unfilled(table: str) -> bool:
    """Whether a table has rows without a project."""
    return bool(execute(f"SELECT EXISTS (SELECT FROM {table} WHERE project_id IS NULL)").scalar())  # noqa: S608


def downgrade() -> None:
    """Nothing: the column is dropped with step 1."""
