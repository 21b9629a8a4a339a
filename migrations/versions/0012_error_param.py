"""Add the parameter that a job's error is about."""

from __future__ import annotations

from alembic import op

from migrations.online import execute

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS error_param text")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE jobs DROP COLUMN IF EXISTS error_param")
