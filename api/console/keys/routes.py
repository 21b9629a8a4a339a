"""`/console/keys`: keys and projects. Their pages need the `admin` scope."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.admin.keys.service import KeyService
from api.console.actions import Form, dialog_response, read_form, redirect
from api.console.cookies import hand_over_secret, remove_secret, take_secret
from api.console.keys.store import KeyPagesStore
from api.console.keys.view import (
    FormInvalid,
    form_of,
    invalid_field,
    key_line,
    key_to_change,
    key_to_create,
    level_to_change,
    project_to_change,
    project_to_create,
    rotation,
)
from api.console.page import Page
from api.console.templates import page_response
from api.console.viewer import CurrentViewer
from api.http.dependencies import resource
from api.http.pagination import After
from api.keys.principal import DEFAULT_PRIORITY_FLOOR, Scope
from api.keys.store import ApiKey, format_id
from shared.config.models.loader import Registry
from shared.domain.errors import Conflict, InvalidRequest, UnreadableRow

PER_PAGE = 50
MAX_NAME = 1000
# Projects that the form of a key suggests.
SUGGESTED = 100

Keys = Annotated[KeyService, Depends(resource(KeyService))]
Store = Annotated[KeyPagesStore, Depends(resource(KeyPagesStore))]
CurrentRegistry = Annotated[Registry, Depends(resource(Registry))]
Name = Annotated[str, Query(max_length=MAX_NAME)]
NEW_KEY = Form(
    {"priority_floor": str(DEFAULT_PRIORITY_FLOOR), "expires_in_s": "90d"}, {"scopes": [Scope.INFERENCE.value]}
)
NEW_ROTATION = Form({"overlap_s": "24h"})

router = APIRouter()


@router.get("")
async def keys_page(
    request: Request, viewer: CurrentViewer, keys: Keys, project: Name = "", after: After = None
) -> Response:
    """The keys, newest first."""
    page = await keys.page(limit=PER_PAGE, after=after, project=project or None)
    now, own_id = datetime.now(UTC), format_id(viewer.principal.key_id)
    lines = [key_line(key, now, own_id) for key in page.items]
    following = page.items[-1].id if page.has_more else None
    return page_response(request.scope, "keys/keys.html", keys=lines, project=project, after=after, following=following)


@router.get("/new")
async def new_key_page(request: Request, store: Store, registry: CurrentRegistry, project: Name = "") -> Response:
    """The form for a new key."""
    form = Form({**NEW_KEY.values, "project": project}, NEW_KEY.lists)
    return await _key_form(request, store, registry, form)


@router.post("/new")
async def create_key(
    request: Request, viewer: CurrentViewer, keys: Keys, store: Store, registry: CurrentRegistry
) -> Response:
    """Create a key, and lead to the page that shows it once."""
    form = await read_form(request)
    try:
        body = key_to_create(form)
        key, secret = await keys.create(viewer.principal, body)
    except FormInvalid as error:
        return await _key_form(request, store, registry, form.with_errors(error.errors), 422)
    except Conflict:
        message = (
            f"The project {form['name']!r} exists. Name it here to give it another key, or choose another name for the"
            " key."
        )
        return await _key_form(request, store, registry, form.with_errors({"project": message}), 409)
    except InvalidRequest as error:
        return await _key_form(request, store, registry, form.with_errors(invalid_field(error)), 422)
    return _created(request, key, secret)


@router.get("/created")
async def created_page(request: Request, store: Store, key: Name, old: Name = "") -> Response:
    """The secret of a new key, once. `old`: the key that it replaces."""
    shown = await store.key(key)
    secret = take_secret(request.headers, shown.id)
    replaced = await store.key(old) if old else None
    response = page_response(request.scope, "keys/secret.html", key=shown, secret=secret, old=replaced)
    if secret is not None:
        remove_secret(response, request.headers, shown.id)
    return response


@router.get("/change")
async def change_key_page(request: Request, store: Store, registry: CurrentRegistry, key: Name) -> Response:
    """The form that changes a key."""
    found = await store.key(key)
    if found.options is None:
        raise UnreadableRow("API key", found.id, "its form cannot be shown")
    return _change_form(request, registry, found, form_of(found, found.options))


@router.post("/change")
async def change_key(
    request: Request, viewer: CurrentViewer, keys: Keys, store: Store, registry: CurrentRegistry
) -> Response:
    """Change a key."""
    form = await read_form(request)
    key = await store.key(form["key"])
    try:
        body = key_to_change(form, is_own=key.id == format_id(viewer.principal.key_id))
        await keys.change(viewer.principal, key.id, body)
    except FormInvalid as error:
        return _change_form(request, registry, key, form.with_errors(error.errors), 422)
    except InvalidRequest as error:
        return _change_form(request, registry, key, form.with_errors(invalid_field(error)), 422)
    return redirect(request, "keys")


@router.get("/rotate")
async def ask_to_rotate(request: Request, store: Store, key: Name) -> Response:
    """Ask how to replace a key."""
    return dialog_response(request, "keys/rotate.html", key=await store.key(key), form=NEW_ROTATION)


@router.post("/rotate")
async def rotate_key(request: Request, viewer: CurrentViewer, keys: Keys, store: Store) -> Response:
    """Create the successor of a key, and lead to the page that shows it once."""
    form = await read_form(request)
    old = await store.key(form["key"])
    try:
        body = rotation(form, is_own=old.id == format_id(viewer.principal.key_id))
        created, secret = await keys.rotate(viewer.principal, old.id, body)
    except FormInvalid as error:
        return dialog_response(request, "keys/rotate.html", 422, key=old, form=form.with_errors(error.errors))
    return _created(request, created, secret, old)


@router.get("/revoke")
async def ask_to_revoke(request: Request, store: Store, key: Name) -> Response:
    """Ask whether to revoke a key."""
    return dialog_response(request, "keys/revoke.html", key=await store.key(key), form=Form())


@router.post("/revoke")
async def revoke_key(request: Request, viewer: CurrentViewer, keys: Keys, store: Store) -> Response:
    """Revoke a key whose name was typed."""
    form = await read_form(request)
    key = await store.key(form["key"])
    if form["confirm"] != key.name.strip():
        form = form.with_errors({"confirm": f"Type the name of the key: {key.name}"})
        return dialog_response(request, "keys/revoke.html", 422, key=key, form=form)
    await keys.revoke(viewer.principal, key.id)
    return redirect(request, "keys")


@router.get("/projects")
async def projects_page(
    request: Request, keys: Keys, after: Annotated[str | None, Query(max_length=200)] = None
) -> Response:
    """The projects, by name."""
    page = await keys.projects(limit=PER_PAGE, after=after)
    following = page.items[-1].name if page.has_more else None
    return page_response(request.scope, "keys/projects.html", projects=page.items, after=after, following=following)


@router.get("/projects/new")
async def new_project_page(request: Request) -> Response:
    """The form for a new project."""
    return dialog_response(request, "keys/new_project.html", form=Form())


@router.post("/projects/new")
async def create_project(request: Request, viewer: CurrentViewer, keys: Keys) -> Response:
    """Create a project."""
    form = await read_form(request)
    try:
        await keys.create_project(viewer.principal, project_to_create(form))
    except FormInvalid as error:
        return dialog_response(request, "keys/new_project.html", 422, form=form.with_errors(error.errors))
    except Conflict:
        form = form.with_errors({"name": f"The project {form['name']!r} exists."})
        return dialog_response(request, "keys/new_project.html", 409, form=form)
    except InvalidRequest as error:
        form = form.with_errors(invalid_field(error))
        return dialog_response(request, "keys/new_project.html", 422, form=form)
    return redirect(request, "keys/projects")


@router.get("/projects/tier")
async def ask_for_tier(request: Request, keys: Keys, project: Name) -> Response:
    """The form for a project's tier."""
    tier = (await keys.project(project)).tier
    return dialog_response(request, "keys/tier.html", project=project, form=Form({"tier": tier or ""}))


