"""Routes, the response cache, summaries, and options of keys and projects."""

from __future__ import annotations

from alembic import op

from migrations.online import create_index, declare_compatible, execute, has_column

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

COLUMNS = {
    "requested_model": "text",
    "kind": "text",
    "decisions": "jsonb",
    "cache_key": "bytea",
    "follows": 'text COLLATE "C"',
    "leads": 'text COLLATE "C"',
    "lead_number": "integer",
    "prompt_bytes": "integer",
    "continues": 'text COLLATE "C"',
    "entry_key": "bytea",
    "answered_by": 'text COLLATE "C"',
}
# The previous version sends messages of released jobs only, and does not know that others wait for an answer.
RELEASE_FOLLOWERS = "UPDATE jobs SET dispatched_at = now() WHERE follows IS NOT NULL AND finished_at IS NULL"
# Keys with limits that the previous version does not know must not have more rights there.
REVOKE_LIMITED_KEYS = """
    UPDATE api_keys SET revoked_at = now()
    WHERE revoked_at IS NULL
        AND (options #>> '{token_limits,max_output}' IS NOT NULL OR options #>> '{token_limits,max_input}' IS NOT NULL)
"""
# The jobs that the response cache has answered get copies of their answers, some at a time.
COPY_ANSWERS = """
    UPDATE jobs SET output = answer.output, log = answer.log
    FROM jobs AS answer
    WHERE answer.id = jobs.answered_by AND jobs.id IN (
        SELECT hit.id FROM jobs AS hit JOIN jobs AS source ON source.id = hit.answered_by
        WHERE hit.answered_by IS NOT NULL AND hit.deleted_at IS NULL AND hit.log IS NULL AND source.log IS NOT NULL
        LIMIT 500
    )
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, kind in COLUMNS.items():
            execute(f"ALTER TABLE jobs ADD COLUMN IF NOT EXISTS {name} {kind}")
        execute("ALTER TABLE projects ADD COLUMN IF NOT EXISTS tier text")
        execute("ALTER TABLE projects ADD COLUMN IF NOT EXISTS salt text NOT NULL DEFAULT gen_random_uuid()::text")
        execute("ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS options jsonb NOT NULL DEFAULT '{}'::jsonb")
        execute(
            """
            CREATE TABLE IF NOT EXISTS cached_answers (
                key bytea PRIMARY KEY,
                project_id bigint NOT NULL REFERENCES projects (id),
                model text NOT NULL,
                job_id text COLLATE "C" NOT NULL,
                bytes integer NOT NULL,
                created_at timestamptz NOT NULL DEFAULT now(),
                expires_at timestamptz NOT NULL,
                hits bigint NOT NULL DEFAULT 0,
                used_at timestamptz NOT NULL DEFAULT now()
            )
            """
        )
        execute("CREATE TABLE IF NOT EXISTS secrets (name text PRIMARY KEY, value bytea NOT NULL)")
        execute("CREATE INDEX IF NOT EXISTS cached_answers_project ON cached_answers (project_id, model)")
        execute("CREATE INDEX IF NOT EXISTS cached_answers_job ON cached_answers (job_id)")
        execute("CREATE INDEX IF NOT EXISTS cached_answers_expiring ON cached_answers (expires_at)")
        execute("CREATE INDEX IF NOT EXISTS cached_answers_used ON cached_answers (used_at)")
        execute(
            """
            CREATE TABLE IF NOT EXISTS summaries (
                project_id bigint NOT NULL REFERENCES projects (id),
                sha256 bytea NOT NULL,
                model text NOT NULL,
                messages integer NOT NULL,
                summary text NOT NULL,
                job_id text COLLATE "C" NOT NULL,
                conversation text COLLATE "C" NOT NULL,
                created_at timestamptz NOT NULL DEFAULT now(),
                used_at timestamptz NOT NULL DEFAULT now(),
                PRIMARY KEY (project_id, model, sha256)
            )
            """
        )
        execute("CREATE INDEX IF NOT EXISTS summaries_used ON summaries (used_at)")
        execute("CREATE INDEX IF NOT EXISTS summaries_conversation ON summaries (project_id, conversation)")
        create_index(
            "jobs_leading",
            "ON jobs (cache_key) WHERE cache_key IS NOT NULL AND follows IS NULL AND finished_at IS NULL",
            unique=True,
        )
        create_index(
            "jobs_summaries",
            "ON jobs (project_id, (decisions -> 'context' ->> 'conversation')) WHERE kind = 'summary'",
        )
        create_index(
            "jobs_following", "ON jobs (follows, priority, id) WHERE follows IS NOT NULL AND finished_at IS NULL"
        )
        create_index("jobs_led", "ON jobs (leads, lead_number) WHERE leads IS NOT NULL", unique=True)
        create_index("jobs_answered_by", "ON jobs (answered_by) WHERE answered_by IS NOT NULL")
        create_index("jobs_kept", "ON jobs (id) WHERE deleted_at IS NOT NULL AND log IS NOT NULL")
        create_index(
            "jobs_discarded",
            "ON jobs (id) WHERE kind = 'summary' AND (decisions -> 'context' ->> 'deleted') = 'true'"
            " AND deleted_at IS NULL",
        )
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        # An interrupted downgrade may have removed the columns.
        if has_column("jobs", "follows"):
            execute(RELEASE_FOLLOWERS)
        if has_column("api_keys", "options"):
            execute(REVOKE_LIMITED_KEYS)
        while has_column("jobs", "answered_by") and execute(COPY_ANSWERS).rowcount:
            pass
        execute("UPDATE jobs SET output = NULL, log = NULL WHERE deleted_at IS NOT NULL AND log IS NOT NULL")
        for name in (
            "jobs_leading",
            "jobs_summaries",
            "jobs_following",
            "jobs_led",
            "jobs_answered_by",
            "jobs_kept",
            "jobs_discarded",
        ):
            execute(f"DROP INDEX IF EXISTS {name}")
        execute("DROP TABLE IF EXISTS cached_answers")
        execute("DROP TABLE IF EXISTS secrets")
        execute("DROP TABLE IF EXISTS summaries")
        for name in COLUMNS:
            execute(f"ALTER TABLE jobs DROP COLUMN IF EXISTS {name}")
        execute("ALTER TABLE projects DROP COLUMN IF EXISTS tier, DROP COLUMN IF EXISTS salt")
        execute("ALTER TABLE api_keys DROP COLUMN IF EXISTS options")
        declare_compatible("0015", "0009")
