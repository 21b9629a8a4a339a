"""SQL about idempotency keys."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.errors import KeyReused
from shared.domain.new_job import Idempotency
from shared.domain.owner import Owner
from shared.postgres.engine import limit_idle
from shared.postgres.job_purge import DELETED_DIGEST
from shared.postgres.tables import IdempotencyKeyRow


async def claim_key(connection: AsyncConnection, owner: Owner, idempotency: Idempotency, job_id: str) -> str | None:
    """Claim an idempotency key for a job. If it was used before, return the id of the job that has it."""
    claim = (
        upsert(IdempotencyKeyRow)
        .values(
            project_id=owner.project_id,
            key=idempotency.key,
            key_id=owner.key_id,
            request_sha256=idempotency.request_sha256,
            job_id=job_id,
        )
        .on_conflict_do_nothing()
        .returning(limit_idle())  # others may wait for it, whole batches if the job leads
    )
    if (await connection.execute(claim)).first() is not None:
        return None
    existing_id = await job_id_of_key(connection, owner, idempotency)
    assert existing_id is not None
    return existing_id


async def job_id_of_key(connection: AsyncConnection, owner: Owner, idempotency: Idempotency) -> str | None:
    """Return the id of the job that has an idempotency key; None if the key was not used."""
    existing = select(IdempotencyKeyRow.request_sha256, IdempotencyKeyRow.job_id).where(
        IdempotencyKeyRow.project_id == owner.project_id, IdempotencyKeyRow.key == idempotency.key
    )
    row = (await connection.execute(existing)).first()
    if row is None:
        return None
    if row.request_sha256 not in (idempotency.request_sha256, DELETED_DIGEST):
        raise KeyReused
    return str(row.job_id)
