"""Logged requests and exports as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.http.pagination import PageView
from api.keys.store import format_id
from api.request_log.bodies import Body, Missing
from api.requests.export_store import Export, format_export_id
from api.requests.store import LoggedRequest, RequestPage

_EXAMPLE: dict[str, Any] = {
    "id": "job_01a22a89f246739a8c44c59745894a6a",
    "object": "request",
    "created_at": "2026-11-30T14:02:11.482Z",
    "ended_at": "2026-11-30T14:02:12.986Z",
    "project": "shop",
    "key": "key_12",
    "user": "ann",
    "conversation": None,
    "request_id": "req_4f1c7f2f8d3b4c5a9e1d2f3a",
    "batch": None,
    "kind": None,
    "model": "smollm2",
    "route": "auto",
    "status": "completed",
    "error_code": None,
    "first_token_ms": 184,
    "total_ms": 1504,
    "input_tokens": 42,
    "output_tokens": 128,
    "answered_by_other": False,
    "level": "redacted",
    "body": "kept",
    "refused": False,
    "refusal_source": "classifier",
    "feedback": [{"metric": "rating", "value": "up", "tags": []}],
    "scores": [{"rubric": "helpfulness", "score": 4.0, "judge_model": "large"}],
}


class FeedbackValue(BaseModel):
    """What somebody thinks of an answer."""

    metric: str
    value: bool | float | str
    tags: list[str]


class ScoreView(BaseModel):
    """What a judge says of an answer."""

    rubric: str
    score: float
    judge_model: str


class RequestView(BaseModel):
    """A request of the log, without what was asked and answered."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str = Field(description="The id of the job.")
    object: Literal["request"] = "request"
    created_at: datetime
    ended_at: datetime
    project: str | None = Field(description="Null if the project was deleted.")
    key: str = Field(description="The id of the key that submitted it.")
    user: str | None = Field(description="The end user that the request named.")
    conversation: str | None
    request_id: str | None = Field(description="`x-request-id` of the HTTP request.")
    batch: str | None = Field(description="The batch that it is a line of.")
    kind: str | None = Field(description="What it was for, if it was not a client's request.")
    model: str = Field(description="The model that answered.")
    route: str = Field(description="The model or route that the request named.")
    status: str
    error_code: str | None
    first_token_ms: int | None
    total_ms: int
    input_tokens: int | None
    output_tokens: int | None
    answered_by_other: bool = Field(description="It got the answer of another job, so that no model ran.")
    level: str = Field(description="What the log keeps of it: `metadata`, `redacted` or `full`.")
    body: str = Field(
        description="What became of the request and the answer: `kept`, `none` (the level keeps none), `pending`,"
        " `lost`, `deleted` (with its job), `erased` or `expired`."
    )
    refused: bool | None = Field(description="Whether the model has refused to answer; null if that is not known.")
    refusal_source: str | None = Field(description="Who says so: `provider` or `classifier`.")
    feedback: list[FeedbackValue]
    scores: list[ScoreView]

    @classmethod
    def of(cls, row: LoggedRequest, **more: Any) -> Self:
        return cls(**values_of(row), **more)


def values_of(row: LoggedRequest) -> dict[str, Any]:
    """The members of the view of a request."""
    return {
        "id": row.job_id,
        "created_at": row.created_at,
        "ended_at": row.ended_at,
        "project": row.project,
        "key": format_id(row.key_id),
        "user": row.end_user,
        "conversation": row.conversation,
        "request_id": row.request_id,
        "batch": row.batch_id,
        "kind": row.kind,
        "model": row.model,
        "route": row.requested_model,
        "status": row.status,
        "error_code": row.error_code,
        "first_token_ms": _milliseconds(row.created_at, row.first_token_at),
        "total_ms": _milliseconds(row.created_at, row.ended_at),
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "answered_by_other": row.answered,
        "level": row.level,
        "body": row.body,
        "refused": row.refused,
        "refusal_source": row.refusal_source,
        "feedback": [{"metric": one.metric, "value": one.value, "tags": list(one.tags)} for one in row.feedback],
        "scores": [{"rubric": one.rubric, "score": one.score, "judge_model": one.judge_model} for one in row.scores],
    }


def _milliseconds(start: datetime, end: datetime | None) -> int | None:
    return None if end is None else round((end - start).total_seconds() * 1000)


