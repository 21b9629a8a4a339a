"""Estimates the tokens of prompts that cannot be counted here, from their bytes.

The ratio of tokens to bytes is learned for each model from the usage that its provider reports: see `LearnedRatios`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from shared.domain.content import FilePart, ImagePart
from shared.domain.request import GenerateRequest

# Before a model has answered enough prompts. English text has about 0.25 tokens per byte; code, JSON and many other
# languages have more.
DEFAULT_TOKENS_PER_BYTE = 1 / 3
# Images and files are estimated by themselves, whatever the ratio of texts: a large image has about so many tokens, and
# a PDF has more pictures and fonts than text.
IMAGE_TOKENS = 1600
FILE_TOKENS_PER_BYTE = 1 / 20


class TokenEstimates:
    """The learned ratios of all models, as tokens per byte of a prompt."""

    def __init__(self) -> None:
        self._ratios: Mapping[str, float] = {}

    def use(self, ratios: Mapping[str, float]) -> None:
        """Use these ratios, by model, from now on."""
        self._ratios = ratios

    def tokens_per_byte(self, model: str) -> float:
        """The tokens that a byte of a prompt's text has at most, in 95 of 100 prompts."""
        return self._ratios.get(model, DEFAULT_TOKENS_PER_BYTE)

    def estimate(self, model: str, request: GenerateRequest) -> int:
        """Estimate the tokens of a prompt. In 95 of 100 prompts, they are at most as many."""
        ratio = self.tokens_per_byte(model)
        size, tokens = request.size + request.options_size, 0.0
        for message in request.messages or ():
            for part in message.media:
                size -= part.size
                tokens += media_tokens(part, ratio)
        return math.ceil(size * ratio + tokens)


def media_tokens(part: ImagePart | FilePart, ratio: float) -> float:
    """Estimate the tokens of an image or a file, given the ratio of tokens to bytes of texts."""
    if isinstance(part, ImagePart) or part.data is None:
        return IMAGE_TOKENS
    is_text = (part.media_type or "").startswith("text/")
    return len(part.data) * 3 / 4 * (ratio if is_text else FILE_TOKENS_PER_BYTE)
