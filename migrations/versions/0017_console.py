"""What the console shows: reports of workers, statistics of ended jobs, rescued jobs; and paused models."""

from __future__ import annotations

from alembic import op

from migrations.online import create_index, declare_compatible, execute

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

WORKER_COLUMNS = {
    "state_since": "timestamptz",
    "version": "text",
    "options": "jsonb NOT NULL DEFAULT '{}'::jsonb",
    "waiting": "integer NOT NULL DEFAULT 0",
    "kv_cache_usage": "real",
    "tokens_per_s": "real",
    "last_error": "text",
    "drain_requested_at": "timestamptz",
}
INDEXES = {
    "jobs_unsuccessful": "ON jobs (status, id) WHERE status IN ('failed', 'cancelled', 'expired', 'incomplete')",
    "jobs_rescued": "ON jobs (id) WHERE deaths > 0 OR exposures > 0",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, kind in WORKER_COLUMNS.items():
            execute(f"ALTER TABLE workers ADD COLUMN IF NOT EXISTS {name} {kind}")
        execute(
            """
            CREATE TABLE IF NOT EXISTS model_pauses (
                model text PRIMARY KEY,
                paused_at timestamptz NOT NULL DEFAULT now(),
                key_id bigint REFERENCES api_keys (id)
            )
            """
        )
        execute(
            """
            CREATE TABLE IF NOT EXISTS job_statistics (
                minute timestamptz NOT NULL,
                model text NOT NULL,
                interactive boolean NOT NULL,
                ended jsonb NOT NULL,
                errors jsonb NOT NULL,
                tokens bigint NOT NULL,
                first_tokens jsonb NOT NULL,
                waits jsonb NOT NULL,
                PRIMARY KEY (minute, model, interactive)
            )
            """
        )
        for name, definition in INDEXES.items():
            create_index(name, definition)
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in INDEXES:
            execute(f"DROP INDEX IF EXISTS {name}")
        execute("DROP TABLE IF EXISTS job_statistics")
        execute("DROP TABLE IF EXISTS model_pauses")
        for name in WORKER_COLUMNS:
            execute(f"ALTER TABLE workers DROP COLUMN IF EXISTS {name}")
        declare_compatible("0016", "0009")
