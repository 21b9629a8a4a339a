"""What the engine of a worker runs with, for operators."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE workers ADD COLUMN IF NOT EXISTS engine_info jsonb")
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE workers DROP COLUMN IF EXISTS engine_info")
        declare_compatible("0024", "0009")
