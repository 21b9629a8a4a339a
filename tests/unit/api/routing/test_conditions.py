"""Each condition of rules is evaluated."""

from __future__ import annotations

from api.routing.conditions import CHECKS
from shared.config.models.conditions import Conditions


def test_each_condition_is_evaluated() -> None:
    """A condition that models.yaml accepts and that nothing checks would always hold."""
    assert set(CHECKS) == Conditions.model_fields.keys() - {"of"}
