"""The published prices of providers' models, in dollars that were calculated by hand from the providers' pages."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from pydantic import TypeAdapter

from api.prices.default_prices import NoDefaultPrice, default_prices
from api.prices.price_sync import declared_prices
from shared.config.models.loader import ModelSpec
from shared.domain.prices import RATES, PriceList, Rates

SPEC: TypeAdapter[Any] = TypeAdapter(ModelSpec)
CLAUDE = {"engine": "anthropic", "model": "claude-sonnet-4-5-20250929"}
GPT = {"engine": "openai", "preset": "openai", "model": "gpt-5.5"}
GEMINI = {"engine": "openai", "preset": "gemini", "model": "models/gemini-2.5-pro"}
NOW = datetime(2026, 11, 30, tzinfo=UTC)


def spec(**entry: Any) -> Any:
    return SPEC.validate_python({"name": "m", **entry})


def openai(address: str, model: str = "gpt-5.5", preset: str | None = None) -> Any:
    return spec(engine="openai", preset=preset, model=model, options={"base_url": address})


def rates_of(entry: dict[str, Any], tier: str, input_tokens: int, at: datetime = NOW) -> Rates | None:
    lists: list[PriceList] = [
        one
        for one in default_prices(spec(**entry))
        if one.tier == tier and (one.valid_from is None or one.valid_from <= at)
    ]
    return [rates for start, rates in lists[-1].steps if start <= input_tokens][-1] if lists else None


def dollars(entry: dict[str, Any], counts: dict[str, int], tier: str = "default") -> Decimal | None:
    """The cost of disjoint token counts; None if one of them has no rate."""
    found = rates_of(entry, tier, sum(count for name, count in counts.items() if name.startswith("input")))
    if found is None:
        return None
    amounts = [None if (rate := getattr(found, name)) is None else rate * count for name, count in counts.items()]
    return None if None in amounts else sum(filter(None, amounts), Decimal(0)) / 1_000_000


ALL_CACHES = {
    "input_fresh": 1_000,
    "input_cache_read": 10_000,
    "input_cache_write_5m": 2_000,
    "input_cache_write_1h": 3_000,
    "output_text": 500,
}
CACHED = {"input_fresh": 1_000, "input_cache_read": 10_000, "output_text": 500}
LONG = {"input_fresh": 1_000, "input_cache_read": 299_000, "output_text": 1_000}


@pytest.mark.parametrize(
    ("entry", "counts", "tier", "cost"),
    [
        # 1,000 x $3 + 10,000 x $0.30 + 2,000 x $3.75 + 3,000 x $6 + 500 x $15
        (CLAUDE, ALL_CACHES, "default", "0.039"),
        (CLAUDE, ALL_CACHES, "batch", "0.0195"),
        # More than 200,000 tokens: 1,000 x $6 + 299,000 x $0.60 + 1,000 x $22.50
        (CLAUDE, LONG, "default", "0.2079"),
        # 1,000 x $5 + 10,000 x $0.50 + 500 x $30
        (GPT, CACHED, "default", "0.025"),
        (GPT, CACHED, "flex", "0.0125"),
        (GPT, CACHED, "batch", "0.0125"),
        (GPT, CACHED, "priority", "0.0625"),
        # More than 272,000 tokens: 1,000 x $10 + 299,000 x $1 + 1,000 x $45
        (GPT, LONG, "default", "0.354"),
        # 1,000 x $1.25 + 10,000 x $0.125 + 500 x $10
        (GEMINI, CACHED, "default", "0.0075"),
        # The batch price does not lower that of cached input: 1,000 x $0.625 + 10,000 x $0.125 + 500 x $5
        (GEMINI, CACHED, "batch", "0.004375"),
        # More than 200,000 tokens: 1,000 x $2.50 + 299,000 x $0.25 + 1,000 x $15
        (GEMINI, LONG, "default", "0.09225"),
    ],
)
def test_golden_costs(entry: dict[str, Any], counts: dict[str, int], tier: str, cost: str) -> None:
    assert dollars(entry, counts, tier) == Decimal(cost)


@pytest.mark.parametrize(("entry", "provider"), [(CLAUDE, "anthropic"), (GPT, "openai"), (GEMINI, "google")])
@pytest.mark.parametrize("fresh", [1_000, 199_000, 200_000, 200_001, 271_999, 272_000, 272_001, 900_000])
def test_the_package_calculates_the_same(entry: dict[str, Any], provider: str, fresh: int) -> None:
    counts = {"input_fresh": fresh, "input_cache_read": 0, "output_text": 500}
    usage = Usage(input_tokens=fresh, output_tokens=500)
    model = entry["model"].removeprefix("models/")
    theirs = calc_price(usage, model, provider_id=provider, genai_request_timestamp=NOW)
    assert dollars(entry, counts) == theirs.total_price


def test_where_the_package_falls_back_nothing_is_priced() -> None:
    """To the standard price for unknown tiers, and from an hour in the cache to the price of cached tokens."""
    gpt_6 = GPT | {"model": "gpt-6-sol"}
    assert rates_of(CLAUDE, "flex", 0) is None
    assert rates_of(CLAUDE, "priority", 0) is None
    found = rates_of(gpt_6, "default", 0)
    assert found is not None
    assert (found.input_cache_write_5m, found.input_cache_write_1h) == (Decimal("2.5"), None)
    assert dollars(gpt_6, ALL_CACHES) is None


def test_a_model_of_another_provider_has_its_price_without_its_tiers() -> None:
    """Azure has the prices of OpenAI's models, but not the tiers of OpenAI."""
    lists = default_prices(openai("https://x.openai.azure.com/openai/v1", preset="azure"))
    assert {one.tier for one in lists} == {"default"}
    assert lists[-1].steps[0][1].output_text == 30


