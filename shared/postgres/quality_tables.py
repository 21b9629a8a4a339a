"""The tables of quality: feedback of users, labels of people, and judgements of models."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ForeignKey, Identity, Index, Numeric, SmallInteger, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.postgres.tables import Base as Base  # migrations read all tables through this module
from shared.postgres.tables import Timestamp


class FeedbackRow(Base):
    """What somebody thinks of an answer, or of a conversation: one value per metric and author, which may change.

    Model and route are copied from the job, so that reports need no job, which may have been deleted.
    """

    __tablename__ = "feedback"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    # One of both.
    job_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    conversation: Mapped[str | None] = mapped_column(Text(collation="C"))
    metric: Mapped[str] = mapped_column(Text)
    # The end user or other person, as the client names them; '' if it does not.
    author: Mapped[str] = mapped_column(Text, server_default=text("''"))
    # A boolean, a number or a string.
    value: Mapped[Any] = mapped_column(JSONB)
    comment: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'::text[]"))
    # `key`, `token` (a browser with an answer's token) or `console`.
    source: Mapped[str] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    requested_model: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (
        Index(
            "feedback_of",
            "project_id",
            "job_id",
            "conversation",
            "metric",
            "author",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
        Index("feedback_time", "project_id", "created_at"),
        Index("feedback_created", "created_at", "id"),
        Index("feedback_job", "job_id"),
    )


class EvalRunRow(Base):
    """A series of judgements: the live sampling of a rubric, or a run over a set."""

    __tablename__ = "eval_runs"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    # `live`, `set` or `pairwise`.
    kind: Mapped[str] = mapped_column(Text)
    # NULL: of the installation.
    project_id: Mapped[int | None] = mapped_column(BigInteger)
    rubric: Mapped[str] = mapped_column(Text)
    prompt_version: Mapped[str] = mapped_column(Text)
    judge_model: Mapped[str] = mapped_column(Text)
    # The identity and the scale of the rubric; the name and SHA-256 of the set, its models, and how many judgements are
    # expected; of live sampling, how far the log was read, and until when it is paused.
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    ended_at: Mapped[datetime | None] = mapped_column(Timestamp)


class JudgementRow(Base):
    """What a judge says of an answer, or of two answers in one order."""

    __tablename__ = "judgements"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_id: Mapped[str] = mapped_column(Text(collation="C"), ForeignKey("eval_runs.id", ondelete="CASCADE"))
    # The judged job, or the item of a set.
    item: Mapped[str] = mapped_column(Text(collation="C"))
    project_id: Mapped[int | None] = mapped_column(BigInteger)
    model: Mapped[str] = mapped_column(Text)
    requested_model: Mapped[str | None] = mapped_column(Text)
    # 0: of one answer. Of two: 1 if the first model's answer was shown first, else 2.
    position: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    # The job of the judge.
    judge_job_id: Mapped[str | None] = mapped_column(Text(collation="C"), unique=True)
    # `pending`, `scored`, `unparsable`, `failed`, or `unanswered`: a model has not answered the item of a set.
    state: Mapped[str] = mapped_column(Text, server_default=text("'pending'"))
    # When the item of a set was erased; the state is `failed` then.
    erased_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # On the rubric's scale; of two answers: 1 if the first model's is better, 0 if the second's is, 0.5 if neither.
    score: Mapped[Decimal | None] = mapped_column(Numeric)
    reason: Mapped[str | None] = mapped_column(Text)
    # When the judged answer was given.
    answered_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    ended_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # When a pending one is to be submitted, or its job to be looked at.
    due_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (
        Index("judgements_of", "run_id", "item", "position", "model", unique=True),
        Index("judgements_pending", "due_at", postgresql_where=text("state = 'pending'")),
        Index("judgements_states", "run_id", "state"),
        Index("judgements_project", "project_id", "answered_at"),
        Index("judgements_answered", "answered_at"),
        # What judges wrote, which is deleted when the answer is old.
        Index("judgements_reasons", "answered_at", postgresql_where=text("reason IS NOT NULL")),
        Index("judgements_item", "item"),
    )


class LabelRow(Base):
    """What a person says of an answer by a rubric: what judges are compared with."""

    __tablename__ = "labels"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    rubric: Mapped[str] = mapped_column(Text)
    item: Mapped[str] = mapped_column(Text(collation="C"))
    project_id: Mapped[int | None] = mapped_column(BigInteger)
    # The id of the key that the person signed in with; a name of it in labels of earlier versions.
    labeller: Mapped[str] = mapped_column(Text)
    score: Mapped[Decimal] = mapped_column(Numeric)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (Index("labels_of", "rubric", "item", "labeller", unique=True),)
