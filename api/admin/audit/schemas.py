"""Entries of the audit log as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.http.pagination import PageView
from api.keys import store as keys
from shared.postgres.audit_store import AuditEntry


def format_id(number: int) -> str:
    """The id of an entry."""
    return f"audit_{number}"


class AuditEntryView(BaseModel):
    """A change that an operator has made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "audit_42",
                    "object": "audit_entry",
                    "at": "2026-11-30T09:00:31Z",
                    "key": "key_1",
                    "key_name": "operator",
                    "action": "key.change",
                    "object_id": "key_7",
                    "project": "shop",
                    "before": {"priority_floor": 3},
                    "after": {"priority_floor": 0},
                }
            ]
        }
    )

    id: str
    object: Literal["audit_entry"] = "audit_entry"
    at: datetime
    key: str | None = Field(description="The key that made the change; null: the command line of the installation.")
    key_name: str | None
    action: str = Field(description="The kind of object and what was done to it, such as `key.revoke`.")
    object_id: str
    project: str | None = Field(description="The project that the object belongs to; null if it belongs to none.")
    before: Mapping[str, Any] | None = Field(description="What the change has replaced; null if it created the object.")
    after: Mapping[str, Any] | None = Field(description="What it was replaced by; null if the object was deleted.")

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        """The JSON form of an entry."""
        names = cls.model_fields.keys() - {"id", "object", "key"}
        key = None if entry.key_id is None else keys.format_id(entry.key_id)
        return cls(id=format_id(entry.id), key=key, **{name: getattr(entry, name) for name in names})


class AuditLog(PageView[AuditEntryView]):
    """A page of entries, newest first."""
