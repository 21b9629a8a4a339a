"""`/console/webhooks`: the endpoints of webhooks, and deliveries with their tries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.console.actions import Form, dialog_response, read_form, redirect
from api.console.cookies import hand_over_secret, remove_secret, take_secret
from api.console.keys.view import FormInvalid
from api.console.page import Page
from api.console.templates import page_response
from api.console.viewer import CurrentViewer
from api.console.webhooks.view import delivery_line, duration_of, endpoint_line, endpoint_to_create, rotation
from api.http.dependencies import resource
from api.http.pagination import After
from api.keys.principal import Scope
from api.webhooks.delivery_store import MAX_REPLAYED, DeliveryQuery, DeliveryState, format_id
from api.webhooks.schemas import EndpointUpdate
from api.webhooks.service import WebhookService
from shared.domain.errors import Conflict, InvalidRequest
from shared.domain.webhook_events import ALL, GROUPS, SUBSCRIBABLE, EventType

PER_PAGE = 50
MAX_ID = 64
NEW_ENDPOINT = Form({"events": ALL})
NEW_ROTATION = Form({"overlap_s": "24h"})
NEW_REPLAY = Form({"since_s": "24h"})
TYPES = [one.value for one in EventType]
PATTERNS = [*GROUPS, *(one.value for one in SUBSCRIBABLE)]

Webhooks = Annotated[WebhookService, Depends(resource(WebhookService))]
Id = Annotated[str, Query(max_length=MAX_ID)]

router = APIRouter()


@router.get("")
async def endpoints_page(request: Request, viewer: CurrentViewer, webhooks: Webhooks, after: After = None) -> Response:
    """The endpoints, newest first."""
    page = await webhooks.endpoints(viewer.project_id, limit=PER_PAGE, after=after)
    return page_response(
        request.scope,
        "webhooks/webhooks.html",
        lines=[endpoint_line(endpoint) for endpoint in page.items],
        after=after,
        following=page.items[-1].id if page.has_more else None,
    )


@router.get("/new")
async def new_endpoint_page(request: Request) -> Response:
    """The form for a new endpoint."""
    return _endpoint_form(request, NEW_ENDPOINT)


@router.post("/new")
async def create_endpoint(request: Request, viewer: CurrentViewer, webhooks: Webhooks) -> Response:
    """Create an endpoint of the viewer's project, and lead to the page that shows its secret once."""
    form = await read_form(request)
    try:
        endpoint = await webhooks.create(viewer.principal, endpoint_to_create(form))
    except FormInvalid as error:
        return _endpoint_form(request, form.with_errors(error.errors), 422)
    except InvalidRequest as error:
        return _endpoint_form(request, form.with_errors({"url": _sentence(error.message.removeprefix("url: "))}), 422)
    except Conflict as error:
        return _endpoint_form(request, form.with_errors({"url": error.message}), 409)
    return _created(request, endpoint.id, endpoint.secrets[0].secret)


@router.get("/created")
async def created_page(request: Request, viewer: CurrentViewer, webhooks: Webhooks, endpoint: Id) -> Response:
    """The secret of an endpoint, once."""
    line = endpoint_line(await webhooks.endpoint(endpoint, viewer.project_id))
    secret = take_secret(request.headers, line.id)
    response = page_response(request.scope, "webhooks/secret.html", line=line, secret=secret)
    if secret is not None:
        remove_secret(response, request.headers, line.id)
    return response


@router.get("/rotate")
async def ask_to_rotate(request: Request, viewer: CurrentViewer, webhooks: Webhooks, endpoint: Id) -> Response:
    """Ask how to replace a secret."""
    line = endpoint_line(await webhooks.endpoint(endpoint, viewer.project_id))
    return dialog_response(request, "webhooks/rotate.html", line=line, form=NEW_ROTATION)


@router.post("/rotate")
async def rotate_secret(request: Request, viewer: CurrentViewer, webhooks: Webhooks) -> Response:
    """Replace a secret, and lead to the page that shows the new one once."""
    form = await read_form(request)
    try:
        body = rotation(form)
    except FormInvalid as error:
        line = endpoint_line(await webhooks.endpoint(form["endpoint"], viewer.project_id))
        return dialog_response(request, "webhooks/rotate.html", 422, line=line, form=form.with_errors(error.errors))
    endpoint, secret = await webhooks.rotate(viewer.principal, form["endpoint"], body, viewer.project_id)
    return _created(request, endpoint.id, secret)


@router.get("/remove")
async def ask_to_remove(request: Request, viewer: CurrentViewer, webhooks: Webhooks, endpoint: Id) -> Response:
    """Ask whether to remove an endpoint."""
    line = endpoint_line(await webhooks.endpoint(endpoint, viewer.project_id))
    return dialog_response(request, "webhooks/remove.html", line=line)


