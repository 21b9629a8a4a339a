"""The ledger of usage and its sums, prices, budgets, rate limits, and the audit log."""

from __future__ import annotations

from alembic import op

from migrations.online import declare_compatible, execute

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE IF NOT EXISTS prices (
        id bigint GENERATED ALWAYS AS IDENTITY,
        model text NOT NULL,
        tier text DEFAULT 'default' NOT NULL,
        from_input_tokens integer DEFAULT 0 NOT NULL,
        valid_from timestamptz DEFAULT now() NOT NULL,
        input_fresh numeric,
        input_cache_read numeric,
        input_cache_write_5m numeric,
        input_cache_write_1h numeric,
        output_text numeric,
        output_reasoning numeric,
        source text NOT NULL,
        created_at timestamptz DEFAULT now() NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT prices_input_fresh CHECK (input_fresh >= 0),
        CONSTRAINT prices_input_cache_read CHECK (input_cache_read >= 0),
        CONSTRAINT prices_input_cache_write_5m CHECK (input_cache_write_5m >= 0),
        CONSTRAINT prices_input_cache_write_1h CHECK (input_cache_write_1h >= 0),
        CONSTRAINT prices_output_text CHECK (output_text >= 0),
        CONSTRAINT prices_output_reasoning CHECK (output_reasoning >= 0)
    )
    """,
    """
    CREATE UNIQUE INDEX IF NOT EXISTS prices_in_force ON prices (model, tier, from_input_tokens, valid_from)
    """,
    """
    CREATE TABLE IF NOT EXISTS usage_events (
        job_id text COLLATE "C" NOT NULL,
        attempt smallint NOT NULL,
        correction smallint DEFAULT 0 NOT NULL,
        written_by bigint DEFAULT ((pg_current_xact_id())::text)::bigint NOT NULL,
        ended_at timestamptz NOT NULL,
        kind text NOT NULL,
        project_id bigint NOT NULL,
        key_id bigint NOT NULL,
        end_user text,
        conversation text COLLATE "C",
        requested_model text NOT NULL,
        model text NOT NULL,
        service_tier text DEFAULT 'default' NOT NULL,
        batch_id text COLLATE "C",
        outcome text NOT NULL,
        final boolean NOT NULL,
        input_fresh integer NOT NULL,
        input_cache_read integer NOT NULL,
        input_cache_write_5m integer NOT NULL,
        input_cache_write_1h integer NOT NULL,
        output_text integer NOT NULL,
        output_reasoning integer NOT NULL,
        total_tokens integer NOT NULL,
        charged jsonb,
        source text NOT NULL,
        price_id bigint,
        cost numeric,
        charge numeric,
        saved numeric,
        PRIMARY KEY (job_id, attempt, correction),
        CONSTRAINT usage_events_total CHECK (
            total_tokens = input_fresh + input_cache_read + input_cache_write_5m + input_cache_write_1h
                + output_text + output_reasoning
        ),
        CONSTRAINT usage_events_input_fresh CHECK (input_fresh >= 0),
        CONSTRAINT usage_events_input_cache_read CHECK (input_cache_read >= 0),
        CONSTRAINT usage_events_input_cache_write_5m CHECK (input_cache_write_5m >= 0),
        CONSTRAINT usage_events_input_cache_write_1h CHECK (input_cache_write_1h >= 0),
        CONSTRAINT usage_events_output_text CHECK (output_text >= 0),
        CONSTRAINT usage_events_output_reasoning CHECK (output_reasoning >= 0)
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS usage_events_project ON usage_events (project_id, ended_at)
    """,
    """
    CREATE INDEX IF NOT EXISTS usage_events_written ON usage_events (written_by)
    """,
    """
    CREATE TABLE IF NOT EXISTS usage_sums (
        starts_at timestamptz NOT NULL,
        project_id bigint NOT NULL,
        key_id bigint NOT NULL,
        end_user text NOT NULL,
        kind text NOT NULL,
        requested_model text NOT NULL,
        model text NOT NULL,
        service_tier text NOT NULL,
        batch boolean NOT NULL,
        requests bigint NOT NULL,
        cached_requests bigint NOT NULL,
        attempts bigint NOT NULL,
        input_fresh bigint NOT NULL,
        input_cache_read bigint NOT NULL,
        input_cache_write_5m bigint NOT NULL,
        input_cache_write_1h bigint NOT NULL,
        output_text bigint NOT NULL,
        output_reasoning bigint NOT NULL,
        cost numeric NOT NULL,
        charge numeric NOT NULL,
        saved numeric NOT NULL,
        unpriced bigint NOT NULL,
        PRIMARY KEY (project_id, starts_at, key_id, end_user, kind, requested_model, model, service_tier, batch)
            INCLUDE (
                requests, cached_requests, attempts, input_fresh, input_cache_read, input_cache_write_5m,
                input_cache_write_1h, output_text, output_reasoning, cost, charge, saved, unpriced
            )
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS usage_sums_time ON usage_sums (starts_at)
    """,
    """
    CREATE TABLE IF NOT EXISTS usage_watermark (
        id SMALLSERIAL NOT NULL,
        summed_before bigint NOT NULL,
        updated_at timestamptz DEFAULT now() NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS budgets (
        id bigint GENERATED ALWAYS AS IDENTITY,
        project_id bigint NOT NULL,
        key_id bigint,
        end_user text,
        period text NOT NULL,
        time_zone text DEFAULT 'UTC' NOT NULL,
        limit_usd numeric NOT NULL,
        hard boolean DEFAULT true NOT NULL,
        on_exceed text DEFAULT 'reject' NOT NULL,
        alert_at numeric[] DEFAULT '{0.8,1}'::numeric[] NOT NULL,
        created_at timestamptz DEFAULT now() NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT budgets_limit CHECK (limit_usd > 0),
        FOREIGN KEY(project_id) REFERENCES projects (id),
        FOREIGN KEY(key_id) REFERENCES api_keys (id)
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS budgets_project ON budgets (project_id)
    """,
    """
    CREATE TABLE IF NOT EXISTS budget_windows (
        id bigint GENERATED ALWAYS AS IDENTITY,
        budget_id bigint NOT NULL,
        end_user text DEFAULT '' NOT NULL,
        starts_at timestamptz NOT NULL,
        ends_at timestamptz,
        spent numeric DEFAULT 0 NOT NULL,
        reserved numeric DEFAULT 0 NOT NULL,
        alerted numeric DEFAULT 0 NOT NULL,
        PRIMARY KEY (id),
        CONSTRAINT budget_windows_reserved CHECK (reserved >= 0),
        FOREIGN KEY(budget_id) REFERENCES budgets (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE UNIQUE INDEX IF NOT EXISTS budget_windows_of ON budget_windows (budget_id, end_user, starts_at)
    """,
    """
    CREATE TABLE IF NOT EXISTS budget_reservations (
        job_id text COLLATE "C" NOT NULL,
        window_id bigint NOT NULL,
        amount numeric NOT NULL,
        PRIMARY KEY (job_id, window_id),
        FOREIGN KEY(window_id) REFERENCES budget_windows (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS budget_reservations_window ON budget_reservations (window_id)
    """,
    """
    CREATE TABLE IF NOT EXISTS limits (
        id bigint GENERATED ALWAYS AS IDENTITY,
        project_id bigint,
        key_id bigint,
        end_user text,
        model text,
        requests_per_minute integer,
        tokens_per_minute integer,
        concurrent_jobs integer,
        queued_jobs integer,
        open_streams integer,
        mode text DEFAULT 'hard' NOT NULL,
        created_at timestamptz DEFAULT now() NOT NULL,
        PRIMARY KEY (id),
        FOREIGN KEY(project_id) REFERENCES projects (id),
        FOREIGN KEY(key_id) REFERENCES api_keys (id)
    )
    """,
    """
    CREATE UNIQUE INDEX IF NOT EXISTS limits_of ON limits (project_id, key_id, end_user, model) NULLS NOT DISTINCT
    """,
    """
    CREATE TABLE IF NOT EXISTS audit_log (
        id bigint GENERATED ALWAYS AS IDENTITY,
        at timestamptz DEFAULT now() NOT NULL,
        key_id bigint,
        action text NOT NULL,
        object_id text NOT NULL,
        project_id bigint,
        before jsonb,
        after jsonb,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS audit_log_project ON audit_log (project_id, id)
    """,
    "INSERT INTO usage_watermark (id, summed_before) VALUES (1, 0) ON CONFLICT DO NOTHING",
)
TABLES = (
    "prices",
    "usage_events",
    "usage_sums",
    "usage_watermark",
    "budgets",
    "budget_windows",
    "budget_reservations",
    "limits",
    "audit_log",
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for statement in STATEMENTS:
            execute(statement)
        declare_compatible(revision, "0009")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for table in reversed(TABLES):
            execute(f"DROP TABLE IF EXISTS {table}")
        declare_compatible("0019", "0009")
