"""Jobs that a worker withholds because its version cannot read them; the number of choices beside the request."""

from __future__ import annotations

from alembic import op

from migrations.online import create_index, declare_compatible, execute

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS unreadable_at timestamptz")
        execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS choices smallint NOT NULL DEFAULT 1")
        create_index("jobs_unreadable", "ON jobs (unreadable_at) WHERE unreadable_at IS NOT NULL")
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        # Redelivery of the previous version finds the messages of released jobs only.
        execute(
            "UPDATE jobs SET dispatched_at = clock_timestamp() WHERE unreadable_at IS NOT NULL AND status = 'queued'"
        )
        execute("DROP INDEX CONCURRENTLY IF EXISTS jobs_unreadable")
        execute("ALTER TABLE jobs DROP COLUMN IF EXISTS unreadable_at, DROP COLUMN IF EXISTS choices")
