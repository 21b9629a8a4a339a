"""`/v1/webhooks`: the endpoints of a project, its secret, and deliveries."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.json_body import JsonRoute
from api.http.openapi import ERRORS, NOT_FOUND, READ
from api.http.pagination import After, Limit
from api.keys.auth import CurrentPrincipal
from api.webhooks.delivery_store import MAX_REPLAYED, MAX_TRIES, DeliveryQuery, DeliveryState, format_id
from api.webhooks.schemas import (
    DeliveryList,
    DeliveryView,
    DeliveryWithTries,
    EndpointCreate,
    EndpointCreated,
    EndpointDeleted,
    EndpointList,
    EndpointUpdate,
    EndpointView,
    ProjectSecretView,
    ReplayDead,
    Replayed,
    SecretRotate,
)
from api.webhooks.service import WebhookService
from shared.domain.webhook_events import EventType

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=JsonRoute)

Webhooks = Annotated[WebhookService, Depends(resource(WebhookService))]
DISABLED: dict[int | str, dict[str, Any]] = {409: {"model": ErrorResponse, "description": "The endpoint is disabled."}}


@router.get("/endpoints", responses=ERRORS)
async def list_endpoints(
    principal: CurrentPrincipal, webhooks: Webhooks, limit: Limit = 20, after: After = None
) -> EndpointList:
    """List the webhook endpoints of the project, newest first."""
    return EndpointList.of(await webhooks.endpoints(principal.project_id, limit=limit, after=after), EndpointView.of)


@router.post(
    "/endpoints",
    responses={
        **ERRORS,
        409: {"model": ErrorResponse, "description": "The project has as many endpoints as it may have."},
        200: READ,
    },
)
async def create_endpoint(body: EndpointCreate, principal: CurrentPrincipal, webhooks: Webhooks) -> EndpointCreated:
    """Create an endpoint. The response is the only one that has its secret, apart from that of a rotation."""
    endpoint = await webhooks.create(principal, body)
    return EndpointCreated.of(endpoint, secret=endpoint.secrets[0].secret)


@router.get("/endpoints/{endpoint_id}", responses={**ERRORS, **NOT_FOUND})
async def get_endpoint(endpoint_id: str, principal: CurrentPrincipal, webhooks: Webhooks) -> EndpointView:
    """Get an endpoint."""
    return EndpointView.of(await webhooks.endpoint(endpoint_id, principal.project_id))


@router.patch("/endpoints/{endpoint_id}", responses={**ERRORS, **NOT_FOUND})
async def change_endpoint(
    endpoint_id: str, body: EndpointUpdate, principal: CurrentPrincipal, webhooks: Webhooks
) -> EndpointView:
    """Change an endpoint: only what the body names. Deliveries that are pending are sent to the new URL."""
    return EndpointView.of(await webhooks.change(principal, endpoint_id, body, principal.project_id))


@router.delete("/endpoints/{endpoint_id}", responses={**ERRORS, **NOT_FOUND})
async def delete_endpoint(endpoint_id: str, principal: CurrentPrincipal, webhooks: Webhooks) -> EndpointDeleted:
    """Delete an endpoint with its deliveries, pending ones too."""
    await webhooks.delete(principal, endpoint_id, principal.project_id)
    return EndpointDeleted(id=endpoint_id)


@router.post("/endpoints/{endpoint_id}/rotate", responses={**ERRORS, **NOT_FOUND, 200: READ})
async def rotate_secret(
    endpoint_id: str, body: SecretRotate, principal: CurrentPrincipal, webhooks: Webhooks
) -> EndpointCreated:
    """Replace the secret of an endpoint. Until the overlap ends, each delivery has a signature by each of both."""
    endpoint, secret = await webhooks.rotate(principal, endpoint_id, body, principal.project_id)
    return EndpointCreated.of(endpoint, secret=secret)


@router.post("/endpoints/{endpoint_id}/test", responses={**ERRORS, **NOT_FOUND, **DISABLED})
async def send_test(endpoint_id: str, principal: CurrentPrincipal, webhooks: Webhooks) -> DeliveryView:
    """Send the event `webhook.test` to an endpoint, whatever it subscribes to. `GET` the delivery for its outcome."""
    return DeliveryView.of(await webhooks.send_test(endpoint_id, principal.project_id))


@router.get("/secret", responses=ERRORS)
async def get_secret(principal: CurrentPrincipal, webhooks: Webhooks) -> ProjectSecretView:
    """Get the secret of the webhooks that the requests of the project name themselves, as their `webhook`."""
    return ProjectSecretView.of(await webhooks.project_secrets(principal.project_id))


@router.post("/secret/rotate", responses={**ERRORS, 200: READ})
async def rotate_project_secret(
    body: SecretRotate, principal: CurrentPrincipal, webhooks: Webhooks
) -> ProjectSecretView:
    """Replace that secret. Until the overlap ends, each delivery has a signature by each of both."""
    return ProjectSecretView.of(await webhooks.rotate_project_secret(principal, body))


@router.get("/deliveries", responses=ERRORS)
async def list_deliveries(
    principal: CurrentPrincipal,
    webhooks: Webhooks,
    limit: Limit = 20,
    after: After = None,
    endpoint: Annotated[str | None, Query(max_length=64, description="Only deliveries to this endpoint.")] = None,
    state: Annotated[DeliveryState | None, Query(description="Only deliveries in this state.")] = None,
    type: Annotated[EventType | None, Query(description="Only deliveries of events of this type.")] = None,  # noqa: A002
) -> DeliveryList:
    """List deliveries, newest first."""
    query = DeliveryQuery(principal.project_id, endpoint, state, None if type is None else type.value)
    page = await webhooks.deliveries(query, limit=limit, after=after)
    return DeliveryList.of(page, DeliveryView.of, lambda delivery: format_id(delivery.id))


@router.post("/deliveries/replay", responses={**ERRORS, **NOT_FOUND, 200: READ})
async def replay_dead(body: ReplayDead, principal: CurrentPrincipal, webhooks: Webhooks) -> Replayed:
    """Send the dead deliveries of events since a time again, apart from those of disabled endpoints."""
    query = DeliveryQuery(principal.project_id, body.endpoint, type=None if body.type is None else body.type.value)
    replayed = await webhooks.replay_dead(principal, query, body.since)
    return Replayed(replayed=replayed, has_more=replayed == MAX_REPLAYED)


@router.get("/deliveries/{delivery_id}", responses={**ERRORS, **NOT_FOUND})
async def get_delivery(delivery_id: str, principal: CurrentPrincipal, webhooks: Webhooks) -> DeliveryWithTries:
    """Get a delivery with its tries."""
    return DeliveryWithTries.with_tries(*await webhooks.delivery(delivery_id, principal.project_id))


@router.post(
    "/deliveries/{delivery_id}/replay",
    responses={
        **ERRORS,
        **NOT_FOUND,
        409: {
            "model": ErrorResponse,
            "description": f"The delivery is pending, was tried {MAX_TRIES} times, or its endpoint is disabled.",
        },
    },
)
async def replay_delivery(delivery_id: str, principal: CurrentPrincipal, webhooks: Webhooks) -> DeliveryView:
    """Send a delivery that has ended again, with the same `webhook-id`."""
    return DeliveryView.of(await webhooks.replay(principal, delivery_id, principal.project_id))
