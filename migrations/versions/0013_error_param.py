"""Add the parameter that a job's error is about."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS error_param text")
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE jobs DROP COLUMN IF EXISTS error_param")
        declare_compatible("0012", "0009")
