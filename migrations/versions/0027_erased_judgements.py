"""When a judgement of a run over a set was erased: its row remains, so that the run ends."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE judgements ADD COLUMN IF NOT EXISTS erased_at timestamptz")
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("ALTER TABLE judgements DROP COLUMN IF EXISTS erased_at")
        declare_compatible("0026", "0009")
