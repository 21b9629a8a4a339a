"""The tables of the request log: what is kept of ended jobs beyond their rows, in one partition per day.

Rows are written by the statement that ends a job (`shared.postgres.job_ends`), bodies afterwards. Partitions are
created and dropped by API processes; rows of a day without a partition are in the default one, so that no job ever
waits for a partition. The rows have no foreign keys: they outlive jobs, keys and projects.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, Date, Identity, Index, LargeBinary, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.postgres.tables import Base as Base  # migrations read all tables through this module
from shared.postgres.tables import Timestamp


class RequestLogRow(Base):
    """What is known of an ended job without its content. Jobs of level `none` have no row."""

    __tablename__ = "request_log"

    job_id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    ended_at: Mapped[datetime] = mapped_column(Timestamp, primary_key=True)
    project_id: Mapped[int] = mapped_column(BigInteger)
    key_id: Mapped[int] = mapped_column(BigInteger)
    end_user: Mapped[str | None] = mapped_column(Text)
    conversation: Mapped[str | None] = mapped_column(Text(collation="C"))
    request_id: Mapped[str | None] = mapped_column(Text)
    batch_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    kind: Mapped[str | None] = mapped_column(Text)
    # The model that served the job, and the model or route that the client named.
    model: Mapped[str] = mapped_column(Text)
    requested_model: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    first_token_at: Mapped[datetime | None] = mapped_column(Timestamp)
    input_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    # Whether another job's answer was given, by the response cache or to a follower.
    answered: Mapped[bool] = mapped_column(server_default=text("false"))
    # `metadata`, `redacted` or `full`: `shared.domain.log_level`.
    level: Mapped[str] = mapped_column(Text)
    # `none`, `pending`, `kept`, `lost`, `deleted` (with its job), or `erased`: what became of the body.
    body: Mapped[str] = mapped_column(Text, server_default=text("'none'"))
    # Whether the model refused to answer; NULL if it is not known. Who says so: `provider` or `classifier`.
    refused: Mapped[bool | None]
    refusal_source: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("request_log_project", "project_id", "ended_at", "job_id"),
        Index("request_log_time", "ended_at", "job_id"),
        Index("request_log_pending", "ended_at", postgresql_where=text("body = 'pending'")),
        Index(
            "request_log_end_user",
            "project_id",
            "end_user",
            "ended_at",
            "job_id",
            postgresql_where=text("end_user IS NOT NULL"),
        ),
        {"postgresql_partition_by": "RANGE (ended_at)"},
    )


class RequestBodyRow(Base):
    """The body of a row of the request log: request and answer, compressed and encrypted with the day's data key."""

    __tablename__ = "request_bodies"

    job_id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    ended_at: Mapped[datetime] = mapped_column(Timestamp, primary_key=True)
    project_id: Mapped[int] = mapped_column(BigInteger)
    data_key_id: Mapped[int] = mapped_column(BigInteger)
    # Nonce and ciphertext; the job's id is authenticated with them.
    body: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = ({"postgresql_partition_by": "RANGE (ended_at)"},)


class DataKeyRow(Base):
    """A data key of a day, encrypted with a master key. Without the row, the day's bodies cannot be read."""

    __tablename__ = "data_keys"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    day: Mapped[date] = mapped_column(Date, unique=True)
    # Identifies the master key, without revealing it.
    master: Mapped[str] = mapped_column(Text)
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())


class ExportRow(Base):
    """An export of the request log that somebody has made."""

    __tablename__ = "exports"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    # NULL: of all projects.
    project_id: Mapped[int | None] = mapped_column(BigInteger)
    # NULL: at the command line of the installation.
    key_id: Mapped[int | None] = mapped_column(BigInteger)
    filters: Mapped[dict[str, Any]] = mapped_column(JSONB)
    # The redaction level of its bodies: `redacted` or `full`.
    level: Mapped[str] = mapped_column(Text)
    rows: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    ended_at: Mapped[datetime | None] = mapped_column(Timestamp)

    __table_args__ = (Index("exports_project", "project_id", "id"),)
