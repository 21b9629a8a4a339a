"""When a delivery of a webhook was replayed, and after how many tries: retries count from then."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

COLUMNS = (("replayed_at", "timestamptz"), ("tries_before", "smallint DEFAULT 0 NOT NULL"))


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, kind in COLUMNS:
            execute(f"ALTER TABLE webhook_deliveries ADD COLUMN IF NOT EXISTS {name} {kind}")
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name, _ in COLUMNS:
            execute(f"ALTER TABLE webhook_deliveries DROP COLUMN IF EXISTS {name}")
        declare_compatible("0025", "0009")
