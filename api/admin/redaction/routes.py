"""`/v1/admin/redaction/preview`: what redaction would leave of a text."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from api.admin.dependencies import ADMIN_ERRORS, AdminPrincipal
from api.admin.redaction.schemas import RedactedText, RedactionPreview
from api.admin.redaction.service import RedactionService
from api.http.dependencies import resource
from api.http.json_body import JsonRoute
from api.http.openapi import FAILED

router = APIRouter(prefix="/v1/admin/redaction", tags=["privacy"], route_class=JsonRoute)


@router.post("/preview", responses={**ADMIN_ERRORS, 413: FAILED[413]})
async def preview_redaction(
    body: RedactionPreview, _: AdminPrincipal, service: Annotated[RedactionService, Depends(resource(RedactionService))]
) -> RedactedText:
    """Redact a text as a body of the request log would be, by the rules of a project or by others. A dry run."""
    redacted = await service.preview(body.text, body.rules, body.project)
    return RedactedText(text=redacted.text, counts=dict(redacted.counts))
