"""Suspects: jobs that run alone because they may have caused the death of a worker or engine.

The columns have constant defaults, so no row is rewritten, and processes of the previous version need not set them.
"""

from __future__ import annotations

from alembic import op

from migrations.online import execute

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute(
            """
            ALTER TABLE jobs
                ADD COLUMN IF NOT EXISTS suspect boolean NOT NULL DEFAULT false,
                ADD COLUMN IF NOT EXISTS exposures smallint NOT NULL DEFAULT 0
            """
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE jobs DROP COLUMN IF EXISTS exposures, DROP COLUMN IF EXISTS suspect")
