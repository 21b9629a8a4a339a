"""What clients do with endpoints, secrets and deliveries of webhooks."""

from __future__ import annotations

import logging
from datetime import datetime

from api.http.lookup import own_or_404
from api.http.pagination import Page, check_after, fetch_page, number_after
from api.keys.principal import Principal
from api.webhooks.delivery_store import (
    MAX_TRIES,
    Delivery,
    DeliveryQuery,
    DeliveryStore,
    Try,
    format_id,
    parse_id,
)
from api.webhooks.request_webhooks import RequestWebhooks
from api.webhooks.schemas import EndpointCreate, EndpointUpdate, SecretRotate
from api.webhooks.secrets import Secret
from api.webhooks.store import BY_OPERATOR, Endpoint, EndpointStore, NewEndpoint, ProjectSecretStore, is_endpoint_id
from shared.domain.errors import Conflict, NotFound
from shared.domain.request_webhook import public_url

logger = logging.getLogger(__name__)


class WebhookService:
    """Endpoints and deliveries. `project_id` is the project that must own them; None: any, for operators."""

    def __init__(
        self,
        endpoints: EndpointStore,
        deliveries: DeliveryStore,
        secrets: ProjectSecretStore,
        webhooks: RequestWebhooks,
    ) -> None:
        self._endpoints = endpoints
        self._deliveries = deliveries
        self._secrets = secrets
        self._webhooks = webhooks

    # Endpoints

    async def endpoints(self, project_id: int | None, *, limit: int, after: str | None) -> Page[Endpoint]:
        """Return a page of endpoints, newest first.

        Raises:
            InvalidRequest: `after` is not the id of an endpoint.
        """
        check_after(after, "endpoint", is_endpoint_id)
        return await fetch_page(limit, lambda count: self._endpoints.page(project_id, limit=count, after=after))

    async def endpoint(self, endpoint_id: str, project_id: int | None, param: str = "endpoint_id") -> Endpoint:
        """Return an endpoint.

        Raises:
            NotFound: the project has no such one.
        """

        async def get(endpoint_id: str, _: int) -> Endpoint | None:
            return await self._endpoints.get(endpoint_id, project_id)

        return await own_or_404("endpoint", endpoint_id, project_id or 0, is_endpoint_id, get, param)

    async def create(self, principal: Principal, body: EndpointCreate) -> Endpoint:
        """Create an endpoint of the principal's project.

        Raises:
            InvalidRequest: nothing may be sent to the URL.
            Conflict: the project has as many endpoints as it may have.
        """
        self._webhooks.check_url(body.url, "url")
        new = NewEndpoint(body.url, body.description or None, tuple(body.events), body.full)
        endpoint = await self._endpoints.create(principal.project_id, new, by=principal.key_id)
        logger.info(
            "endpoint=%s project=%s created by key_%d url=%s",
            endpoint.id, endpoint.project, principal.key_id, public_url(endpoint.url),
        )  # fmt: skip
        return endpoint

    async def change(
        self, principal: Principal, endpoint_id: str, body: EndpointUpdate, project_id: int | None
    ) -> Endpoint:
        """Change an endpoint.

        Raises:
            NotFound: the project has no such one.
            InvalidRequest: nothing may be sent to the new URL.
        """
        changes = body.model_dump(exclude_unset=True)
        if "url" in changes:
            self._webhooks.check_url(body.url, "url")
        if "description" in changes:
            changes["description"] = body.description or None
        if (enabled := changes.pop("enabled", None)) is not None:
            changes["disabled"] = None if enabled else BY_OPERATOR
        changed = None
        if is_endpoint_id(endpoint_id):
            changed = await self._endpoints.change(endpoint_id, project_id, changes, by=principal.key_id)
        if changed is None:
            raise _no_endpoint(endpoint_id)
        logger.info("endpoint=%s changed by key_%d: %s", endpoint_id, principal.key_id, ", ".join(sorted(changes)))
        return changed

    async def rotate(
        self, principal: Principal, endpoint_id: str, body: SecretRotate, project_id: int | None
    ) -> tuple[Endpoint, str]:
        """Give an endpoint a new secret, which is returned. Raises as `change`."""
        found = None
        if is_endpoint_id(endpoint_id):
            found = await self._endpoints.rotate(endpoint_id, project_id, overlap_s=body.overlap_s, by=principal.key_id)
        if found is None:
            raise _no_endpoint(endpoint_id)
        logger.info("endpoint=%s secret rotated by key_%d", endpoint_id, principal.key_id)
        return found

    async def delete(self, principal: Principal, endpoint_id: str, project_id: int | None) -> None:
        """Delete an endpoint with its deliveries. Raises as `endpoint`."""
        is_known = is_endpoint_id(endpoint_id)
        if not is_known or not await self._endpoints.delete(endpoint_id, project_id, by=principal.key_id):
            raise _no_endpoint(endpoint_id)
        logger.info("endpoint=%s deleted by key_%d", endpoint_id, principal.key_id)

    async def send_test(self, endpoint_id: str, project_id: int | None) -> Delivery:
        """Let a test event be delivered to an endpoint.

        Raises:
            NotFound: the project has no such endpoint.
            Conflict: it is disabled.
        """
        endpoint = await self.endpoint(endpoint_id, project_id)
        _require_enabled(endpoint)
        delivery_id = await self._deliveries.send_test(endpoint.id, endpoint.project_id)
        return await self._delivery(format_id(delivery_id), endpoint.project_id)

    # Secrets of projects

    async def project_secrets(self, project_id: int) -> tuple[Secret, ...]:
        """Return the secrets of a project, the current one first; the first one is created now if it is missing."""
        return await self._secrets.secrets(project_id)

    async def rotate_project_secret(self, principal: Principal, body: SecretRotate) -> tuple[Secret, ...]:
        """Give the principal's project a new secret; return its secrets."""
        secrets = await self._secrets.rotate(principal.project_id, overlap_s=body.overlap_s, by=principal.key_id)
        logger.info("secret of the webhooks of requests rotated by key_%d", principal.key_id)
        return secrets

    # Deliveries

    async def deliveries(self, query: DeliveryQuery, *, limit: int, after: str | None) -> Page[Delivery]:
        """Return a page of deliveries, newest first.

        Raises:
            InvalidRequest: `after` is not the id of a delivery.
        """
        after_id = number_after(after, "delivery", parse_id)
        return await fetch_page(limit, lambda count: self._deliveries.page(query, limit=count, after=after_id))

    async def delivery(self, delivery_id: str, project_id: int | None) -> tuple[Delivery, list[Try]]:
        """Return a delivery and its tries.

        Raises:
            NotFound: the project has no such one.
        """
        found = await self._delivery(delivery_id, project_id)
        return found, list(await self._deliveries.tries(found.id))

    async def replay(self, principal: Principal, delivery_id: str, project_id: int | None) -> Delivery:
        """Let a delivery that has ended be tried again, at once and under the same event id.

        Raises:
            NotFound: the project has no such one.
            Conflict: it has not ended, was tried `MAX_TRIES` times, or its endpoint is disabled.
        """
        found = await self._delivery(delivery_id, project_id)
        if found.tries >= MAX_TRIES:
            raise Conflict(f"The delivery was tried {MAX_TRIES} times, and is not tried again.")
        if found.endpoint_id is not None:
            _require_enabled(await self.endpoint(found.endpoint_id, project_id))
        if not await self._deliveries.replay(found.id):
            raise Conflict("The delivery is pending: it is tried again by itself.")
        logger.info("delivery=%s replayed by key_%d", delivery_id, principal.key_id)
        return await self._delivery(delivery_id, project_id)

    async def replay_dead(self, principal: Principal, query: DeliveryQuery, since: datetime) -> int:
        """Let the dead deliveries of events since a time be tried again; return their number.

        Raises:
            NotFound: the project has no such endpoint.
        """
        if query.endpoint_id is not None:
            await self.endpoint(query.endpoint_id, query.project_id, "endpoint")
        replayed = await self._deliveries.replay_dead(query, since)
        logger.info("%d dead deliveries of webhooks replayed by key_%d", replayed, principal.key_id)
        return replayed

    async def _delivery(self, delivery_id: str, project_id: int | None) -> Delivery:
        number = parse_id(delivery_id)
        found = None if number is None else await self._deliveries.get(number, project_id)
        if found is None:
            raise NotFound(
                f"There is no delivery `{delivery_id[:64]}`.", param="delivery_id", code="delivery_not_found"
            )
        return found


def _require_enabled(endpoint: Endpoint) -> None:
    if endpoint.disabled is not None:
        raise Conflict("The endpoint is disabled; enable it first.")


def _no_endpoint(endpoint_id: str) -> NotFound:
    return NotFound(f"There is no endpoint `{endpoint_id[:64]}`.", param="endpoint_id", code="endpoint_not_found")
