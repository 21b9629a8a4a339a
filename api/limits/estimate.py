"""How many tokens a job is expected to use: what it reserves of limits of tokens until its end."""

from __future__ import annotations

from dataclasses import dataclass

from api.context.window import ContextWindow
from shared.config.models.loader import Registry
from shared.domain.new_job import NewJob

# The output of a request without max_tokens to a model without a default. What it generates beyond that is added to the
# limit when the job has ended.
ASSUMED_OUTPUT = 1000


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """The tokens of the prompt and of the output.

    `counted`: those of the prompt are no estimate. `bounded`: the output cannot be longer.
    """

    prompt: int
    output: int
    counted: bool = True
    bounded: bool = True

    @property
    def total(self) -> int:
        """All tokens."""
        return self.prompt + self.output


NO_TOKENS = TokenEstimate(0, 0)


class TokenEstimator:
    """Estimates the tokens of admitted jobs, in microseconds: prompts are not counted for this."""

    def __init__(self, registry: Registry, window: ContextWindow) -> None:
        self._registry = registry
        self._window = window

    def estimate(self, new: NewJob) -> TokenEstimate:
        """Estimate a job's tokens: those of the prompt as it was counted for a route, otherwise by its size, and
        max_tokens for each choice, or what the prompt leaves of the context."""
        request, decisions = new.request, new.decisions
        is_counted = isinstance(request.prompt, list)
        prompt = len(request.prompt) if isinstance(request.prompt, list) else decisions.estimated_tokens
        # A route counts a prompt only as far as its rules need it.
        if prompt is None and decisions.route is not None:
            prompt = decisions.route.input_tokens
        if prompt is None:
            prompt = self._window.estimate(new.model, request, new.owner.project_id).number
        if request.prompt_only:
            return TokenEstimate(prompt, 0, is_counted)
        sampling, spec = request.sampling, self._registry.models.get(new.model)
        most = sampling.max_tokens
        if most is None and spec is not None:
            most = spec.default_max_tokens
        is_assumed = most is None
        most = ASSUMED_OUTPUT if most is None else most
        if (length := self._window.length(new.model)) is not None:
            most = min(most, max(0, length - prompt))
        return TokenEstimate(prompt, most * sampling.n, is_counted, bounded=not is_assumed)