@router.post("/remove")
async def remove_endpoint(request: Request, viewer: CurrentViewer, webhooks: Webhooks) -> Response:
    """Remove an endpoint."""
    form = await read_form(request)
    await webhooks.delete(viewer.principal, form["endpoint"], viewer.project_id)
    return redirect(request, "webhooks")


@router.post("/switch")
async def switch_endpoint(request: Request, viewer: CurrentViewer, webhooks: Webhooks) -> Response:
    """Enable or disable an endpoint."""
    form = await read_form(request)
    change = EndpointUpdate(enabled=form["enabled"] == "true")
    await webhooks.change(viewer.principal, form["endpoint"], change, viewer.project_id)
    return redirect(request, "webhooks")


@router.post("/test")
async def send_test(request: Request, viewer: CurrentViewer, webhooks: Webhooks) -> Response:
    """Send a test event, and lead to the page of its delivery."""
    form = await read_form(request)
    delivery = await webhooks.send_test(form["endpoint"], viewer.project_id)
    return redirect(request, f"webhooks/deliveries/{format_id(delivery.id)}")


@router.get("/deliveries")
async def deliveries_page(
    request: Request,
    viewer: CurrentViewer,
    webhooks: Webhooks,
    endpoint: Id = "",
    state: Annotated[str, Query(pattern=rf"^({'|'.join(DeliveryState)})?$")] = "",
    type: Annotated[str, Query(max_length=MAX_ID)] = "",  # noqa: A002
    after: After = None,
) -> Response:
    """Deliveries, newest first."""
    query = DeliveryQuery(viewer.project_id, endpoint or None, DeliveryState(state) if state else None, type or None)
    shown = endpoint_line(await webhooks.endpoint(endpoint, viewer.project_id)) if endpoint else None
    page = await webhooks.deliveries(query, limit=PER_PAGE, after=after)
    return page_response(
        request.scope,
        "webhooks/deliveries.html",
        lines=[delivery_line(delivery) for delivery in page.items],
        endpoint=shown,
        state=state,
        type=type,
        states=list(DeliveryState),
        event_types=TYPES,
        conditions={"endpoint": endpoint, "state": state, "type": type},
        after=after,
        following=format_id(page.items[-1].id) if page.has_more else None,
    )


@router.get("/deliveries/{delivery_id}")
async def delivery_page(request: Request, viewer: CurrentViewer, webhooks: Webhooks, delivery_id: str) -> Response:
    """A delivery with its tries."""
    delivery, tries = await webhooks.delivery(delivery_id, viewer.project_id)
    return page_response(request.scope, "webhooks/delivery.html", line=delivery_line(delivery), tries=tries)


@router.post("/replay")
async def replay_delivery(request: Request, viewer: CurrentViewer, webhooks: Webhooks) -> Response:
    """Send a delivery again."""
    form = await read_form(request)
    delivery = await webhooks.replay(viewer.principal, form["delivery"], viewer.project_id)
    return redirect(request, f"webhooks/deliveries/{format_id(delivery.id)}")


@router.get("/replay-dead")
async def ask_to_replay(request: Request, viewer: CurrentViewer, webhooks: Webhooks, endpoint: Id = "") -> Response:
    """Ask which dead deliveries to send again."""
    line = endpoint_line(await webhooks.endpoint(endpoint, viewer.project_id)) if endpoint else None
    return dialog_response(request, "webhooks/replay_dead.html", line=line, form=NEW_REPLAY, most=MAX_REPLAYED)


@router.post("/replay-dead")
async def replay_dead(request: Request, viewer: CurrentViewer, webhooks: Webhooks) -> Response:
    """Send dead deliveries again."""
    form = await read_form(request)
    endpoint = form["endpoint"]
    line = endpoint_line(await webhooks.endpoint(endpoint, viewer.project_id)) if endpoint else None
    try:
        since = datetime.now(UTC) - timedelta(seconds=duration_of(form, "since_s"))
    except FormInvalid as error:
        form = form.with_errors(error.errors)
        return dialog_response(request, "webhooks/replay_dead.html", 422, line=line, form=form, most=MAX_REPLAYED)
    await webhooks.replay_dead(viewer.principal, DeliveryQuery(viewer.project_id, endpoint or None), since)
    return redirect(request, "webhooks/deliveries" + (f"?endpoint={endpoint}" if endpoint else ""))


def _endpoint_form(request: Request, form: Form, status: int = 200) -> Response:
    return page_response(request.scope, "webhooks/new.html", status, form=form, event_types=PATTERNS)


def _created(request: Request, endpoint_id: str, secret: str) -> Response:
    response = redirect(request, f"webhooks/created?endpoint={endpoint_id}")
    hand_over_secret(response, request.headers, endpoint_id, secret)
    return response


def _sentence(message: str) -> str:
    return f"{message[:1].upper()}{message[1:]}."


PAGE = Page(path="webhooks", title="Webhooks", router=router, key="w", group="Settings", scope=Scope.INFERENCE)
