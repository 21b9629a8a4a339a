"""The shapes of native jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from shared.job import Job, JobStatus
from shared.sampling import GenerateRequest, Message, Sampling, contradiction

DEFAULT_PRIORITY = 3
MAX_METADATA = 16

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class JobCreate(Sampling):
    """A job to submit: `messages` (rendered by the model's chat template) or a raw `prompt`, and sampling."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": "Name three rivers."}],
                    "max_tokens": 64,
                    "temperature": 0,
                },
                {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 32, "seed": 7},
            ]
        }
    )

    model: str = Field(min_length=1, description="A name from `GET /v1/models`.")
    messages: list[Message] | None = Field(None, min_length=1)
    prompt: str | None = Field(None, min_length=1)
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=9, description="Lower is served first, as in vLLM.")
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=MAX_METADATA)

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise contradiction("messages", "give exactly one of `messages` and `prompt`")
        return self

    def generate_request(self) -> GenerateRequest:
        """What the engine is asked for."""
        return GenerateRequest(
            messages=self.messages, prompt=self.prompt, sampling=sampling_of(self), priority=self.priority
        )


def sampling_of(request: Sampling) -> Sampling:
    """The sampling parameters of a larger request, and nothing else of it."""
    return Sampling.model_validate(
        request.model_dump(include=set(Sampling.model_fields), exclude_unset=True, exclude_none=True)
    )


class ChoiceView(BaseModel):
    """One generated text."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = Field(description="None: it was cut, by a cancel or a failure.")


class UsageView(BaseModel):
    """Tokens of the job."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = Field(description="Prompt tokens that the engine's prefix cache held.")


class TimingsView(BaseModel):
    """Milliseconds since submit; null where not reached."""

    queued_ms: int | None = Field(description="Until a worker took the job.")
    ttft_ms: int | None = Field(description="Until the first token.")
    total_ms: int | None = Field(description="Until the end.")


class JobErrorView(BaseModel):
    """Why the job did not complete."""

    code: str
    message: str


class AttemptView(BaseModel):
    """One worker's try at the job."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    tokens: int
    outcome: str | None = Field(description="Null while it runs.")


class JobView(BaseModel):
    """A job."""

    id: str
    object: Literal["job"] = "job"
    model: str
    status: JobStatus
    priority: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    start_before: datetime | None = Field(description="From `Start-Before`: expired, if not started by then.")
    finish_before: datetime | None = Field(description="From `Cancel-After`: cancelled, if not finished by then.")
    queue_position: int | None = Field(None, description="Jobs served before this one, while it is queued.")
    eta_s: float | None = Field(None, description="Seconds until it starts, from the last minute's rate.")
    output_text: str | None = Field(description="The first choice's text.")
    output: list[ChoiceView]
    usage: UsageView | None
    timings: TimingsView
    error: JobErrorView | None
    attempts: list[AttemptView]
    metadata: dict[str, str]
    status_url: str
    stream_url: str
    cancel_url: str

    @field_validator("output", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return list(value)


class JobList(BaseModel):
    """A page of jobs, newest first. `after=last_id` gives the next."""

    object: Literal["list"] = "list"
    data: list[JobView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class JobDeleted(BaseModel):
    """A job whose input and output are forgotten."""

    id: str
    object: Literal["job.deleted"] = "job.deleted"
    deleted: Literal[True] = True


def job_view(job: Job, *, position: int | None = None, eta_s: float | None = None) -> JobView:
    """A job as the API shows it."""
    url = f"/v1/jobs/{job.id}"
    usage = job.usage
    return JobView(
        id=job.id,
        model=job.model,
        status=job.status,
        priority=job.priority,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        start_before=job.start_before,
        finish_before=job.finish_before,
        queue_position=position,
        eta_s=eta_s,
        output_text=job.output[0].text if job.output else None,
        output=[ChoiceView.model_validate(choice, from_attributes=True) for choice in job.output],
        usage=UsageView(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        )
        if usage is not None
        else None,
        timings=TimingsView(**job.timings()),
        error=JobErrorView(code=job.error.code, message=job.error.message) if job.error else None,
        attempts=[AttemptView.model_validate(item, from_attributes=True) for item in job.attempts],
        metadata=job.metadata,
        status_url=url,
        stream_url=f"{url}/stream",
        cancel_url=f"{url}/cancel",
    )
