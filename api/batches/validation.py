"""Validates all lines of a batch's input. Memory grows only by a digest per line.

An invalid line does not fail the batch, as at OpenAI: its error is written to the error file. The batch fails if the
file as a whole is unusable: it is not UTF-8, has no valid request, or uses a custom_id twice, so that its results could
not be told apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from api.batches.batch import LineError
from api.batches.jsonl_reader import Line
from api.batches.request_line import LineRejected, parse
from api.http.members import MemberReader
from shared.config.models.loader import Registry
from shared.runtime.offload import off_loop

# Maximum number of errors reported.
MAX_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Validation:
    """The number of requests, and the errors of an unusable file in the order of its lines."""

    requests: int
    errors: tuple[LineError, ...]


async def validate(lines: AsyncIterator[Line], endpoint: str, members: MemberReader, registry: Registry) -> Validation:
    """Validate the lines; stop after `MAX_ERRORS` fatal errors. Blank lines are skipped but keep their numbers."""
    seen: set[bytes] = set()
    fatal: list[LineError] = []
    invalid: list[LineError] = []
    requests = valid = 0
    async for line in lines:
        if line.blank:
            continue
        requests += 1
        try:
            request = await off_loop(line.size, parse, line, endpoint, members, registry)
            custom_id: str | None = request.custom_id
            valid += 1
        except LineRejected as rejected:
            custom_id = rejected.custom_id
            if not rejected.is_utf8:
                fatal.append(rejected.error)
            elif len(invalid) < MAX_ERRORS:
                invalid.append(rejected.error)
        if custom_id is not None:
            digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if digest in seen:
                fatal.append(
                    LineError(
                        "duplicate_custom_id",
                        f"The custom_id `{custom_id}` is used by another line; it must be unique in a batch.",
                        line.number,
                        "custom_id",
                    )
                )
            seen.add(digest)
        if len(fatal) == MAX_ERRORS:
            break
    if not requests:
        fatal.append(LineError("empty_file", "The input file has no requests."))
    if not fatal and valid:
        return Validation(requests, ())
    errors = (fatal + invalid)[:MAX_ERRORS]
    return Validation(requests, tuple(sorted(errors, key=lambda error: error.line or 0)))
