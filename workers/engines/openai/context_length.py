"""Where servers with OpenAI's API report the context length of a model.

vLLM (`vllm/entrypoints/openai/models/serving.py`) and SGLang (`/v1/models`): `max_model_len` of the model's card; that
of an adapter has none, but names its `parent`. TGI (`/info`): `max_total_tokens`, of prompt and output together.
"""

from __future__ import annotations

from typing import Any

import orjson

from shared.config.models.presets import LengthPage


def length_url(base_url: str, page: LengthPage) -> str:
    """The address of the page that has the length."""
    return f"{base_url}/models" if page == "models" else f"{base_url.removesuffix('/v1')}/info"


def length_in(content: bytes, page: LengthPage, model: str) -> int | None:
    """The length in the body of the page; None if it has none. Raises errors of all kinds for other content."""
    body = orjson.loads(content)
    if page == "info":
        total: int | None = body.get("max_total_tokens")
        return total
    cards: dict[str, Any] = {card["id"]: card for card in body["data"]}
    card = cards.get(model)
    if card is not None and card.get("max_model_len") is None:
        card = cards.get(card.get("parent"))
    length: int | None = card.get("max_model_len") if card is not None else None
    return length
