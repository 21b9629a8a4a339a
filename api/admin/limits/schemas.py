"""Limits as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.http.pagination import PageView
from api.http.rate_limits import LeftOfLimit
from api.limits.rules import RATES, Measure, Mode
from api.limits.store import StoredLimit
from shared.domain.field_types import EndUserName, contradiction

# The columns are 32-bit integers.
Value = Annotated[int, Field(ge=1, lt=2**31)]
_NOT_SOFT = [measure for measure in Measure if measure not in RATES]


class _Values(BaseModel):
    requests_per_minute: Value | None = Field(None, description="Requests in any 60 seconds.")
    tokens_per_minute: Value | None = Field(
        None, description="Tokens in any 60 seconds: of the prompts, and as many as the answers may have."
    )
    concurrent_jobs: Value | None = Field(None, description="Queued and running jobs, without those of batches.")
    queued_jobs: Value | None = Field(None, description="Queued jobs, without those of batches.")
    open_streams: Value | None = Field(None, description="Open event streams in one API process.")


class LimitCreate(_Values):
    """A limit to create: whose requests it is for, and its values, of which it has at least one."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"project": "shop", "end_user": "*", "requests_per_minute": 60, "tokens_per_minute": 100000}]
        },
    )

    project: str | None = Field(
        None, min_length=1, max_length=200, description="Null: the default of each project that has no such limit."
    )
    key_id: str | None = Field(None, max_length=32, description="Only requests with this key, which the project has.")
    end_user: EndUserName | None = Field(None, description="Only requests for this end user; `*`: for each end user.")
    model: str | None = Field(None, max_length=512, description="Only requests that this model serves.")
    mode: Mode = Field(
        Mode.HARD,
        description="What happens to a request above the limit: it is refused, or accepted and waits in the queue.",
    )

    @model_validator(mode="after")
    def _valid(self) -> Self:
        check_values(self.values(), self.mode)
        return self

    def values(self) -> dict[str, int | None]:
        """The values, by their columns."""
        return {measure.value: getattr(self, measure) for measure in Measure}


class LimitUpdate(_Values):
    """Changes of a limit: a JSON Merge Patch (RFC 7396). What is absent remains as it is; null removes a value."""

    is_merge_patch: ClassVar[bool] = True
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"requests_per_minute": 120}]})

    # The default stands for an absent field, which cannot be null; it is never read.
    mode: Mode = Field(default_factory=lambda: Mode.HARD)

    def changes(self) -> dict[str, Any]:
        """The changes of the limit's row."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def check_values(values: Mapping[str, int | None], mode: str) -> None:
    """Raise an error about a field if a limit with these values has none, or cannot have this mode."""
    if all(values[measure] is None for measure in Measure):
        raise contradiction("requests_per_minute", f"give at least one of {', '.join(Measure)}")
    if mode == Mode.SOFT:
        for measure in _NOT_SOFT:
            if values[measure] is not None:
                raise contradiction(
                    measure, f"a soft limit has only {' and '.join(RATES)}; create a hard limit for it as well"
                )


class LeftView(BaseModel):
    """What is left of a limit a minute."""

    limit: int
    remaining: int
    reset_s: float = Field(description="Seconds until it is full again.")

    @classmethod
    def of(cls, left: LeftOfLimit) -> Self:
        """The JSON form."""
        return cls(limit=left.limit, remaining=left.remaining, reset_s=left.reset_s)


class LimitView(_Values):
    """A limit. Null: it has no such value, or is for all."""

    id: str
    object: Literal["limit"] = "limit"
    project: str | None
    key_id: str | None
    end_user: str | None
    model: str | None
    mode: Mode
    created_at: datetime
    left: dict[str, LeftView] | None = Field(
        None,
        description="What is left of the `requests` and `tokens` a minute now. Null in lists, if each project or end"
        " user has a limit of its own, and while Redis is unavailable.",
    )

    @classmethod
    def of(cls, limit: StoredLimit, left: Mapping[str, LeftOfLimit] | None = None) -> Self:
        """The JSON form of a limit."""
        return cls(
            id=limit.id,
            project=limit.project,
            key_id=None if limit.key_id is None else f"key_{limit.key_id}",
            end_user=limit.end_user,
            model=limit.model,
            mode=Mode(limit.mode),
            created_at=limit.created_at,
            left=None if left is None else {unit: LeftView.of(item) for unit, item in left.items()},
            **{measure.value: getattr(limit, measure) for measure in Measure},
        )


class LimitList(PageView[LimitView]):
    """A page of limits, newest first."""


class LimitDeleted(BaseModel):
    """A limit that was deleted."""

    id: str
    object: Literal["limit"] = "limit"
    deleted: Literal[True] = True
