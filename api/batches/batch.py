"""The batch value and its states."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from api.files.store import FILE_ID_PREFIX
from shared.domain.ids import is_id, new_id, sibling

PREFIX = "batch_"


class BatchStatus(StrEnum):
    """OpenAI's states of a batch. The last four are terminal."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


def new_batch_id(region: str = "") -> str:
    return new_id(PREFIX, region)


def is_batch_id(text: str) -> bool:
    """Whether a text is a well-formed batch id."""
    return is_id(PREFIX, text)


@dataclass(frozen=True, slots=True)
class LineError:
    """An error in a line of a batch's input; without a line, in the input as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """The start of a line: its number, from 1, and its byte offset."""

    line: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class BatchUsage:
    """Total tokens of a batch's requests."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as stored. Times are UTC.

    `ending` is its final status, which it takes once its results are written; None if not yet decided. `expired`: its
    completion window has passed.
    """

    id: str
    project_id: int
    key_id: int
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    created_at: datetime
    expires_at: datetime
    metadata: dict[str, str] | None = None
    output_expires_after_s: int | None = None
    ending: BatchStatus | None = None
    expired: bool = False
    errors: tuple[LineError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    usage: BatchUsage | None = None
    in_progress_at: datetime | None = None
    finalizing_at: datetime | None = None
    cancelling_at: datetime | None = None
    ended_at: datetime | None = None
    total: int = 0
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    next: Position = Position()


def result_file_ids(batch_id: str) -> tuple[str, str]:
    """The ids of a batch's output and error files, derived from its id so that a repeated write reuses them."""
    output, errors = (sibling(batch_id, PREFIX, FILE_ID_PREFIX, digit) for digit in "01")
    return output, errors
