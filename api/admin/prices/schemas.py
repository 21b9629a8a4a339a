"""Prices as JSON. Amounts are decimal numbers in texts, so that no reader rounds them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.admin.prices.store import Price
from api.http.pagination import PageView


def format_id(number: int) -> str:
    """The id of a price."""
    return f"price_{number}"


class PriceView(BaseModel):
    """What the tokens of a model cost from a time on, in dollars per million. Null: not priced, which is not free."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "price_3",
                    "object": "price",
                    "model": "gpt-5-mini",
                    "tier": "default",
                    "from_input_tokens": 0,
                    "valid_from": "2026-11-30T00:00:00Z",
                    "input": "0.25",
                    "cache_read": "0.025",
                    "cache_write_5m": None,
                    "cache_write_1h": None,
                    "output": "2",
                    "reasoning": None,
                    "source": "models.yaml",
                    "in_force": True,
                }
            ]
        }
    )

    id: str
    object: Literal["price"] = "price"
    model: str
    tier: str
    from_input_tokens: int = Field(description="The price is that of requests with at least this many input tokens.")
    valid_from: datetime
    input: Decimal | None
    cache_read: Decimal | None
    cache_write_5m: Decimal | None
    cache_write_1h: Decimal | None
    output: Decimal | None
    reasoning: Decimal | None = Field(description="Of reasoning tokens; null: as `output`.")
    source: str = Field(description="`models.yaml`, `genai-prices` or `admin`.")
    in_force: bool = Field(description="Whether requests that end now have this price.")

    @classmethod
    def of(cls, price: Price) -> Self:
        """The JSON form of a price."""
        return cls(
            id=format_id(price.id),
            model=price.model,
            tier=price.tier,
            from_input_tokens=price.from_input_tokens,
            valid_from=price.valid_from,
            input=price.rates["input_fresh"],
            cache_read=price.rates["input_cache_read"],
            cache_write_5m=price.rates["input_cache_write_5m"],
            cache_write_1h=price.rates["input_cache_write_1h"],
            output=price.rates["output_text"],
            reasoning=price.rates["output_reasoning"],
            source=price.source,
            in_force=price.in_force,
        )


class PriceList(PageView[PriceView]):
    """A page of prices, newest first."""
