"""The projects that a request names, and that its key may read."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from api.keys.principal import Principal, Scope
from shared.domain.database_text import storable
from shared.domain.errors import Forbidden, InvalidRequest
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow


class ProjectIds(Store):
    """A store that finds projects by their names."""

    async def project_id(self, name: str) -> int | None:
        """The id of the project with this name; None if there is none."""
        return await self._one(select(ProjectRow.id).where(ProjectRow.name == name), lambda row: int(row.id))


async def named_project(projects: ProjectIds, name: str, param: str = "project") -> int:
    """The id of the project that a parameter names.

    Raises:
        InvalidRequest: there is no such project.
    """
    if (project_id := await projects.project_id(storable(name))) is None:
        raise InvalidRequest(f"{param}: there is no project {name[:64]!r}", param=param)
    return project_id


async def readable_projects(
    principal: Principal, names: Sequence[str], projects: ProjectIds, what: str, param: str = "project"
) -> set[int] | None:
    """The projects whose `what` a principal asks for by their names: its own, unless it is an administrator.

    Without names: its own, or for administrators all (None).

    Raises:
        InvalidRequest: there is no such project.
        Forbidden: it is another project, and the key has no admin scope.
    """
    distinct = list(dict.fromkeys(names))
    if Scope.ADMIN in principal.scopes:
        return {await named_project(projects, name, param) for name in distinct} if distinct else None
    is_own = len(distinct) == 1 and await projects.project_id(storable(distinct[0])) == principal.project_id
    if distinct and not is_own:
        # As for a project that does not exist.
        raise Forbidden(f"{param}: this API key may read the {what} of its own project only.", param=param)
    return {principal.project_id}
