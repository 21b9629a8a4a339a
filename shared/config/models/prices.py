"""The `price` of a model's entry: dollars per million tokens, or what an hour of its GPUs costs and its capacity.

https://yaml.org/type/timestamp.html: YAML reads `2026-01-01` as a date, and a time without a zone as UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WrapValidator,
    field_validator,
    model_validator,
)

from shared.domain.field_types import contradiction, without_effect
from shared.domain.prices import NOT_PRICED, TIERS, PriceList, Rates, Tier

# The service tiers of `tiers`; `default` is the price itself.
PRICED_TIERS = tuple(tier for tier in TIERS if tier != "default")
# Decimal places of rates that are computed: a millionth of a millionth of a dollar.
_PLACES = Decimal("1e-12")
_MILLION = 1_000_000
_SECONDS_PER_HOUR = 3600


def _number(value: Any) -> Any:
    """YAML's `yes` is no amount of money."""
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004  # a TypeError would not be reported for the field
    return value


def _time(value: Any) -> Any:
    """An aware time, from a date or time of YAML or its text."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ValueError("must be a date such as 2026-01-01, or a time such as 2026-01-01T12:00:00Z")  # noqa: TRY004
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


# Dollars per million tokens.
Rate = Annotated[Decimal, BeforeValidator(_number), Field(ge=0, max_digits=30, decimal_places=12)]
Positive = Annotated[Decimal, BeforeValidator(_number), Field(gt=0, max_digits=30)]
Time = Annotated[datetime, BeforeValidator(_time)]


class _TokenPrices(BaseModel):
    """Dollars per million tokens."""

    model_config = ConfigDict(extra="forbid")

    input: Rate | None = Field(None, description="Of input tokens that no cache has served.")
    cache_read: Rate | None = Field(None, description="Of input tokens that the prefix cache has served.")
    cache_write_5m: Rate | None = Field(None, description="Of input tokens that are written to the cache.")
    cache_write_1h: Rate | None = Field(None, description="Of input tokens that are written to it for an hour.")
    output: Rate | None = Field(None, description="Of output tokens.")
    reasoning: Rate | None = Field(None, description="Of output tokens of the reasoning; default: as `output`.")

    @property
    def rates(self) -> Rates:
        return Rates(self.input, self.cache_read, self.cache_write_5m, self.cache_write_1h, self.output, self.reasoning)

    def require_rates(self) -> None:
        """Raises the error of a missing field."""
        for name in ("input", "output"):
            if getattr(self, name) is None:
                raise contradiction(name, "this field is required")


class LongInputPrice(_TokenPrices):
    """The price of requests with long inputs: that of all of their tokens."""

    from_input_tokens: int = Field(ge=1, description="The least number of input tokens, cached ones included.")

    @model_validator(mode="after")
    def _has_rates(self) -> Self:
        self.require_rates()
        return self


class TierPrice(_TokenPrices):
    """The price of requests of a service tier."""

    long_inputs: list[LongInputPrice] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_rates(self) -> Self:
        self.require_rates()
        return self

    @model_validator(mode="after")
    def _distinct_steps(self) -> Self:
        _check_distinct(self.long_inputs)
        return self

    @property
    def steps(self) -> tuple[tuple[int, Rates], ...]:
        return _steps(self.rates, self.long_inputs)


class Price(_TokenPrices):
    """What a model costs from a time on."""

    gpu_hour: Positive | None = Field(
        None, description="Dollars for an hour of all GPUs of one worker, in place of prices of tokens."
    )
    tokens_per_s: Positive | None = Field(None, description="The output tokens that a busy worker generates a second.")
    input_tokens_per_s: Positive | None = Field(
        None,
        description="The input tokens that it computes a second. Without it, the output tokens carry all of the cost,"
        " and input tokens cost 0.",
    )
    long_inputs: list[LongInputPrice] = Field(default_factory=list, description="Prices of requests with long inputs.")
    tiers: dict[Tier, TierPrice] = Field(
        default_factory=dict, description="Prices of service tiers, by the tier that the answer reports."
    )
    valid_from: Time | None = Field(None, description="A date, or a time; UTC if it has no zone.")

    @field_validator("tiers", mode="before")
    @classmethod
    def _known_tiers(cls, value: Any) -> Any:
        for name in value if isinstance(value, Mapping) else ():
            if name not in PRICED_TIERS:
                raise contradiction(str(name), f"unknown service tier; tiers are {', '.join(PRICED_TIERS)}")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.gpu_hour is None:
            for name in ("tokens_per_s", "input_tokens_per_s"):
                if getattr(self, name) is not None:
                    raise without_effect(name, "without gpu_hour")
            self.require_rates()
            return self
        for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning", "long_inputs"):
            if name in self.model_fields_set:
                raise contradiction(name, "cannot be combined with gpu_hour, from which the prices of tokens follow")
        if self.tokens_per_s is None:
            raise contradiction("tokens_per_s", "this field is required with gpu_hour: measure the worker's capacity")
        return self

    @model_validator(mode="after")
    def _distinct_steps(self) -> Self:
        _check_distinct(self.long_inputs)
        return self

    def lists(self) -> Iterator[PriceList]:
        """The price lists that it stands for: one for each service tier."""
        yield PriceList("default", _steps(self._rates(), self.long_inputs), self.valid_from)
        for tier, price in self.tiers.items():
            yield PriceList(tier, price.steps, self.valid_from)

    def _rates(self) -> Rates:
        if self.gpu_hour is None or self.tokens_per_s is None:
            return self.rates
        million_seconds = self.gpu_hour * _MILLION / _SECONDS_PER_HOUR
        per_input = Decimal(0) if self.input_tokens_per_s is None else million_seconds / self.input_tokens_per_s
        # A cached token takes no time of the GPU.
        return Rates(
            input_fresh=per_input.quantize(_PLACES),
            input_cache_read=Decimal(0),
            output_text=(million_seconds / self.tokens_per_s).quantize(_PLACES),
        )


def _steps(rates: Rates, long_inputs: Sequence[LongInputPrice]) -> tuple[tuple[int, Rates], ...]:
    longer = sorted(long_inputs, key=lambda step: step.from_input_tokens)
    return ((0, rates), *((step.from_input_tokens, step.rates) for step in longer))


def _check_distinct(long_inputs: Sequence[LongInputPrice]) -> None:
    tokens = [step.from_input_tokens for step in long_inputs]
    for index, number in enumerate(tokens):
        if number in tokens[:index]:
            raise contradiction(
                f"long_inputs.{index}.from_input_tokens", f"{number} is declared twice; a price has one of each"
            )


def _one_or_several(value: Any, validate: Callable[[Any], list[Price]]) -> list[Price]:
    """A price alone, or a list of prices with their times."""
    if isinstance(value, Mapping):
        return [Price.model_validate(value)]
    if not isinstance(value, list):
        raise ValueError("must be a mapping, or a list of mappings with valid_from")  # noqa: TRY004
    return validate(value)


def _one_at_a_time(prices: list[Price]) -> list[Price]:
    """Raises an error if two prices hold from the same time."""
    times = [price.valid_from for price in prices]
    for index, at in enumerate(times):
        if at in times[:index]:
            since = "without valid_from" if at is None else f"from {at.isoformat()}"
            raise contradiction(f"{index}.valid_from", f"two prices hold {since}; give each of them another valid_from")
    return prices


Prices = Annotated[list[Price], Field(min_length=1), WrapValidator(_one_or_several), AfterValidator(_one_at_a_time)]


def price_lists(prices: Sequence[Price]) -> list[PriceList]:
    """The price lists of a model, in the order of their times.

    A tier that a later price does not have is not priced any more; its list has no rates then.
    """
    found: list[PriceList] = []
    tiers: dict[Tier, None] = {}  # in the order in which they appear
    for price in sorted(prices, key=lambda price: price.valid_from or datetime.min.replace(tzinfo=UTC)):
        lists = {one.tier: one for one in price.lists()}
        tiers |= dict.fromkeys(lists)
        found += [lists.get(tier, PriceList(tier, NOT_PRICED, price.valid_from)) for tier in tiers]
    return found


def check_applicable(prices: Sequence[Price], *, vendor: str | None, reports_tiers: bool, engine: str) -> None:
    """Check that prices can apply to a model.

    `vendor` is the provider that charges for the tokens; None if the model runs on GPUs that are paid by time.

    Raises:
        PydanticCustomError: a contradiction; its param is a field of the entry.
    """
    for index, price in enumerate(prices):
        place = "price" if len(prices) == 1 else f"price.{index}"
        if price.gpu_hour is not None and vendor is not None:
            raise contradiction(f"{place}.gpu_hour", f"{vendor} charges for tokens; set input and output instead")
        if price.tiers and not reports_tiers:
            raise without_effect(f"{place}.tiers", f"on the engine {engine}, whose answers report no service tier")
