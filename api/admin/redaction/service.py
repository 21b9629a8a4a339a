"""Redacts a text without storing anything."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from sqlalchemy import select

from shared.domain.errors import InvalidRequest
from shared.domain.redaction_rules import NO_OWN_RULES, RedactionRules
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow
from shared.privacy.presidio import PresidioMissing

if TYPE_CHECKING:
    from shared.privacy.redaction import Redacted


class RedactionService(Store):
    """Dry runs of the redaction."""

    async def preview(self, text: str, rules: RedactionRules | None, project: str | None) -> Redacted:
        """Redact a text by rules, or by those of a project.

        Raises:
            InvalidRequest: there is no such project, its rules cannot be read, or they demand what is not installed.
        """
        applied = rules or (NO_OWN_RULES if project is None else await self._rules_of(project))
        try:
            # In a thread: the first phone number takes a tenth of a second, because its tables are loaded.
            return await asyncio.to_thread(_redact, text, applied)
        except PresidioMissing as error:
            raise InvalidRequest(f"rules.presidio: {error}", param="rules.presidio") from None

    async def _rules_of(self, project: str) -> RedactionRules:
        row: Any = await self._first(select(ProjectRow.options).where(ProjectRow.name == project))
        if row is None:
            raise InvalidRequest(f"project: there is no project {project[:64]!r}", param="project")
        try:
            return RedactionRules.model_validate(row.options.get("redaction") or {})
        except ValidationError:
            raise InvalidRequest("project: this version cannot read its rules", param="project") from None


def _redact(text: str, rules: RedactionRules) -> Redacted:
    # Its tables take a tenth of a second to load, which not every process should pay.
    from shared.privacy.redaction import Redactor

    return Redactor(rules).redact_text(text)
