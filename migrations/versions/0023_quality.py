"""Feedback, runs of judges with their judgements, and labels."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE IF NOT EXISTS feedback (
        id bigint GENERATED ALWAYS AS IDENTITY,
        project_id bigint NOT NULL,
        job_id text COLLATE "C",
        conversation text COLLATE "C",
        metric text NOT NULL,
        author text DEFAULT '' NOT NULL,
        value jsonb NOT NULL,
        comment text,
        tags text[] DEFAULT '{}'::text[] NOT NULL,
        source text NOT NULL,
        model text,
        requested_model text,
        created_at timestamptz DEFAULT now() NOT NULL,
        updated_at timestamptz DEFAULT now() NOT NULL,
        PRIMARY KEY (id),
        FOREIGN KEY(project_id) REFERENCES projects (id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS feedback_created ON feedback (created_at, id)",
    "CREATE INDEX IF NOT EXISTS feedback_job ON feedback (job_id)",
    """
    CREATE UNIQUE INDEX IF NOT EXISTS feedback_of ON feedback (project_id, job_id, conversation, metric, author)
        NULLS NOT DISTINCT
    """,
    "CREATE INDEX IF NOT EXISTS feedback_time ON feedback (project_id, created_at)",
    """
    CREATE TABLE IF NOT EXISTS eval_runs (
        id text COLLATE "C" NOT NULL,
        kind text NOT NULL,
        project_id bigint,
        rubric text NOT NULL,
        prompt_version text NOT NULL,
        judge_model text NOT NULL,
        options jsonb DEFAULT '{}'::jsonb NOT NULL,
        created_at timestamptz DEFAULT now() NOT NULL,
        ended_at timestamptz,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS judgements (
        id bigint GENERATED ALWAYS AS IDENTITY,
        run_id text COLLATE "C" NOT NULL,
        item text COLLATE "C" NOT NULL,
        project_id bigint,
        model text NOT NULL,
        requested_model text,
        position smallint DEFAULT 0 NOT NULL,
        judge_job_id text COLLATE "C",
        state text DEFAULT 'pending' NOT NULL,
        score numeric,
        reason text,
        answered_at timestamptz,
        created_at timestamptz DEFAULT now() NOT NULL,
        ended_at timestamptz,
        due_at timestamptz DEFAULT now() NOT NULL,
        PRIMARY KEY (id),
        FOREIGN KEY(run_id) REFERENCES eval_runs (id) ON DELETE CASCADE,
        UNIQUE (judge_job_id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS judgements_answered ON judgements (answered_at)",
    "CREATE INDEX IF NOT EXISTS judgements_item ON judgements (item)",
    "CREATE UNIQUE INDEX IF NOT EXISTS judgements_of ON judgements (run_id, item, position, model)",
    "CREATE INDEX IF NOT EXISTS judgements_pending ON judgements (due_at) WHERE state = 'pending'",
    "CREATE INDEX IF NOT EXISTS judgements_project ON judgements (project_id, answered_at)",
    "CREATE INDEX IF NOT EXISTS judgements_reasons ON judgements (answered_at) WHERE reason IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS judgements_states ON judgements (run_id, state)",
    """
    CREATE TABLE IF NOT EXISTS labels (
        id bigint GENERATED ALWAYS AS IDENTITY,
        rubric text NOT NULL,
        item text COLLATE "C" NOT NULL,
        project_id bigint,
        labeller text NOT NULL,
        score numeric NOT NULL,
        created_at timestamptz DEFAULT now() NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    "CREATE UNIQUE INDEX IF NOT EXISTS labels_of ON labels (rubric, item, labeller)",
)
TABLES = ("feedback", "eval_runs", "judgements", "labels")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for statement in STATEMENTS:
            execute(statement)
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for table in reversed(TABLES):
            execute(f"DROP TABLE IF EXISTS {table}")
        declare_compatible("0022", "0009")
