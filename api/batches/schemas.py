"""Schemas of OpenAI's Batch API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.batches.batch import Batch, BatchStatus
from api.files.schemas import ExpiresAfter
from api.http.pagination import PageView
from api.http.webhook_parameters import Patterns, WebhookParameters, event_patterns, events_filter
from api.jobs.parameters import MAX_METADATA, MetadataKey, MetadataValue
from shared.domain.webhook_events import EventType

OF_BATCHES = tuple(one for one in EventType if one.group == "batch.*")


class BatchCreate(WebhookParameters):
    """A batch to run: an uploaded file of requests for one endpoint."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "input_file_id": "file-0199b1c2d3e47f5a8b6c7d8e9f0a1b2c",
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                },
                {
                    "input_file_id": "file-0199b1c2d3e47f5a8b6c7d8e9f0a1b2c",
                    "endpoint": "/v1/responses",
                    "completion_window": "90m",
                    "webhook": "https://hooks.example.com/headrace",
                    "webhook_events_filter": ["batch.*"],
                },
            ]
        },
    )

    input_file_id: str = Field(description="The id of a file with purpose `batch`.")
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: str = Field(
        description="For example `24h` or `90m`; at most 30 days. Requests that have not ended by then expire."
    )
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=MAX_METADATA)
    output_expires_after: ExpiresAfter | None = Field(None, description="Retention of the result files.")
    webhook_events_filter: Annotated[Patterns, event_patterns(OF_BATCHES)] | None = events_filter("batch.completed")


class RequestCounts(BaseModel):
    """Numbers of requests, as last counted."""

    total: int
    completed: int
    failed: int


class BatchErrorView(BaseModel):
    """An error in a line of the input."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    """The first 100 errors in the input."""

    object: Literal["list"] = "list"
    data: list[BatchErrorView]


class InputDetails(BaseModel):
    """Prompt tokens found in the prefix cache."""

    cached_tokens: int


class OutputDetails(BaseModel):
    """Reasoning tokens that upstreams have reported."""

    reasoning_tokens: int = 0


class BatchUsageView(BaseModel):
    """Total tokens of all requests, once the batch has ended."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchView(BaseModel):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsageView | None
    metadata: dict[str, str] | None


class BatchList(PageView[BatchView]):
    """A page of batches, newest first. `after=last_id` selects the next page."""


def batch_view(batch: Batch) -> BatchView:
    """Convert a batch to its API view."""

    def seconds(time: datetime | None) -> int | None:
        return None if time is None else int(time.timestamp())

    def ended(status: BatchStatus) -> int | None:
        return seconds(batch.ended_at) if batch.status is status else None

    usage = batch.usage
    return BatchView(
        id=batch.id,
        endpoint=batch.endpoint,
        errors=BatchErrors(data=[BatchErrorView.model_validate(error, from_attributes=True) for error in batch.errors])
        if batch.errors
        else None,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=int(batch.created_at.timestamp()),
        in_progress_at=seconds(batch.in_progress_at),
        expires_at=int(batch.expires_at.timestamp()),
        finalizing_at=seconds(batch.finalizing_at),
        completed_at=ended(BatchStatus.COMPLETED),
        failed_at=ended(BatchStatus.FAILED),
        expired_at=ended(BatchStatus.EXPIRED),
        cancelling_at=seconds(batch.cancelling_at),
        cancelled_at=ended(BatchStatus.CANCELLED),
        request_counts=RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
        usage=BatchUsageView(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=usage.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=usage.reasoning_tokens),
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )
        if usage is not None
        else None,
        metadata=batch.metadata,
    )
