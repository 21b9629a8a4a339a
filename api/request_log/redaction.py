"""The redactor of a project's bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.request_log.content import BodyRedactor


def new_redactor(rules: Mapping[str, Any] | None) -> BodyRedactor:
    """The redactor for the rules of a project, as its options have them; None: the default rules.

    Raises:
        ValueError: this version cannot read the rules. Nothing may be kept without them.
    """
    # Its tables take a tenth of a second to load, which only those who keep redacted bodies should pay.
    from shared.domain.redaction_rules import NO_OWN_RULES, RedactionRules
    from shared.privacy.redaction import Redactor

    redactor: BodyRedactor = Redactor(NO_OWN_RULES if rules is None else RedactionRules.model_validate(rules))
    return redactor
