"""From a model's declaration to its engine. The import is here, so that no engine's worker loads another's."""

from __future__ import annotations

from shared.config.models.loader import ModelSpec
from shared.config.models.openai import OpenAIModel
from shared.config.models.simulated import SimulatedModel
from shared.config.models.vllm import VllmModel
from shared.telemetry.metrics import Metrics
from workers.engines.base import Engine


def make_engine(model: ModelSpec, metrics: Metrics) -> Engine:
    """The engine that a model's `engine:` names; not started yet."""
    match model:
        case VllmModel():
            from workers.engines.vllm.engine import VllmEngine

            return VllmEngine(model, metrics)
        case OpenAIModel():
            from workers.engines.openai.engine import OpenAIEngine

            return OpenAIEngine(model, metrics)
        case SimulatedModel():
            from workers.engines.simulated.engine import SimulatedEngine

            return SimulatedEngine(model)
