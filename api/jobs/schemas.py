"""Schemas of the native jobs API."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from api.http.end_user import EndUserParameters
from api.http.large_json import JsonBody
from api.http.members import MemberRules
from api.http.money import dollars
from api.http.pagination import PageView, V
from api.http.submit_headers import SubmitHeaders
from api.jobs import dialects
from api.jobs.parameters import DEFAULT_PRIORITY as DEFAULT_PRIORITY
from api.jobs.parameters import (
    MAX_METADATA,
    ChatMessage,
    ChatParameters,
    Logprobs,
    MetadataKey,
    MetadataValue,
    check_prompts,
    sampling_of,
)
from api.jobs.search_store import JobPage
from shared.domain.decisions import CacheDecision, ContextDecision, RouteDecision, TokenLimitsDecision
from shared.domain.job import Choice, JobStatus, JobSummary, output_size
from shared.domain.logprobs import entry_object, prompt_entry_object
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import (
    MAX_MESSAGES,
    ChatOptions,
    GenerateRequest,
    TokenId,
    contradiction,
)
from shared.runtime.chunked_json import Mapped


def _optional(description: str) -> Any:
    """A member that is absent if it is None."""
    return Field(None, description=description, exclude_if=lambda value: value is None)


class JobCreate(EndUserParameters, ChatParameters):
    """A job to submit: `messages` (rendered by the model's chat template) or a raw `prompt`, and parameters."""

    member_rules: ClassVar[MemberRules] = dialects.JOB
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
                {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": "Name three bridges."}],
                    "max_tokens": 32,
                    "user": "user-17",
                    "cache": {"ttl": 86400, "scope": "user"},
                    "context": {"strategy": "sliding_window", "trigger": 0.9, "target": 0.5},
                    "webhook": "https://hooks.example.com/headrace",
                    "webhook_events_filter": ["job.failed"],
                },
            ]
        }
    )

    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    prompt: str | Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(
        None, description="A string or a list of token ids."
    )
    logprobs: Logprobs | None = Field(
        None,
        description="Return log probabilities of the output tokens and of this many most likely alternatives for each.",
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=MAX_METADATA)

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        if prompt is not None:
            check_prompts([prompt])
        return prompt

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise contradiction("messages", "give exactly one of `messages` and `prompt`")
        if self.messages is None and (options := self.model_fields_set & ChatOptions.model_fields.keys()):
            raise contradiction(min(options), "this requires `messages`; a raw `prompt` has no chat template")
        return self

    def new_job(self, owner: Owner, request: GenerateRequest, submission: SubmitHeaders) -> NewJob:
        """The job for the request that `generate_request` built."""
        return NewJob(
            owner=owner,
            model=self.model,
            priority=self.priority,
            request=request,
            metadata=self.metadata,
            start_within_s=submission.start_within_s,
            finish_within_s=submission.finish_within_s,
            options=submission.options(self),
            webhook=self.request_webhook,
        )

    def generate_request(self) -> GenerateRequest:
        """Build the engine request."""
        messages = None
        if self.messages is not None:
            messages = [item.message(f"messages[{index}]") for index, item in enumerate(self.messages)]
        return GenerateRequest(
            messages=messages,
            prompt=self.prompt,
            sampling=sampling_of(self),
            priority=self.priority,
            chat=self.chat_options(),
            structured_outputs=self.structure(),
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            extra_body=self.extra_body,
            prompt_cache_key=self.prompt_cache_key,
        )


class ToolCallView(BaseModel):
    """A function call by the model; `arguments` is JSON, as generated."""

    id: str
    name: str
    arguments: str


