"""Sessions of the web console."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute(
            """
            CREATE TABLE IF NOT EXISTS console_sessions (
                sha256 text PRIMARY KEY,
                api_key_id bigint NOT NULL REFERENCES api_keys (id),
                is_link boolean NOT NULL,
                expires_at timestamptz NOT NULL
            )
            """
        )
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("DROP TABLE IF EXISTS console_sessions")
        declare_compatible("0017", "0009")
