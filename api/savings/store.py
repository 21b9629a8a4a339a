"""SQL of the savings report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Date,
    Integer,
    Row,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import aliased

from shared.domain.decisions import CacheOutcome
from shared.domain.ids import first_id
from shared.domain.job import JOB_ID_PREFIX, SUCCEEDED
from shared.domain.ledger import DEFAULT_TIER
from shared.postgres.ledger import amount, price_at
from shared.postgres.store import Store
from shared.postgres.tables import JobRow
from shared.postgres.usage_tables import PriceRow, UsageEventRow

# Requests that got the answer of another one.
ANSWERED = (CacheOutcome.HIT, CacheOutcome.COALESCED)


@dataclass(frozen=True, slots=True)
class Amounts:
    """Dollars, of all requests of a row together; None: it is not known of all of them.

    `charge`: what they were charged. `saved`: what they would have been charged if they had not got the answer of
    another request. `prompt_cache`: how much less their input has cost than without a prompt cache. `baseline_input`,
    `baseline_cached_input` and `baseline_output`: what they would have cost with the model that their route is compared
    with: all input if none of it were in that model's prompt cache, and if all of it were, and the output.
    """

    charge: Decimal | None = None
    saved: Decimal | None = None
    prompt_cache: Decimal | None = None
    baseline_input: Decimal | None = None
    baseline_cached_input: Decimal | None = None
    baseline_output: Decimal | None = None


_AMOUNTS = tuple(field.name for field in fields(Amounts))
# The counts of a usage that amounts depend on.
_COUNTS = ("prompt", "cached", "completion", "reasoning", "cache_write", "cache_write_1h")
_ZERO = literal_column("0", Integer)
_NULL = literal_column("'null'::jsonb", JSONB)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The jobs of one day (UTC) with the same model, route and part of the response cache, and their tokens together.

    `route` is None if the client named the model; `outcome` is None if the response cache was off. `kind`: the purpose
    of jobs that the server submitted itself.
    """

    day: date
    model: str
    route: str | None
    outcome: str | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    kind: str | None = None
    amounts: Amounts = Amounts()


class SavingsStore(Store):
    """Reads the usage of a project's jobs."""

    async def usage(self, project_id: int, since: datetime, baselines: Mapping[str, str]) -> list[UsageRow]:
        """The usage of the jobs that were created since then and have succeeded.

        `baselines`: by route, the model to compare with.
        """
        return await self._all(self.statement(project_id, since, baselines), _usage_row)

    @staticmethod
    def statement(project_id: int, since: datetime, baselines: Mapping[str, str]) -> Select[Any]:
        """The statement that reads it: a range of the index of a project's jobs, because ids begin with a time. The
        entries in the ledger are looked up job by job: they are kept for longer than jobs."""
        day = cast(func.timezone("UTC", JobRow.created_at), Date)
        route = JobRow.decisions["route"]["route"].astext
        outcome = JobRow.decisions["cache"]["outcome"].astext
        # With those that a job has inherited from one that it followed: that one has not succeeded, and is left out.
        tokens = (
            func.coalesce(func.sum(cast(JobRow.usage[name].astext, BigInteger)), 0)
            for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
        )
        ledger, price = _ledger(), aliased(PriceRow)
        used, inherited = _counts(JobRow.usage, "used"), _counts(JobRow.decisions["cache"]["inherited"], "inherited")
        own = {name: _own(used.c[name], inherited.c[name]) for name in ("prompt", "completion", "reasoning")}
        baseline = _table(baselines)
        of_baseline = price_at(baseline.c.model, DEFAULT_TIER, JobRow.finished_at, own["prompt"])
        amounts = {
            "charge": ledger.c.charge,
            "saved": ledger.c.saved,
            "prompt_cache": _saved_by_prompt_cache(used.c, price),
            **_of_baseline(own, of_baseline.c),
        }
        generated = func.coalesce(outcome.not_in(ANSWERED), literal(True))
        return (
            select(
                day, JobRow.model, route, outcome, JobRow.kind, func.count(), *tokens,
                *(_if_all_are_known(amounts[name]) for name in _AMOUNTS),
            )
            .select_from(JobRow)
            .join(used, true())
            .join(inherited, true())
            .outerjoin(ledger, true())
            .outerjoin(price, price.id == ledger.c.price_id)
            .outerjoin(baseline, and_(baseline.c.route == route, generated))
            .outerjoin(of_baseline, true())
            .where(
                JobRow.project_id == project_id,
                JobRow.id >= first_id(JOB_ID_PREFIX, since),
                JobRow.status.in_(SUCCEEDED),
                JobRow.usage.is_not(None),
            )
            .group_by(day, JobRow.model, route, outcome, JobRow.kind)
            .order_by(day, JobRow.model)
        )  # fmt: skip


