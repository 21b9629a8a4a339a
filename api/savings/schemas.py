"""The savings report as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.http.money import dollars
from api.savings.report import RouteSavings, Savings, Tokens


class TokensView(BaseModel):
    """Requests and their tokens."""

    requests: int = Field(description="Requests that were answered.")
    prompt_tokens: int
    cached_tokens: int = Field(description="The part of `prompt_tokens` that was in the model's prompt cache.")
    completion_tokens: int

    @classmethod
    def of(cls, tokens: Tokens, **others: Any) -> Self:
        """The JSON form of tokens, with other members."""
        return cls(
            requests=tokens.requests,
            prompt_tokens=tokens.prompt_tokens,
            cached_tokens=tokens.cached_tokens,
            completion_tokens=tokens.completion_tokens,
            **others,
        )


class ModelTokensView(TokensView):
    """Requests that one model answered, and their tokens."""

    model: str


class RouteSavingsView(BaseModel):
    """What a route has saved."""

    route: str
    models: list[ModelTokensView] = Field(description="What each model answered.")
    baseline: ModelTokensView | None = Field(
        description="The route's `baseline` model, if it had answered everything. Its `cached_tokens` are an estimate:"
        " the largest share that one of the models had cached. Null if models.yaml does not declare the route any more."
    )
    saved: TokensView | None = Field(description="The part of `baseline` that other models answered instead.")
    charge_usd: float | None = Field(
        description="What the route's requests were charged, in dollars. Null if a part has no price."
    )
    baseline_usd: float | None = Field(
        description="What `baseline` would have been charged. Null if there is none, or a part has no price."
    )
    saved_usd: float | None = Field(
        description="`baseline_usd - charge_usd`: negative if the baseline would have cost less. Null if one is."
    )
    note: str | None = Field(description="What limits the comparison; null if nothing does.")


class ByModelView(BaseModel):
    """Requests and their tokens, together and by model."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    models: list[ModelTokensView]


class SavedByModelView(ByModelView):
    """Requests that got the answer of another one."""

    saved_usd: float | None = Field(
        description="What their answers were charged when they were generated, in dollars. Null if a part has no price."
    )


class CachedDayView(BaseModel):
    """The prompt tokens of one day."""

    day: date
    prompt_tokens: int
    cached_tokens: int


class CachedModelView(BaseModel):
    """The prompt tokens of one model."""

    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    cached_share: float = Field(description="From 0 to 1.")
    days: list[CachedDayView] = Field(description="The same by day (UTC).")


class PromptCacheView(BaseModel):
    """Prompt tokens that models did not have to compute, because they were in the prompt cache."""

    prompt_tokens: int
    cached_tokens: int
    models: list[CachedModelView]
    saved_usd: float | None = Field(
        description="What the input would have cost more without a prompt cache, less what writing to it has cost, in"
        " dollars. Null if a part has no price."
    )
    note: str | None = Field(description="Says so if no model reports cached tokens; otherwise null.")


EXAMPLE: dict[str, Any] = {
    "object": "savings",
    "days": 7,
    "start": "2026-11-22T09:00:00Z",
    "end": "2026-11-29T09:00:00Z",
    "answered": {"requests": 1200, "prompt_tokens": 610000, "cached_tokens": 190000, "completion_tokens": 240000},
    "generated": {"requests": 1000, "prompt_tokens": 500000, "cached_tokens": 150000, "completion_tokens": 200000},
    "routes": [
        {
            "route": "auto",
            "models": [
                {
                    "model": "large",
                    "requests": 300,
                    "prompt_tokens": 200000,
                    "cached_tokens": 80000,
                    "completion_tokens": 90000,
                },
                {
                    "model": "small",
                    "requests": 700,
                    "prompt_tokens": 300000,
                    "cached_tokens": 70000,
                    "completion_tokens": 110000,
                },
            ],
            "baseline": {
                "model": "large",
                "requests": 1000,
                "prompt_tokens": 500000,
                "cached_tokens": 200000,
                "completion_tokens": 200000,
            },
            "saved": {
                "requests": 700,
                "prompt_tokens": 300000,
                "cached_tokens": 120000,
                "completion_tokens": 110000,
            },
            "charge_usd": 2.2735,
            "baseline_usd": 4.6,
            "saved_usd": 2.3265,
            "note": None,
        }
    ],
    "response_cache": {
        "requests": 150,
        "prompt_tokens": 90000,
        "completion_tokens": 30000,
        "models": [
            {
                "model": "small",
                "requests": 150,
                "prompt_tokens": 90000,
                "cached_tokens": 30000,
                "completion_tokens": 30000,
            }
        ],
        "saved_usd": 0.0765,
    },
    "coalescing": {
        "requests": 50,
        "prompt_tokens": 20000,
        "completion_tokens": 10000,
        "models": [
            {
                "model": "large",
                "requests": 50,
                "prompt_tokens": 20000,
                "cached_tokens": 10000,
                "completion_tokens": 10000,
            }
        ],
        "saved_usd": 0.205,
    },
    "summaries": {
        "requests": 20,
        "prompt_tokens": 60000,
        "completion_tokens": 8000,
        "models": [
            {
                "model": "small",
                "requests": 20,
                "prompt_tokens": 60000,
                "cached_tokens": 0,
                "completion_tokens": 8000,
            }
        ],
    },
    "prompt_cache": {
        "prompt_tokens": 500000,
        "cached_tokens": 150000,
        "models": [
            {
                "model": "large",
                "requests": 300,
                "prompt_tokens": 200000,
                "cached_tokens": 80000,
                "cached_share": 0.4,
                "days": [{"day": "2026-11-28", "prompt_tokens": 200000, "cached_tokens": 80000}],
            },
            {
                "model": "small",
                "requests": 700,
                "prompt_tokens": 300000,
                "cached_tokens": 70000,
                "cached_share": 0.2333,
                "days": [{"day": "2026-11-28", "prompt_tokens": 300000, "cached_tokens": 70000}],
            },
        ],
        "saved_usd": 0.3915,
        "note": None,
    },
}

