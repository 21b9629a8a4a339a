"""The rules by which bodies are redacted that an export shows less of than the log has."""

from __future__ import annotations

import asyncio

from sqlalchemy import select

from api.request_log.content import BodyRedactor
from api.request_log.redaction import new_redactor
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow


class Redactors(Store):
    """Provides redactors with the rules that projects have now."""

    async def of(self, project_id: int) -> BodyRedactor:
        """The redactor of a project; that with the default rules if it has none, or was deleted.

        Raises:
            ValueError: this version cannot read its rules.
        """
        statement = select(ProjectRow.options).where(ProjectRow.id == project_id)
        # As they are stored: rules that cannot be read are no reason to use the default ones.
        rules = await self._one(statement, lambda row: row.options.get("redaction"))
        # The first one loads tables.
        return await asyncio.to_thread(new_redactor, rules)
