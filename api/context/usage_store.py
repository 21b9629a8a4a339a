"""SQL for the sizes of recent prompts, and the tokens that their usage reports."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ARRAY, Text, bindparam, func, select, true

from shared.domain.job import SUCCEEDED
from shared.postgres.store import Store
from shared.postgres.tables import JobRow

# The last jobs of a model that are read.
SAMPLE = 200


class UsageStore(Store):
    """Reads recent usage from PostgreSQL."""

    async def recent(self, models: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        """The bytes and tokens of the prompts of each model's last jobs that succeeded, newest first.

        One scan of the index `jobs_finished` per model, of at most `SAMPLE` rows.
        """
        names = func.unnest(bindparam("models", list(models), type_=ARRAY(Text))).table_valued("model").render_derived()
        last = (
            select(JobRow.status, JobRow.prompt_bytes, JobRow.usage["prompt_tokens"].as_integer().label("tokens"))
            .where(JobRow.model == names.c.model, JobRow.finished_at.is_not(None))
            .order_by(JobRow.finished_at.desc())
            .limit(SAMPLE)
            .lateral("last")
        )
        statement = (
            select(names.c.model, last.c.prompt_bytes, last.c.tokens)
            .join(last, true())
            .where(last.c.status.in_(SUCCEEDED), last.c.prompt_bytes > 0, last.c.tokens > 0)
        )
        found: dict[str, list[tuple[int, int]]] = {model: [] for model in models}
        async with self._engine.connect() as connection:
            for model, size, tokens in await connection.execute(statement):
                found[model].append((size, tokens))
        return found
