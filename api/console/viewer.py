"""Who looks at a page: the session, its key, and what it may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Scope as AsgiScope

from api.keys.principal import Principal, Scope
from shared.domain.errors import Unauthorized


@dataclass(frozen=True, slots=True)
class Viewer:
    """The principal of a session, with the names that its pages show and the token that its forms send."""

    principal: Principal
    key_name: str
    project_name: str
    session_token: str
    csrf_token: str

    @property
    def is_operator(self) -> bool:
        """Whether the viewer sees all projects, and may change what they share."""
        return Scope.ADMIN in self.principal.scopes

    @property
    def can_submit(self) -> bool:
        """Whether the viewer may submit, cancel and replay jobs of its project."""
        return Scope.INFERENCE in self.principal.scopes

    @property
    def project_id(self) -> int | None:
        """The project whose data the viewer may see; None: that of all projects."""
        return self.principal.visible_project


def viewer_of(scope: AsgiScope) -> Viewer | None:
    """The viewer of a request, which the middleware has found; None if it has no session."""
    viewer: Viewer | None = scope.get("state", {}).get("viewer")
    return viewer


async def current_viewer(request: Request) -> Viewer:
    """The viewer of a request.

    Raises:
        Unauthorized: the request has no session.
    """
    viewer = viewer_of(request.scope)
    if viewer is None:
        raise Unauthorized("Sign in first.")
    return viewer


CurrentViewer = Annotated[Viewer, Depends(current_viewer)]
