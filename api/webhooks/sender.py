"""One try of a delivery: builds and signs the request, sends it, and classifies the answer."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum

import httpx
import orjson
from httpx_secure import SSRFProtectionError
from standardwebhooks import Webhook

from api.webhooks.address_guard import AddressPolicy, RefusedUrl
from api.webhooks.outbox import DueDelivery, TryOutcome
from api.webhooks.schedule import LIFETIME_S, TIMEOUT_S, retry_after_s, retry_pause_s
from api.webhooks.secrets import Secret
from shared.domain.webhook_events import event_body, group_of
from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)

# Reads the object of an event as JSON, by its id and its project. None: it is gone, or must not be sent.
ReadObject = Callable[[str, int], Awaitable[bytes | None]]

# An event with a larger object, or with one that cannot be read, is sent with its id only.
MAX_OBJECT_BYTES = 1024 * 1024
# What is read of a response, so that its connection can be used again, and for how long. It is not stored.
MAX_ANSWER_BYTES = 64 * 1024
ANSWER_S = 1.0
# Statuses whose `Retry-After` is honoured.
_BUSY = (429, 503)
GONE = 410


class TryResult(StrEnum):
    """The result of a try, as metrics have it."""

    OK = "2xx"
    REDIRECT = "3xx"
    REFUSED = "4xx"
    FAILED = "5xx"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    FORBIDDEN = "forbidden_address"


class Sender:
    """Sends deliveries. It keeps nothing of the responses but their status."""

    def __init__(
        self, client: httpx.AsyncClient, policy: AddressPolicy, objects: Mapping[str, ReadObject] | None = None
    ) -> None:
        """`objects`: by groups of event types, how the objects of `full` events are read."""
        self._client = client
        self._policy = policy
        self._objects = objects or {}

    async def send(self, delivery: DueDelivery) -> tuple[TryOutcome, TryResult]:
        """Try a delivery once. An outage of the database is raised; whatever happens to the request is an outcome."""
        content = await self._content(delivery)
        began = time.monotonic()
        status, error, busy_s = None, None, None
        try:
            status, busy_s = await self._post(delivery, content)
            result, error = _of_status(status)
        except TimeoutError:
            result, error = TryResult.TIMEOUT, f"no answer within {TIMEOUT_S:g} s"
        except RefusedUrl as refusal:
            result, error = TryResult.FORBIDDEN, f"the URL {refusal}"
        except SSRFProtectionError:
            # Without the address, which would tell what internal names resolve to.
            result, error = TryResult.FORBIDDEN, "the host has an address that is not public"
        except httpx.HTTPError as failure:
            result, error = TryResult.UNREACHABLE, _describe(failure)
        except Exception as failure:  # a fault of this try must not end the dispatcher, and with it the process
            logger.warning("delivery=%d cannot be sent", delivery.id, exc_info=failure)
            result, error = TryResult.UNREACHABLE, f"the request failed: {type(failure).__name__}"
        duration_ms = round((time.monotonic() - began) * 1000)
        return _outcome(delivery, result, status, error, duration_ms, busy_s), result

    async def _content(self, delivery: DueDelivery) -> bytes:
        """The exact bytes of the body."""
        body = event_body(delivery.event_id, delivery.type, delivery.created_at, delivery.object_id, delivery.data)
        read = self._objects.get(group_of(delivery.type)) if delivery.full else None
        if read is not None:
            try:
                found = await read(delivery.object_id, delivery.project_id)
            except Exception as error:
                if is_database_outage(error):
                    raise
                # Without an outcome, it would be tried forever.
                logger.warning("delivery=%d is sent without its object", delivery.id, exc_info=error)
                found = None
            if found is not None and len(found) <= MAX_OBJECT_BYTES:
                body["data"] = orjson.Fragment(found)
        return orjson.dumps(body)

    async def _post(self, delivery: DueDelivery, content: bytes) -> tuple[int, float | None]:
        """Send the request. Returns the status, and the seconds that the receiver asks to wait for.

        Raises:
            RefusedUrl, SSRFProtectionError: nothing was sent.
            TimeoutError, httpx.HTTPError: there was no answer.
        """
        url = self._policy.check_url(delivery.url)
        headers = {"content-type": "application/json", **signed(delivery.event_id, content, delivery.secrets)}
        request = self._client.build_request("POST", url, content=content, headers=headers)
        # One limit for all of it: one for each step lets a receiver delay each step anew.
        async with asyncio.timeout(TIMEOUT_S):
            response = await self._client.send(request, stream=True, follow_redirects=False)
        try:
            busy_s = None
            if response.status_code in _BUSY:
                busy_s = retry_after_s(response.headers.get("retry-after"), datetime.now(UTC))
            await _discard(response)
        finally:
            await response.aclose()
        return response.status_code, busy_s


def signed(event_id: str, content: bytes, secrets: tuple[Secret, ...]) -> dict[str, str]:
    """The headers of Standard Webhooks for a request that is sent now: a signature per secret that has not expired.

    Raises:
        RefusedUrl: there is no secret.
    """
    now = datetime.now(UTC)
    valid = [one.secret for one in secrets if one.expires_at is None or one.expires_at > now]
    if not valid:
        raise RefusedUrl("has no secret that signs its requests")
    signatures = [Webhook(secret).sign(event_id, now, content.decode()) for secret in valid]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


async def _discard(response: httpx.Response) -> None:
    """Read a short body to its end. The status decides, so nothing that happens here matters."""
    size = 0
    try:
        async with asyncio.timeout(ANSWER_S):
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    return
    except (httpx.HTTPError, TimeoutError):
        return


def _of_status(status: int) -> tuple[TryResult, str | None]:
    if 200 <= status < 300:
        return TryResult.OK, None
    if 300 <= status < 400:
        return TryResult.REDIRECT, f"redirected with {status}; redirects are not followed, so change the URL"
    if status == GONE:
        return TryResult.REFUSED, "410: the receiver wants no more deliveries"
    return (TryResult.REFUSED if status < 500 else TryResult.FAILED), f"answered {status}"


def _describe(failure: httpx.HTTPError) -> str:
    """An error in a few words, without the URL and without what the receiver has sent."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "the TLS handshake failed"
        cause = cause.__cause__ or cause.__context__
    if isinstance(failure, httpx.ConnectError):
        return "the host was not found, or refused the connection"
    return "the connection was closed before an answer, or the answer was not HTTP"


def _outcome(
    delivery: DueDelivery,
    result: TryResult,
    status: int | None,
    error: str | None,
    duration_ms: int,
    busy_s: float | None,
) -> TryOutcome:
    gone = status == GONE
    pause_s = retry_pause_s(delivery.tries, busy_s)
    if result is TryResult.OK:
        state = "delivered"
    elif gone or delivery.age_s + pause_s > LIFETIME_S:
        state = "dead"
    else:
        state = "pending"
    return TryOutcome(delivery, state, pause_s, status, error, duration_ms, gone)
