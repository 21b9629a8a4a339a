"""Ids that sort by the time they were made at, so that an id is a list's cursor too."""

from __future__ import annotations

import re
import secrets
import time

_HEX = "[0-9a-f]{32}"
# A region's code: it ends the ids of what was made there.
REGION = "[a-z][a-z0-9]{0,15}"


def new_id(prefix: str, region: str = "") -> str:
    """The prefix, a UUIDv7 (RFC 9562) in hex, and the region's code where there is one: `job_<hex>_eu`.

    The code comes last, so that ids of all regions, and those without one, sort by time together.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | secrets.randbits(80)
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return f"{prefix}{value:032x}{_ending(region)}"


def is_id(prefix: str, text: str) -> bool:
    """Whether a thing with ids of this prefix could have this one."""
    return re.fullmatch(f"{prefix}{_HEX}(_{REGION})?", text) is not None


def region_of(prefix: str, text: str) -> str:
    """The code of the region that made an id; empty where it has none."""
    return text.removeprefix(prefix).partition("_")[2]


def sibling(text: str, old: str, new: str, digit: str) -> str:
    """An id that follows from another: of another kind (prefix), with another last digit, in the same region."""
    body = text.removeprefix(old).partition("_")[0]
    return f"{new}{body[:-1]}{digit}{_ending(region_of(old, text))}"


def _ending(region: str) -> str:
    return f"_{region}" if region else ""
