"""What an erasure has done, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.erasure.service import Erasure
from api.requests.export_store import format_export_id


class UserDataExport(BaseModel):
    """An export of the request log that may have data of the end user."""

    id: str
    created_at: datetime
    level: str = Field(description="The level of its bodies: `redacted` or `full`.")
    rows: int | None = Field(description="Null while it is written.")


class ErasureView(BaseModel):
    """What was erased of an end user's data, and what is left."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "user-4711",
                    "object": "user.data.erasure",
                    "complete": True,
                    "erased": {"jobs": 42, "log_rows": 42, "log_bodies": 40, "file_lines": 3, "ledger_entries": 43},
                    "unended_batches": [],
                    "exports": [
                        {"id": "export_3", "created_at": "2026-11-29T08:00:00Z", "level": "redacted", "rows": 1000}
                    ],
                    "named_in": [],
                }
            ]
        }
    )

    id: str = Field(description="The project's name for the end user.")
    object: Literal["user.data.erasure"] = "user.data.erasure"
    complete: bool = Field(
        description="False: send the request again, at once, or when the batches in `unended_batches` have ended."
    )
    erased: dict[str, int] = Field(
        description="What this call has erased: `cancelled_jobs`, `jobs`, `log_rows`, `log_bodies`, `file_lines`,"
        " `feedback`, `judgements`, `labels`, `idempotency_keys`, `webhook_deliveries`, `budget_windows`,"
        " `ledger_entries`. Of the ledger, only the name is erased."
    )
    unended_batches: list[str] = Field(
        description="Batches with requests of the end user. Their files are erased by a request after their end."
    )
    exports: list[UserDataExport] = Field(
        description="Exports of the request log that may have data of the end user: whoever made them has the files."
    )
    named_in: list[str] = Field(description="Budgets and limits that were created for the end user; they remain.")

    @classmethod
    def of(cls, user: str, erasure: Erasure) -> Self:
        """The JSON form."""
        return cls(
            id=user,
            complete=erasure.complete,
            erased=dict(erasure.counts),
            unended_batches=list(erasure.unended_batches),
            exports=[
                UserDataExport(id=format_export_id(one.id), created_at=one.created_at, level=one.level, rows=one.rows)
                for one in erasure.exports
            ],
            named_in=list(erasure.named_in),
        )
