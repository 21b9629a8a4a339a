"""JSON that is kept in memory."""

from __future__ import annotations

from typing import Any

import orjson


def kept_json(value: Any) -> bytes:
    """Encode a value as JSON, in a bytes object of its own size.

    The result of `orjson.dumps` occupies at least 4 KB, because orjson does not give back what it has allocated in
    advance. A value that is only passed on need not be copied.
    """
    return b"%b" % orjson.dumps(value)