class ChoiceView(BaseModel):
    """One of the job's `n` outputs."""

    index: int
    text: str
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] | None = Field(
        description="`content_filter`: a filter of the provider ended the output. Null if a cancel or a failure did."
    )
    stop_reason: int | str | None = Field(None, description="The stop string or stop token that ended it.")
    reasoning: str | None = Field(None, description="The reasoning that precedes the text.")
    tool_calls: list[ToolCallView] = Field(default_factory=list)
    opaque: list[str] = Field(
        default_factory=list,
        description="Data of the model's provider, such as signatures of its reasoning, to send back as `opaque` of the"
        " message in the next turn. Absent if there is none.",
    )
    refused: bool = Field(
        False, description="The provider says that the text is a refusal to answer. Absent if it does not."
    )
    logprobs: list[dict[str, Any]] | None = Field(
        None, description="For each token: `token`, `logprob`, `bytes`, and in `top` the most likely alternatives."
    )
    prompt_logprobs: list[dict[str, Any] | None] | None = Field(
        None, description="For each prompt token: the most likely tokens by token id. Only in the first choice."
    )


class UsageView(BaseModel):
    """Token counts of the job."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = Field(description="Prompt tokens found in the engine's prefix cache.")
    reasoning_tokens: int = Field(
        0,
        description="Completion tokens that are reasoning, as the upstream reports them. Absent if it reports none.",
        exclude_if=lambda tokens: not tokens,
    )
    cache_write_tokens: int = Field(
        0,
        description="Prompt tokens that the upstream has stored in its cache, as it reports them. Absent if none.",
        exclude_if=lambda tokens: not tokens,
    )
    cache_write_1h_tokens: int = Field(
        0,
        description="The part of `cache_write_tokens` that the upstream keeps for an hour. Absent if none.",
        exclude_if=lambda tokens: not tokens,
    )
    cost: float | None = _optional(
        "What the job is charged, in US dollars. Absent if a part has no price, while the job runs, and in lists."
    )


class TimingsView(BaseModel):
    """Milliseconds since submit; null if not reached."""

    queued_ms: int | None = Field(description="Until a worker claimed the job.")
    ttft_ms: int | None = Field(description="Until the first token.")
    total_ms: int | None = Field(description="Until the end.")


class JobErrorView(BaseModel):
    """Why the job did not complete."""

    code: str
    message: str
    param: str | None = _optional("The parameter that an `invalid_request` is about. Absent if there is none.")


class AttemptView(BaseModel):
    """One execution of the job by a worker."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    tokens: int
    outcome: str | None = Field(description="Null while it runs.")
    model: str | None = _optional("The model that ran. Absent if an earlier version recorded the attempt.")
    error: str | None = _optional(
        "Why the model could not serve the job, if another one took over (outcome `rerouted`). Absent otherwise."
    )


class JobSummaryView(BaseModel):
    """A job without its output."""

    id: str
    object: Literal["job"] = "job"
    model: str
    status: JobStatus
    priority: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    start_before: datetime | None = Field(
        description="From `Start-Before`: the job expires if it has not started by then."
    )
    finish_before: datetime | None = Field(
        description="From `Cancel-After`: the job is cancelled if it has not finished by then."
    )
    not_before: datetime | None = _optional(
        "While it is queued because its upstream was busy, or because of a rate limit that is soft: it does not start"
        " earlier. Absent otherwise."
    )
    queue_position: int | None = Field(None, description="Number of jobs served before this one, while it is queued.")
    eta_s: float | None = Field(
        None, description="Estimated seconds until it starts, from the model's recent jobs; null if unknown."
    )
    queue_paused: Literal[True] | None = _optional(
        "While it is queued and an operator has paused the queue of its model: it waits until that is resumed. Lists"
        " do not show it. Absent otherwise."
    )
    requested_model: str | None = _optional(
        "The route that the request named, if one chose the model. Absent otherwise."
    )
    kind: str | None = _optional(
        "The purpose of a job that the server submitted itself: `summary`, `count_tokens`. Absent otherwise."
    )
    route: RouteDecision | None = _optional("Why the route chose this model. Absent without a route.")
    cache: CacheDecision | None = _optional(
        "How the response cache took part in the answer. Absent if the cache is off."
    )
    context: ContextDecision | None = _optional("How the conversation was shortened. Absent if it was not.")
    token_limits: TokenLimitsDecision | None = _optional(
        "How a limit or a default changed `max_tokens`. Absent if none did."
    )
    estimated_tokens: int | None = Field(
        None,
        description="The estimate of the prompt's tokens, if a limit or the context needed them and they could not be"
        " counted. Absent otherwise.",
        exclude_if=lambda tokens: tokens is None,
    )
    usage: UsageView | None
    timings: TimingsView
    error: JobErrorView | None
    attempts: list[AttemptView]
    metadata: dict[str, str]
    user: str | None
    status_url: str
    stream_url: str
    cancel_url: str


