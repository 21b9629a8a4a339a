"""The tables of usage: the ledger and its sums, prices, budgets, rate limits, and the audit log of administration.

Amounts of money are in US dollars, as `NUMERIC`: sums are exact. The ledger has no foreign keys: it outlives jobs, keys
and projects.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.postgres.tables import Base as Base  # migrations read all tables through this module
from shared.postgres.tables import Timestamp

# The disjoint counts of a ledger row's tokens. `total_tokens` is their sum.
TOKEN_COUNTS = (
    "input_fresh",
    "input_cache_read",
    "input_cache_write_5m",
    "input_cache_write_1h",
    "output_text",
    "output_reasoning",
)


class PriceRow(Base):
    """What the tokens of a model cost from a time on, in dollars per million. NULL: not priced, which is not free.

    Rows are never changed: a new price is a new row with a later `valid_from`.
    """

    __tablename__ = "prices"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    model: Mapped[str] = mapped_column(Text)
    # `default`, or the service tier that the provider has served the request in: `flex`, `priority`, `batch`.
    tier: Mapped[str] = mapped_column(Text, server_default=text("'default'"))
    # The price applies to requests with at least this number of input tokens.
    from_input_tokens: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    valid_from: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    input_fresh: Mapped[Decimal | None] = mapped_column(Numeric)
    input_cache_read: Mapped[Decimal | None] = mapped_column(Numeric)
    input_cache_write_5m: Mapped[Decimal | None] = mapped_column(Numeric)
    input_cache_write_1h: Mapped[Decimal | None] = mapped_column(Numeric)
    output_text: Mapped[Decimal | None] = mapped_column(Numeric)
    output_reasoning: Mapped[Decimal | None] = mapped_column(Numeric)
    # Where it is from: `models.yaml`, `genai-prices` or `admin`.
    source: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (
        Index("prices_in_force", "model", "tier", "from_input_tokens", "valid_from", unique=True),
        *(CheckConstraint(f"{name} >= 0", name=f"prices_{name}") for name in TOKEN_COUNTS),
    )


class UsageEventRow(Base):
    """An entry of the ledger: one attempt of a job, or a correction of such an entry's amounts.

    `cost` is what the attempt cost us, and `charge` what its project pays: the delivered tokens, once per job. Both are
    NULL if a part has no price.
    """

    __tablename__ = "usage_events"

    job_id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    # 0 for a job that was answered without an attempt: by the response cache, or by the job that it followed.
    attempt: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    # 0 for the entry of the attempt; corrections count from 1, have no tokens, and add to its amounts.
    correction: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default=text("0"))
    # The transaction that wrote the row, in whose order the sums are made.
    written_by: Mapped[int] = mapped_column(BigInteger, server_default=text("((pg_current_xact_id())::text)::bigint"))
    ended_at: Mapped[datetime] = mapped_column(Timestamp)
    # `generate`, or the `kind` of the job: `summary`, `count_tokens`, `judge`; or `warm_up`, without a job.
    kind: Mapped[str] = mapped_column(Text)
    project_id: Mapped[int] = mapped_column(BigInteger)
    key_id: Mapped[int] = mapped_column(BigInteger)
    end_user: Mapped[str | None] = mapped_column(Text)
    conversation: Mapped[str | None] = mapped_column(Text(collation="C"))
    requested_model: Mapped[str] = mapped_column(Text)
    # The model that served the attempt.
    model: Mapped[str] = mapped_column(Text)
    # The model's `engine` in models.yaml; of an answer of another job, the engine that generated it. NULL: not known,
    # because the model was not declared any more, or an earlier version wrote the entry.
    engine: Mapped[str | None] = mapped_column(Text)
    service_tier: Mapped[str] = mapped_column(Text, server_default=text("'default'"))
    batch_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    # How the attempt ended: an `AttemptOutcome`; `answered` if there was none. `final`: it is the job's last entry,
    # which has the charge.
    outcome: Mapped[str] = mapped_column(Text)
    final: Mapped[bool]
    input_fresh: Mapped[int]
    input_cache_read: Mapped[int]
    input_cache_write_5m: Mapped[int]
    input_cache_write_1h: Mapped[int]
    output_text: Mapped[int]
    output_reasoning: Mapped[int]
    total_tokens: Mapped[int]
    # The counts that the charge is for, by their names, if they are not those of the row; missing ones are 0.
    charged: Mapped[dict[str, int] | None] = mapped_column(JSONB(none_as_null=True))
    # About how many tokens we have counted, `input` and `output`, if the provider's usage cannot be right.
    counted: Mapped[dict[str, int] | None] = mapped_column(JSONB(none_as_null=True))
    # `engine`, `provider`, or `estimate` if the counts were not reported: `shared.domain.ledger.Source`.
    source: Mapped[str] = mapped_column(Text)
    price_id: Mapped[int | None] = mapped_column(BigInteger)
    cost: Mapped[Decimal | None] = mapped_column(Numeric)
    charge: Mapped[Decimal | None] = mapped_column(Numeric)
    # What the answer would have been charged without the response cache, less the charge.
    saved: Mapped[Decimal | None] = mapped_column(Numeric)

    __table_args__ = (
        CheckConstraint(f"total_tokens = {' + '.join(TOKEN_COUNTS)}", name="usage_events_total"),
        *(CheckConstraint(f"{name} >= 0", name=f"usage_events_{name}") for name in TOKEN_COUNTS),
        Index("usage_events_written", "written_by"),
        Index("usage_events_project", "project_id", "ended_at"),
    )


_SUM_KEYS = (
    "project_id",
    "starts_at",
    "key_id",
    "end_user",
    "kind",
    "requested_model",
    "model",
    "service_tier",
    "batch",
)
_SUM_VALUES = ("requests", "cached_requests", "attempts", *TOKEN_COUNTS, "cost", "charge", "saved", "unpriced")


class UsageSumRow(Base):
    """The sums of the ledger's entries that ended within a quarter of an hour and agree in the other columns.

    Empty strings stand for NULL, so that the columns can be a key. In the table, rows of the same time lie together, so
    those of a project are far apart. Its reports read the key's index only, where they lie together with their values.
    """

    __tablename__ = "usage_sums"

    starts_at: Mapped[datetime] = mapped_column(Timestamp)
    project_id: Mapped[int] = mapped_column(BigInteger)
    key_id: Mapped[int] = mapped_column(BigInteger)
    end_user: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    requested_model: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    service_tier: Mapped[str] = mapped_column(Text)
    batch: Mapped[bool]
    # Jobs (final entries), jobs that were answered without an attempt, and all attempts.
    requests: Mapped[int] = mapped_column(BigInteger)
    cached_requests: Mapped[int] = mapped_column(BigInteger)
    attempts: Mapped[int] = mapped_column(BigInteger)
    input_fresh: Mapped[int] = mapped_column(BigInteger)
    input_cache_read: Mapped[int] = mapped_column(BigInteger)
    input_cache_write_5m: Mapped[int] = mapped_column(BigInteger)
    input_cache_write_1h: Mapped[int] = mapped_column(BigInteger)
    output_text: Mapped[int] = mapped_column(BigInteger)
    output_reasoning: Mapped[int] = mapped_column(BigInteger)
    # Sums of the amounts that are known, and the number of entries with a cost or charge that is not. What answers of
    # other jobs have saved is NULL if it is not known of all of them.
    cost: Mapped[Decimal] = mapped_column(Numeric)
    charge: Mapped[Decimal] = mapped_column(Numeric)
    saved: Mapped[Decimal | None] = mapped_column(Numeric)
    unpriced: Mapped[int] = mapped_column(BigInteger)
    # NULL if it is not known of all entries, or differs: the model was moved to another engine within the quarter of
    # an hour. Not a part of the key: one model has one engine at a time.
    engine: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        PrimaryKeyConstraint(*_SUM_KEYS, postgresql_include=_SUM_VALUES),
        Index("usage_sums_time", "starts_at"),
    )


class UsageWatermarkRow(Base):
    """Up to which transaction the ledger's entries are in the sums. One row."""

    __tablename__ = "usage_watermark"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    summed_before: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class BudgetRow(Base):
    """How much a project, a key or an end user may spend in a window of time.

    Of the columns `project_id`, `key_id` and `end_user`, those that are not NULL say whose jobs count.
    """

    __tablename__ = "budgets"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    key_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    # `*`: each end user of the project has a window of their own.
    end_user: Mapped[str | None] = mapped_column(Text)
    # `hour`, `day`, `week`, `month` or `total`, as it begins in the time zone.
    period: Mapped[str] = mapped_column(Text)
    time_zone: Mapped[str] = mapped_column(Text, server_default=text("'UTC'"))
    limit_usd: Mapped[Decimal] = mapped_column(Numeric)
    # A soft budget only warns.
    hard: Mapped[bool] = mapped_column(server_default=text("true"))
    # `reject`, `hold` or `downgrade`.
    on_exceed: Mapped[str] = mapped_column(Text, server_default=text("'reject'"))
    # The shares of the limit, from 0 to 1, that are reported when they are reached.
    alert_at: Mapped[list[Decimal]] = mapped_column(ARRAY(Numeric), server_default=text("'{0.8,1}'::numeric[]"))
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (
        CheckConstraint("limit_usd > 0", name="budgets_limit"),
        Index("budgets_project", "project_id"),
    )


