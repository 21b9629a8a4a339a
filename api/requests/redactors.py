"""The rules by which bodies are redacted that an export shows less of than the log has."""

from __future__ import annotations

from sqlalchemy import select

from api.requests.lines import BodyRedactor
from shared.domain.project_options import ProjectOptions
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow


class Redactors(Store):
    """Provides redactors with the rules that projects have now."""

    async def of(self, project_id: int) -> BodyRedactor:
        """The redactor of a project; that with the default rules if it has none, or was deleted.

        Raises:
            ValueError: this version cannot read its rules.
        """
        # Not when the process starts: its patterns take a while to load.
        from shared.domain.redaction_rules import NO_OWN_RULES, RedactionRules
        from shared.privacy.redaction import Redactor

        stored = await self._one(
            select(ProjectRow.options).where(ProjectRow.id == project_id), lambda row: ProjectOptions.read(row.options)
        )
        rules = stored.redaction if stored is not None else None
        return Redactor(NO_OWN_RULES if rules is None else RedactionRules.model_validate(rules))
