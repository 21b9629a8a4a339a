"""Pauses of models' queues that have ended: jobs that waited meanwhile are left out of the console's waiting times."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute(
            """
            CREATE TABLE IF NOT EXISTS past_pauses (
                model text NOT NULL,
                resumed_at timestamptz NOT NULL,
                paused_at timestamptz NOT NULL,
                PRIMARY KEY (model, resumed_at)
            )
            """
        )
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("DROP TABLE IF EXISTS past_pauses")
        declare_compatible("0018", "0009")
