"""OpenAI's pages of usage and costs."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

R = TypeVar("R", bound=BaseModel)


class CompletionsUsage(BaseModel):
    """The usage of one group in a bucket. Members that the request does not group by are null."""

    object: Literal["organization.usage.completions.result"]
    input_tokens: int = Field(description="With the cached ones.")
    output_tokens: int
    input_cached_tokens: int
    input_uncached_tokens: int
    input_cache_write_tokens: int
    input_audio_tokens: Literal[0]
    output_audio_tokens: Literal[0]
    num_model_requests: int = Field(description="Without those that got the answer of another one.")
    project_id: str | None = Field(description="The project's name.")
    user_id: str | None = Field(description="The end user that the requests named.")
    api_key_id: str | None
    model: str | None
    batch: bool | None
    service_tier: str | None


class Amount(BaseModel):
    """An amount of money."""

    value: float
    currency: Literal["usd"]


class Cost(BaseModel):
    """The charge of one group in a bucket. Members that the request does not group by are null."""

    object: Literal["organization.costs.result"]
    amount: Amount | None = Field(description="What is charged. Null if nothing has a price.")
    line_item: str | None = Field(description="The model.")
    project_id: str | None = Field(description="The project's name.")
    user_id: str | None = Field(description="The end user that the requests named.")
    api_key_id: str | None


class Bucket(BaseModel, Generic[R]):
    """A period, from `start_time` up to, but without, `end_time` (Unix seconds)."""

    object: Literal["bucket"]
    start_time: int
    end_time: int
    results: list[R] = Field(description="Empty if nothing was used.")


class BucketPage(BaseModel, Generic[R]):
    """Consecutive periods."""

    object: Literal["page"]
    data: list[Bucket[R]]
    has_more: bool
    next_page: str | None


_USAGE: dict[str, Any] = {
    "object": "organization.usage.completions.result",
    "input_tokens": 90000,
    "output_tokens": 18000,
    "input_cached_tokens": 45000,
    "input_uncached_tokens": 45000,
    "input_cache_write_tokens": 0,
    "input_audio_tokens": 0,
    "output_audio_tokens": 0,
    "num_model_requests": 90,
    "project_id": None,
    "user_id": None,
    "api_key_id": None,
    "model": "smollm2",
    "batch": None,
    "service_tier": None,
}
_COST: dict[str, Any] = {
    "object": "organization.costs.result",
    "amount": {"value": 0.0189, "currency": "usd"},
    "line_item": None,
    "project_id": "shop",
    "user_id": None,
    "api_key_id": None,
}


def _page_of(result: dict[str, Any]) -> ConfigDict:
    bucket: dict[str, Any] = {"object": "bucket", "start_time": 1793491200, "end_time": 1793577600, "results": [result]}
    example: dict[str, Any] = {"object": "page", "data": [bucket], "has_more": False, "next_page": None}
    return ConfigDict(json_schema_extra={"examples": [example]})


class CompletionsUsagePage(BucketPage[CompletionsUsage]):
    """A page of usage."""

    model_config = _page_of(_USAGE)


class CostsPage(BucketPage[Cost]):
    """A page of costs."""

    model_config = _page_of(_COST)
