"""Estimates the tokens of prompts that cannot be counted here, from their bytes.

The ratio of tokens to bytes is learned from the usage that the model's provider reports: see `LearnedRatios`. Each
project has a ratio of its own, so that the texts of one project do not change the estimates of another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shared.domain.content import FilePart, ImagePart
from shared.domain.request import GenerateRequest

# Before a model has answered enough prompts. English text has about 0.25 tokens per byte; code, JSON and many other
# languages have more.
DEFAULT_TOKENS_PER_BYTE = 1 / 3
# Projects whose ratios are kept up to date: those whose prompts were estimated last.
MAX_PROJECTS = 50
# Images and files are estimated separately, whatever the ratio of texts: a large image has about this many tokens, and
# a PDF has more pictures and fonts than text.
IMAGE_TOKENS = 1600
FILE_TOKENS_PER_BYTE = 1 / 20


class TokenEstimates:
    """The learned ratios of all models, as tokens per byte of a prompt."""

    def __init__(self) -> None:
        self._ratios: Mapping[str, float] = {}
        self._of_projects: Mapping[tuple[str, int], float] = {}
        self._projects: dict[int, None] = {}

    def use(self, ratios: Mapping[str, float], of_projects: Mapping[tuple[str, int], float] | None = None) -> None:
        """Use these ratios from now on: those by model and project, and those by model for other projects."""
        self._ratios = ratios
        self._of_projects = of_projects or {}

    @property
    def projects(self) -> Sequence[int]:
        """The projects whose prompts were estimated last, at most `MAX_PROJECTS`."""
        return list(self._projects)

    def tokens_per_byte(self, model: str, project_id: int | None = None) -> float:
        """The tokens that a byte of a prompt's text has at most, in 95 of 100 prompts of the project."""
        shared = self._ratios.get(model, DEFAULT_TOKENS_PER_BYTE)
        if project_id is None:
            return shared
        self._projects.pop(project_id, None)
        self._projects[project_id] = None
        if len(self._projects) > MAX_PROJECTS:
            del self._projects[next(iter(self._projects))]
        return self._of_projects.get((model, project_id), shared)

    def estimate(self, model: str, request: GenerateRequest, project_id: int | None = None) -> int:
        """Estimate the tokens of a prompt. In 95 of 100 prompts, they are at most as many."""
        ratio = self.tokens_per_byte(model, project_id)
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
