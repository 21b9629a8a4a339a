"""Decides whether a job may be submitted. Single submits, batch lines and replays all come through `admit`."""

from __future__ import annotations

from api.jobs.context_window import ContextWindow
from api.keys.principal import Principal, Scope
from shared.config.models.loader import Registry
from shared.domain.errors import NotFound
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import NewJob


class Admission:
    """The steps that every job passes before it is stored, in the order in which they run."""

    def __init__(self, registry: Registry, context: ContextWindow) -> None:
        self._registry = registry
        self._context = context

    async def admit(self, principal: Principal, new: NewJob) -> NewJob:
        """Check a new job of a principal; return the job to store, which a step may have changed.

        Raises:
            Forbidden: the key may not be used for inference.
            NotFound: the model does not exist.
            InvalidRequest: the prompt does not fit the model's context.
        """
        # Order: choose the model (routing), check the request against it, look for a stored result (cache), and last
        # the steps that reserve something (caps, limits, budgets), so that a rejected job has reserved nothing.
        principal.require(Scope.INFERENCE)
        await self.check(new.model, new.request)
        return new

    async def check(self, model: str, request: GenerateRequest) -> None:
        """The steps without side effects, which also explain afterwards why a job was rejected. Raises as `admit`."""
        self._check_model(model)
        await self._context.check(model, request)

    async def count_tokens(self, model: str, request: GenerateRequest) -> int:
        """Tokens of a prompt, counted as for the context check.

        Raises:
            NotFound: the model does not exist.
            InvalidRequest: this process cannot count for the model, or its chat template rejects the prompt.
        """
        self._check_model(model)
        return await self._context.count(model, request)

    def _check_model(self, model: str) -> None:
        if model not in self._registry:
            known = ", ".join(self._registry.models)
            raise NotFound(
                f"The model `{model}` does not exist; there are: {known}.", param="model", code="model_not_found"
            )
