"""Creates or describes the engine of a model. Engines are imported on demand, so that a worker loads only its own."""

from __future__ import annotations

from typing import Any

from shared.config.models.anthropic import AnthropicModel
from shared.config.models.loader import ModelSpec
from shared.config.models.openai import OpenAIModel
from shared.config.models.replicate import ReplicateModel
from shared.config.models.runpod import RunpodModel
from shared.config.models.simulated import SimulatedModel
from shared.config.models.triton import TritonModel
from shared.config.models.vllm import VllmModel
from shared.telemetry.metrics import Metrics
from workers.engines.base import Engine
from workers.engines.info import info_of


def make_engine(model: ModelSpec, metrics: Metrics) -> Engine:
    """The model's engine, not started."""
    match model:
        case VllmModel():
            from workers.engines.vllm.engine import VllmEngine

            return VllmEngine(model, metrics)
        case OpenAIModel():
            from workers.engines.openai.engine import OpenAIEngine

            return OpenAIEngine(model, metrics)
        case ReplicateModel():
            from workers.engines.replicate.engine import ReplicateEngine

            return ReplicateEngine(model, metrics)
        case RunpodModel():
            from workers.engines.runpod.engine import RunpodEngine

            return RunpodEngine(model, metrics)
        case AnthropicModel():
            from workers.engines.anthropic.engine import AnthropicEngine

            return AnthropicEngine(model, metrics)
        case TritonModel():
            from workers.engines.triton.engine import TritonEngine

            return TritonEngine(model, metrics)
        case SimulatedModel():
            from workers.engines.simulated.engine import SimulatedEngine

            return SimulatedEngine(model)


def describe_engine(model: ModelSpec) -> dict[str, Any]:
    """What the model's engine would run with, as JSON values. Loads no model and calls no upstream.

    Raises:
        HeadraceError: the options of its entry cannot work on this machine.
    """
    if isinstance(model, VllmModel):
        from workers.engines.vllm.adapters import located
        from workers.engines.vllm.plan import make_plan
        from workers.engines.vllm.report import report

        return report(make_plan(model, located(model)))
    return {"model": model.name, **info_of(model).as_json()}
