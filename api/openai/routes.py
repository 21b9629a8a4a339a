"""`/v1/chat/completions`, `/v1/completions`, `/v1/models`: jobs, asked for synchronously."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.http.json_body import JsonRoute
from api.http.openapi import ERRORS, FAILED, NOT_FOUND, STREAMED
from api.http.sse import event_stream
from api.http.submit_headers import Submission, SubmitHeaders
from api.jobs.disconnect import all_while_connected, cancel_on_disconnect
from api.keys.auth import CurrentKey
from api.openai.chunks import frames
from api.openai.completions import CHAT, TEXT, Dialect, completion_body
from api.openai.multi_prompt import submit_all
from api.openai.schemas import (
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    ModelList,
    ModelView,
)
from api.resources import CurrentResources, Resources
from shared.domain.errors import NotFound, UpstreamFailed
from shared.domain.job import JobStatus
from shared.postgres.job_store import NewJob

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={**ERRORS, **NOT_FOUND, **FAILED, 200: {"model": ChatCompletion, "content": STREAMED}},
)
async def chat_completions(
    body: ChatCompletionRequest,
    key_id: CurrentKey,
    held: CurrentResources,
    request: Request,
    submission: Submission,
) -> Response:
    """Answer a conversation, streamed or not. The job is cancelled when the client leaves."""
    return await _complete(CHAT, body, key_id, held, request, submission)


@router.post(
    "/completions",
    response_model=Completion,
    responses={**ERRORS, **NOT_FOUND, **FAILED, 200: {"model": Completion, "content": STREAMED}},
)
async def completions(
    body: CompletionRequest,
    key_id: CurrentKey,
    held: CurrentResources,
    request: Request,
    submission: Submission,
) -> Response:
    """Continue a prompt, streamed or not. The job is cancelled when the client leaves."""
    return await _complete(TEXT, body, key_id, held, request, submission)


@router.get("/models", responses=ERRORS)
async def models(_: CurrentKey, held: CurrentResources) -> ModelList:
    """The models that are served."""
    return ModelList(
        data=[ModelView(id=name, max_model_len=model.max_model_len) for name, model in held.registry.models.items()]
    )


@router.get("/models/{name:path}", responses={**ERRORS, **NOT_FOUND})
async def model(name: str, _: CurrentKey, held: CurrentResources) -> ModelView:
    """One model."""
    if name not in held.registry:
        raise NotFound(f"The model `{name}` does not exist.", param="model", code="model_not_found")
    return ModelView(id=name, max_model_len=held.registry[name].max_model_len)


async def _complete(
    face: Dialect,
    body: ChatCompletionRequest | CompletionRequest,
    key_id: int,
    held: Resources,
    request: Request,
    submission: SubmitHeaders,
) -> Response:
    jobs = held.jobs
    requests = [
        NewJob(
            key_id=key_id,
            model=body.model,
            priority=body.priority,
            request=generate,
            metadata=body.metadata or {},
            start_within_s=submission.start_within_s,
            finish_within_s=submission.finish_within_s,
        )
        for generate in body.generate_requests()
    ]
    submitted, created = await submit_all(jobs, requests, submission.idempotency(request.url.path, body))
    request.state.job_id = submitted[0].id
    headers: dict[str, str] = {}
    if not created:
        headers["Idempotent-Replayed"] = "true"
    # A client that sends a key means to come back for the answer.
    keeps = submission.idempotency_key is not None
    if body.stream:
        events = frames(
            face,
            submitted,
            [jobs.follow(job.id, new=created) for job in submitted],
            usage_in_the_end=body.usage_in_the_end,
            usage_always=body.usage_always,
        )
        return event_stream(cancel_on_disconnect(events, jobs, submitted, keeps=keeps), held.settings, headers)

    ended = await all_while_connected(request, jobs, submitted, keeps=keeps)
    if ended is None:
        return Response(status_code=499)  # nobody reads it
    for job in ended:
        if job.status not in (JobStatus.COMPLETED, JobStatus.INCOMPLETE):
            assert job.error is not None
            raise UpstreamFailed(job.error.message, code=job.error.code)
    return JSONResponse(completion_body(face, ended), headers=headers)