@router.post("/projects/tier")
async def set_tier(request: Request, viewer: CurrentViewer, keys: Keys) -> Response:
    """Change the tier of a project."""
    form = await read_form(request)
    try:
        body = project_to_change(form)
    except FormInvalid as error:
        form = form.with_errors(error.errors)
        return dialog_response(request, "keys/tier.html", 422, project=form["project"], form=form)
    await keys.change_project(viewer.principal, form["project"], body)
    return redirect(request, "keys/projects")


@router.get("/projects/log")
async def ask_for_level(request: Request, keys: Keys, project: Name) -> Response:
    """The form for the level of a project's request log."""
    level = (await keys.project(project)).options.log_level
    form = Form({"options.log_level": level.value if level is not None else ""})
    return dialog_response(request, "keys/log.html", project=project, form=form)


@router.post("/projects/log")
async def set_level(request: Request, viewer: CurrentViewer, keys: Keys) -> Response:
    """Change the level of a project's request log."""
    form = await read_form(request)
    try:
        await keys.change_project(viewer.principal, form["project"], level_to_change(form))
    except FormInvalid as error:
        form = form.with_errors(error.errors)
        return dialog_response(request, "keys/log.html", 422, project=form["project"], form=form)
    except InvalidRequest as error:
        form = form.with_errors(invalid_field(error))
        return dialog_response(request, "keys/log.html", 422, project=form["project"], form=form)
    return redirect(request, "keys/projects")


async def _key_form(
    request: Request, store: KeyPagesStore, registry: Registry, form: Form, status: int = 200
) -> Response:
    values: dict[str, Any] = {
        "projects": await store.project_names(SUGGESTED),
        "model_choices": _model_choices(registry.models),
    }
    return page_response(request.scope, "keys/new.html", status, form=form, **values)


def _change_form(request: Request, registry: Registry, key: ApiKey, form: Form, status: int = 200) -> Response:
    # A model that is not declared any more must not be lost by saving something else.
    choices = _model_choices(dict.fromkeys([*registry.models, *filter(None, [form["options.context.model"]])]))
    return page_response(request.scope, "keys/change.html", status, key=key, form=form, model_choices=choices)


def _model_choices(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, name) for name in names]


def _created(request: Request, key: ApiKey, secret: str, old: ApiKey | None = None) -> Response:
    response = redirect(request, f"keys/created?key={key.id}" + (f"&old={old.id}" if old is not None else ""))
    hand_over_secret(response, request.headers, key.id, secret)
    return response


PAGE = Page(path="keys", title="Keys and projects", router=router, key="k", group="Settings", scope=Scope.ADMIN)