class BudgetWindowRow(Base):
    """What was spent and is reserved in a budget's window; the row is written when the first job reserves in it."""

    __tablename__ = "budget_windows"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    budget_id: Mapped[int] = mapped_column(ForeignKey("budgets.id", ondelete="CASCADE"))
    # '' if the budget is not per end user.
    end_user: Mapped[str] = mapped_column(Text, server_default=text("''"))
    starts_at: Mapped[datetime] = mapped_column(Timestamp)
    # NULL for `total`.
    ends_at: Mapped[datetime | None] = mapped_column(Timestamp)
    spent: Mapped[Decimal] = mapped_column(Numeric, server_default=text("0"))
    reserved: Mapped[Decimal] = mapped_column(Numeric, server_default=text("0"))
    # The highest share of the limit that was reported.
    alerted: Mapped[Decimal] = mapped_column(Numeric, server_default=text("0"))

    __table_args__ = (
        CheckConstraint("reserved >= 0", name="budget_windows_reserved"),
        Index("budget_windows_of", "budget_id", "end_user", "starts_at", unique=True),
        Index("budget_windows_ended", "ends_at"),
    )


class BudgetReservationRow(Base):
    """What an open job has reserved in a window: committed with the job, and deleted by the statement that ends it."""

    __tablename__ = "budget_reservations"

    job_id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    window_id: Mapped[int] = mapped_column(
        ForeignKey("budget_windows.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    amount: Mapped[Decimal] = mapped_column(Numeric)

    __table_args__ = (Index("budget_reservations_window", "window_id"),)


class LimitRow(Base):
    """A rate limit: of a project, or of one of its keys, end users or models. Those that are NULL do not narrow it.

    `project_id` is NULL for the default of all projects.
    """

    __tablename__ = "limits"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[int | None] = mapped_column(ForeignKey("projects.id"))
    key_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    # `*`: each end user has this limit.
    end_user: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    concurrent_jobs: Mapped[int | None]
    queued_jobs: Mapped[int | None]
    open_streams: Mapped[int | None]
    # `hard` refuses a request above the limit, `soft` lets it wait in the queue.
    mode: Mapped[str] = mapped_column(Text, server_default=text("'hard'"))
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (
        Index(
            "limits_of", "project_id", "key_id", "end_user", "model", unique=True, postgresql_nulls_not_distinct=True
        ),
    )


class AuditRow(Base):
    """A change that an operator has made: who changed what, and from what to what."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    # NULL: at the command line of the installation.
    key_id: Mapped[int | None] = mapped_column(BigInteger)
    # What was done to what kind of object, such as `budget.create`, and the object's id.
    action: Mapped[str] = mapped_column(Text)
    object_id: Mapped[str] = mapped_column(Text)
    project_id: Mapped[int | None] = mapped_column(BigInteger)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    __table_args__ = (Index("audit_log_project", "project_id", "id"),)
