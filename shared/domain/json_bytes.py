"""JSON as bytes, as it is kept in memory and sent."""

from __future__ import annotations

from typing import Any

import orjson

# Characters that JSON allows in strings, but at which many programs (Python's `splitlines()`) break lines: NEL, LINE
# SEPARATOR and PARAGRAPH SEPARATOR.
_SEPARATORS = {b"\xc2\x85": b"\\u0085", b"\xe2\x80\xa8": b"\\u2028", b"\xe2\x80\xa9": b"\\u2029"}


def kept_json(value: Any) -> bytes:
    """Encode a value as JSON, in a bytes object of its own size.

    The result of `orjson.dumps` occupies at least 4 KB, because orjson does not give back what it has allocated in
    advance. A value that is only passed on need not be copied.
    """
    return b"%b" % orjson.dumps(value)


def escape_separators(encoded: bytes) -> bytes:
    """Escape Unicode's line ends in encoded JSON."""
    if b"\xe2\x80" in encoded or b"\xc2\x85" in encoded:
        for separator, escaped in _SEPARATORS.items():
            encoded = encoded.replace(separator, escaped)
    return encoded