class RequestList(PageView[RequestView]):
    """A page of requests, newest first. `after=last_id` selects the next page."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "list",
                    "data": [_EXAMPLE],
                    "first_id": f"{_EXAMPLE['id']}@1796047332986000",
                    "last_id": f"{_EXAMPLE['id']}@1796047332986000",
                    "has_more": True,
                    "partial": False,
                }
            ]
        }
    )

    first_id: str | None = Field(description="The place of the first request in the log.")
    last_id: str | None = Field(description="The place after which the next page begins: `after` of its request.")
    partial: bool = Field(
        False,
        description="The search stopped after it had read 20,000 requests (8,000 with conditions about feedback or"
        " scores), before it had found a full page. It continues after `last_id`.",
    )

    @classmethod
    def of_page(cls, page: RequestPage) -> Self:
        found = page.requests
        last = page.cursor or (found[-1].cursor if found else None)
        return cls(
            data=[RequestView.of(row) for row in found],
            first_id=str(found[0].cursor) if found else None,
            last_id=None if last is None else str(last),
            has_more=page.cursor is not None,
            partial=page.partial,
        )


class BodyView(BaseModel):
    """What was asked and answered, as far as the log keeps it."""

    level: str = Field(description="`redacted`: personal data and secrets are replaced. `full`: nothing is.")
    request: dict[str, Any] = Field(description="The request, in the neutral form in which jobs have it.")
    output: list[dict[str, Any]] = Field(description="The choices of the answer.")
    metadata: dict[str, str] = Field(description="The client's metadata of the job.")
    error_message: str | None
    redactions: dict[str, int] = Field(description="How much was replaced, by kind.")


class MissingView(BaseModel):
    """Why there is no body."""

    reason: str = Field(
        description="`level` (it keeps none), `pending` (not written yet), `lost`, `deleted` (with its job), `erased`,"
        " `expired`, `no_key` or `damaged`."
    )
    message: str


class OpenedRequest(RequestView):
    """A request, with what was asked and answered."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_EXAMPLE,
                    "content": {
                        "level": "redacted",
                        "request": {"messages": [{"role": "user", "content": "Write to [email]."}]},
                        "output": [{"index": 0, "text": "Dear ...", "finish_reason": "stop"}],
                        "metadata": {},
                        "error_message": None,
                        "redactions": {"email": 1},
                    },
                    "missing": None,
                }
            ]
        }
    )

    content: BodyView | None = Field(description="Null if there is none: `missing` says why.")
    missing: MissingView | None

    @classmethod
    def of_body(cls, row: LoggedRequest, body: Body | Missing) -> Self:
        if isinstance(body, Missing):
            missing = MissingView(reason=body.reason.value, message=body.explanation)
            return cls.of(row, content=None, missing=missing)
        content = BodyView(
            level=body.level.value,
            request=body.request,
            output=body.output,
            metadata=body.metadata,
            error_message=body.error_message,
            redactions=body.redactions,
        )
        return cls.of(row, content=content, missing=None)


class ExportView(BaseModel):
    """An export of the request log."""

    id: str
    object: Literal["export"] = "export"
    project: str | None = Field(description="The project whose requests it has; null: all, or one that was deleted.")
    key: str | None = Field(description="The id of the key that made it.")
    filters: dict[str, Any] = Field(description="The conditions, the file format, and the sample.")
    level: str = Field(description="At most this much of the bodies is in it: `redacted` or `full`.")
    rows: int | None = Field(
        description="The requests that were sent; null while it is under way, and if its process was killed."
    )
    created_at: datetime
    ended_at: datetime | None = Field(description="Null unless it is complete.")

    @classmethod
    def of(cls, export: Export) -> Self:
        return cls(
            id=format_export_id(export.id),
            project=export.project,
            key=None if export.key_id is None else format_id(export.key_id),
            filters=dict(export.filters),
            level=export.level,
            rows=export.rows,
            created_at=export.created_at,
            ended_at=export.ended_at,
        )


class ExportList(PageView[ExportView]):
    """A page of exports, newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "list",
                    "data": [
                        {
                            "id": "export_12",
                            "object": "export",
                            "project": "shop",
                            "key": "key_12",
                            "filters": {"models": ["smollm2"], "format": "jsonl", "sample": 500, "seed": 7},
                            "level": "redacted",
                            "rows": 500,
                            "created_at": "2026-11-30T14:02:11.482Z",
                            "ended_at": "2026-11-30T14:02:14.071Z",
                        }
                    ],
                    "first_id": "export_12",
                    "last_id": "export_12",
                    "has_more": False,
                }
            ]
        }
    )
