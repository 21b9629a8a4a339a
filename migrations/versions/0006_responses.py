"""Add responses, and an index of finished jobs by end time for retention."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("job_id", sa.Text(collation="C"), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("asked", sa.JSON(), nullable=False),
        sa.Column("input", sa.JSON(), nullable=False),
        sa.Column("previous_id", sa.Text(collation="C")),
        sa.Column("background", sa.Boolean(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
    )
    op.create_index("responses_unstored", "responses", ["job_id"], postgresql_where=sa.text("NOT stored"))
    op.create_index("jobs_ended", "jobs", ["finished_at"], postgresql_where=sa.text("finished_at IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("jobs_ended", "jobs")
    op.drop_table("responses")
