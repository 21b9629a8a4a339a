"""The request log in daily partitions, its data keys, and its exports; the options of projects; our own numbers beside
usage that cannot be right, and an index to delete old windows of budgets by.

API processes create and drop partitions, with a role that cannot change the schema. So these are functions with the
rights of the schema's owner, for those who may delete rows of the log anyway. They give up soon if they get no lock.
"""

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
    ("usage_events", "counted", "jsonb"),
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
# {schema} is the schema of the tables: nothing else may be found in their place.
FUNCTIONS = (
    """
    CREATE OR REPLACE FUNCTION create_log_partition(parent text, day date, most_moved integer) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '100ms' AS $$
    DECLARE
        name text := parent || '_' || to_char(day, 'YYYYMMDD');
        -- Rows of a day without a partition are here.
        spare text := parent || '_default';
        first timestamptz := day::timestamp AT TIME ZONE 'UTC';
        next timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
        waiting integer;
    BEGIN
        IF parent NOT IN ('request_log', 'request_bodies') OR NOT has_table_privilege(session_user, parent, 'DELETE')
        THEN
            RAISE insufficient_privilege USING MESSAGE = format('must be allowed to delete rows of %L', parent);
        END IF;
        IF NOT pg_try_advisory_xact_lock(hashtext(name)) THEN
            RETURN 'busy';
        END IF;
        -- Under the lock: another process may just have created it.
        IF to_regclass(quote_ident(name)) IS NOT NULL THEN
            RETURN 'exists';
        END IF;
        EXECUTE format(
            'SELECT count(*) FROM (SELECT 1 FROM %I WHERE ended_at >= $1 AND ended_at < $2 LIMIT $3) AS found', spare
        ) INTO waiting USING first, next, most_moved + 1;
        IF waiting > most_moved THEN
            RETURN 'full';
        END IF;
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', name, parent);
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', spare);
        EXECUTE format(
            'WITH moved AS (DELETE FROM %I WHERE ended_at >= $1 AND ended_at < $2 RETURNING *)'
            ' INSERT INTO %I SELECT * FROM moved', spare, name
        ) USING first, next;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, name, first, next);
        RETURN 'created';
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION drop_log_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '100ms' AS $$
    DECLARE
        name text := parent || '_' || to_char(day, 'YYYYMMDD');
    BEGIN
        IF parent NOT IN ('request_log', 'request_bodies') OR NOT has_table_privilege(session_user, parent, 'DELETE')
        THEN
            RAISE insufficient_privilege USING MESSAGE = format('must be allowed to delete rows of %L', parent);
        END IF;
        IF to_regclass(quote_ident(name)) IS NULL THEN
            RETURN false;
        END IF;
        EXECUTE format('DROP TABLE %I', name);
        RETURN true;
    END $$
    """,
)
SIGNATURES = ("create_log_partition(text, date, integer)", "drop_log_partition(text, date)")
TABLES = ("request_log", "request_bodies", "data_keys", "exports")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table, name, kind in COLUMNS:
            execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {kind}")
        for statement in STATEMENTS:
            execute(statement)
        schema = execute("SELECT quote_ident(current_schema())").scalar_one()
        for function in FUNCTIONS:
            # By the driver: SQLAlchemy would take its colons for parameters.
            op.get_bind().exec_driver_sql(function.replace("{schema}", schema))
        create_index("idempotency_keys_job", "ON idempotency_keys (job_id)")
        create_index(
            "jobs_unlogged",
            "ON jobs (finished_at) WHERE log_level = 'none' AND finished_at IS NOT NULL AND deleted_at IS NULL",
        )
        create_index("budget_windows_ended", "ON budget_windows (ends_at)")
        create_index("jobs_end_user", "ON jobs (project_id, end_user, id) WHERE end_user IS NOT NULL")
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        execute("DROP INDEX CONCURRENTLY IF EXISTS jobs_unlogged")
        execute("DROP INDEX CONCURRENTLY IF EXISTS idempotency_keys_job")
        execute("DROP INDEX CONCURRENTLY IF EXISTS budget_windows_ended")
        for signature in SIGNATURES:
            execute(f"DROP FUNCTION IF EXISTS {signature}")
        for table in reversed(TABLES):
            execute(f"DROP TABLE IF EXISTS {table}")
        for table, name, _ in COLUMNS:
            execute(f"ALTER TABLE {table} DROP COLUMN IF EXISTS {name}")
        execute("DROP INDEX CONCURRENTLY IF EXISTS jobs_end_user")
        declare_compatible("0020", "0009")
