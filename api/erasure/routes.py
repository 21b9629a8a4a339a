"""`DELETE /v1/users/{user}/data`: erase the data of an end user."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from api.erasure.schemas import ErasureView
from api.erasure.service import ErasureService
from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.openapi import ERRORS
from api.http.query_parameters import check_names
from api.keys.auth import AnyPrincipal

router = APIRouter(prefix="/v1/users", tags=["privacy"])

_RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": ErasureView, "description": "Something is left: send the request again."},
    403: {"model": ErrorResponse, "description": "The API key has neither the scope `erase` nor `admin`."},
}


@router.delete("/{user:path}/data", responses={**ERRORS, **_RESPONSES}, dependencies=[Depends(check_names)])
async def erase_user_data(
    response: Response,
    user: Annotated[
        str, Path(min_length=1, max_length=2000, description="The end user: `user` or `safety_identifier` of requests.")
    ],
    principal: AnyPrincipal,
    erasure: Annotated[ErasureService, Depends(resource(ErasureService))],
    project: Annotated[
        str | None, Query(max_length=200, description="Another project. Needs a key with the `admin` scope.")
    ] = None,
) -> ErasureView:
    """Erase what is stored of an end user of the project. It cannot be undone.

    Open jobs are cancelled. Of ended jobs, requests and answers are deleted, with their responses, cached answers,
    events, bodies in the request log, comments, judgements and labels; lines of batch files are erased. In the ledger
    and the request log, only the name of the end user is erased. The call takes at most about 20 seconds, or as long
    as the files of one batch take, and can be repeated: the answer says whether something is left.
    """
    result = await erasure.erase(principal, user, project)
    if not result.complete:
        response.status_code = HTTPStatus.ACCEPTED
    return ErasureView.of(user, result)
