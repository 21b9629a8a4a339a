"""The principal of a request: the project and key that it acts for, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from shared.domain.answer_options import NO_KEY_OPTIONS, KeyOptions
from shared.domain.errors import Forbidden
from shared.domain.log_level import LogLevel
from shared.domain.owner import Owner, end_user_name
from shared.domain.priorities import MAX_PRIORITY

# A new key's jobs may not have a lower priority number, unless it was granted.
DEFAULT_PRIORITY_FLOOR = 3


class Scope(StrEnum):
    """What a key may be used for."""

    INFERENCE = "inference"
    # Read the request log of the project, with what was asked and answered, and export it.
    LOGS = "logs"
    ADMIN = "admin"
    # Erase the data of end users of its project.
    ERASE = "erase"


@dataclass(frozen=True, slots=True)
class Principal:
    """The project and key that a request acts for, the key's scopes, and the end user that the request names.

    `priority_floor` is the lowest priority number, and so the most urgent priority, that its jobs may have.
    """

    project_id: int
    key_id: int
    scopes: frozenset[Scope]
    end_user: str | None = None
    priority_floor: int = 0
    options: KeyOptions = NO_KEY_OPTIONS
    # The tier of the project.
    tier: str | None = None
    # At most this is kept of the project's requests in the request log; None: what the installation keeps.
    project_log_level: LogLevel | None = None

    @classmethod
    def of(cls, owner: Owner) -> Self:
        """The principal of work that was accepted earlier: the lines of a batch, and replayed jobs."""
        return cls(owner.project_id, owner.key_id, frozenset({Scope.INFERENCE}), owner.end_user)

    def acting_for(self, end_user: str | None) -> Self:
        """This principal on behalf of an end user, by the client's own name for that person."""
        name = end_user_name(end_user)
        return self if name == self.end_user else replace(self, end_user=name)

    @property
    def visible_project(self) -> int | None:
        """The only project whose data the key may see; None: that of all projects, with the scope `admin`."""
        return None if Scope.ADMIN in self.scopes else self.project_id

    def may(self, scope: Scope) -> bool:
        """Whether the key has the scope. `admin` includes `logs`."""
        return scope in self.scopes or (scope is Scope.LOGS and Scope.ADMIN in self.scopes)

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` if the key does not have the scope."""
        if not self.may(scope):
            raise Forbidden(
                f"This API key has no `{scope.value}` scope; use a key that was created with --scope {scope.value}."
            )

    def require_priority(self, priority: int) -> None:
        """Raise `Forbidden` if the key's jobs may not have this priority."""
        if priority < self.priority_floor:
            raise Forbidden(
                f"priority: this API key may use priorities from {self.priority_floor} to {MAX_PRIORITY}, not"
                f" {priority}; an operator can grant it more with `python -m api.keys set`.",
                param="priority",
                code="priority_not_allowed",
            )

    @property
    def owner(self) -> Owner:
        """The owner of what this request creates."""
        return Owner(self.project_id, self.key_id, self.end_user)
