"""Projects, step 1 of 3 (expand): tables and columns, without rewriting or scanning a large table.

Processes of the previous version keep running on this schema: a trigger sets `project_id` of the rows that they insert.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)
OWNED = ("jobs", "files", "batches", "idempotency_keys")

FUNCTIONS = (
    """
    CREATE FUNCTION headrace_project_of_key() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        SELECT project_id INTO NEW.project_id FROM api_keys WHERE id = NEW.key_id;
        RETURN NEW;
    END $$
    """,
    """
    CREATE FUNCTION headrace_project_of_name() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO projects (name) VALUES (NEW.name) ON CONFLICT (name) DO NOTHING;
        SELECT id INTO NEW.project_id FROM projects WHERE name = NEW.name;
        RETURN NEW;
    END $$
    """,
)


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        sa.Column("created_at", TIMESTAMP, server_default=sa.func.now(), nullable=False),
    )
    for function in FUNCTIONS:
        op.execute(function)

    op.add_column("api_keys", sa.Column("project_id", sa.BigInteger()))
    op.add_column(
        "api_keys",
        sa.Column("scopes", sa.ARRAY(sa.Text()), server_default=sa.text("'{inference}'::text[]"), nullable=False),
    )
    op.add_column("api_keys", sa.Column("expires_at", TIMESTAMP))
    op.add_column("api_keys", sa.Column("last_used_at", TIMESTAMP))
    # Each key becomes the only key of a project of its name. Of several keys with one name, the oldest gets the name,
    # and the others get it with their id, since none of them could read what another had created.
    op.execute(
        """
        CREATE TEMPORARY TABLE key_projects ON COMMIT DROP AS
        SELECT id AS key_id,
               CASE WHEN row_number() OVER (PARTITION BY name ORDER BY id) = 1 THEN name ELSE name || '#' || id END
                   AS project
        FROM api_keys
        """
    )
    op.execute("INSERT INTO projects (name) SELECT project FROM key_projects ORDER BY key_id")
    op.execute(
        """
        UPDATE api_keys SET project_id = projects.id
        FROM key_projects JOIN projects ON projects.name = key_projects.project
        WHERE key_projects.key_id = api_keys.id
        """
    )
    op.create_foreign_key("api_keys_project_id_fkey", "api_keys", "projects", ["project_id"], ["id"])
    op.alter_column("api_keys", "project_id", nullable=False)
    op.execute(
        """
        CREATE TRIGGER api_keys_set_project BEFORE INSERT ON api_keys
        FOR EACH ROW WHEN (NEW.project_id IS NULL) EXECUTE FUNCTION headrace_project_of_name()
        """
    )

    op.add_column("jobs", sa.Column("end_user", sa.Text()))
    # A constant for the rows that exist: PostgreSQL evaluates now() once and rewrites nothing.
    op.add_column("jobs", sa.Column("dispatched_at", TIMESTAMP, server_default=sa.func.now()))
    for table in OWNED:
        op.add_column(table, sa.Column("project_id", sa.BigInteger()))
        op.create_foreign_key(
            f"{table}_project_id_fkey", table, "projects", ["project_id"], ["id"], postgresql_not_valid=True
        )
        op.execute(
            f"""
            CREATE TRIGGER {table}_set_project BEFORE INSERT ON {table}
            FOR EACH ROW WHEN (NEW.project_id IS NULL) EXECUTE FUNCTION headrace_project_of_key()
            """
        )


def downgrade() -> None:
    for table in OWNED:
        op.execute(f"DROP TRIGGER {table}_set_project ON {table}")
        op.drop_column(table, "project_id")
    op.drop_column("jobs", "dispatched_at")
    op.drop_column("jobs", "end_user")
    op.execute("DROP TRIGGER api_keys_set_project ON api_keys")
    for column in ("last_used_at", "expires_at", "scopes", "project_id"):
        op.drop_column("api_keys", column)
    op.execute("DROP FUNCTION headrace_project_of_name")
    op.execute("DROP FUNCTION headrace_project_of_key")
    op.drop_table("projects")
