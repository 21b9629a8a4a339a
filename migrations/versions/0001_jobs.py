"""Create API keys, workers and jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False, unique=True),
        sa.Column("created_at", TIMESTAMP, server_default=sa.func.now(), nullable=False),
        sa.Column("revoked_at", TIMESTAMP),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("running", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_at", TIMESTAMP, server_default=sa.func.now(), nullable=False),
        sa.Column("lease_expires_at", TIMESTAMP, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(collation="C"), primary_key=True),
        sa.Column("key_id", sa.BigInteger(), sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=sa.func.now(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker", sa.Text()),
        sa.Column("attempt_started_at", TIMESTAMP),
        sa.Column("attempts", postgresql.JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("started_at", TIMESTAMP),
        sa.Column("first_token_at", TIMESTAMP),
        sa.Column("finished_at", TIMESTAMP),
        sa.Column("output", sa.JSON()),
        sa.Column("usage", postgresql.JSONB()),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("log", sa.Text()),
        sa.Column("deleted_at", TIMESTAMP),
    )
    op.create_index("jobs_by_key", "jobs", ["key_id", "id"])
    op.create_index("jobs_queued", "jobs", ["model", "priority", "id"], postgresql_where=sa.text("status = 'queued'"))
    op.create_index(
        "jobs_running", "jobs", ["worker"], postgresql_where=sa.text("status IN ('in_progress', 'cancelling')")
    )
    op.create_index(
        "jobs_finished", "jobs", ["model", "finished_at"], postgresql_where=sa.text("finished_at IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_table("jobs")
    op.drop_table("workers")
    op.drop_table("api_keys")
