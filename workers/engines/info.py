"""What engines that load no model run with."""

from __future__ import annotations

from shared.config.models.simulated import SimulatedModel
from shared.config.models.upstream import UpstreamModel
from shared.domain.engine_info import EngineInfo


def info_of(model: SimulatedModel | UpstreamModel) -> EngineInfo:
    """What is known from a model's entry alone."""
    return EngineInfo(
        engine=model.engine, context=model.max_model_len, slots=model.slots, fingerprint=model.fingerprint
    )
