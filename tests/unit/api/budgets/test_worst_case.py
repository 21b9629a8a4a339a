"""What a job could cost at most."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from api.budgets.worst_case import PricesInForce, Unbounded, Unpriced, WorstCase, dearest
from api.context.window import ContextWindow
from shared.config.models.loader import load_registry
from shared.domain.decisions import Decisions, RouteDecision
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.prices import PriceList, Rates, Tier
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.price_store import StoredPrice
from tests.support.stack import write_models

NOW = datetime(2026, 11, 30, tzinfo=UTC)
PROMPT = "one two three"  # of four tokens, as the simulated engine counts


def price(
    model: str = "m", tier: Tier = "default", *, long: dict[int, Decimal] | None = None, **rates: Decimal | None
) -> StoredPrice:
    """Two dollars per million input tokens, ten per million output tokens, if `rates` do not say otherwise.

    `long`: the rates of output for prompts with at least so many tokens.
    """
    base = replace(Rates(input_fresh=Decimal(2), output_text=Decimal(10)), **rates)
    steps = [(0, base), *((start, replace(base, output_text=rate)) for start, rate in (long or {}).items())]
    return StoredPrice(model, PriceList(tier, tuple(steps), NOW), "models.yaml")


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
    assert await worst_case.of(new(**sampling), PricesInForce([price()])) == dollars(4, output_tokens)


async def test_the_dearest_rates_count(worst_case: WorstCase) -> None:
    job = new(max_tokens=10)
    written = price(input_cache_write_5m=Decimal(3), output_reasoning=Decimal(12))
    assert await worst_case.of(job, PricesInForce([written])) == dollars(4, 10, input_rate=3, output_rate=12)
    tiers = [price(), price(tier="flex", output_text=Decimal(1)), price(tier="priority", output_text=Decimal(20))]
    assert await worst_case.of(job, PricesInForce(tiers)) == dollars(4, 10, output_rate=20)
    fallbacks = [price(), price("dear", output_text=Decimal(50))]
    assert await worst_case.of(job, PricesInForce(fallbacks)) == dollars(4, 10)
    routed = new(max_tokens=10, fallbacks=("dear", "removed"))
    assert await worst_case.of(routed, PricesInForce(fallbacks)) == dollars(4, 10, output_rate=50)


async def test_the_price_is_that_of_the_length_of_the_prompt(worst_case: WorstCase) -> None:
    job = new(max_tokens=10)
    for long, output_rate in (({4: Decimal(20)}, 20), ({5: Decimal(20)}, 10), ({2: Decimal(20), 4: Decimal(5)}, 5)):
        prices = PricesInForce([price(long=long)])
        assert await worst_case.of(job, prices) == dollars(4, 10, output_rate=output_rate)


@pytest.mark.parametrize("missing", ["input_fresh", "output_text"])
async def test_a_model_without_a_price_has_none(worst_case: WorstCase, missing: str) -> None:
    without: dict[str, Any] = {missing: None}
    for prices in ([], [price("other")], [price(tier="flex")], [price(**without)]):
        with pytest.raises(Unpriced) as error:
            await worst_case.of(new(max_tokens=1), PricesInForce(prices))
        assert error.value.model == "m"
    with pytest.raises(Unpriced) as error:
        await worst_case.of(new(max_tokens=1, fallbacks=("dear",)), PricesInForce([price()]))
    assert error.value.model == "dear"


async def test_free_tokens_cost_nothing(worst_case: WorstCase) -> None:
    free = price(input_fresh=Decimal(0), output_text=Decimal(0))
    assert await worst_case.of(new(), PricesInForce([free])) == 0


async def test_output_without_a_bound_has_no_worst_case(worst_case: WorstCase) -> None:
    prices = PricesInForce([price("relayed")])
    with pytest.raises(Unbounded):
        await worst_case.of(new("relayed"), prices)
    assert await worst_case.of(new("relayed", max_tokens=10), prices) > dollars(0, 10)


async def test_what_is_not_known_is_not_free(worst_case: WorstCase) -> None:
    unbounded = await worst_case.of_model("relayed", new("relayed"), PricesInForce([price("relayed")]))
    assert unbounded.input_cost is not None
    assert (unbounded.output, unbounded.output_cost, unbounded.cost) == (None, None, None)
    job = new(max_tokens=10)
    unpriced = await worst_case.of_model("m", job, PricesInForce([price(output_text=None)]))
    assert (unpriced.input_cost, unpriced.output_cost, unpriced.cost) == (dollars(4, 0), None, None)
    assert (unpriced.prompt.number, unpriced.output) == (4, 10)
    known = await worst_case.of_model("m", job, PricesInForce([price()]))
    assert (known.input_cost, known.output_cost, known.cost) == (dollars(4, 0), dollars(0, 10), dollars(4, 10))
    dear = await worst_case.of_model("dear", job, PricesInForce([price("dear", output_text=Decimal(11))]))
    assert dearest([known, dear]) is dear
    assert dearest([dear, unpriced, known]) is unpriced
