"""A response of OpenAI's Responses API: a job, and data that only the API needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.domain.job import JOB_ID_PREFIX, JobSummary, is_job_id
from shared.runtime.chunked_json import dump_pieces
from shared.runtime.offload import INLINE_BYTES

RESPONSE_ID_PREFIX = "resp_"
# What the other APIs call the answer of a job: their prefix, and the unique part of the job's id.
CHAT_ID_PREFIX, COMPLETION_ID_PREFIX, MESSAGE_ID_PREFIX = "chatcmpl-", "cmpl-", "msg_"
_ANSWER_ID_PREFIXES = (RESPONSE_ID_PREFIX, CHAT_ID_PREFIX, COMPLETION_ID_PREFIX, MESSAGE_ID_PREFIX)
# Beside the parameters that a response repeats: whether it has encrypted reasoning. Responses do not repeat it.
ENCRYPTED = "encrypted_reasoning"


def response_id(job_id: str) -> str:
    """The id of a job's response: the job's id with another prefix."""
    return RESPONSE_ID_PREFIX + job_id.removeprefix(JOB_ID_PREFIX)


def job_id_of(response_id: str) -> str | None:
    """The id of a response's job; None if the text is not a response id."""
    job_id = JOB_ID_PREFIX + response_id.removeprefix(RESPONSE_ID_PREFIX)
    return job_id if response_id.startswith(RESPONSE_ID_PREFIX) and is_job_id(job_id) else None


def job_id_of_answer(answer_id: str) -> str | None:
    """The id of the job of an answer, which has the id that any of the APIs gave it; None if the text is no such id.

    A stream has the same id as the answer as a whole.
    """
    for prefix in _ANSWER_ID_PREFIXES:
        if answer_id.startswith(prefix):
            job_id = JOB_ID_PREFIX + answer_id.removeprefix(prefix)
            return job_id if is_job_id(job_id) else None
    return None


@dataclass(frozen=True, slots=True)
class ResponseFacts:
    """The data of a response that its job lacks.

    `request_params` are the request's parameters that the response repeats, under the API's names. `input` has the
    request's own input items, without those of earlier responses; it is not read back with the response. A response
    that is not `stored` cannot be retrieved, and its data is purged soon.
    """

    request_params: dict[str, Any]
    input: list[dict[str, Any]]
    previous_id: str | None = None
    background: bool = False
    stored: bool = True

    @property
    def encrypted_reasoning(self) -> bool:
        """Whether the response has opaque parts of the provider."""
        return bool(self.request_params.get(ENCRYPTED))

    @property
    def size(self) -> int:
        """The bytes of the parameters as JSON. If they are large, they are not counted to the end."""
        size = 0
        for piece in dump_pieces(self.request_params):
            size += len(piece)
            if size > INLINE_BYTES:
                break
        return size


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response, as stored in its rows."""

    job: JobSummary
    facts: ResponseFacts

    @property
    def id(self) -> str:
        return response_id(self.job.id)

    @property
    def digits(self) -> str:
        """The unique part of its id, which the ids of its items share."""
        return self.job.id.removeprefix(JOB_ID_PREFIX)
