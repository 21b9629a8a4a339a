"""What the templates of batches and files show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from api.batches.batch import Batch, BatchStatus, is_batch_id
from api.console.filters import duration, short_id
from api.files.store import StoredFile

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
# The states in which a batch can be cancelled.
_CANCELLABLE = frozenset({BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS})
_KINDS = {
    BatchStatus.COMPLETED: "good",
    BatchStatus.FAILED: "bad",
    BatchStatus.EXPIRED: "bad",
    BatchStatus.CANCELLED: "near",
    BatchStatus.CANCELLING: "near",
}
_EXAMPLES = (
    "Explain backpressure in one sentence.",
    "Name three rivers.",
    "Translate to French: good morning.",
)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as it is shown: its state, and the shares of its requests that have succeeded and failed."""

    batch: Batch
    file_name: str | None
    state: str
    kind: str
    open: int
    completed_share: float
    failed_share: float
    can_cancel: bool
    took: str | None

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.batch.ended_at is None


def batch_row(batch: Batch, file_name: str | None = None) -> BatchRow:
    """The row of a batch. `file_name` is that of its input; None if the file was deleted."""
    total = batch.total
    took = None
    if batch.ended_at is not None:
        took = duration((batch.ended_at - batch.created_at).total_seconds())
    return BatchRow(
        batch=batch,
        file_name=file_name,
        state=batch.status.value.replace("_", " ").capitalize(),
        kind=_KINDS.get(batch.status, "info"),
        open=max(0, total - batch.completed - batch.failed),
        completed_share=batch.completed / total if total else 0.0,
        failed_share=batch.failed / total if total else 0.0,
        can_cancel=batch.status in _CANCELLABLE,
        took=took,
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """A moment in the life of a batch."""

    text: str
    at: datetime


def history(batch: Batch) -> Sequence[Entry]:
    """What has happened to a batch, in order."""
    entries = [
        ("created", batch.created_at),
        ("input is valid, requests run", batch.in_progress_at),
        ("cancelled by a call", batch.cancelling_at),
        ("all requests have ended, results are written", batch.finalizing_at),
        (batch.status.value, batch.ended_at),
    ]
    return [Entry(text, at) for text, at in entries if at is not None]


def shown_name(name: str) -> str:
    """A file's name. That of a result begins with the id of its batch, which is shortened so that its end is seen."""
    batch_id, separator, rest = name.rpartition("_")
    return f"{short_id(batch_id)}{separator}{rest}" if is_batch_id(batch_id) else name


def expires_in(file: StoredFile) -> str | None:
    """The time until a file is deleted; None if it is kept."""
    if file.expires_at is None:
        return None
    return duration(max(0.0, (file.expires_at - datetime.now(UTC)).total_seconds()))


def example(model: str) -> bytes:
    """A file with three requests, to try a batch with."""
    lines = (
        {
            "custom_id": f"request-{number}",
            "method": "POST",
            "url": ENDPOINTS[0],
            "body": {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64},
        }
        for number, prompt in enumerate(_EXAMPLES, 1)
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
