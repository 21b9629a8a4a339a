"""Validates all lines of a batch's input. Memory grows only by a digest per line."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from api.batches.batch import LineError
from api.batches.jsonl_reader import Line
from api.batches.request_line import LineRejected, parse
from shared.config.models.loader import Registry

# Maximum number of errors reported.
MAX_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Validation:
    """The number of requests and the errors found."""

    requests: int
    errors: tuple[LineError, ...]


async def validate(lines: AsyncIterator[Line], endpoint: str, registry: Registry) -> Validation:
    """Validate the lines; stop after `MAX_ERRORS` errors. Blank lines are skipped but keep their numbers."""
    seen: set[bytes] = set()
    errors: list[LineError] = []
    requests = 0
    async for line in lines:
        if line.blank:
            continue
        requests += 1
        try:
            request = parse(line, endpoint, registry)
        except LineRejected as rejected:
            errors.append(rejected.error)
        else:
            digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
            if digest in seen:
                errors.append(
                    LineError(
                        "duplicate_custom_id",
                        f"The custom_id `{request.custom_id}` is used by another line; it must be unique in a batch.",
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
