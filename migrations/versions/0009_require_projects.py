"""Projects, step 3 of 3 (contract): `project_id` is required; lists and idempotency keys are keyed by it.

Indexes are built concurrently and constraints are validated without blocking writes. The triggers of step 1 stay:
processes of the previous version may still be running. A later version drops them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OWNED = ("jobs", "files", "batches", "idempotency_keys")
LISTED = ("jobs", "files", "batches")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table in OWNED:
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {table}_project_id_fkey")
            # Because of the validated check, SET NOT NULL does not scan the table while it holds an exclusive lock.
            op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {table}_has_project")
            op.execute(
                f"ALTER TABLE {table} ADD CONSTRAINT {table}_has_project CHECK (project_id IS NOT NULL) NOT VALID"
            )
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {table}_has_project")
            op.alter_column(table, "project_id", nullable=False)
            op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_has_project")
        for table in LISTED:
            # An interrupted build leaves an invalid index behind.
            _drop_index(f"{table}_by_project")
            op.create_index(f"{table}_by_project", table, ["project_id", "id"], postgresql_concurrently=True)
            _drop_index(f"{table}_by_key")
    # Few rows, which live for a day: the key is replaced in one transaction.
    op.drop_constraint("idempotency_keys_pkey", "idempotency_keys", type_="primary")
    op.create_primary_key("idempotency_keys_pkey", "idempotency_keys", ["project_id", "key"])


def downgrade() -> None:
    op.drop_constraint("idempotency_keys_pkey", "idempotency_keys", type_="primary")
    op.create_primary_key("idempotency_keys_pkey", "idempotency_keys", ["key_id", "key"])
    with op.get_context().autocommit_block():
        for table in LISTED:
            _drop_index(f"{table}_by_key")
            op.create_index(f"{table}_by_key", table, ["key_id", "id"], postgresql_concurrently=True)
            _drop_index(f"{table}_by_project")
        for table in OWNED:
            op.alter_column(table, "project_id", existing_type=sa.BigInteger(), nullable=True)


def _drop_index(name: str) -> None:
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