class JobView(JobSummaryView):
    """A job."""

    output_text: str | None = Field(description="The first choice's text.")
    output: list[ChoiceView]


class JobPageView(PageView[V]):
    """A page of jobs, newest first. `after=last_id` selects the next page."""

    partial: bool = Field(
        False,
        description="The search stopped after a second, before it had found a full page or had seen all jobs. It"
        " continues after `last_id`, which may not be in `data` then.",
    )

    @classmethod
    def of_search(cls, page: JobPage, data: Sequence[V]) -> Self:
        """Build the view of a page; `data` are the views of its jobs."""
        last = page.jobs[-1].id if page.jobs else None
        return cls(
            data=list(data),
            first_id=page.jobs[0].id if page.jobs else None,
            last_id=page.cursor or last,
            has_more=page.cursor is not None,
            partial=page.partial,
        )


class JobList(JobPageView[JobSummaryView]):
    """A page of jobs without their outputs."""


class JobListWithOutput(JobPageView[JobView]):
    """A page of jobs with their outputs."""


class JobDeleted(BaseModel):
    """A job whose input and output have been deleted."""

    id: str
    object: Literal["job.deleted"] = "job.deleted"
    deleted: Literal[True] = True


def summary_view(
    job: JobSummary, *, position: int | None = None, eta_s: float | None = None, paused: bool = False
) -> JobSummaryView:
    """Convert a job to its API view, without its output."""
    url = f"/v1/jobs/{job.id}"
    usage = job.usage
    return JobSummaryView(
        id=job.id,
        model=job.model,
        status=job.status,
        priority=job.priority,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        start_before=job.start_before,
        finish_before=job.finish_before,
        not_before=job.not_before if job.status is JobStatus.QUEUED else None,
        queue_position=position,
        eta_s=eta_s,
        queue_paused=True if paused else None,
        requested_model=job.requested_model,
        kind=job.kind,
        route=job.decisions.route,
        cache=job.decisions.cache,
        context=job.decisions.context,
        token_limits=job.decisions.token_limits,
        estimated_tokens=job.decisions.estimated_tokens,
        usage=UsageView(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            cost=dollars(job.charge),
        )
        if usage is not None
        else None,
        timings=TimingsView(**job.timings()),
        error=JobErrorView.model_validate(job.error, from_attributes=True) if job.error else None,
        attempts=[AttemptView.model_validate(item, from_attributes=True) for item in job.attempts],
        metadata=job.metadata,
        user=job.owner.end_user,
        status_url=url,
        stream_url=f"{url}/stream",
        cancel_url=f"{url}/cancel",
    )


def with_output(view: JobSummaryView, output: Sequence[Choice]) -> JsonBody:
    """The body of a `JobView`. Log probabilities are converted while they are encoded."""

    def build() -> dict[str, Any]:
        return {
            **view.model_dump(mode="json"),
            "output_text": output[0].text if output else None,
            "output": [_choice_view(choice) for choice in output],
        }

    return JsonBody(build, output_size(output))


def _choice_view(choice: Choice) -> dict[str, Any]:
    """The members of a `ChoiceView`."""
    logprobs, prompt_logprobs = choice.logprobs, choice.prompt_logprobs
    opaque = {"opaque": [part.encoded() for part in choice.opaque]} if choice.opaque else {}
    refused = {"refused": True} if choice.refused else {}
    return {
        **opaque,
        **refused,
        "index": choice.index,
        "text": choice.text,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "reasoning": choice.reasoning,
        "tool_calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in choice.tool_calls],
        "logprobs": None if logprobs is None else Mapped(logprobs, entry_object),
        "prompt_logprobs": None if prompt_logprobs is None else Mapped(prompt_logprobs, prompt_entry_object),
    }
