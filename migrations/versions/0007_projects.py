"""Projects, step 1 of 3 (expand): tables and columns, without rewriting or scanning a large table.

Processes of the previous version keep running on this schema: triggers set the project of the rows that they insert.
"""

from __future__ import annotations

from alembic import op

from migrations.online import execute

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

OWNED = ("jobs", "files", "batches", "idempotency_keys")

TABLE = """
CREATE TABLE IF NOT EXISTS projects (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""
FUNCTIONS = (
    # A project of this name, or if the name is taken, of the name and the key's id: keys never share a project by
    # accident.
    """
    CREATE OR REPLACE FUNCTION headrace_new_project(key_name text, key_id bigint) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        wanted text := key_name;
        created bigint;
    BEGIN
        LOOP
            INSERT INTO projects (name) VALUES (wanted) ON CONFLICT (name) DO NOTHING RETURNING id INTO created;
            EXIT WHEN created IS NOT NULL;
            wanted := wanted || '#' || key_id;
        END LOOP;
        RETURN created;
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION headrace_set_key_project() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.project_id := headrace_new_project(NEW.name, NEW.id);
        RETURN NEW;
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION headrace_set_project() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        SELECT project_id INTO NEW.project_id FROM api_keys WHERE id = NEW.key_id;
        RETURN NEW;
    END $$
    """,
)
# Each key becomes the only key of a project of its name.
KEYS = """
DO $$
BEGIN
    ALTER TABLE api_keys
        ADD COLUMN IF NOT EXISTS project_id bigint,
        ADD COLUMN IF NOT EXISTS scopes text[] NOT NULL DEFAULT '{inference}',
        ADD COLUMN IF NOT EXISTS expires_at timestamptz,
        ADD COLUMN IF NOT EXISTS last_used_at timestamptz;
    UPDATE api_keys SET project_id = created.project_id
    FROM (
        SELECT id, headrace_new_project(name, id) AS project_id
        FROM (SELECT id, name FROM api_keys WHERE project_id IS NULL ORDER BY id) AS keys
    ) AS created
    WHERE created.id = api_keys.id;
    ALTER TABLE api_keys
        ALTER COLUMN project_id SET NOT NULL,
        DROP CONSTRAINT IF EXISTS api_keys_project_id_fkey,
        ADD CONSTRAINT api_keys_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects (id);
    CREATE OR REPLACE TRIGGER api_keys_set_project BEFORE INSERT ON api_keys
        FOR EACH ROW WHEN (NEW.project_id IS NULL) EXECUTE FUNCTION headrace_set_key_project();
END $$
"""
# The default of `dispatched_at` is a constant for the rows that exist: PostgreSQL evaluates now() once and rewrites
# nothing.
JOBS = """
ALTER TABLE jobs
    ADD COLUMN IF NOT EXISTS end_user text,
    ADD COLUMN IF NOT EXISTS dispatched_at timestamptz DEFAULT now()
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        execute(TABLE)
        for function in FUNCTIONS:
            execute(function)
        execute(KEYS)
        execute(JOBS)
        for table in OWNED:
            execute(
                f"""
                DO $$
                BEGIN
                    ALTER TABLE {table}
                        ADD COLUMN IF NOT EXISTS project_id bigint,
                        DROP CONSTRAINT IF EXISTS {table}_project_id_fkey,
                        ADD CONSTRAINT {table}_project_id_fkey
                            FOREIGN KEY (project_id) REFERENCES projects (id) NOT VALID;
                    CREATE OR REPLACE TRIGGER {table}_set_project BEFORE INSERT ON {table}
                        FOR EACH ROW WHEN (NEW.project_id IS NULL) EXECUTE FUNCTION headrace_set_project();
                END $$
                """
            )


def downgrade() -> None:
    """The previous version knows neither expiry nor scopes, so a key that would gain rights by this is revoked."""
    with op.get_context().autocommit_block():
        execute(
            """
            UPDATE api_keys SET revoked_at = now()
            WHERE revoked_at IS NULL AND (expires_at <= now() OR NOT scopes @> '{inference}')
            """
        )
        for table in OWNED:
            execute(f"DROP TRIGGER IF EXISTS {table}_set_project ON {table}")
            execute(f"ALTER TABLE {table} DROP COLUMN IF EXISTS project_id")
        execute("ALTER TABLE jobs DROP COLUMN IF EXISTS dispatched_at, DROP COLUMN IF EXISTS end_user")
        execute("DROP TRIGGER IF EXISTS api_keys_set_project ON api_keys")
        execute(
            """
            ALTER TABLE api_keys
                DROP COLUMN IF EXISTS last_used_at,
                DROP COLUMN IF EXISTS expires_at,
                DROP COLUMN IF EXISTS scopes,
                DROP COLUMN IF EXISTS project_id
            """
        )
        for function in ("set_project()", "set_key_project()", "new_project(text, bigint)"):
            execute(f"DROP FUNCTION IF EXISTS headrace_{function}")
        execute("DROP TABLE IF EXISTS projects")
