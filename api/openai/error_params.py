"""Names the parameters of OpenAI's API in errors about jobs."""

from __future__ import annotations

from shared.domain.job import Failure, Job


def rename_failure(job: Job, failure: Failure) -> Failure:
    """Replace a job's parameter with the one that OpenAI's clients send.

    A JSON schema is requested by `response_format`; vLLM's `structured_outputs` is for what OpenAI does not have.
    """
    structure = job.request.structured_outputs
    is_json = structure is not None and (structure.json_schema is not None or bool(structure.json_object))
    return failure.renamed({"structured_outputs": "response_format"}) if is_json else failure
