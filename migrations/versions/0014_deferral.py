"""Jobs that wait for an upstream that was busy, and workers whose upstream fails."""

from __future__ import annotations

from alembic import op

from migrations.online import create_index, declare_compatible, execute

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute(
            """
            ALTER TABLE jobs
                ADD COLUMN IF NOT EXISTS not_before timestamptz,
                ADD COLUMN IF NOT EXISTS deferred_since timestamptz
            """
        )
        create_index("jobs_deferred", "ON jobs (model) WHERE not_before IS NOT NULL AND status = 'queued'")
        execute(
            """
            ALTER TABLE workers
                ADD COLUMN IF NOT EXISTS breaker_since timestamptz,
                ADD COLUMN IF NOT EXISTS breaker_reason text
            """
        )
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("DROP INDEX CONCURRENTLY IF EXISTS jobs_deferred")
        execute("ALTER TABLE jobs DROP COLUMN IF EXISTS deferred_since, DROP COLUMN IF EXISTS not_before")
        execute("ALTER TABLE workers DROP COLUMN IF EXISTS breaker_reason, DROP COLUMN IF EXISTS breaker_since")
        declare_compatible("0013", "0009")
