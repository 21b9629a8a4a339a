"""SQL that records in the ledger what an engine computes to fill its prompt cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Insert, Integer, Text, bindparam, func, insert, literal, select, true

from shared.domain.ids import new_id
from shared.domain.job import AttemptOutcome
from shared.domain.ledger import DEFAULT_TIER, WARM_UP, Source
from shared.postgres.ledger import amount, price_at
from shared.postgres.store import Records, Store
from shared.postgres.usage_tables import TOKEN_COUNTS, UsageEventRow

_PREFIXES = Records("prefix", id=Text, project_id=BigInteger, fresh=Integer, cached=Integer)
# No key has asked for it.
_NO_KEY = 0


@dataclass(frozen=True, slots=True)
class WarmedPrefix:
    """The tokens of a prefix that was computed for a project; `cached`: those that the cache had already."""

    project_id: int
    tokens: int
    cached: int


class WarmUpStore(Store):
    """Records warm-ups. Each prefix is an entry of its project that costs the input, and charges nothing."""

    async def record(self, model: str, engine: str, prefixes: Sequence[WarmedPrefix]) -> None:
        """Add an entry for each prefix. `engine`: that of the model."""
        if not prefixes:
            return
        rows = [
            {
                "id": new_id("warm_", self._region),
                "project_id": prefix.project_id,
                "fresh": prefix.tokens - prefix.cached,
                "cached": prefix.cached,
            }
            for prefix in prefixes
        ]
        parameters: dict[str, Any] = {**_PREFIXES.parameters(rows), "model": model, "engine": engine}
        async with self._engine.connect() as connection:
            await connection.execute(_INSERT, parameters)


def _insert() -> Insert:
    fresh, cached, model = _PREFIXES.fresh, _PREFIXES.cached, bindparam("model", type_=Text)
    total = fresh + cached
    price = price_at(model, literal(DEFAULT_TIER, Text), func.now(), total)
    counts = {**dict.fromkeys(TOKEN_COUNTS, literal(0, Integer)), "input_fresh": fresh, "input_cache_read": cached}
    values = {
        "job_id": _PREFIXES.id,
        "attempt": literal(1, Integer),
        "ended_at": func.now(),
        "kind": literal(WARM_UP, Text),
        "project_id": _PREFIXES.project_id,
        "key_id": literal(_NO_KEY, BigInteger),
        "requested_model": model,
        "model": model,
        "engine": bindparam("engine", type_=Text),
        "service_tier": literal(DEFAULT_TIER, Text),
        "outcome": literal(AttemptOutcome.COMPLETED.value, Text),
        # No request was answered.
        "final": literal(False),
        **counts,
        "total_tokens": total,
        "charged": func.jsonb_build_object(),
        "source": literal(Source.ENGINE.value, Text),
        "price_id": price.c.id,
        "cost": amount({"input_fresh": fresh, "input_cache_read": cached}, price.c),
        "charge": literal(0, Integer),
    }
    return insert(UsageEventRow).from_select(list(values), select(*values.values()).outerjoin(price, true()))


_INSERT = _insert()
