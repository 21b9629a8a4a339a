"""The objects that events of webhooks are about, as the API shows them, for endpoints that want them in the body."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from api.batches.schemas import batch_view
from api.batches.service import BatchService
from api.http.large_json import JsonBody
from api.jobs.schemas import summary_view, with_output
from api.jobs.service import JobService
from api.responses.service import ResponseService
from api.webhooks.outbox import Outbox
from api.webhooks.sender import MAX_OBJECT_BYTES, ReadObject
from shared.domain.errors import NotFound
from shared.domain.response import job_id_of
from shared.runtime.chunked_json import dump
from shared.runtime.offload import off_loop


def readers(
    jobs: JobService, responses: ResponseService, batches: BatchService, outbox: Outbox
) -> Mapping[str, ReadObject]:
    """How objects are read, by groups of event types. What the log level `none` keeps out of the log is not sent."""

    async def read_job(job_id: str, project_id: int) -> bytes | None:
        if not await outbox.keeps_content(job_id):
            return None
        job, output = await jobs.result(job_id, project_id)
        return await _encoded(with_output(summary_view(job), output))

    async def read_response(response_id: str, project_id: int) -> bytes | None:
        job_id = job_id_of(response_id)
        if job_id is None or not await outbox.keeps_content(job_id):
            return None
        return await _encoded(await responses.body(await responses.get(response_id, project_id)))

    async def read_batch(batch_id: str, project_id: int) -> bytes | None:
        return orjson.dumps(batch_view(await batches.get(batch_id, project_id)).model_dump(mode="json"))

    return {"job.*": _if_found(read_job), "response.*": _if_found(read_response), "batch.*": _if_found(read_batch)}


def _if_found(read: ReadObject) -> ReadObject:
    async def reader(object_id: str, project_id: int) -> bytes | None:
        try:
            return await read(object_id, project_id)
        except NotFound:  # deleted, or a response with `store` false
            return None

    return reader


async def _encoded(body: JsonBody) -> bytes | None:
    if body.size > MAX_OBJECT_BYTES:
        return None
    return await off_loop(body.size, lambda: dump(body.build()))
