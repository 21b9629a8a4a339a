"""Names for erased users in the audit log, which must not have their own."""

from __future__ import annotations

import hashlib
import hmac

from api.feedback.tokens import SecretStore
from api.request_log.encryption import MasterKeys

# The secret in the table `secrets`, for installations without a master key.
SECRET = "erasure_pseudonyms"  # noqa: S105 its name
_PURPOSE = "headrace erasure: pseudonyms"


class Pseudonyms:
    """Names users by a keyed digest, so that nobody can find out by guessing whether a name is that of somebody.

    The key is derived from the master key of the request log, which no database has. Without a master key, it is a
    secret in the database.
    """

    def __init__(self, masters: MasterKeys, secrets: SecretStore) -> None:
        """`secrets` has the secret `SECRET`."""
        self._keys = masters.derive(_PURPOSE)
        self._secrets = secrets

    async def of(self, project_id: int, end_user: str) -> list[str]:
        """The names of a project's user: the current one, and during a rotation also the one by the other master key.

        The same user has the same name, as long as the key is the same.
        """
        keys = self._keys or [await self._secrets.secret()]
        text = f"{project_id}:{end_user}".encode()
        return [f"user_{hmac.new(key, text, hashlib.sha256).hexdigest()[:24]}" for key in keys]
