"""The published prices of models that providers run, from the data of the package `genai-prices`.

The package's data is what was bundled with its version: nothing is downloaded. It is imported only if a model needs it,
and takes about 20 MB. Its own calculation is not used, because it falls back without a word: to the standard price for
a service tier that a model has no price for, to the price of input for cached input without a price, and to that of a
cached token for one that is cached for an hour. None of these are priced here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared.config.models.anthropic import AnthropicModel
from shared.config.models.loader import ModelSpec
from shared.config.models.openai import OpenAIModel
from shared.domain.errors import HeadraceError
from shared.domain.prices import PriceList, Rates, Tier, without_repetitions

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, PriceVariant, Provider

# The package's names of the providers that `Spec.provider` names.
_PROVIDERS = {
    "anthropic": "anthropic",
    "openai": "openai",
    "azure": "azure",
    "gemini": "google",
    "openrouter": "openrouter",
}
# The contexts that select its prices of service tiers.
_CONTEXTS: Mapping[Tier, Mapping[str, str]] = {
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "batch": {"processing": "batch"},
}
# The package's names of our rates; of several, the first that has a price.
_RATES = {
    "input_fresh": ("input_mtok",),
    "input_cache_read": ("cache_read_mtok",),
    "input_cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok"),
    "input_cache_write_1h": ("cache_write_1h_mtok",),
    "output_text": ("output_mtok",),
    "output_reasoning": ("output_reasoning_mtok",),
}
# Before all prices that have a date.
_EVER = datetime(1, 1, 1, tzinfo=UTC)


class NoDefaultPrice(HeadraceError):
    """There is no published price for a model, or it cannot be expressed as rates of tokens."""


def default_prices(spec: ModelSpec) -> list[PriceList]:
    """The published prices of the model that a provider runs; none if the model is not run by a provider.

    Raises:
        NoDefaultPrice: the provider's price is not known; the message says why.
    """
    if not isinstance(spec, OpenAIModel | AnthropicModel):
        return []
    if isinstance(spec, OpenAIModel) and spec.preset is not None and spec.provider is None:
        return []  # a server that an operator runs
    addresses = [target.endpoint.base_url for target in spec.options.targets]
    if spec.provider is None and not all(map(_is_public, addresses)):
        return []
    name = (isinstance(spec, AnthropicModel) and spec.options.base_model) or spec.model
    return _lists(*_found(name, _PROVIDERS.get(spec.provider or ""), addresses))


def _is_public(address: str) -> bool:
    """Whether the host of a URL can be a provider's: neither a name within a network nor an IP address."""
    host = urlsplit(address).hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return "." in host
    return False


def _found(name: str, provider_id: str | None, addresses: Iterable[str]) -> tuple[Provider, ModelInfo]:
    """The provider and the model, by the addresses of requests; `provider_id` is that of unknown addresses."""
    from genai_prices.data_snapshot import get_snapshot  # takes a while, and memory

    snapshot = get_snapshot()

    def provider_of(address: str) -> Provider:
        try:
            return snapshot.find_provider(None, None, address)
        except LookupError:
            if provider_id is None:
                raise NoDefaultPrice(f"no provider at {address} is known") from None
            return snapshot.find_provider(None, provider_id, None)

    providers = {found.id: found for found in map(provider_of, addresses)}
    if len(providers) > 1:
        raise NoDefaultPrice(f"its endpoints are of several providers: {', '.join(sorted(providers))}")
    (provider,) = providers.values()
    model = provider.find_model(name.removeprefix("models/"), all_providers=snapshot.providers)
    if model is None:
        raise NoDefaultPrice(f"no price of {name!r} from {provider.name} is known")
    return provider, model


def _lists(provider: Provider, model: ModelInfo) -> list[PriceList]:
    if not isinstance(model.prices, list):
        constraints: list[Any] = [None]
    else:
        constraints = [price.constraint for price in model.prices]
    dates = [_start(model, constraint) for constraint in constraints]
    lists = without_repetitions(
        PriceList("default", _steps(model, model.get_prices(at)), _shown(at)) for at in sorted(set(dates))
    )
    # The package has no tiers for models of another provider, whose prices it takes instead.
    variants = model.price_variants or [] if any(model is own for own in provider.models) else []
    for tier, context in _CONTEXTS.items():
        matching = [variant for variant in variants if _matches(variant, context)]
        starts = [_start(model, variant.constraint) for variant in matching]
        points = sorted({*starts, *(at for at in dates if starts and at > min(starts))})
        lists += without_repetitions(
            PriceList(tier, _steps(model, model.get_prices(at, context)), _shown(at)) for at in points
        )
    return lists


def _matches(variant: PriceVariant, context: Mapping[str, str]) -> bool:
    return all(context.get(key) == value for key, value in variant.when.items())


def _start(model: ModelInfo, constraint: Any) -> datetime:
    """From when on a price with this condition holds."""
    if constraint is None:
        return _EVER
    if (date := getattr(constraint, "start_date", None)) is None:
        raise NoDefaultPrice(f"the price of {model.id} depends on the time of day")
    return datetime.combine(date, time(), tzinfo=UTC)


def _shown(at: datetime) -> datetime | None:
    return None if at == _EVER else at


def _steps(model: ModelInfo, prices: ModelPrice) -> tuple[tuple[int, Rates], ...]:
    """The rates by the number of input tokens from which on they hold.

    The package's steps are for inputs of more tokens than their start, and one of them is for all tokens of a request.
    """
    if prices.requests_kcount is not None:
        raise NoDefaultPrice(f"the price of {model.id} has a part per request")
    found = {name: _first(getattr(prices, key) for key in keys) for name, keys in _RATES.items()}
    if found["input_fresh"] is None or found["output_text"] is None:
        raise NoDefaultPrice(f"{model.id} has no price of text tokens")
    stepped = [price for price in found.values() if hasattr(price, "tiers")]
    starts = sorted({0, *(step.start + 1 for price in stepped for step in price.tiers)})
    return tuple((start, Rates(**{name: _at(price, start) for name, price in found.items()})) for start in starts)


def _first(prices: Iterable[Any]) -> Any:
    return next((price for price in prices if price is not None), None)


def _at(price: Any, input_tokens: int) -> Any:
    """The price of a request with this number of input tokens; None if there is none."""
    if not hasattr(price, "tiers"):
        return price
    steps = [step.price for step in price.tiers if step.start < input_tokens]
    return steps[-1] if steps else price.base
