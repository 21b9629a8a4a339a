"""`/v1/cache`: the project's part of the response cache."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from api.cache.store import CacheStore
from api.http.dependencies import resource
from api.http.openapi import ERRORS
from api.http.query_parameters import check_names
from api.keys.auth import CurrentPrincipal
from shared.config.models.base import MAX_NAME, NAME
from shared.domain.answer_options import MAX_CACHE_TTL_S

router = APIRouter(prefix="/v1/cache", tags=["cache"])


class CachePurged(BaseModel):
    """The number of answers that were removed."""

    object: Literal["cache.purged"] = "cache.purged"
    entries: int


@router.delete("", responses=ERRORS, dependencies=[Depends(check_names)])
async def purge(
    principal: CurrentPrincipal,
    store: Annotated[CacheStore, Depends(resource(CacheStore))],
    model: Annotated[
        str | None, Query(max_length=MAX_NAME, pattern=NAME, description="Only answers of this model.")
    ] = None,
    older_than: Annotated[
        int | None, Query(ge=0, le=MAX_CACHE_TTL_S, description="Only answers that are older than this many seconds.")
    ] = None,
) -> CachePurged:
    """Remove the project's answers from the response cache. Their jobs remain, until they are deleted themselves."""
    return CachePurged(entries=await store.purge(project_id=principal.project_id, model=model, older_than_s=older_than))
