"""One try of a delivery: builds and signs the request, sends it, and classifies the answer."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

import httpcore
import orjson
from httpx_secure import SSRFProtectionError
from standardwebhooks import Webhook

from api.webhooks.address_guard import AddressPolicy, RefusedUrl
from api.webhooks.http_client import Answer, BadAnswer, Destination, HttpClient
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
# How long the body of a response is read, so that its connection can be used again. It is not stored.
ANSWER_S = 1.0
# URLs whose check is remembered.
_MAX_DESTINATIONS = 1024
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
        self, client: HttpClient, policy: AddressPolicy, objects: Mapping[str, ReadObject] | None = None
    ) -> None:
        """`objects`: by groups of event types, how the objects of `full` events are read."""
        self._client = client
        self._objects = objects or {}
        self._destination = lru_cache(_MAX_DESTINATIONS)(lambda url: Destination.of(policy.check_url(url)))

    async def send(self, delivery: DueDelivery) -> tuple[TryOutcome, TryResult]:
        """Try a delivery once. An outage of the database is raised; whatever else happens is an outcome."""
        found = await self._object(delivery)
        began = time.monotonic()
        status, error, busy_s = None, None, None
        try:
            answer = await self._post(delivery, _content(delivery, found))
            status = answer.status
            if status in _BUSY:
                busy_s = retry_after_s(answer.retry_after, datetime.now(UTC))
            result, error = _of_status(status)
        except TimeoutError:
            result, error = TryResult.TIMEOUT, f"no answer within {TIMEOUT_S:g} s"
        except RefusedUrl as refusal:
            result, error = TryResult.FORBIDDEN, f"the URL {refusal}"
        except SSRFProtectionError:
            # Without the address, which would tell what internal names resolve to.
            result, error = TryResult.FORBIDDEN, "the host has an address that is not public"
        except (httpcore.NetworkError, httpcore.TimeoutException, BadAnswer) as failure:
            result, error = TryResult.UNREACHABLE, _describe(failure)
        except Exception as failure:  # a fault of this try must not end the dispatcher, and with it the process
            logger.warning("delivery=%d cannot be sent", delivery.id, exc_info=failure)
            result, error = TryResult.UNREACHABLE, f"the request failed: {type(failure).__name__}"
        duration_ms = round((time.monotonic() - began) * 1000)
        return _outcome(delivery, result, status, error, duration_ms, busy_s), result

    async def _object(self, delivery: DueDelivery) -> bytes | None:
        """The object of a `full` event, as JSON. None: the event is sent with its id only."""
        read = self._objects.get(group_of(delivery.type)) if delivery.full else None
        if read is None:
            return None
        try:
            found = await read(delivery.object_id, delivery.project_id)
        except Exception as error:
            # Without an outcome, it is tried again when its lease ends: not forever, if it is always this object that
            # cannot be read.
            if is_database_outage(error) and delivery.trying_s < LIFETIME_S:
                raise
            logger.warning("delivery=%d is sent without its object", delivery.id, exc_info=error)
            return None
        return found if found is not None and len(found) <= MAX_OBJECT_BYTES else None

    async def _post(self, delivery: DueDelivery, content: bytes) -> Answer:
        """Send the request.

        Raises:
            RefusedUrl, SSRFProtectionError: nothing was sent.
            TimeoutError, httpcore.NetworkError, BadAnswer: there was no answer.
        """
        to = self._destination(delivery.url)
        headers = signed(delivery.event_id, content, delivery.secrets)
        return await self._client.post(to, headers, content, timeout_s=TIMEOUT_S, answer_s=ANSWER_S)


def _content(delivery: DueDelivery, found: bytes | None) -> bytes:
    """The exact bytes of the body, with the object that was found."""
    body = event_body(delivery.event_id, delivery.type, delivery.created_at, delivery.object_id, delivery.data)
    if found is not None:
        body["data"] = orjson.Fragment(found)
    return orjson.dumps(body)


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


def _of_status(status: int) -> tuple[TryResult, str | None]:
    if 200 <= status < 300:
        return TryResult.OK, None
    if 300 <= status < 400:
        return TryResult.REDIRECT, f"redirected with {status}; redirects are not followed, so change the URL"
    if status == GONE:
        return TryResult.REFUSED, "410: the receiver wants no more deliveries"
    return (TryResult.REFUSED if status < 500 else TryResult.FAILED), f"answered {status}"


def _describe(failure: Exception) -> str:
    """An error in a few words, without the URL and without what the receiver has sent."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "the TLS handshake failed"
        cause = cause.__cause__ or cause.__context__
    if isinstance(failure, (httpcore.ConnectError, httpcore.ConnectTimeout)):
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
    pause_s = retry_pause_s(delivery.attempt, busy_s)
    if result is TryResult.OK:
        state = "delivered"
    elif gone or delivery.trying_s + pause_s > LIFETIME_S:
        state = "dead"
    else:
        state = "pending"
    return TryOutcome(delivery, state, pause_s, status, error, duration_ms, gone)
