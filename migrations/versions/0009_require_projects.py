"""Projects, step 3 of 3 (contract): `project_id` is required, and lists and idempotency keys go by it.

Indexes are built concurrently, and constraints are validated without blocking writes. What the previous version needs
stays until a later version drops it: the triggers of step 1, the indexes by key, and the primary key
`(key_id, key)` of idempotency keys.
"""

from __future__ import annotations

from alembic import op

from migrations.online import create_index, execute

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OWNED = ("jobs", "files", "batches", "idempotency_keys")
INDEXES = {
    "jobs_by_project": "ON jobs (project_id, id)",
    "files_by_project": "ON files (project_id, id)",
    "batches_by_project": "ON batches (project_id, id)",
    "idempotency_keys_by_project": "ON idempotency_keys (project_id, key)",
}
UNIQUE = ("idempotency_keys_by_project",)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table in OWNED:
            execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {table}_project_id_fkey")
            # With a validated check, SET NOT NULL does not scan the table under its exclusive lock.
            execute(
                f"""
                ALTER TABLE {table}
                    DROP CONSTRAINT IF EXISTS {table}_has_project,
                    ADD CONSTRAINT {table}_has_project CHECK (project_id IS NOT NULL) NOT VALID
                """
            )
            execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {table}_has_project")
            execute(f"ALTER TABLE {table} ALTER COLUMN project_id SET NOT NULL")
            execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_has_project")
        for name, definition in INDEXES.items():
            create_index(name, definition, unique=name in UNIQUE)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in INDEXES:
            execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        for table in OWNED:
            execute(f"ALTER TABLE {table} ALTER COLUMN project_id DROP NOT NULL")
