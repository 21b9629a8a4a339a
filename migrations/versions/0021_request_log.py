"""The request log in daily partitions, its data keys, and its exports; the options of projects."""

from __future__ import annotations

from alembic import op

from migrations.online import create_index, declare_compatible, execute

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

COLUMNS = (
    ("projects", "options", "jsonb NOT NULL DEFAULT '{}'::jsonb"),
    ("jobs", "log_level", "text"),
)
STATEMENTS = (
    """
    CREATE TABLE IF NOT EXISTS request_log (
        job_id text COLLATE "C" NOT NULL,
        ended_at timestamptz NOT NULL,
        project_id bigint NOT NULL,
        key_id bigint NOT NULL,
        end_user text,
        conversation text COLLATE "C",
        request_id text,
        batch_id text COLLATE "C",
        kind text,
        model text NOT NULL,
        requested_model text NOT NULL,
        status text NOT NULL,
        error_code text,
        created_at timestamptz NOT NULL,
        first_token_at timestamptz,
        input_tokens integer,
        output_tokens integer,
        answered boolean DEFAULT false NOT NULL,
        level text NOT NULL,
        body text DEFAULT 'none' NOT NULL,
        refused boolean,
        refusal_source text,
        PRIMARY KEY (job_id, ended_at)
    )
    PARTITION BY RANGE (ended_at)
    """,
    "CREATE TABLE IF NOT EXISTS request_log_default PARTITION OF request_log DEFAULT",
    """
    CREATE INDEX IF NOT EXISTS request_log_end_user ON request_log (project_id, end_user, ended_at, job_id)
    WHERE end_user IS NOT NULL
    """,
    "CREATE INDEX IF NOT EXISTS request_log_pending ON request_log (ended_at) WHERE body = 'pending'",
    "CREATE INDEX IF NOT EXISTS request_log_project ON request_log (project_id, ended_at, job_id)",
    "CREATE INDEX IF NOT EXISTS request_log_time ON request_log (ended_at, job_id)",
    """
    CREATE TABLE IF NOT EXISTS request_bodies (
        job_id text COLLATE "C" NOT NULL,
        ended_at timestamptz NOT NULL,
        project_id bigint NOT NULL,
        data_key_id bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (job_id, ended_at)
    )
    PARTITION BY RANGE (ended_at)
    """,
    "CREATE TABLE IF NOT EXISTS request_bodies_default PARTITION OF request_bodies DEFAULT",
    """
    CREATE TABLE IF NOT EXISTS data_keys (
        id bigint GENERATED ALWAYS AS IDENTITY,
        day date NOT NULL,
        master text NOT NULL,
        wrapped bytea NOT NULL,
        created_at timestamptz DEFAULT now() NOT NULL,
        PRIMARY KEY (id),
        UNIQUE (day)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS exports (
        id bigint GENERATED ALWAYS AS IDENTITY,
        project_id bigint,
        key_id bigint,
        filters jsonb NOT NULL,
        level text NOT NULL,
        rows bigint,
        created_at timestamptz DEFAULT now() NOT NULL,
        ended_at timestamptz,
        PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS exports_project ON exports (project_id, id)",
)
TABLES = ("request_log", "request_bodies", "data_keys", "exports")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table, name, kind in COLUMNS:
            execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {kind}")
        for statement in STATEMENTS:
            execute(statement)
        create_index(
            "jobs_unlogged",
            "ON jobs (finished_at) WHERE log_level = 'none' AND finished_at IS NOT NULL AND deleted_at IS NULL",
        )
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("DROP INDEX CONCURRENTLY IF EXISTS jobs_unlogged")
        for table in reversed(TABLES):
            execute(f"DROP TABLE IF EXISTS {table}")
        for table, name, _ in COLUMNS:
            execute(f"ALTER TABLE {table} DROP COLUMN IF EXISTS {name}")
        declare_compatible("0020", "0009")
