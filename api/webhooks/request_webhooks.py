"""Checks of webhooks when requests name them, before anything is stored."""

from __future__ import annotations

from api.webhooks.address_guard import AddressPolicy, RefusedUrl
from api.webhooks.store import ProjectSecretStore
from shared.domain.errors import InvalidRequest
from shared.domain.request_webhook import RequestWebhook

# Projects that are remembered to have a secret.
_MAX_KNOWN = 100_000


class RequestWebhooks:
    """Checks URLs, and lets projects have a secret before the first delivery needs it."""

    def __init__(self, secrets: ProjectSecretStore, policy: AddressPolicy) -> None:
        self._secrets = secrets
        self._policy = policy
        self._with_secret: set[int] = set()

    def check_url(self, url: str, param: str) -> None:
        """Check a URL, without resolving its host: each try does that.

        Raises:
            InvalidRequest: nothing is sent to it; `param` is the parameter that holds it.
        """
        try:
            self._policy.check_url(url)
        except RefusedUrl as error:
            raise InvalidRequest(f"{param}: {error}", param=param) from None

    async def admit(self, project_id: int, webhook: RequestWebhook) -> None:
        """Check the webhook of a new job or batch of a project. Raises as `check_url`."""
        self.check_url(webhook.url, "webhook")
        if project_id not in self._with_secret:
            await self._secrets.secrets(project_id)
            if len(self._with_secret) >= _MAX_KNOWN:
                self._with_secret.clear()
            self._with_secret.add(project_id)
