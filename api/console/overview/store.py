"""SQL of the overview's table of models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Integer, bindparam, cast, func, select, true

from api.console.data.histogram import Percentiles
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import JobStatisticsRow


class ModelTimesStore(Store):
    """Reads the statistics of ended jobs by model."""

    async def first_tokens(self, start: datetime) -> Mapping[str, Percentiles]:
        """The times to the first token of each model's interactive jobs in the minutes that were counted."""
        histograms: dict[str, dict[int, int]] = defaultdict(dict)
        for row in await _FIRST_TOKENS.run(self._engine, {"start": start}):
            histograms[row.model][row.bin] = int(row.jobs)
        found = {model: Percentiles.of(bins) for model, bins in histograms.items()}
        return {model: percentiles for model, percentiles in found.items() if percentiles is not None}


def _first_tokens_statement() -> Any:
    """Sum up the histograms of the minutes from `start` on."""
    bins = func.jsonb_each_text(JobStatisticsRow.first_tokens).table_valued("key", "value").render_derived("bins")
    number = cast(bins.c.key, Integer)
    return (
        select(JobStatisticsRow.model, number.label("bin"), func.sum(cast(bins.c.value, BigInteger)).label("jobs"))
        .join_from(JobStatisticsRow, bins, true())
        .where(JobStatisticsRow.minute >= bindparam("start", type_=DateTime(timezone=True)))
        .group_by(JobStatisticsRow.model, number)
    )


_FIRST_TOKENS = Prepared(_first_tokens_statement())
