"""The part of an attempt's context that the model's entry in models.yaml decides, at the start and after a reload."""

from __future__ import annotations

from dataclasses import replace

from shared.config.models.loader import ModelSpec
from workers.execution.attempts.context import AttemptContext
from workers.execution.compilations import compilations_of


def with_model(context: AttemptContext, model: ModelSpec, earlier: ModelSpec | None = None) -> AttemptContext:
    """Return the context of attempts that serve this entry of the model; its engine is not changed.

    `earlier` is the entry that `context` serves. If both have the same bounds, structured outputs keep their line.
    """
    keeps_line = earlier is not None and earlier.structure_bounds == model.structure_bounds
    return replace(
        context,
        compilations=context.compilations if keeps_line else compilations_of(model, context.metrics),
        provider=model.provider,
        max_output=None if model.token_limits is None else model.token_limits.max_output,
        revision=model.revision,
        starts_early=model.starts_early,
    )
