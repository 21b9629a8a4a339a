"""Parameters of the Responses API that depend on one another."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from api.jobs.dialects import LOGPROBS
from api.responses.schemas import ResponseCreate
from shared.domain.request import Message

BODY = {"model": "m", "input": "x"}
MESSAGES = [Message(role="user", content="x")]


def test_no_alternatives_need_no_log_probabilities() -> None:
    """OpenAI's responses have `top_logprobs: 0`, and clients send it back."""
    assert ResponseCreate.model_validate({**BODY, "top_logprobs": 0}).generate_request(MESSAGES).logprobs is None
    with pytest.raises(ValidationError, match="top_logprobs requires include"):
        ResponseCreate.model_validate({**BODY, "top_logprobs": 1})
    both = ResponseCreate.model_validate({**BODY, "top_logprobs": 0, "include": [LOGPROBS]})
    assert both.generate_request(MESSAGES).logprobs == 0
