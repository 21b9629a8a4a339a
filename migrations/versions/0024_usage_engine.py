"""The engine that served an attempt, in the ledger and its sums; and savings that are not known, in the sums."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

# NULL in the rows that are there, and in those that processes of an earlier version write.
TABLES = ("usage_events", "usage_sums")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table in TABLES:
            execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS engine text")
        execute("ALTER TABLE usage_sums ALTER COLUMN saved DROP NOT NULL")
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for table in TABLES:
            execute(f"ALTER TABLE {table} DROP COLUMN IF EXISTS engine")
        execute("UPDATE usage_sums SET saved = 0 WHERE saved IS NULL")
        execute("ALTER TABLE usage_sums ALTER COLUMN saved SET NOT NULL")
        declare_compatible("0023", "0009")
