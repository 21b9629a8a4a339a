"""The master key of the request log, as the environment has it."""

from __future__ import annotations

import base64
import binascii
import secrets

KEY_BYTES = 32


def decode_master_key(text: str) -> bytes:
    """The key in a variable.

    Raises:
        ValueError: it is not base64 of 32 bytes. The message does not have the text.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"must be base64 of {KEY_BYTES} bytes, as `python -m api.request_log generate-key` prints them"
        )
    return key


def generate_master_key() -> str:
    """A new key, as a variable has it."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
