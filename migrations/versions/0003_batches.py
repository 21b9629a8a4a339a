"""Add files and batches, and the batch and line of a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)
UNFINISHED = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text(collation="C"), primary_key=True),
        sa.Column("key_id", sa.BigInteger(), sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=sa.func.now(), nullable=False),
    )
    op.create_index("files_by_key", "files", ["key_id", "id"])
    op.create_table(
        "batches",
        sa.Column("id", sa.Text(collation="C"), primary_key=True),
        sa.Column("key_id", sa.BigInteger(), sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(collation="C"), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("metadata", sa.JSON()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("ending", sa.Text()),
        sa.Column("errors", sa.JSON()),
        sa.Column("output_file_id", sa.Text(collation="C")),
        sa.Column("error_file_id", sa.Text(collation="C")),
        sa.Column("usage", postgresql.JSONB()),
        sa.Column("created_at", TIMESTAMP, server_default=sa.func.now(), nullable=False),
        sa.Column("expires_at", TIMESTAMP, nullable=False),
        sa.Column("in_progress_at", TIMESTAMP),
        sa.Column("finalizing_at", TIMESTAMP),
        sa.Column("cancelling_at", TIMESTAMP),
        sa.Column("ended_at", TIMESTAMP),
        sa.Column("total", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("submitted", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("completed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_line", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("settled_line", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("settled_completed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("settled_failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("driver", sa.Text()),
        sa.Column("due_at", TIMESTAMP, server_default=sa.func.now(), nullable=False),
    )
    op.create_index("batches_by_key", "batches", ["key_id", "id"])
    op.create_index("batches_due", "batches", ["due_at"], postgresql_where=UNFINISHED)
    op.create_index("batches_by_input", "batches", ["input_file_id"], postgresql_where=UNFINISHED)
    op.add_column("jobs", sa.Column("batch_id", sa.Text(collation="C")))
    op.add_column("jobs", sa.Column("batch_line", sa.Integer()))
    op.create_index(
        "jobs_batch_line",
        "jobs",
        ["batch_id", "batch_line"],
        unique=True,
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_column("jobs", "batch_line")
    op.drop_column("jobs", "batch_id")
    op.drop_table("batches")
    op.drop_table("files")
