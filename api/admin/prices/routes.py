"""`/v1/admin/prices`: what the ledger prices tokens with."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.admin.dependencies import ADMIN_ERRORS, AdminPrincipal
from api.admin.prices.schemas import PriceList, PriceView, format_id
from api.admin.prices.store import PriceListStore
from api.http.dependencies import resource
from api.http.pagination import After, Limit, fetch_page, number_after
from shared.domain.ids import number_of

router = APIRouter(prefix="/v1/admin/prices", tags=["prices"])


@router.get("", responses=ADMIN_ERRORS)
async def list_prices(
    _: AdminPrincipal,
    store: Annotated[PriceListStore, Depends(resource(PriceListStore))],
    limit: Limit = 20,
    after: After = None,
    model: Annotated[str | None, Query(max_length=200, description="Only prices of this model.")] = None,
    history: Annotated[
        bool, Query(description="Also prices that were replaced by others, or are not valid yet.")
    ] = False,
) -> PriceList:
    """List the prices in force, newest first. They come from `models.yaml`; a change adds a price and keeps the old."""
    after_id = number_after(after, "price", partial(number_of, "price_"))
    page = await fetch_page(limit, lambda count: store.page(limit=count, after=after_id, model=model, history=history))
    return PriceList.of(page, PriceView.of, lambda price: format_id(price.id))
