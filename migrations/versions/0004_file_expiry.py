"""Add the expiry of files, and of the result files of batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("files", sa.Column("expires_at", TIMESTAMP))
    op.create_index("files_expiring", "files", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL"))
    op.add_column("batches", sa.Column("output_expires_after_s", sa.Integer()))


def downgrade() -> None:
    op.drop_column("batches", "output_expires_after_s")
    op.drop_column("files", "expires_at")
