"""`/v1/admin/audit`: who has changed what."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.admin.audit.schemas import AuditEntryView, AuditLog, format_id
from api.admin.dependencies import ADMIN_ERRORS, AdminPrincipal
from api.http.dependencies import resource
from api.http.pagination import After, Limit, fetch_page, number_after
from api.keys.store import parse_id
from shared.domain.errors import InvalidRequest
from shared.domain.ids import number_of
from shared.postgres.audit_store import AuditStore

router = APIRouter(prefix="/v1/admin/audit", tags=["audit"])


@router.get("", responses=ADMIN_ERRORS)
async def list_entries(
    _: AdminPrincipal,
    store: Annotated[AuditStore, Depends(resource(AuditStore))],
    limit: Limit = 20,
    after: After = None,
    project: Annotated[str | None, Query(max_length=200, description="Only changes in this project.")] = None,
    key: Annotated[str | None, Query(max_length=64, description="Only changes that this key has made.")] = None,
    action: Annotated[
        str | None,
        Query(
            max_length=64,
            pattern=r"^[a-z_]+(\.[a-z_]+)?$",
            description="Only this action, such as `key.revoke`, or all of a kind of object: `key`.",
        ),
    ] = None,
    object_id: Annotated[
        str | None, Query(alias="object", max_length=1000, description="Only changes of the object with this id.")
    ] = None,
) -> AuditLog:
    """List the changes that operators have made, newest first."""
    after_id, key_id = number_after(after, "audit entry", partial(number_of, "audit_")), None
    if key is not None and (key_id := parse_id(key)) is None:
        raise InvalidRequest("key: must be a key id, such as key_12", param="key")
    page = await fetch_page(
        limit,
        lambda count: store.page(
            limit=count, after=after_id, project=project, key_id=key_id, action=action, object_id=object_id
        ),
    )
    return AuditLog.of(page, AuditEntryView.of, lambda entry: format_id(entry.id))
