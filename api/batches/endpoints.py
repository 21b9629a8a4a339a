"""The endpoints that a batch can call: they convert a line's body to a job, and a successful job to a response body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from api.http.members import Shape
from api.http.webhook_parameters import WebhookParameters
from api.openai import error_params as openai_params
from api.openai.completions import CHAT, TEXT, Dialect, completion_body
from api.openai.schemas import ChatCompletionRequest, CompletionRequest
from api.responses import error_params as responses_params
from api.responses.events import build_response
from api.responses.messages import conversation
from api.responses.schemas import ResponseCreate
from shared.domain.answer_options import NO_REQUEST_OPTIONS, RequestOptions
from shared.domain.errors import InvalidRequest
from shared.domain.events import Event
from shared.domain.job import Failure, Job
from shared.domain.owner import end_user_name
from shared.domain.request import GenerateRequest
from shared.domain.response import StoredResponse


@dataclass(frozen=True, slots=True)
class LineJob:
    """The job that a line's body describes."""

    model: str
    request: GenerateRequest
    metadata: dict[str, str]
    end_user: str | None = None
    options: RequestOptions = NO_REQUEST_OPTIONS


class Endpoint(Protocol):
    """An endpoint that batches can call."""

    @property
    def reads_log(self) -> bool:
        """Whether the response body is built from the job's log."""

    @property
    def shape(self) -> Shape:
        """The shape of a line's body. The other methods take bodies that were read with it."""

    def job(self, body: dict[str, Any]) -> LineJob:
        """Validate a body as a synchronous call does, and convert it.

        Raises:
            pydantic.ValidationError, shared.domain.errors.InvalidRequest: the body is invalid.
        """

    def rename_param(
        self, request: GenerateRequest, error: InvalidRequest, body: Mapping[str, Any] | None = None
    ) -> InvalidRequest:
        """Replace a job's parameter in an error about its request by that of the endpoint, or of its `body`."""

    def rename_failure(self, job: Job, failure: Failure) -> Failure:
        """Do the same in the failure of a job."""

    def response_body(self, body: dict[str, Any], job: Job, log: Sequence[Event]) -> dict[str, Any]:
        """Build the body that a synchronous call would have returned. `job` was created from `body`."""


@dataclass(frozen=True, slots=True)
class Completions:
    """Chat and plain completions."""

    dialect: Dialect
    schema: type[ChatCompletionRequest | CompletionRequest]
    shape: Shape
    reads_log: bool = False

    def job(self, body: dict[str, Any]) -> LineJob:
        request = self.schema.model_validate(body)
        if request.stream:
            raise _streaming_not_supported()
        _check_webhook(request)
        generate, *more = request.generate_requests()
        if more:
            raise InvalidRequest(
                "prompt: a batch line takes a single prompt; send one line per prompt.", param="prompt"
            )
        end_user = end_user_name(request.end_user)
        options = RequestOptions(request.cache, store=request.store, context=request.context_options)
        return LineJob(request.model, generate, request.metadata or {}, end_user, options)

    def rename_param(
        self, request: GenerateRequest, error: InvalidRequest, body: Mapping[str, Any] | None = None
    ) -> InvalidRequest:
        is_new = body is not None and body.get("max_completion_tokens") is not None
        names = {"max_tokens": "max_completion_tokens"} if is_new else {}
        return openai_params.rename_param(request, error).renamed(names)

    def rename_failure(self, job: Job, failure: Failure) -> Failure:
        return openai_params.rename_failure(job, failure)

    def response_body(self, body: dict[str, Any], job: Job, log: Sequence[Event]) -> dict[str, Any]:
        return completion_body(self.dialect, [job], include_cost=bool((body.get("usage") or {}).get("include")))


@dataclass(frozen=True, slots=True)
class Responses:
    """The Responses API. A line's response is written to the output file only, not stored as a response."""

    shape: Shape
    reads_log: bool = True

    def job(self, body: dict[str, Any]) -> LineJob:
        request = self._request(body)
        messages = conversation(request.instructions, None, request.input)
        generate, end_user = request.generate_request(messages), end_user_name(request.end_user)
        # What the client sent as `store`: no line's response is stored as one.
        options = RequestOptions(request.cache, store=body.get("store"), context=request.context_options)
        return LineJob(request.model, generate, request.metadata, end_user, options)

    def rename_param(
        self, request: GenerateRequest, error: InvalidRequest, body: Mapping[str, Any] | None = None
    ) -> InvalidRequest:
        return responses_params.rename_param(error)

    def rename_failure(self, job: Job, failure: Failure) -> Failure:
        return responses_params.rename_failure(job, failure)

    def response_body(self, body: dict[str, Any], job: Job, log: Sequence[Event]) -> dict[str, Any]:
        return build_response(StoredResponse(job, self._request(body).facts()), log)

    @staticmethod
    def _request(body: dict[str, Any]) -> ResponseCreate:
        request = ResponseCreate.model_validate(body)
        if request.stream:
            raise _streaming_not_supported()
        _check_webhook(request)
        if request.background:
            raise InvalidRequest(
                "background: not supported in a batch, which always runs in the background.", param="background"
            )
        if request.previous_response_id is not None:
            raise InvalidRequest(
                "previous_response_id: not supported in a batch; send the conversation as input.",
                param="previous_response_id",
            )
        return request.model_copy(update={"store": False})


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": Completions(CHAT, ChatCompletionRequest, Shape(ChatCompletionRequest)),
    "/v1/completions": Completions(TEXT, CompletionRequest, Shape(CompletionRequest)),
    "/v1/responses": Responses(Shape(ResponseCreate)),
}


def _check_webhook(request: WebhookParameters) -> None:
    if request.webhook is not None:
        raise InvalidRequest(
            "webhook: not supported in a line of a batch; name it in the request that creates the batch, whose end is"
            " then sent to it.",
            param="webhook",
        )


def _streaming_not_supported() -> InvalidRequest:
    return InvalidRequest("stream: not supported in a batch.", param="stream")
