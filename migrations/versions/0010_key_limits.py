"""Limits of keys and projects: the priorities of a key, and an index that counts a project's open jobs.

Prefixes of keys that an operator chose are removed: they were cut from the key, and could contain a part of its secret.
"""

from __future__ import annotations

from alembic import op

from migrations.online import create_index, execute

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # 0: existing keys keep all priorities.
        execute("ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS priority_floor smallint NOT NULL DEFAULT 0")
        execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS request_bytes integer")
        execute("UPDATE api_keys SET prefix = '' WHERE prefix !~ '^hr_[0-9a-f]{8}$' AND prefix <> ''")
        create_index(
            "jobs_open",
            """
            ON jobs (project_id)
                INCLUDE (status, priority, request_bytes, key_id)
                WHERE finished_at IS NULL AND batch_id IS NULL
            """,
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("DROP INDEX CONCURRENTLY IF EXISTS jobs_open")
        execute("ALTER TABLE jobs DROP COLUMN IF EXISTS request_bytes")
        execute("ALTER TABLE api_keys DROP COLUMN IF EXISTS priority_floor")
