"""The tables. A test checks that the migrations create exactly these."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    REAL,
    BigInteger,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Timestamp = DateTime(timezone=True)


class Base(DeclarativeBase):
    """The schema."""


class ProjectRow(Base):
    """A project: it owns jobs, files, batches and responses."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    # A class of service, named by the operator, for the rules of routes.
    tier: Mapped[str | None] = mapped_column(Text)
    # Keeps engines' prefix caches of projects apart, so that no project can time another's prompts.
    salt: Mapped[str] = mapped_column(Text, server_default=text("(gen_random_uuid())::text"))
    # `shared.domain.project_options.ProjectOptions`.
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    # They sign the webhooks that requests name themselves, as those of `webhook_endpoints`.
    webhook_secrets: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))


class ApiKeyRow(Base):
    """A key of a project: its SHA-256, never the key itself.

    `prefix` is the public part of a generated key, and empty for a key that an operator chose.
    """

    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(Text, unique=True)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{inference}'::text[]"))
    # The lowest priority number that its jobs may have.
    priority_floor: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # `shared.domain.answer_options.KeyOptions`.
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    last_used_at: Mapped[datetime | None] = mapped_column(Timestamp)


class WorkerRow(Base):
    """A worker process and its lease, which covers all jobs of the worker."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text)
    slots: Mapped[int]
    running: Mapped[int] = mapped_column(server_default=text("0"))
    state: Mapped[str] = mapped_column(Text, server_default="ready")
    started_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    lease_expires_at: Mapped[datetime] = mapped_column(Timestamp)
    # Since when its circuit breaker lets no jobs through, and the failure of the upstream; NULL while it is closed.
    breaker_since: Mapped[datetime | None] = mapped_column(Timestamp)
    breaker_reason: Mapped[str | None] = mapped_column(Text)
    # Since when it has been in its state; NULL if a process of an earlier version wrote the row.
    state_since: Mapped[datetime | None] = mapped_column(Timestamp)
    version: Mapped[str | None] = mapped_column(Text)
    # How its model is run: the entry in models.yaml, without secrets (`shared.config.models.base.Spec.summary`).
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    # What its engine runs with (`shared.domain.engine_info`); NULL while it starts for the first time.
    engine_info: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    # Requests that the engine has accepted but not started, the fraction of its KV cache in use, and the output tokens
    # per second since the heartbeat before; NULL if unknown.
    waiting: Mapped[int] = mapped_column(server_default=text("0"))
    kv_cache_usage: Mapped[float | None] = mapped_column(REAL)
    tokens_per_s: Mapped[float | None] = mapped_column(REAL)
    # Why its engine failed last.
    last_error: Mapped[str | None] = mapped_column(Text)
    # When an operator asked it to finish its jobs and stop.
    drain_requested_at: Mapped[datetime | None] = mapped_column(Timestamp)


class ModelPauseRow(Base):
    """A model whose queue an operator has paused: jobs are accepted, and no worker claims them."""

    __tablename__ = "model_pauses"

    model: Mapped[str] = mapped_column(Text, primary_key=True)
    paused_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    # The key that paused it, for audit.
    key_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))


class PastPauseRow(Base):
    """A pause of a model's queue that has ended. Waits of jobs during it say nothing about its workers."""

    __tablename__ = "past_pauses"

    model: Mapped[str] = mapped_column(Text, primary_key=True)
    resumed_at: Mapped[datetime] = mapped_column(Timestamp, primary_key=True)
    paused_at: Mapped[datetime] = mapped_column(Timestamp)