_NOT_REPORTED = "No model reports cached tokens."
UNCACHED_BASELINE = (
    "None of the route's models reports cached tokens, so `baseline` is one without a prompt cache. What the route has"
    " saved may be less than `saved`."
)


class SavingsView(BaseModel):
    """What was saved in a time, in tokens and in dollars."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    object: Literal["savings"] = "savings"
    days: int
    start: datetime
    end: datetime
    answered: TokensView = Field(description="All requests of the project that were answered, without failed ones.")
    generated: TokensView = Field(description="Requests that a model ran, without cache hits and coalesced requests.")
    routes: list[RouteSavingsView]
    response_cache: SavedByModelView = Field(description="Requests that were answered from the response cache.")
    coalescing: SavedByModelView = Field(
        description="Requests that got the answer of an identical request that was running."
    )
    summaries: ByModelView = Field(
        description="Jobs that wrote summaries of long conversations. They are in none of the other members."
    )
    prompt_cache: PromptCacheView

    @classmethod
    def of(cls, days: int, start: datetime, end: datetime, savings: Savings) -> Self:
        """The JSON form of a report."""
        return cls(
            days=days,
            start=start,
            end=end,
            answered=TokensView.of(savings.answered),
            generated=TokensView.of(savings.generated),
            routes=[_route(found) for found in savings.routes],
            response_cache=_saved_by_model(savings.response_cache, savings.response_cache_usd),
            coalescing=_saved_by_model(savings.coalescing, savings.coalescing_usd),
            summaries=ByModelView(**_by_model(savings.summaries)),
            prompt_cache=_prompt_cache(savings),
        )


def _models(models: Mapping[str, Tokens]) -> list[ModelTokensView]:
    return [ModelTokensView.of(tokens, model=model) for model, tokens in models.items()]


def _route(found: RouteSavings) -> RouteSavingsView:
    baseline = saved = None
    if found.baseline is not None and found.expected is not None and found.saved is not None:
        baseline = ModelTokensView.of(found.expected, model=found.baseline)
        saved = TokensView.of(found.saved)
    is_uncached = baseline is not None and not any(tokens.cached_tokens for tokens in found.models.values())
    return RouteSavingsView(
        route=found.route,
        models=_models(found.models),
        baseline=baseline,
        saved=saved,
        charge_usd=dollars(found.charge),
        baseline_usd=dollars(found.expected_usd),
        saved_usd=dollars(found.saved_usd),
        note=UNCACHED_BASELINE if is_uncached else None,
    )


def _saved_by_model(models: Mapping[str, Tokens], saved: Decimal | None) -> SavedByModelView:
    return SavedByModelView(**_by_model(models), saved_usd=dollars(saved))


def _by_model(models: Mapping[str, Tokens]) -> dict[str, Any]:
    """The members of a `ByModelView`."""
    return {
        "requests": _sum(models, "requests"),
        "prompt_tokens": _sum(models, "prompt_tokens"),
        "completion_tokens": _sum(models, "completion_tokens"),
        "models": _models(models),
    }


def _prompt_cache(savings: Savings) -> PromptCacheView:
    return PromptCacheView(
        prompt_tokens=savings.generated.prompt_tokens,
        cached_tokens=savings.generated.cached_tokens,
        models=[
            CachedModelView(
                model=model,
                requests=tokens.requests,
                prompt_tokens=tokens.prompt_tokens,
                cached_tokens=tokens.cached_tokens,
                cached_share=round(tokens.cached_share, 4),
                days=[
                    CachedDayView(day=day, prompt_tokens=found.prompt_tokens, cached_tokens=found.cached_tokens)
                    for day, found in savings.prompt_cache_by_day[model].items()
                ],
            )
            for model, tokens in savings.prompt_cache.items()
        ],
        saved_usd=dollars(savings.prompt_cache_usd),
        note=_NOT_REPORTED if savings.generated.requests and not savings.generated.cached_tokens else None,
    )


def _sum(models: Mapping[str, Tokens], name: str) -> int:
    values: Iterable[int] = (getattr(tokens, name) for tokens in models.values())
    return sum(values)
