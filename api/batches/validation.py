"""Checks all lines of a batch's input, with a memory that does not grow with it but for a digest a line."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from api.batches.batch import LineError
from api.batches.jsonl_reader import Line
from api.batches.request_line import LineRejected, parse
from shared.config.models.loader import Registry

# More errors than this are not told of.
MAX_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Validation:
    """How many requests there are, or what is wrong with them."""

    requests: int
    errors: tuple[LineError, ...]


async def validate(lines: AsyncIterator[Line], endpoint: str, registry: Registry) -> Validation:
    """Check lines up to the last, or to `MAX_ERRORS` errors. Blank ones are skipped; they count as lines."""
    seen: set[bytes] = set()
    errors: list[LineError] = []
    requests = 0
    async for line in lines:
        if line.blank:
            continue
        requests += 1
        try:
            found = parse(line, endpoint, registry)
        except LineRejected as refused:
            errors.append(refused.error)
        else:
            digest = hashlib.blake2b(found.custom_id.encode(), digest_size=16).digest()
            if digest in seen:
                errors.append(
                    LineError(
                        "duplicate_custom_id",
                        f"The custom_id `{found.custom_id}` is another line's too; it must be unique in a batch.",
                        line.number,
                        "custom_id",
                    )
                )
            seen.add(digest)
        if len(errors) == MAX_ERRORS:
            break
    if not requests:
        errors.append(LineError("empty_file", "The input file has no requests."))
    return Validation(requests, tuple(errors))
