"""The redactor of a project's bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.request_log.content import BodyRedactor


def takes_long(rules: Mapping[str, Any] | None) -> bool:
    """Whether redaction by the rules of a project, as its options have them, is too slow for the event loop.

    Each pattern of a project may take as long as all kinds together, and Presidio a hundred times as long.
    """
    return rules is not None and bool(rules.get("own") or rules.get("presidio"))


def new_redactor(rules: Mapping[str, Any] | None) -> BodyRedactor:
    """The redactor for the rules of a project, as its options have them; None: the default rules.

    Raises:
        ValueError: this version cannot read the rules. Nothing may be kept without them.
        shared.privacy.presidio.PresidioMissing: they demand what is not installed.
    """
    # Its tables take tenths of a second to load, which only those who keep redacted bodies should pay.
    from shared.domain.redaction_rules import NO_OWN_RULES, RedactionRules
    from shared.privacy.redaction import Redactor

    redactor = Redactor(NO_OWN_RULES if rules is None else RedactionRules.model_validate(rules))
    redactor.load()
    return redactor
