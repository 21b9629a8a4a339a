"""E-mail addresses, also those of internationalized domains (RFC 6531)."""

from __future__ import annotations

import re

# The sign, and the one of Japanese and Chinese keyboards.
SIGNS = ("@", "\uff20")
# The local part begins where no character of it precedes, so that it is scanned once.
_ADDRESS = re.compile(
    r"(?<![\w.+%~-])[\w.+%~-]{1,128}+(?<!\.)[@\uff20](?:[\w-]{1,63}\.){1,8}(?:xn--[a-z0-9-]{1,59}|[^\W\d_]{2,24})"
)


def replace_emails(text: str, placeholder: str) -> tuple[str, int]:
    """Replace e-mail addresses; return the new text, and how many there were."""
    if not any(sign in text for sign in SIGNS):
        return text, 0
    return _ADDRESS.subn(placeholder, text)
