"""FastAPI dependencies of judges and labels."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from api.evals.service import EvalService
from api.http.dependencies import resource
from api.keys.auth import CurrentPrincipal
from api.keys.principal import Principal, Scope
from api.keys.store import format_id

CurrentEvals = Annotated[EvalService, Depends(resource(EvalService))]


async def operator(principal: CurrentPrincipal) -> Principal:
    """The principal of a request about judges; raises `Forbidden` without the `admin` scope."""
    principal.require(Scope.ADMIN)
    return principal


async def labeller(principal: CurrentPrincipal) -> Principal:
    """The principal of a person who labels answers; raises `Forbidden` if its key may not read logged answers."""
    principal.require(Scope.LOGS)
    return principal


def labelled_project(principal: Principal) -> int | None:
    """The only project whose answers a labeller may see; None: those of all projects."""
    return principal.visible_project


def labeller_id(principal: Principal) -> str:
    """The person that a label is of: the key, by its id, because a name may change, and two keys may have the same."""
    return format_id(principal.key_id)


Operator = Annotated[Principal, Depends(operator)]
Labeller = Annotated[Principal, Depends(labeller)]
