"""Samples of the request log that can be drawn again: each request has a number, which a seed and its id determine.

A sample consists of the requests with the smallest numbers. It does not depend on the order in which they are read,
and a smaller sample with the same seed is a part of a larger one.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from shared.domain.errors import InvalidRequest

# More requests are exported by a fraction: these are held in memory until all have been seen.
MAX_COUNT = 10_000
MAX_SEED = 2**63 - 1
_BYTES = 8
_ALL: int = 2 ** (8 * _BYTES)


@dataclass(frozen=True, slots=True)
class Sample:
    """A part of the requests: `count` of them, or `fraction` of 1; exactly one of both is set."""

    count: int | None = None
    fraction: float | None = None


def read_sample(text: str) -> Sample:
    """Read a number of requests, such as `500`, or a fraction, such as `0.05`.

    Raises:
        InvalidRequest: it is neither.
    """
    if re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= MAX_COUNT:
        return Sample(count=int(text))
    if re.fullmatch(r"0?\.[0-9]{1,12}", text) and float(text) > 0:
        return Sample(fraction=float(text))
    raise InvalidRequest(
        f"sample: must be a number of requests from 1 to {MAX_COUNT}, or a fraction such as 0.05, got {text[:32]!r}",
        param="sample",
    )


def sample_number(seed: int, job_id: str) -> bytes:
    """The number of a request for a seed, of which `api.requests.page_statement` has the SQL. Compare it as bytes."""
    return hashlib.sha256(f"{seed}:{job_id}".encode()).digest()


def below(fraction: float) -> bytes:
    """What the numbers of a fraction of the requests sort before."""
    return min(round(fraction * _ALL), _ALL - 1).to_bytes(_BYTES, "big")
