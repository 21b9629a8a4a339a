"""Pages of jobs with their outputs. One output at a time is in memory, however large the page is."""

from __future__ import annotations

from collections.abc import AsyncIterator

from api.http.large_json import encoded
from api.http.pagination import Page
from api.jobs.schemas import JobListWithOutput, summary_view, with_output
from api.jobs.service import JobService
from shared.domain.errors import NotFound
from shared.domain.job import JobSummary
from shared.runtime.offload import off_loop


async def list_with_outputs(jobs: JobService, page: Page[JobSummary]) -> AsyncIterator[bytes]:
    """Encode a `JobListWithOutput`. Jobs that are deleted meanwhile are left out."""
    envelope = JobListWithOutput(
        data=[],
        first_id=page.items[0].id if page.items else None,
        last_id=page.items[-1].id if page.items else None,
        has_more=page.has_more,
    )
    before, after = envelope.model_dump_json().split("[]", 1)
    yield f"{before}[".encode()
    separator = b""
    for item in page.items:
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
