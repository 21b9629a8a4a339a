"""A response of OpenAI's Responses API: a job, and what was said about it that an engine need not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared.domain.job import JOB_ID_PREFIX, Job, is_job_id

RESPONSE_ID_PREFIX = "resp_"


def response_id(job_id: str) -> str:
    """The id of the response that a job is: the same but for its beginning."""
    return RESPONSE_ID_PREFIX + job_id.removeprefix(JOB_ID_PREFIX)


def job_id_of(response_id: str) -> str | None:
    """The id of the job behind a response; None where no response could have this id."""
    job_id = JOB_ID_PREFIX + response_id.removeprefix(RESPONSE_ID_PREFIX)
    return job_id if response_id.startswith(RESPONSE_ID_PREFIX) and is_job_id(job_id) else None


@dataclass(frozen=True, slots=True)
class ResponseFacts:
    """What a response has beside its job.

    `asked` is what it shows of its request, under the API's names; `input` are its own input items, without those of
    the responses before it. One that is not `stored` is never shown again, and is soon forgotten.
    """

    asked: dict[str, Any]
    input: list[dict[str, Any]]
    previous_id: str | None = None
    background: bool = False
    stored: bool = True


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as its rows tell it."""

    job: Job
    facts: ResponseFacts

    @property
    def id(self) -> str:
        return response_id(self.job.id)

    @property
    def digits(self) -> str:
        """What is unique in its id; its items' ids have it too."""
        return self.job.id.removeprefix(JOB_ID_PREFIX)
