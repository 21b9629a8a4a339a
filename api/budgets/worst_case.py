"""What a job could cost at most: that is what it reserves, and what its estimate says.

It is the input's tokens, and as many output tokens as it may generate, at the dearest rates at which they may count.
The charge is not higher, unless the prompt's tokens could only be estimated and are more than the estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from api.context.most_output import most_output_tokens
from api.context.window import ContextWindow, PromptTokens
from shared.config.models.loader import Registry
from shared.domain.budgets import MONEY
from shared.domain.ledger import DEFAULT_TIER
from shared.domain.new_job import NewJob
from shared.domain.prices import PriceList, Rates
from shared.postgres.price_store import StoredPrice

_MILLION = Decimal(1_000_000)
# Input tokens that are written to a provider's cache cost more than others.
_INPUT = ("input_fresh", "input_cache_write_5m", "input_cache_write_1h")
_OUTPUT = ("output_text", "output_reasoning")


class Unpriced(Exception):
    """A model has no price."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


class Unbounded(Exception):
    """Nothing bounds the output of a model."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


class PricesInForce:
    """The price lists in force, by model."""

    def __init__(self, prices: Iterable[StoredPrice] = ()) -> None:
        self._lists: dict[str, list[PriceList]] = {}
        for price in prices:
            self._lists.setdefault(price.model, []).append(price.price_list)

    def of(self, model: str, input_tokens: int) -> list[Rates]:
        """The rates of a model's requests with so many input tokens, as the ledger finds them: those of the default
        tier first, and those of the others, in one of which the request may be served."""
        found: dict[str, Rates] = {}
        for price_list in self._lists.get(model, ()):
            for from_input_tokens, rates in price_list.steps:
                if from_input_tokens <= input_tokens:
                    found[price_list.tier] = rates
        default = found.pop(DEFAULT_TIER, None)
        return [] if default is None else [default, *found.values()]


@dataclass(frozen=True, slots=True)
class MostCost:
    """What a job could cost at most with one model.

    `output`: the most output tokens of all of its choices together; None if nothing limits them. The rates are in
    dollars per million tokens; None: there is no price.
    """

    model: str
    prompt: PromptTokens
    output: int | None
    input_rate: Decimal | None
    output_rate: Decimal | None

    @property
    def input_cost(self) -> Decimal | None:
        """In dollars; None if there is no price."""
        return None if self.input_rate is None else _cost(self.prompt.number, self.input_rate)

    @property
    def output_cost(self) -> Decimal | None:
        """In dollars; None if there is no price, or no limit."""
        return None if self.output is None or self.output_rate is None else _cost(self.output, self.output_rate)

    @property
    def cost(self) -> Decimal | None:
        """In dollars; None if a part of it is not known."""
        first, second = self.input_cost, self.output_cost
        return None if first is None or second is None else MONEY.add(first, second)


class WorstCase:
    """Computes what jobs could cost at most."""

    def __init__(self, registry: Registry, context: ContextWindow) -> None:
        self._registry = registry
        self._context = context

    def models(self, new: NewJob) -> list[str]:
        """The models that may serve a job: its own, and those to which its route may move it."""
        fallbacks = () if new.decisions.route is None else new.decisions.route.fallbacks
        return [new.model, *(model for model in fallbacks if model in self._registry)]

    async def of(self, new: NewJob, prices: PricesInForce) -> Decimal:
        """What a job could cost at most, in dollars: the dearest of the models that may serve it.

        Raises:
            Unpriced: one of the models has no price for input or output.
            Unbounded: the request sets no max_tokens, and one of the models has neither a default nor a known context.
            InvalidRequest: the chat template rejects the prompt.
        """
        costs = []
        for model in self.models(new):
            found = await self.of_model(model, new, prices)
            if found.input_rate is None or found.output_rate is None:
                raise Unpriced(model)
            if found.cost is None:
                raise Unbounded(model)
            costs.append(found.cost)
        return max(costs)

    async def of_model(self, model: str, new: NewJob, prices: PricesInForce) -> MostCost:
        """What a job could cost at most if one of its models served it.

        Raises:
            InvalidRequest: the chat template rejects the prompt.
        """
        # Admission has counted the prompt with this limit, if that was needed.
        limit = self._context.length(model)
        prompt = await self._context.measure(model, new.request, limit, new.owner.project_id)
        output = most_output_tokens(self._registry[model], new.request, length=limit, prompt=prompt)
        rates = prices.of(model, prompt.number)
        return MostCost(model, prompt, output, _highest(rates, _INPUT), _highest(rates, _OUTPUT))


def dearest(costs: Sequence[MostCost]) -> MostCost:
    """The one that costs most; if what one of them costs is not known, that one."""
    return max(costs, key=lambda one: (one.cost is None, one.cost or Decimal(0)))


def _cost(tokens: int, rate: Decimal) -> Decimal:
    return MONEY.divide(MONEY.multiply(Decimal(tokens), rate), _MILLION)


def _highest(found: Sequence[Rates], names: Sequence[str]) -> Decimal | None:
    """The highest of these rates; None if the default tier has none for the first of them, that of most tokens."""
    if not found or getattr(found[0], names[0]) is None:
        return None
    highest: Decimal = max(rate for rates in found for name in names if (rate := getattr(rates, name)) is not None)
    return highest
