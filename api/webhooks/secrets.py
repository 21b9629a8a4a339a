"""The secrets that sign webhooks, in the form of Standard Webhooks, and their rotation."""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

PREFIX = "whsec_"
# Bytes of a secret. Standard Webhooks allows 24 to 64.
LENGTH = 32
# Secrets that sign at the same time: each adds a signature to each request.
MAX_SECRETS = 3


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret; `expires_at`: it signs until then, None: until it is rotated."""

    secret: str
    expires_at: datetime | None = None


def new_secret() -> str:
    """A random secret: `whsec_` and its bytes in base64."""
    return PREFIX + b64encode(secrets.token_bytes(LENGTH)).decode()


def read_secrets(stored: Sequence[Mapping[str, Any]]) -> tuple[Secret, ...]:
    """The secrets of a row: the current one first, then those that it replaces."""
    return tuple(
        Secret(one["secret"], None if one.get("expires_at") is None else datetime.fromisoformat(one["expires_at"]))
        for one in stored
    )


def to_stored(values: Sequence[Secret]) -> list[dict[str, Any]]:
    """The value of the column `secrets`."""
    return [
        {"secret": one.secret, "expires_at": None if one.expires_at is None else one.expires_at.isoformat()}
        for one in values
    ]


def old_secret_expires_at(values: Sequence[Secret]) -> datetime | None:
    """Until when a replaced secret signs too; None if none does."""
    now = datetime.now(UTC)
    return max((one.expires_at for one in values if one.expires_at is not None and one.expires_at > now), default=None)


def rotated(old: Sequence[Secret], secret: str, now: datetime, overlap_s: float) -> tuple[Secret, ...]:
    """The secrets after a rotation: the new one, and those that still sign for the overlap, the newest first.

    None signs longer than it would without the rotation, and the oldest stop at once if there would be too many.
    """
    ends = now + timedelta(seconds=overlap_s)
    kept = (Secret(one.secret, ends if one.expires_at is None else min(one.expires_at, ends)) for one in old)
    still = [one for one in kept if one.expires_at is not None and one.expires_at > now]
    return (Secret(secret), *still[: MAX_SECRETS - 1])