class JobStatisticsRow(Base):
    """Counts of the jobs of a model that ended within a minute, so that charts need not read the jobs.

    A row with the model '' says that the minute was counted, even if no job ended in it.
    """

    __tablename__ = "job_statistics"

    minute: Mapped[datetime] = mapped_column(Timestamp, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    # Whether the jobs are those of interactive priorities, or those of batches.
    interactive: Mapped[bool] = mapped_column(primary_key=True)
    # Numbers of jobs by status, and of failed ones by error code.
    ended: Mapped[dict[str, int]] = mapped_column(JSONB)
    errors: Mapped[dict[str, int]] = mapped_column(JSONB)
    # Output tokens that workers generated for them.
    tokens: Mapped[int] = mapped_column(BigInteger)
    # Histograms of the times from submission to the first token and to the first claim: numbers of jobs by bin
    # (`api.console.data.histogram`).
    first_tokens: Mapped[dict[str, int]] = mapped_column(JSONB)
    waits: Mapped[dict[str, int]] = mapped_column(JSONB)


class JobRow(Base):
    """A job; this row is authoritative. Columns that may contain U+0000 are `JSON`, because `JSONB` refuses it."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    # The key that created it, for audit.
    key_id: Mapped[int] = mapped_column(ForeignKey("api_keys.id"))
    end_user: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    priority: Mapped[int] = mapped_column(SmallInteger)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    # Size of `request`; NULL in rows of older versions and in those of batches.
    request_bytes: Mapped[int | None]
    # `GenerateRequest.prompt_bytes`, from which the tokens of a byte are learned.
    prompt_bytes: Mapped[int | None]
    # The number of choices that the request asks for. Recovery reads it without reading the request.
    choices: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))
    # `metadata` is SQLAlchemy's own name on a declarative class.
    job_metadata: Mapped[dict[str, str]] = mapped_column("metadata", JSON)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    # When the job was released to the queue. NULL while a dispatcher withholds it: then its missing message is not a
    # lost one, and redelivery ignores the job.
    dispatched_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.now())
    # When a worker withheld the queued job because its version could not read it.
    unreadable_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # Until then, the queued job cannot be claimed, because its upstream was busy. `deferred_since` is the time of the
    # first deferral since the last token.
    not_before: Mapped[datetime | None] = mapped_column(Timestamp)
    deferred_since: Mapped[datetime | None] = mapped_column(Timestamp)

    attempt: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    worker: Mapped[str | None] = mapped_column(Text)
    attempt_started_at: Mapped[datetime | None] = mapped_column(Timestamp)
    deaths: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    # See `shared.domain.suspects`. `deaths` are those that the job was charged with, `exposures` the others.
    suspect: Mapped[bool] = mapped_column(server_default=text("false"))
    exposures: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))

    start_before: Mapped[datetime | None] = mapped_column(Timestamp)
    finish_before: Mapped[datetime | None] = mapped_column(Timestamp)
    started_at: Mapped[datetime | None] = mapped_column(Timestamp)
    first_token_at: Mapped[datetime | None] = mapped_column(Timestamp)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)
    output: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    usage: Mapped[dict[str, int] | None] = mapped_column(JSONB(none_as_null=True))
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None] = mapped_column(Text)
    log: Mapped[str | None] = mapped_column(Text)
    deleted_at: Mapped[datetime | None] = mapped_column(Timestamp)

    # See `shared.domain.request_context`.
    request_id: Mapped[str | None] = mapped_column(Text)
    traceparent: Mapped[str | None] = mapped_column(Text)

    # The model or route that the client named, if another model serves it.
    requested_model: Mapped[str | None] = mapped_column(Text)
    # What the job is for, if it is not a client's request: `summary`, `count_tokens`, `judge`.
    kind: Mapped[str | None] = mapped_column(Text)
    # `shared.domain.decisions.Decisions`.
    decisions: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    # Identifies the answer in the response cache. Of the open jobs with the same key, one runs, the leader, and the
    # others follow it: they wait for its answer, and are never claimed.
    cache_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    # The group that the job follows: the id of its first leader. Followers keep it when another job takes the lead.
    follows: Mapped[str | None] = mapped_column(Text(collation="C"))
    # The group that the job leads, or has led, and its number among the leaders; NULL in the first leader. The one with
    # the highest number leads.
    leads: Mapped[str | None] = mapped_column(Text(collation="C"))
    lead_number: Mapped[int | None]
    # The job that this one followed until that ended without an answer. Its log is the beginning of this job's log; ''
    # if it is not.
    continues: Mapped[str | None] = mapped_column(Text(collation="C"))
    # The entry of the response cache that the job's answer replaces, if the job neither leads nor follows.
    entry_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    # The job that the response cache has answered this one with: it has the output and the log.
    answered_by: Mapped[str | None] = mapped_column(Text(collation="C"))

    # How much of it the request log keeps (`shared.domain.log_level`); NULL: its metadata.
    log_level: Mapped[str | None] = mapped_column(Text)
    # The webhook that the request names: `{"url": ..., "events": [...]}`.
    webhook: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    # The line of a batch's input file that this job runs; unique, so that no line runs twice.
    batch_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    batch_line: Mapped[int | None]

    __table_args__ = (
        Index("jobs_by_project", "project_id", "id"),
        Index("jobs_end_user", "project_id", "end_user", "id", postgresql_where=text("end_user IS NOT NULL")),
        Index("jobs_by_key", "key_id", "id"),  # for processes of the previous version; to be dropped
        Index("jobs_batch_line", "batch_id", "batch_line", unique=True, postgresql_where=text("batch_id IS NOT NULL")),
        Index(
            "jobs_open",
            "project_id",
            postgresql_include=["status", "priority", "request_bytes", "key_id"],
            postgresql_where=text("finished_at IS NULL AND batch_id IS NULL"),
        ),
        Index("jobs_queued", "model", "priority", "id", postgresql_where=text("status = 'queued'")),
        Index("jobs_deferred", "model", postgresql_where=text("not_before IS NOT NULL AND status = 'queued'")),
        Index("jobs_running", "worker", postgresql_where=text("status IN ('in_progress', 'cancelling')")),
        Index("jobs_unreadable", "unreadable_at", postgresql_where=text("unreadable_at IS NOT NULL")),
        Index("jobs_finished", "model", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("jobs_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index(
            "jobs_start_before",
            "start_before",
            postgresql_where=text("start_before IS NOT NULL AND status = 'queued'"),
        ),
        Index(
            "jobs_finish_before",
            "finish_before",
            postgresql_where=text("finish_before IS NOT NULL AND finished_at IS NULL"),
        ),
        Index(
            "jobs_leading",
            "cache_key",
            unique=True,
            postgresql_where=text("cache_key IS NOT NULL AND follows IS NULL AND finished_at IS NULL"),
        ),
        Index(
            "jobs_summaries",
            "project_id",
            text("((decisions -> 'context'::text) ->> 'conversation'::text)"),  # as PostgreSQL shows it
            postgresql_where=text("kind = 'summary'"),
        ),
        # In the order in which they take the lead.
        Index(
            "jobs_following",
            "follows",
            "priority",
            "id",
            postgresql_where=text("follows IS NOT NULL AND finished_at IS NULL"),
        ),
        Index("jobs_led", "leads", "lead_number", unique=True, postgresql_where=text("leads IS NOT NULL")),
        Index("jobs_answered_by", "answered_by", postgresql_where=text("answered_by IS NOT NULL")),
        # Jobs whose content is deleted soon after their end.
        Index(
            "jobs_unlogged",
            "finished_at",
            postgresql_where=text("log_level = 'none' AND finished_at IS NOT NULL AND deleted_at IS NULL"),
        ),
        # Jobs without an answer, or with a part of one: few among many that an operator looks for.
        Index(
            "jobs_unsuccessful",
            "status",
            "id",
            postgresql_where=text("status IN ('failed', 'cancelled', 'expired', 'incomplete')"),
        ),
        # Jobs that a worker or an engine was lost with.
        Index("jobs_rescued", "id", postgresql_where=text("deaths > 0 OR exposures > 0")),
        # Deleted jobs whose output and log may still be those of others.
        Index("jobs_kept", "id", postgresql_where=text("deleted_at IS NOT NULL AND log IS NOT NULL")),
        Index(
            "jobs_discarded",
            "id",
            postgresql_where=text(
                "kind = 'summary' AND (decisions -> 'context' ->> 'deleted') = 'true' AND deleted_at IS NULL"
            ),
        ),
    )


class CachedAnswerRow(Base):
    """An entry of the response cache: the answer of a job that has completed. The answer itself is in the job's row."""

    __tablename__ = "cached_answers"

    key: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    model: Mapped[str] = mapped_column(Text)
    job_id: Mapped[str] = mapped_column(Text(collation="C"))
    # Size of the answer: its output and its log.
    bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(Timestamp)
    hits: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    used_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (
        Index("cached_answers_project", "project_id", "model"),
        Index("cached_answers_job", "job_id"),
        Index("cached_answers_expiring", "expires_at"),
        Index("cached_answers_used", "used_at"),
    )


class ConsoleSessionRow(Base):
    """A session of the web console, or a one-time sign-in link that starts one. Both are of one API key.

    As of a key, only the SHA-256 of its random token is stored.
    """

    __tablename__ = "console_sessions"

    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    api_key_id: Mapped[int] = mapped_column(ForeignKey("api_keys.id"))
    is_link: Mapped[bool]
    expires_at: Mapped[datetime] = mapped_column(Timestamp)


class SecretRow(Base):
    """A secret that the processes of an installation share."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)


class SummaryRow(Base):
    """A summary of the first `messages` messages of a conversation; `sha256` is their digest.

    `conversation` identifies the summaries that were made of each other: it is in the decisions of the jobs that wrote
    or used them.
    """

    __tablename__ = "summaries"

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    sha256: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    messages: Mapped[int]
    summary: Mapped[str] = mapped_column(Text)
    job_id: Mapped[str] = mapped_column(Text(collation="C"))
    conversation: Mapped[str] = mapped_column(Text(collation="C"))
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    used_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (
        Index("summaries_used", "used_at"),
        Index("summaries_conversation", "project_id", "conversation"),
    )


class UpstreamCancellationRow(Base):
    """A request of an upstream that a worker of its model is to cancel: nothing will resume it."""

    __tablename__ = "upstream_cancellations"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[str] = mapped_column(Text(collation="C"))
    model: Mapped[str] = mapped_column(Text)
    # An `UpstreamState`.
    state: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    # From then on, any worker of the model may cancel it.
    due_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    tries: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))

    __table_args__ = (
        Index("upstream_cancellations_due", "model", "due_at"),
        Index("upstream_cancellations_job", "job_id"),
        Index("upstream_cancellations_created", "created_at"),
    )


class ResponseRow(Base):
    """The part of a response (`shared.domain.response`) that its job's row lacks; committed and deleted with it."""

    __tablename__ = "responses"

    job_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    asked: Mapped[dict[str, Any]] = mapped_column(JSON)
    input: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    previous_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    background: Mapped[bool]
    stored: Mapped[bool]

    __table_args__ = (Index("responses_unstored", "job_id", postgresql_where=text("NOT stored")),)


class IdempotencyKeyRow(Base):
    """A client's `Idempotency-Key`, and the job that its first use created."""

    __tablename__ = "idempotency_keys"

    # The primary key is that of the previous version; a later one replaces it by (project_id, key).
    key_id: Mapped[int] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    request_sha256: Mapped[str] = mapped_column(Text)
    job_id: Mapped[str] = mapped_column(Text(collation="C"))
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (
        Index("idempotency_keys_by_project", "project_id", "key", unique=True),
        Index("idempotency_keys_by_age", "created_at"),
        Index("idempotency_keys_job", "job_id"),
    )


class FileRow(Base):
    """A file; its content is a blob with the same name (`api.files.blobs`)."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    key_id: Mapped[int] = mapped_column(ForeignKey("api_keys.id"))
    purpose: Mapped[str] = mapped_column(Text)
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)

    __table_args__ = (
        Index("files_by_project", "project_id", "id"),
        Index("files_by_key", "key_id", "id"),  # as `jobs_by_key`
        Index("files_expiring", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    )


class BatchRow(Base):
    """A batch, and its progress."""

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    key_id: Mapped[int] = mapped_column(ForeignKey("api_keys.id"))
    endpoint: Mapped[str] = mapped_column(Text)
    input_file_id: Mapped[str] = mapped_column(Text(collation="C"))
    completion_window: Mapped[str] = mapped_column(Text)
    batch_metadata: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON(none_as_null=True))
    status: Mapped[str] = mapped_column(Text)
    # The status that follows `finalizing` or `cancelling`.
    ending: Mapped[str | None] = mapped_column(Text)
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    output_file_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    error_file_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    output_expires_after_s: Mapped[int | None]
    usage: Mapped[dict[str, int] | None] = mapped_column(JSONB(none_as_null=True))
    # The webhook that the request names, as in `jobs`.
    webhook: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(Timestamp)
    in_progress_at: Mapped[datetime | None] = mapped_column(Timestamp)
    finalizing_at: Mapped[datetime | None] = mapped_column(Timestamp)
    cancelling_at: Mapped[datetime | None] = mapped_column(Timestamp)
    ended_at: Mapped[datetime | None] = mapped_column(Timestamp)

    # Numbers of requests: in total, submitted as jobs, succeeded, and failed.
    total: Mapped[int] = mapped_column(server_default=text("0"))
    submitted: Mapped[int] = mapped_column(server_default=text("0"))
    completed: Mapped[int] = mapped_column(server_default=text("0"))
    failed: Mapped[int] = mapped_column(server_default=text("0"))
    # The position of the next line to submit.
    next_line: Mapped[int] = mapped_column(server_default=text("1"))
    next_offset: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # The jobs of all lines before this one have ended; how many of them succeeded and failed.
    settled_line: Mapped[int] = mapped_column(server_default=text("1"))
    settled_completed: Mapped[int] = mapped_column(server_default=text("0"))
    settled_failed: Mapped[int] = mapped_column(server_default=text("0"))

    # The process that takes the next step. From `due_at` on, any process may take it.
    driver: Mapped[str | None] = mapped_column(Text)
    due_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (
        Index("batches_by_project", "project_id", "id"),
        Index("batches_by_key", "key_id", "id"),  # as `jobs_by_key`
        Index("batches_due", "due_at", postgresql_where=text("ended_at IS NULL")),
        Index("batches_by_input", "input_file_id", postgresql_where=text("ended_at IS NULL")),
    )
