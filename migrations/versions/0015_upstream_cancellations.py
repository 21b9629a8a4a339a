"""Requests of upstreams that workers are to cancel, because their jobs have ended or start again."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute(
            """
            CREATE TABLE IF NOT EXISTS upstream_cancellations (
                id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                job_id text COLLATE "C" NOT NULL,
                model text NOT NULL,
                state jsonb NOT NULL,
                created_at timestamptz NOT NULL DEFAULT now(),
                due_at timestamptz NOT NULL DEFAULT now(),
                tries smallint NOT NULL DEFAULT 0
            )
            """
        )
        execute("CREATE INDEX IF NOT EXISTS upstream_cancellations_due ON upstream_cancellations (model, due_at)")
        execute("CREATE INDEX IF NOT EXISTS upstream_cancellations_job ON upstream_cancellations (job_id)")
        execute("CREATE INDEX IF NOT EXISTS upstream_cancellations_created ON upstream_cancellations (created_at)")
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("DROP TABLE IF EXISTS upstream_cancellations")
        declare_compatible("0014", "0009")
