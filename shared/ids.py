"""Ids that sort by the time they were made at, so that an id is a list's cursor too."""

from __future__ import annotations

import re
import secrets
import time

_HEX = "[0-9a-f]{32}"


def new_id(prefix: str) -> str:
    """The prefix and a UUIDv7 (RFC 9562) in hex."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | secrets.randbits(80)
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return f"{prefix}{value:032x}"


def is_id(prefix: str, text: str) -> bool:
    """Whether a thing with ids of this prefix could have this one."""
    return re.fullmatch(prefix + _HEX, text) is not None