def _ledger() -> Any:
    """The final entry of a job with its corrections: `charge`, `saved`, `price_id`."""
    row = UsageEventRow
    return (
        select(
            func.sum(row.charge).label("charge"),
            func.sum(row.saved).label("saved"),
            # That of the last correction: prices are never changed, so a later one has a higher id.
            func.max(row.price_id).label("price_id"),
        )
        .where(row.job_id == JobRow.id, row.final)
        .lateral("ledger")
    )


def _table(baselines: Mapping[str, str]) -> Any:
    """The models to compare with, as a table: `route`, `model`."""
    columns = (_texts([*baselines]), _texts([*baselines.values()]))
    return func.unnest(*columns).table_valued("route", "model").render_derived("baseline")


def _texts(values: Sequence[str]) -> Any:
    return cast(literal([*values], ARRAY(Text)), ARRAY(Text))


def _counts(stored: Any, name: str) -> Any:
    """The token counts of a stored usage, as a row: each is read once. All are 0 without one, or if it is `null`."""
    columns = (column(f"{count}_tokens", BigInteger) for count in _COUNTS)
    record = func.jsonb_to_record(func.nullif(stored, _NULL)).table_valued(*columns)
    found = record.render_derived("stored", with_types=True)
    counts = (func.coalesce(found.c[f"{count}_tokens"], _ZERO).label(count) for count in _COUNTS)
    return select(*counts).select_from(found).lateral(name)


def _own(used: Any, inherited: Any) -> ColumnElement[int]:
    """A count of what was generated for the job itself, as it is charged."""
    return func.greatest(used - inherited, _ZERO)


def _saved_by_prompt_cache(used: Any, price: Any) -> ColumnElement[Decimal]:
    """What the input would have cost more without a prompt cache, in which the tokens have been read or written."""
    counts = {
        "input_cache_read": used.cached,
        "input_cache_write_5m": used.cache_write - used.cache_write_1h,
        "input_cache_write_1h": used.cache_write_1h,
    }
    return amount({"input_fresh": used.cached + used.cache_write}, price) - amount(counts, price)


def _of_baseline(own: Mapping[str, Any], price: Any) -> dict[str, ColumnElement[Decimal]]:
    text = func.greatest(own["completion"] - own["reasoning"], _ZERO)
    return {
        "baseline_input": amount({"input_fresh": own["prompt"]}, price),
        "baseline_cached_input": amount({"input_cache_read": own["prompt"]}, price),
        "baseline_output": amount({"output_text": text, "output_reasoning": own["reasoning"]}, price),
    }


def _if_all_are_known(value: Any) -> ColumnElement[Any]:
    return case((func.count(value) == func.count(), func.sum(value)))


def _usage_row(row: Row[Any]) -> UsageRow:
    day, model, route, outcome, kind, requests, prompt, cached, completion, *amounts = tuple(row)
    # Sums of bigint are numeric.
    counts = (requests, int(prompt), int(cached), int(completion))
    return UsageRow(day, model, route, outcome, *counts, kind, Amounts(*amounts))
