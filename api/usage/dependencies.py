"""FastAPI dependencies of usage, and what its operations respond with."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from fastapi import Depends, Query

from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.openapi import ERRORS
from api.usage.service import UsageService

CurrentUsage = Annotated[UsageService, Depends(resource(UsageService))]
USAGE_ERRORS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    403: {"model": ErrorResponse, "description": "Usage of other projects needs a key with the scope `admin`."},
}
TimeZone = Annotated[
    str, Query(description="The name of the time zone in which days and months begin, such as `Europe/Berlin`.")
]
EndDay = Annotated[date | None, Query(description="The day after the last one; by default tomorrow.")]


def several(description: str) -> Any:
    """A parameter of a report that a request may repeat."""
    return Query(description=f"{description} Repeat it for several.")
