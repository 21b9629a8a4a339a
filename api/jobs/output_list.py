"""Pages of jobs with their outputs. One output at a time is in memory, however large the page is."""

from __future__ import annotations

from collections.abc import AsyncIterator

from api.http.large_json import encoded
from api.jobs.schemas import JobListWithOutput, summary_view, with_output
from api.jobs.search_store import JobPage
from api.jobs.service import JobService
from shared.domain.errors import NotFound
from shared.runtime.offload import off_loop


async def list_with_outputs(jobs: JobService, page: JobPage) -> AsyncIterator[bytes]:
    """Encode a `JobListWithOutput`. Jobs that are deleted meanwhile are left out."""
    envelope = JobListWithOutput.of_search(page, ())
    before, after = envelope.model_dump_json().split("[]", 1)
    yield f"{before}[".encode()
    separator = b""
    for item in page.jobs:
        try:
            job, output = await jobs.result(item.id, item.owner.project_id)
        except NotFound:
            continue
        body = with_output(summary_view(job), output)
        yield separator
        async for chunk in encoded(await off_loop(body.size, body.build)):
            yield chunk
        separator = b","
    yield f"]{after}".encode()
