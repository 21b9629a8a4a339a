"""`/v1/messages`: Anthropic's Messages API, executed as jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.anthropic.error_params import rename_failure, rename_param
from api.anthropic.error_shape import PREFIX, AnthropicErrorResponse
from api.anthropic.events import frames, message_body
from api.anthropic.requests import conversation, generate_request
from api.anthropic.schemas import AssistantMessage, CountTokensRequest, MessagesRequest, TokensCount
from api.http import openapi
from api.http.header_parameters import HeaderParameter, reads_headers
from api.http.json_body import CurrentBodyWork, JsonRoute
from api.http.large_json import JsonBody
from api.http.openapi import STREAMED, SUBMITTED
from api.http.submit_headers import Submission
from api.jobs.dependencies import CurrentAdmission, CurrentSyncCall, Jobs
from api.jobs.parameters import DEFAULT_PRIORITY
from api.keys.auth import AnthropicPrincipal
from shared.domain.decisions import Decisions
from shared.domain.errors import InvalidRequest
from shared.domain.job import Job
from shared.domain.new_job import NewJob
from shared.domain.request import Sampling

router = APIRouter(prefix=PREFIX, tags=["anthropic"], route_class=JsonRoute)


_COMMON = {**openapi.ERRORS, **openapi.FAILED}


def _errors(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    return {
        status: {**_COMMON.get(status, {}), "model": AnthropicErrorResponse, "description": description}
        for status, description in ((int(name.removeprefix("on_")), text) for name, text in descriptions.items())
    }


ERRORS = _errors(
    on_400="The request is invalid; the message names the field.",
    on_401="The API key is missing or invalid.",
    on_404="The model does not exist.",
    on_413="The body is too large.",
    on_429="A rate limit or a quota is used up; retry after `Retry-After` seconds.",
    on_503="A service is unavailable; retry after `Retry-After` seconds.",
)
FAILED = _errors(
    on_409="The job was cancelled by another call.",
    on_422="The Idempotency-Key was used with a different request.",
    on_500="The job failed; the message has the reason.",
    on_502="The upstream server of this model failed.",
    on_504="The deadline of Start-Before or Cancel-After has passed.",
)
_VERSION = HeaderParameter("anthropic-version", "Accepted and ignored: 2023-06-01, the only version, is served.")


@router.post(
    "",
    response_model=AssistantMessage,
    responses={**ERRORS, **FAILED, 200: {"model": AssistantMessage, "content": STREAMED, **SUBMITTED}},
)
@reads_headers(_VERSION)
async def messages(
    body: MessagesRequest,
    principal: AnthropicPrincipal,
    jobs: Jobs,
    call: CurrentSyncCall,
    request: Request,
    submission: Submission,
    work: CurrentBodyWork,
) -> Response:
    """Create a message, streamed or not. The job is cancelled if the client disconnects."""
    user_id = body.metadata.user_id if body.metadata is not None else None
    if body.stream:
        call.open_stream(body.model, user_id)
    principal = principal.acting_for(user_id)
    new = NewJob(
        owner=principal.owner,
        model=body.model,
        priority=body.priority,
        request=await work.run(generate_request, body),
        metadata={} if user_id is None else {"user_id": user_id},
        start_within_s=submission.start_within_s,
        finish_within_s=submission.finish_within_s,
        options=submission.options(body),
        webhook=body.request_webhook,
    )
    idempotency = await work.run(submission.idempotency, request.url.path, body)
    await work.run(_release, body)
    try:
        job, created = await jobs.submit(principal, new, idempotency)
    except InvalidRequest as error:
        raise rename_param(body, error) from None

    async def response_body(ended: Sequence[Job]) -> JsonBody:
        def build() -> dict[str, Any]:
            message = message_body(ended[0], hides_thinking=body.hides_thinking)
            unused = {"context_management"} if message.context_management is None else set()
            return message.model_dump(mode="json", exclude=unused)

        return JsonBody(build, ended[0].output_size)

    def stream() -> AsyncIterator[bytes]:
        return frames(job, jobs.follow_submitted(job, created=created), hides_thinking=body.hides_thinking)

    return await call.respond(
        [job],
        created=created,
        stream=stream if body.stream else None,
        body=response_body,
        rename=rename_failure,
    )


# The kind of jobs that only count tokens.
COUNTING = "count_tokens"


def _release(body: MessagesRequest) -> None:
    """Free the blocks of a converted request, one message after the other: a hundred thousand at once stall a loop."""
    while body.messages:
        body.messages.pop()


@router.post("/count_tokens", response_model=TokensCount, responses={**ERRORS, **FAILED, 200: SUBMITTED})
@reads_headers(_VERSION)
async def count_tokens(
    body: CountTokensRequest,
    principal: AnthropicPrincipal,
    admission: CurrentAdmission,
    jobs: Jobs,
    call: CurrentSyncCall,
    work: CurrentBodyWork,
) -> Response:
    """Count the tokens of a conversation without running it.

    If only the engine can render it, a job that generates nothing counts them, and is deleted. If the upstream cannot
    count without running the request, they are estimated, and the response has `x-headrace-tokens-estimated: true`.
    """
    request = await work.run(conversation, body)
    new = NewJob(owner=principal.owner, model=body.model, priority=DEFAULT_PRIORITY, request=request, metadata={})
    try:
        model = await admission.model_of(principal, new)
        await admission.take_request(new.owner, model)
        if (tokens := await admission.count_tokens(model, request, principal.project_id)) is not None:
            decisions = Decisions(tokens_estimated=tokens.estimated)
            return JSONResponse(TokensCount(input_tokens=tokens.number).model_dump(), headers=decisions.headers())
        counting = request.model_copy(update={"prompt_only": True, "sampling": Sampling(max_tokens=1)})
        job, _ = await jobs.submit(principal, replace(new, model=model, request=counting, kind=COUNTING))
    except InvalidRequest as error:
        raise rename_param(body, error) from None

    async def response_body(ended: Sequence[Job]) -> JsonBody:
        usage = ended[0].usage
        assert usage is not None
        await jobs.delete(job.id, principal.project_id)
        return JsonBody(TokensCount(input_tokens=usage.prompt_tokens).model_dump, 0)

    return await call.respond(
        [job],
        created=True,
        stream=None,
        body=response_body,
        rename=rename_failure,
    )
