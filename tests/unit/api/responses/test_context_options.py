"""OpenAI's parameters for long conversations are mapped to strategies."""

from __future__ import annotations

from typing import Any

import pytest

from api.responses.schemas import ResponseCreate
from shared.domain.answer_options import ContextOptions

COMPACTION = {"context_management": [{"type": "compaction", "compact_threshold": 5000}]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"truncation": "auto"}, ContextOptions(strategy="sliding_window")),
        ({"truncation": "disabled"}, ContextOptions(strategy="error")),
        (COMPACTION, ContextOptions(strategy="summarize", trigger_tokens=5000)),
        ({"context_management": [{"type": "compaction"}]}, ContextOptions(strategy="summarize")),
        ({**COMPACTION, "truncation": "auto"}, ContextOptions(strategy="summarize", trigger_tokens=5000)),
        ({**COMPACTION, "context": {"strategy": "error"}}, ContextOptions(strategy="error")),
    ],
)
def test_parameters(body: dict[str, Any], expected: ContextOptions | None) -> None:
    assert ResponseCreate.model_validate({"model": "m", "input": "x", **body}).context_options == expected
