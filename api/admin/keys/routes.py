"""`/v1/admin/keys` and `/v1/admin/projects`: create, change, rotate, revoke, list."""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.admin.dependencies import ADMIN_ERRORS, AdminPrincipal
from api.admin.keys.schemas import (
    ApiKeyCreate,
    ApiKeyCreated,
    ApiKeyList,
    ApiKeyRotate,
    ApiKeyUpdate,
    ApiKeyView,
    ProjectCreate,
    ProjectList,
    ProjectUpdate,
    ProjectView,
)
from api.admin.keys.service import KeyService
from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.json_body import JsonRoute
from api.http.openapi import NOT_FOUND, READ
from api.http.pagination import After, Limit
from api.keys.store import ApiKey

_keys = APIRouter(tags=["keys"], route_class=JsonRoute)
_projects = APIRouter(tags=["keys"], route_class=JsonRoute)

Keys = Annotated[KeyService, Depends(resource(KeyService))]


def _conflict(description: str) -> dict[int | str, dict[str, Any]]:
    return {409: {"model": ErrorResponse, "description": description}}


def _with_secret(key: ApiKey, secret: str) -> ApiKeyCreated:
    return ApiKeyCreated.of(key).model_copy(update={"secret": secret})


@_keys.get("", responses=ADMIN_ERRORS)
async def list_keys(
    _: AdminPrincipal,
    keys: Keys,
    limit: Limit = 20,
    after: After = None,
    project: Annotated[str | None, Query(max_length=200, description="Only keys of this project.")] = None,
) -> ApiKeyList:
    """List the keys of all projects, newest first, revoked and expired ones too."""
    return ApiKeyList.of(await keys.page(limit=limit, after=after, project=project), ApiKeyView.of)


@_keys.post("", responses={**ADMIN_ERRORS, **_conflict("The project exists already."), 200: READ})
async def create_key(body: ApiKeyCreate, principal: AdminPrincipal, keys: Keys) -> ApiKeyCreated:
    """Create a key. The response is the only one that has the key itself (`secret`)."""
    return _with_secret(*await keys.create(principal, body))


@_keys.patch(
    "/{key_id}",
    responses={
        **ADMIN_ERRORS,
        **NOT_FOUND,
        **_conflict("The key is not valid any more, or would take the admin scope from itself."),
    },
)
async def change_key(key_id: str, body: ApiKeyUpdate, principal: AdminPrincipal, keys: Keys) -> ApiKeyView:
    """Change a key: only what the body names. Effective within `HEADRACE_KEY_CACHE_S` seconds.

    Queued and running jobs are not changed. Streams that a key could open by a scope which it loses are closed.
    """
    return ApiKeyView.of(await keys.change(principal, key_id, body))


@_keys.post(
    "/{key_id}/rotate",
    responses={**ADMIN_ERRORS, **NOT_FOUND, **_conflict("The key is not valid any more."), 200: READ},
)
async def rotate_key(key_id: str, body: ApiKeyRotate, principal: AdminPrincipal, keys: Keys) -> ApiKeyCreated:
    """Create the successor of a key, with the same rights. The old key expires after the overlap.

    Limits and budgets of the old key do not apply to the new one: create them for it.
    """
    return _with_secret(*await keys.rotate(principal, key_id, body))


@_keys.post(
    "/{key_id}/revoke",
    responses={**ADMIN_ERRORS, **NOT_FOUND, **_conflict("The key is not valid any more, or is that of the request.")},
)
async def revoke_key(key_id: str, principal: AdminPrincipal, keys: Keys) -> ApiKeyView:
    """Revoke a key. Its requests are refused, and its streams closed, within `HEADRACE_KEY_CACHE_S` seconds."""
    return ApiKeyView.of(await keys.revoke(principal, key_id))


@_projects.get("", responses=ADMIN_ERRORS)
async def list_projects(_: AdminPrincipal, keys: Keys, limit: Limit = 20, after: After = None) -> ProjectList:
    """List the projects, by name."""
    return ProjectList.of(await keys.projects(limit=limit, after=after), ProjectView.of, attrgetter("name"))


@_projects.post("", responses={**ADMIN_ERRORS, **_conflict("The project exists already."), 200: READ})
async def create_project(body: ProjectCreate, principal: AdminPrincipal, keys: Keys) -> ProjectView:
    """Create a project without keys."""
    return ProjectView.of(await keys.create_project(principal, body))


@_projects.patch("/{name:path}", responses={**ADMIN_ERRORS, **NOT_FOUND})
async def change_project(name: str, body: ProjectUpdate, principal: AdminPrincipal, keys: Keys) -> ProjectView:
    """Change a project: only what the body names. Effective within `HEADRACE_KEY_CACHE_S` seconds."""
    return ProjectView.of(await keys.change_project(principal, name, body))


router = APIRouter()
router.include_router(_keys, prefix="/v1/admin/keys")
router.include_router(_projects, prefix="/v1/admin/projects")
# The paths of earlier versions.
router.include_router(_keys, prefix="/v1/api_keys", include_in_schema=False)
router.include_router(_projects, prefix="/v1/projects", include_in_schema=False)
