"""The principal of a request: the project and key that it acts for, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shared.domain.errors import Forbidden
from shared.domain.owner import Owner, end_user_name


class Scope(StrEnum):
    """What a key may be used for."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The project and key that a request acts for, and the key's scopes."""

    project_id: int
    key_id: int
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` if the key does not have the scope."""
        if scope not in self.scopes:
            raise Forbidden(
                f"This API key has no `{scope.value}` scope; use a key that was created with --scope {scope.value}."
            )

    def owner(self, end_user: str | None = None) -> Owner:
        """The owner of what this request creates; `end_user` is the client's name for an end user, if it gave one."""
        return Owner(self.project_id, self.key_id, end_user_name(end_user))
