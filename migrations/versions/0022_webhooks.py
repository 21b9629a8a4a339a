"""Webhooks: endpoints, the outbox, and the tries of its deliveries."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

COLUMNS = (
    ("projects", "webhook_secrets", "jsonb DEFAULT '[]'::jsonb NOT NULL"),
    ("jobs", "webhook", "jsonb"),
    ("batches", "webhook", "jsonb"),
)
STATEMENTS = (
    """
    CREATE TABLE IF NOT EXISTS webhook_endpoints (
        id text COLLATE "C" NOT NULL,
        project_id bigint NOT NULL,
        url text NOT NULL,
        description text,
        events text[] NOT NULL,
        secrets jsonb NOT NULL,
        "full" boolean DEFAULT false NOT NULL,
        disabled text,
        failures integer DEFAULT 0 NOT NULL,
        open_until timestamptz,
        created_at timestamptz DEFAULT now() NOT NULL,
        PRIMARY KEY (id),
        FOREIGN KEY(project_id) REFERENCES projects (id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS webhook_endpoints_project ON webhook_endpoints (project_id)",
    """
    CREATE TABLE IF NOT EXISTS webhook_deliveries (
        id bigint GENERATED ALWAYS AS IDENTITY,
        event_id text COLLATE "C" NOT NULL,
        project_id bigint NOT NULL,
        endpoint_id text COLLATE "C",
        url text,
        target text COLLATE "C" GENERATED ALWAYS AS (
            COALESCE(endpoint_id, "substring"(url, '^[^:]+://[^/?#]*'::text))
        ) STORED NOT NULL,
        type text NOT NULL,
        object_id text COLLATE "C" NOT NULL,
        data jsonb,
        created_at timestamptz DEFAULT now() NOT NULL,
        state text DEFAULT 'pending' NOT NULL,
        due_at timestamptz DEFAULT now() NOT NULL,
        tries smallint DEFAULT 0 NOT NULL,
        ended_at timestamptz,
        PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS webhook_deliveries_dead ON webhook_deliveries (project_id, id) WHERE state = 'dead'",
    "CREATE INDEX IF NOT EXISTS webhook_deliveries_due ON webhook_deliveries (target, due_at) WHERE state = 'pending'",
    "CREATE INDEX IF NOT EXISTS webhook_deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS webhook_deliveries_endpoint ON webhook_deliveries (endpoint_id, id)",
    """
    CREATE UNIQUE INDEX IF NOT EXISTS webhook_deliveries_of ON webhook_deliveries (event_id, endpoint_id)
        NULLS NOT DISTINCT
    """,
    "CREATE INDEX IF NOT EXISTS webhook_deliveries_project ON webhook_deliveries (project_id, id)",
    """
    CREATE TABLE IF NOT EXISTS webhook_tries (
        delivery_id bigint NOT NULL,
        number smallint NOT NULL,
        at timestamptz DEFAULT now() NOT NULL,
        status smallint,
        error text,
        duration_ms integer NOT NULL,
        PRIMARY KEY (delivery_id, number),
        FOREIGN KEY(delivery_id) REFERENCES webhook_deliveries (id) ON DELETE CASCADE
    )
    """,
)
TABLES = ("webhook_endpoints", "webhook_deliveries", "webhook_tries")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table, name, kind in COLUMNS:
            execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {kind}")
        for statement in STATEMENTS:
            execute(statement)
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for table in reversed(TABLES):
            execute(f"DROP TABLE IF EXISTS {table}")
        for table, name, _ in COLUMNS:
            execute(f"ALTER TABLE {table} DROP COLUMN IF EXISTS {name}")
        declare_compatible("0021", "0009")
