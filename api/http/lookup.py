"""Looks up resources of a project. Another project's resource is reported as not found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.domain.errors import NotFound

T = TypeVar("T")


async def own_or_404(
    what: str,
    item_id: str,
    project_id: int,
    is_id: Callable[[str], bool],
    get: Callable[[str, int], Awaitable[T | None]],
    param: str | None = None,
) -> T:
    """Return a job, file or batch of a project. `param` is the parameter that holds its id, for the error.

    Raises:
        NotFound: it does not exist or belongs to another project.
    """
    item = await get(item_id, project_id) if is_id(item_id) else None
    if item is None:
        raise NotFound(f"There is no {what} `{item_id[:64]}`.", param=param or f"{what}_id", code=f"{what}_not_found")
    return item
