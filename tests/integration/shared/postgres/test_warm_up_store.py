"""Warm-ups in the ledger."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.owner import Owner
from shared.postgres.warm_up_store import WarmedPrefix, WarmUpStore
from tests.support.ledger import dollars, ledger, set_price


async def test_a_warm_up_costs_its_input_and_charges_nothing(database: AsyncEngine, owner: Owner) -> None:
    await set_price(database)
    store = WarmUpStore(database)
    await store.record("m", "vllm", [])
    await store.record("m", "vllm", [WarmedPrefix(owner.project_id, 100, 0), WarmedPrefix(owner.project_id, 50, 30)])
    await store.record("unpriced", "vllm", [WarmedPrefix(owner.project_id, 10, 0)])
    first, second, unpriced = await ledger(database)
    assert (first.kind, first.final, first.project_id, first.key_id) == ("warm_up", False, owner.project_id, 0)
    assert (first.model, first.engine) == ("m", "vllm")
    assert (first.cost, second.cost) == (dollars(fresh=100), dollars(fresh=20, cached=30))
    assert (second.input_fresh, second.input_cache_read, second.total_tokens) == (20, 30, 50)
    assert {row.charge for row in (first, second, unpriced)} == {Decimal(0)}
    assert unpriced.cost is None
