"""`/v1/chat/completions`, `/v1/completions`, `/v1/models`: synchronous calls, executed as jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from api.http.dependencies import CurrentRegistry
from api.http.json_body import BodyWork, CurrentBodyWork, JsonRoute
from api.http.large_json import JsonBody
from api.http.openapi import ERRORS, FAILED, NOT_FOUND, STREAMED, SUBMITTED
from api.http.submit_headers import Submission, SubmitHeaders
from api.jobs.dependencies import CurrentContextWindow, CurrentSyncCall, Jobs
from api.jobs.service import JobService
from api.jobs.sync_call import SyncCall
from api.keys.allowed_models import is_allowed, require_allowed
from api.keys.auth import CurrentPrincipal
from api.keys.principal import Principal
from api.openai.chunks import frames
from api.openai.completions import CHAT, TEXT, Dialect, completion_body
from api.openai.error_params import rename_failure
from api.openai.multi_prompt import submit_all
from api.openai.schemas import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    ModelList,
    ModelView,
)
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.job import Job
from shared.domain.new_job import NewJob

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)

IncludeCost = Annotated[
    bool,
    Header(
        alias="x-headrace-include-cost",
        description="Add `cost` to the usage, as `usage.include` does, but only if the response has the usage anyway.",
    ),
]


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={**ERRORS, **NOT_FOUND, **FAILED, 200: {"model": ChatCompletion, "content": STREAMED, **SUBMITTED}},
)
async def chat_completions(
    body: ChatCompletionRequest,
    principal: CurrentPrincipal,
    jobs: Jobs,
    call: CurrentSyncCall,
    request: Request,
    submission: Submission,
    work: CurrentBodyWork,
    include_cost: IncludeCost = False,
) -> Response:
    """Create a chat completion, streamed or not. The job is cancelled if the client disconnects."""
    principal = principal.acting_for(body.end_user)
    include_cost = include_cost or body.include_cost
    return await _complete(CHAT, body, principal, jobs, call, request, submission, work, include_cost=include_cost)


@router.post(
    "/completions",
    response_model=Completion,
    responses={**ERRORS, **NOT_FOUND, **FAILED, 200: {"model": Completion, "content": STREAMED, **SUBMITTED}},
)
async def completions(
    body: CompletionRequest,
    principal: CurrentPrincipal,
    jobs: Jobs,
    call: CurrentSyncCall,
    request: Request,
    submission: Submission,
    work: CurrentBodyWork,
    include_cost: IncludeCost = False,
) -> Response:
    """Create a completion of a prompt, streamed or not. The job is cancelled if the client disconnects."""
    principal = principal.acting_for(body.end_user)
    include_cost = include_cost or body.include_cost
    return await _complete(TEXT, body, principal, jobs, call, request, submission, work, include_cost=include_cost)


@router.get("/models", responses=ERRORS)
async def models(principal: CurrentPrincipal, registry: CurrentRegistry, context: CurrentContextWindow) -> ModelList:
    """List the models that the key may be used for, and then the routes."""
    views = {name: ModelView.of(model, context.length(name)) for name, model in registry.models.items()}
    routes = [ModelView.of_route(route.name, route, views) for route in registry.routes]
    return ModelList(data=[view for view in (*views.values(), *routes) if is_allowed(principal, registry, view.id)])


@router.get("/models/{name:path}", responses={**ERRORS, **NOT_FOUND})
async def model(
    name: str, principal: CurrentPrincipal, registry: CurrentRegistry, context: CurrentContextWindow
) -> ModelView:
    """Get a model or a route."""
    require_allowed(principal, registry, name)
    if (requested := registry.route(name)) is not None:
        views = {
            candidate: ModelView.of(registry.models[candidate], context.length(candidate))
            for candidate in requested.route.candidates
            if candidate in registry
        }
        return ModelView.of_route(name, requested.route, views)
    if name not in registry:
        raise NotFound(f"The model `{name}` does not exist.", param="model", code="model_not_found")
    return ModelView.of(registry[name], context.length(name))


async def _complete(
    dialect: Dialect,
    body: ChatCompletionRequest | CompletionRequest,
    principal: Principal,
    jobs: JobService,
    call: SyncCall,
    request: Request,
    submission: SubmitHeaders,
    work: BodyWork,
    *,
    include_cost: bool,
) -> Response:
    if body.stream:
        call.open_stream(body.model, principal.end_user)
    requests = [
        NewJob(
            owner=principal.owner,
            model=body.model,
            priority=body.priority,
            request=generate,
            metadata=body.metadata or {},
            start_within_s=submission.start_within_s,
            finish_within_s=submission.finish_within_s,
            options=submission.options(body),
            webhook=body.request_webhook,
        )
        for generate in await work.run(body.generate_requests)
    ]
    idempotency = await work.run(submission.idempotency, request.url.path, body)
    try:
        submitted, created = await submit_all(jobs, principal, requests, idempotency)
    except InvalidRequest as error:
        raise body.rename_param(error) from None

    async def completion(ended: Sequence[Job]) -> JsonBody:
        build = partial(completion_body, dialect, ended, include_cost=include_cost)
        return JsonBody(build, sum(job.output_size for job in ended))

    def stream() -> AsyncIterator[bytes]:
        return frames(
            dialect,
            submitted,
            [jobs.follow_submitted(job, created=created) for job in submitted],
            include_usage=body.include_usage,
            continuous_usage=body.continuous_usage,
            cost=partial(jobs.charge, submitted) if include_cost else None,
        )

    return await call.respond(
        submitted, created=created, stream=stream if body.stream else None, body=completion, rename=rename_failure
    )
