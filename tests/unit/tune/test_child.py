"""What a candidate's process says about an engine that does not start."""

from __future__ import annotations

from shared.domain.errors import InvalidRequest
from tune.child import _text


def test_a_reason_does_not_name_the_entry() -> None:
    """It has the candidate's options, which are not in models.yaml."""
    error = InvalidRequest(
        "models.yaml: team/m.options.quantization: fp8 does not run on a CPU\n/etc/models.yaml: team/m.model: none"
    )
    reason = "options.quantization: fp8 does not run on a CPU; model: none"
    assert _text(error, {"name": "team/m"}) == reason
    assert _text(RuntimeError(), {"name": "m"}) == "RuntimeError"
    assert _text(RuntimeError("no memory: m.x"), {"name": "m"}) == "no memory: m.x"
