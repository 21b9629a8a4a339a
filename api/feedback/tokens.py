"""Tokens with which a browser gives feedback about one answer, without an API key.

A token is the job's id, the Unix time at which it expires, and a signature of both: `JOB.EXPIRES.SIGNATURE`. It
lets its holder give and change feedback about that answer, and read nothing. The processes of an installation share the
secret in the database. Deleting its row makes all tokens invalid.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.errors import Unauthorized
from shared.domain.job import is_job_id
from shared.postgres.store import Store
from shared.postgres.tables import SecretRow
from shared.runtime.periodic import run_periodically, run_tolerantly

HEADER = "x-headrace-feedback-token"
MAX_TOKEN = 200
SECRET_BYTES = 32
SIGNATURE_BYTES = 18
NAME = "feedback_tokens"
# How often the secret is read again: with the jitter, one that was deleted is used for at most a minute.
RELOAD_S = 50.0
_STEP = "reading the secret of feedback tokens"
_TOKEN = re.compile(r"(?P<job>[a-z0-9_]{1,80})\.(?P<expires>[0-9]{1,12})\.(?P<signature>[A-Za-z0-9_-]{24})")


class SecretStore(Store):
    """Keeps a secret of this installation, by default the one that signs tokens."""

    def __init__(self, engine: AsyncEngine, name: str = NAME) -> None:
        super().__init__(engine)
        self._name = name

    async def secret(self) -> bytes:
        """The secret, which the first process creates."""
        candidate = secrets.token_bytes(SECRET_BYTES)
        async with self._engine.connect() as connection:
            await connection.execute(
                upsert(SecretRow).values(name=self._name, value=candidate).on_conflict_do_nothing()
            )
            found = await connection.execute(select(SecretRow.value).where(SecretRow.name == self._name))
            return bytes(found.scalar_one())


class FeedbackTokens:
    """Signs and checks tokens. Until the secret has been read, there are none."""

    def __init__(self, store: SecretStore, ttl_s: int, now: Callable[[], float] = time.time) -> None:
        """`ttl_s`: the seconds for which a token is valid; 0: no tokens are given, and none is valid."""
        self._store = store
        self._ttl_s = ttl_s
        self._now = now
        self._key: hmac.HMAC | None = None

    async def load(self) -> None:
        """Read the secret.

        Raises:
            sqlalchemy.exc.SQLAlchemyError, OSError: the database is unavailable.
        """
        if self._ttl_s:
            self._key = hmac.new(await self._store.secret(), digestmod=hashlib.sha256)

    async def load_if_available(self) -> None:
        """Read the secret before the first request. Without the database, no request can be accepted anyway."""
        await run_tolerantly(self.load, _STEP)

    async def run(self) -> None:
        """Read the secret again and again, until cancelled."""
        await run_periodically(self.load, _STEP, interval_s=RELOAD_S, jitter=0.2)

    def token_of(self, job_id: str) -> str | None:
        """A token for the answer of a job; None if none are given."""
        if self._key is None:
            return None
        text = f"{job_id}.{int(self._now()) + self._ttl_s}"
        return f"{text}.{_signature(self._key, text)}"

    def job_of(self, token: str) -> str:
        """The job that a token is for.

        Raises:
            Unauthorized: the token is not one of ours, or has expired.
        """
        match = _TOKEN.fullmatch(token) if len(token) <= MAX_TOKEN else None
        if match is None or self._key is None:
            raise Unauthorized("The feedback token is not valid.")
        signed = _signature(self._key, f"{match['job']}.{match['expires']}")
        if not hmac.compare_digest(signed, match["signature"]) or not is_job_id(match["job"]):
            raise Unauthorized("The feedback token is not valid.")
        if int(match["expires"]) <= self._now():
            raise Unauthorized("The feedback token has expired.")
        return match["job"]


def _signature(key: hmac.HMAC, text: str) -> str:
    signing = key.copy()
    signing.update(text.encode())
    return base64.urlsafe_b64encode(signing.digest()[:SIGNATURE_BYTES]).decode()
