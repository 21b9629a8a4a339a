"""What a job could cost at most."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from api.budgets.worst_case import PriceList, Unbounded, Unpriced, WorstCase
from api.context.window import ContextWindow
from shared.config.models.loader import load_registry
from shared.domain.decisions import Decisions, RouteDecision
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.budget_store import Price
from tests.support.stack import write_models

NOW = datetime(2026, 11, 30, tzinfo=UTC)
PROMPT = "one two three"  # of four tokens, as the simulated engine counts


def price(model: str = "m", **changes: Any) -> Price:
    """Two dollars per million input tokens, ten per million output tokens."""
    rates = {"input_fresh": Decimal(2), "output_text": Decimal(10), **changes.pop("rates", {})}
    return replace(Price(model, "default", 0, NOW, rates), **changes)


@pytest.fixture
def worst_case(tmp_path: Path) -> WorstCase:
    options = {"max_model_len": 100}
    models: list[dict[str, Any]] = [{"name": name, "engine": "simulated", "options": options} for name in ("m", "dear")]
    models.append({"name": "relayed", "engine": "openai", "model": "x", "options": {"base_url": "http://x/v1"}})
    registry = load_registry(write_models(tmp_path / "models.yaml", models))
    return WorstCase(registry, ContextWindow(registry))


def new(model: str = "m", *, fallbacks: tuple[str, ...] = (), **sampling: Any) -> NewJob:
    request = GenerateRequest(prompt=PROMPT, sampling=Sampling(**sampling))
    route = RouteDecision(route="r", rule="x", fallbacks=fallbacks) if fallbacks else None
    return NewJob(Owner(1, 1), model, 3, request, decisions=Decisions(route=route))


def dollars(input_tokens: int, output_tokens: int, *, input_rate: Any = 2, output_rate: Any = 10) -> Decimal:
    return (Decimal(input_tokens) * Decimal(input_rate) + Decimal(output_tokens) * Decimal(output_rate)) / 1_000_000


@pytest.mark.parametrize(
    ("sampling", "output_tokens"),
    [
        ({"max_tokens": 20}, 20),
        ({"max_tokens": 20, "n": 3, "temperature": 1.0}, 60),
        ({}, 96),  # what the prompt leaves of the context
        ({"max_tokens": 99}, 96),
        ({"n": 2, "temperature": 1.0}, 192),
    ],
)
async def test_it_is_the_prompt_once_and_the_longest_output_of_each_choice(
    worst_case: WorstCase, sampling: dict[str, Any], output_tokens: int
) -> None:
    assert await worst_case.of(new(**sampling), PriceList([price()])) == dollars(4, output_tokens)


async def test_the_dearest_rates_count(worst_case: WorstCase) -> None:
    job = new(max_tokens=10)
    written = price(rates={"input_cache_write_5m": Decimal(3), "output_reasoning": Decimal(12)})
    assert await worst_case.of(job, PriceList([written])) == dollars(4, 10, input_rate=3, output_rate=12)
    flex, priority = (
        price(tier=tier, rates={"output_text": Decimal(rate)}) for tier, rate in (("flex", 1), ("priority", 20))
    )
    tiers = [price(), flex, priority]
    assert await worst_case.of(job, PriceList(tiers)) == dollars(4, 10, output_rate=20)
    fallbacks = [price(), price("dear", rates={"output_text": Decimal(50)})]
    assert await worst_case.of(job, PriceList(fallbacks)) == dollars(4, 10)
    routed = new(max_tokens=10, fallbacks=("dear", "removed"))
    assert await worst_case.of(routed, PriceList(fallbacks)) == dollars(4, 10, output_rate=50)


async def test_the_price_is_that_of_the_length_of_the_prompt_and_the_latest(worst_case: WorstCase) -> None:
    job = new(max_tokens=10)
    long, longer = (price(from_input_tokens=tokens, rates={"output_text": Decimal(20)}) for tokens in (4, 5))
    assert await worst_case.of(job, PriceList([price(), long])) == dollars(4, 10, output_rate=20)
    assert await worst_case.of(job, PriceList([longer, price()])) == dollars(4, 10)
    newer = price(valid_from=NOW + timedelta(days=1), rates={"output_text": Decimal(5)})
    assert await worst_case.of(job, PriceList([long, newer])) == dollars(4, 10, output_rate=5)


@pytest.mark.parametrize("missing", ["input_fresh", "output_text"])
async def test_a_model_without_a_price_has_none(worst_case: WorstCase, missing: str) -> None:
    for prices in ([], [price("other")], [price(rates={missing: None})]):
        with pytest.raises(Unpriced) as error:
            await worst_case.of(new(max_tokens=1), PriceList(prices))
        assert error.value.model == "m"
    with pytest.raises(Unpriced) as error:
        await worst_case.of(new(max_tokens=1, fallbacks=("dear",)), PriceList([price()]))
    assert error.value.model == "dear"


async def test_free_tokens_cost_nothing(worst_case: WorstCase) -> None:
    free = price(rates={"input_fresh": Decimal(0), "output_text": Decimal(0)})
    assert await worst_case.of(new(), PriceList([free])) == 0


async def test_output_without_a_bound_has_no_worst_case(worst_case: WorstCase) -> None:
    prices = PriceList([price("relayed")])
    with pytest.raises(Unbounded):
        await worst_case.of(new("relayed"), prices)
    assert await worst_case.of(new("relayed", max_tokens=10), prices) > dollars(0, 10)
