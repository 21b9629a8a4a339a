"""SQL of the overview's table of models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Integer, bindparam, cast, func, select, true, union_all

from api.console.data.histogram import Percentiles
from api.console.data.job_counts import counted
from api.console.data.statistics_store import uncounted_from
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import JobStatisticsRow


class ModelTimesStore(Store):
    """Reads the statistics of ended jobs by model."""

    async def first_tokens(self, start: datetime, end: datetime) -> Mapping[str, Percentiles]:
        """The times to the first token of each model's interactive jobs that ended from `start` to `end`."""
        histograms: dict[str, dict[int, int]] = defaultdict(dict)
        for row in await _FIRST_TOKENS.run(self._engine, {"start": start, "end": end}):
            histograms[row.model][row.bin] = int(row.jobs)
        found = {model: Percentiles.of(bins) for model, bins in histograms.items()}
        return {model: percentiles for model, percentiles in found.items() if percentiles is not None}


def _first_tokens_statement() -> Any:
    """Sum up the histograms of the minutes that were counted, and count the jobs that have ended since.

    Its parameters are `start` and `end`.
    """
    start, end = (bindparam(name, type_=DateTime(timezone=True)) for name in ("start", "end"))
    bins = func.jsonb_each_text(JobStatisticsRow.first_tokens).table_valued("key", "value").render_derived("bins")
    stored = (
        select(
            JobStatisticsRow.model, cast(bins.c.key, Integer).label("bin"), cast(bins.c.value, BigInteger).label("jobs")
        )
        .join_from(JobStatisticsRow, bins, true())
        .where(JobStatisticsRow.minute >= start, JobStatisticsRow.minute < end)
    )
    fresh = counted(uncounted_from(start), end).cte("fresh")
    since = select(fresh.c.model, cast(fresh.c.first_token, Integer), cast(fresh.c.jobs, BigInteger)).where(
        fresh.c.first_token.is_not(None)
    )
    times = union_all(stored, since).subquery("times")
    return select(times.c.model, times.c.bin, func.sum(times.c.jobs).label("jobs")).group_by(times.c.model, times.c.bin)


_FIRST_TOKENS = Prepared(_first_tokens_statement())
