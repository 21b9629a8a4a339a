"""The conditions of the list of requests, as its address has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

from fastapi import Depends, Query

from api.console.navigation import address
from api.requests.query import RequestQuery
from shared.domain.job import TERMINAL, JobStatus

RangeName = Literal["24h", "7d", "30d", "all"]
DEFAULT_RANGE: RangeName = "7d"
RANGES: Final[Mapping[RangeName, tuple[str, timedelta | None]]] = {
    "24h": ("The last 24 hours", timedelta(hours=24)),
    "7d": ("The last 7 days", timedelta(days=7)),
    "30d": ("The last 30 days", timedelta(days=30)),
    "all": ("At any time", None),
}
STATUSES = [status.value for status in TERMINAL]
MAX_NAME = 1000
Name = Annotated[str, Query(max_length=MAX_NAME)]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions. An empty text is none."""

    range: RangeName = DEFAULT_RANGE
    project: str = ""
    model: str = ""
    route: str = ""
    user: str = ""
    status: str = ""
    error: str = ""
    refused: str = ""
    feedback: str = ""

    @property
    def is_narrowed(self) -> bool:
        """Whether there is a condition besides the time."""
        return self != Conditions(self.range)

    def address(self, path: str = "requests", **more: str) -> str:
        """The address of a page with these conditions, relative to the console's root."""
        values = {**asdict(self), **more}
        if values["range"] == DEFAULT_RANGE:
            del values["range"]
        return address(path, **values)

    def query(self, now: datetime) -> RequestQuery:
        """The conditions of a search."""
        _, length = RANGES[self.range]
        return RequestQuery(
            start=None if length is None else now - length,
            models=[self.model] if self.model else (),
            routes=[self.route] if self.route else (),
            project=self.project or None,
            user=self.user or None,
            statuses=[JobStatus(self.status)] if self.status in STATUSES else (),
            error_code=self.error or None,
            refused={"yes": True, "no": False}.get(self.refused),
            feedback=self.feedback or None,
        )


async def read_conditions(
    range_name: Annotated[RangeName, Query(alias="range")] = DEFAULT_RANGE,
    project: Name = "",
    model: Name = "",
    route: Name = "",
    user: Name = "",
    status: Name = "",
    error: Name = "",
    refused: Name = "",
    feedback: Name = "",
) -> Conditions:
    """The conditions of a request."""
    texts = (project, model, route, user, status, error, refused, feedback)
    return Conditions(range_name, *(text.strip() for text in texts))


CurrentConditions = Annotated[Conditions, Depends(read_conditions)]
