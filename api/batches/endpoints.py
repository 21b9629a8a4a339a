"""The calls that a batch can make: how a line's body becomes a job, and a job that ended well the call's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from api.openai.completions import CHAT, TEXT, Dialect, completion_body
from api.openai.schemas import ChatCompletionRequest, CompletionRequest
from api.responses.events import replayed
from api.responses.messages import conversation
from api.responses.schemas import ResponseCreate
from shared.domain.errors import InvalidRequest
from shared.domain.events import Event
from shared.domain.job import Job
from shared.domain.owner import end_user_name
from shared.domain.request import GenerateRequest
from shared.domain.response import StoredResponse


@dataclass(frozen=True, slots=True)
class LineJob:
    """What a line's body asks for."""

    model: str
    request: GenerateRequest
    metadata: dict[str, str]
    end_user: str | None = None


class Endpoint(Protocol):
    """A call."""

    @property
    def reads_log(self) -> bool:
        """Whether its answer is made from the job's log too."""

    def job(self, body: dict[str, Any]) -> LineJob:
        """Check a body as the call does.

        Raises:
            pydantic.ValidationError, shared.domain.errors.InvalidRequest: it is refused; `param` names the field.
        """

    def answer(self, body: dict[str, Any], job: Job, log: Sequence[Event]) -> dict[str, Any]:
        """What the call would have answered with. The body has become this job before."""


@dataclass(frozen=True, slots=True)
class Completions:
    """Chat and plain completions."""

    face: Dialect
    schema: type[ChatCompletionRequest | CompletionRequest]
    reads_log: bool = False

    def job(self, body: dict[str, Any]) -> LineJob:
        request = self.schema.model_validate(body)
        if request.stream:
            raise _streamed()
        generate, *more = request.generate_requests()
        if more:
            raise InvalidRequest("prompt: a line has one prompt; give each a line.", param="prompt")
        return LineJob(request.model, generate, request.metadata or {}, end_user_name(request.user))

    def answer(self, body: dict[str, Any], job: Job, log: Sequence[Event]) -> dict[str, Any]:
        return completion_body(self.face, [job])


@dataclass(frozen=True, slots=True)
class Responses:
    """The Responses API. A line's response is its line of the output file: it is not stored beside it."""

    reads_log: bool = True

    def job(self, body: dict[str, Any]) -> LineJob:
        request = self._request(body)
        messages = conversation(request.instructions, None, request.input)
        return LineJob(
            request.model, request.generate_request(messages), request.metadata, end_user_name(request.end_user)
        )

    def answer(self, body: dict[str, Any], job: Job, log: Sequence[Event]) -> dict[str, Any]:
        return replayed(StoredResponse(job, self._request(body).facts()), log)

    @staticmethod
    def _request(body: dict[str, Any]) -> ResponseCreate:
        request = ResponseCreate.model_validate(body)
        if request.stream:
            raise _streamed()
        if request.background:
            raise InvalidRequest("background: a batch runs in the background as a whole.", param="background")
        if request.previous_response_id is not None:
            raise InvalidRequest(
                "previous_response_id: a batch's lines go on from nothing; give the conversation as input.",
                param="previous_response_id",
            )
        return request.model_copy(update={"store": False})


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": Completions(CHAT, ChatCompletionRequest),
    "/v1/completions": Completions(TEXT, CompletionRequest),
    "/v1/responses": Responses(),
}


def _streamed() -> InvalidRequest:
    return InvalidRequest("stream: a batch's answers are not streamed.", param="stream")
