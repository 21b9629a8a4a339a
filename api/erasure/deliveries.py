"""SQL that erases the deliveries of webhooks of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.response import response_id
from shared.domain.webhook_events import OF_JOBS, event_id
from shared.postgres.quality_deletion import is_one_of
from shared.postgres.webhook_tables import WebhookDeliveryRow


async def erase_deliveries(connection: AsyncConnection, project_id: int, job_ids: Sequence[str]) -> int:
    """Delete deliveries of webhooks to the URLs that the requests have named. Those to endpoints have ids only."""
    row = WebhookDeliveryRow
    events = [
        event_id(event_type, object_id)
        for job_id in job_ids
        for event_type, object_id in (
            *((one, job_id) for one in OF_JOBS if one.group == "job.*"),
            *((one, response_id(job_id)) for one in OF_JOBS if one.group == "response.*"),
        )
    ]
    statement = delete(row).where(row.project_id == project_id, row.url.is_not(None), is_one_of(row.event_id, events))
    return (await connection.execute(statement)).rowcount
