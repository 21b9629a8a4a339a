"""Add deadlines, idempotency keys, worker death counts and worker states."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("workers", sa.Column("state", sa.Text(), server_default="ready", nullable=False))
    op.add_column("jobs", sa.Column("deaths", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("start_before", TIMESTAMP))
    op.add_column("jobs", sa.Column("finish_before", TIMESTAMP))
    op.create_index(
        "jobs_start_before",
        "jobs",
        ["start_before"],
        postgresql_where=sa.text("start_before IS NOT NULL AND status = 'queued'"),
    )
    op.create_index(
        "jobs_finish_before",
        "jobs",
        ["finish_before"],
        postgresql_where=sa.text("finish_before IS NOT NULL AND finished_at IS NULL"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key_id", sa.BigInteger(), sa.ForeignKey("api_keys.id"), primary_key=True),
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("request_sha256", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=sa.func.now(), nullable=False),
    )
    op.create_index("idempotency_keys_by_age", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    op.drop_column("jobs", "finish_before")
    op.drop_column("jobs", "start_before")
    op.drop_column("jobs", "deaths")
    op.drop_column("workers", "state")
