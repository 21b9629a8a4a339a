"""Separates the prefix caches of projects."""

from __future__ import annotations

import hashlib
import hmac


def cache_salt(secret: str) -> str:
    """The salt of a project's prefixes, from the secret in its row, as 64 hex digits.

    Servers that are given the salt cannot learn the secret.
    """
    return hmac.digest(secret.encode(), b"prompt cache", hashlib.sha256).hex()
