"""The principal of a request: the project and key that it acts for, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from shared.domain.errors import Forbidden
from shared.domain.owner import Owner, end_user_name


class Scope(StrEnum):
    """What a key may be used for."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The project and key that a request acts for, the key's scopes, and the end user that the request names."""

    project_id: int
    key_id: int
    scopes: frozenset[Scope]
    end_user: str | None = None

    @classmethod
    def of(cls, owner: Owner) -> Self:
        """The principal of work that was accepted earlier: the lines of a batch, and replayed jobs."""
        return cls(owner.project_id, owner.key_id, frozenset({Scope.INFERENCE}), owner.end_user)

    def acting_for(self, end_user: str | None) -> Self:
        """This principal on behalf of an end user, by the client's own name for that person."""
        return replace(self, end_user=end_user_name(end_user))

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` if the key does not have the scope."""
        if scope not in self.scopes:
            raise Forbidden(
                f"This API key has no `{scope.value}` scope; use a key that was created with --scope {scope.value}."
            )

    @property
    def owner(self) -> Owner:
        """The owner of what this request creates."""
        return Owner(self.project_id, self.key_id, self.end_user)