def test_former_prices_have_dates() -> None:
    o3 = GPT | {"model": "o3"}
    before, after = datetime(2025, 6, 9, tzinfo=UTC), datetime(2025, 6, 10, tzinfo=UTC)
    outputs = [getattr(rates_of(o3, "default", 0, at), "output_text", None) for at in (before, after)]
    assert outputs == [40, 8]
    assert [(one.tier, one.valid_from) for one in default_prices(spec(**o3))][:2] == [
        ("default", None),
        ("default", after),
    ]
    # A tier is priced from the day on from which its price is known.
    assert rates_of(o3, "flex", 0, datetime(2026, 10, 11, tzinfo=UTC)) is None
    assert rates_of(o3, "flex", 0, datetime(2026, 10, 12, tzinfo=UTC)) is not None


def test_the_provider_is_that_of_the_address() -> None:
    groq = default_prices(openai("https://api.groq.com/openai/v1", "openai/gpt-oss-120b"))
    assert {one.tier for one in groq} >= {"default"}
    # A proxy of a provider costs what the provider does.
    assert default_prices(openai("https://proxy.example.com/v1", preset="openai")) == default_prices(spec(**GPT))
    assert default_prices(spec(**CLAUDE | {"options": {"base_url": "http://gateway:8080/v1"}}))


def test_an_alias_costs_what_its_base_model_costs() -> None:
    alias = {"engine": "anthropic", "model": "our-claude", "options": {"base_model": "claude-sonnet-4-5"}}
    assert default_prices(spec(**alias)) == default_prices(spec(**CLAUDE))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (spec(**GPT | {"model": "gpt-99"}), "no price of 'gpt-99' from OpenAI is known"),
        (openai("https://llm.example.com/v1"), "no provider at https://llm.example.com/v1 is known"),
        (openai("https://api.deepseek.com/v1", "deepseek-chat"), "depends on the time of day"),
        (openai("https://api.perplexity.ai", "sonar"), "has a part per request"),
        (spec(**GPT | {"model": "text-embedding-3-small"}), "has no price of text tokens"),
        (
            spec(
                engine="openai",
                model="gpt-5",
                options={
                    "endpoints": [{"base_url": "https://api.openai.com/v1"}, {"base_url": "https://openrouter.ai"}]
                },
            ),
            "its endpoints are of several providers: openai, openrouter",
        ),
    ],
)
def test_why_there_is_no_price(model: Any, words: str) -> None:
    with pytest.raises(NoDefaultPrice, match=words):
        default_prices(model)
    declared, problems = declared_prices({"m": model})
    assert declared["m"].lists == []
    assert words in problems["m"]


@pytest.mark.parametrize(
    "model",
    [
        spec(engine="simulated"),
        spec(engine="vllm", model="org/model"),
        openai("http://127.0.0.1:8000/v1"),
        openai("http://[::1]:8000/v1"),
        openai("http://vllm:8000/v1"),
        openai("https://api.openai.com/v1", preset="vllm"),
    ],
)
def test_own_servers_have_none_and_need_no_package(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices.data_snapshot", None)  # importing it fails
    assert default_prices(model) == []
    assert declared_prices({"m": model})[1] == {}


def test_a_price_of_the_file_replaces_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices.data_snapshot", None)
    declared, _ = declared_prices({"m": spec(**GPT, price={"input": 1, "output": 2})})
    assert declared["m"].source == "models.yaml"
    assert [len(one.steps) for one in declared["m"].lists] == [1]


def test_all_rates_of_the_table_are_looked_up() -> None:
    found = rates_of(CLAUDE, "default", 0)
    assert found is not None
    assert [name for name in RATES if getattr(found, name) is None] == ["output_reasoning"]
