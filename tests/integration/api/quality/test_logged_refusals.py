"""Whether a model has refused to answer is written to the request log with the end of the job."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.owner import Owner
from shared.domain.refusals import RefusalSource, Verdict
from shared.postgres.job_store import JobStore
from tests.conftest import Workers
from tests.integration.api.request_log.test_rows import ended, result
from tests.support.request_log import log_rows


@pytest.mark.parametrize(
    ("verdict", "stored"),
    [
        (Verdict(True, RefusalSource.PROVIDER), (True, "provider")),
        (Verdict(False, RefusalSource.CLASSIFIER), (False, "classifier")),
        (None, (None, None)),
    ],
)
@pytest.mark.parametrize("cacheable", [True, False])
async def test_the_verdict_and_its_source_are_in_the_row(
    store: JobStore,
    workers: Workers,
    owner: Owner,
    database: AsyncEngine,
    verdict: Verdict | None,
    stored: tuple[bool | None, str | None],
    cacheable: bool,
) -> None:
    await ended(store, workers, owner, result(refusal=verdict, cacheable=cacheable))
    (row,) = await log_rows(database)
    assert (row.refused, row.refusal_source) == stored
