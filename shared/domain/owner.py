"""The owner of a job, file, batch or response."""

from __future__ import annotations

from dataclasses import dataclass

from shared.domain.database_text import storable

# Longer names of end users are truncated, because every job stores one.
MAX_END_USER = 512


@dataclass(frozen=True, slots=True)
class Owner:
    """A project owns what its keys create. The key is recorded for audit and grants nothing afterwards.

    `end_user` is the client's own name for the person behind a request (`user`, `safety_identifier`,
    `metadata.user_id`); None if the request has none.
    """

    project_id: int
    key_id: int
    end_user: str | None = None


def end_user_name(name: str | None) -> str | None:
    """Return a client's name for an end user as it is stored: at most `MAX_END_USER` characters, without U+0000."""
    return storable(name[:MAX_END_USER]) if name else None
