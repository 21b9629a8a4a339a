"""A model that a reload removes while a request is checked accepts no jobs any more."""

from __future__ import annotations

import pytest

from api.context.window import ContextWindow
from api.jobs.admission import Admission
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.errors import NotFound
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest

OWNER = Owner(1, 1)


def models(*names: str) -> dict[str, SimulatedModel]:
    return {name: SimulatedModel(name=name, engine="simulated") for name in names}


class SlowWindow(ContextWindow):
    """Models are reloaded while a prompt is counted."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._removed_from = registry

    async def check(self, model: str, request: GenerateRequest) -> None:
        await super().check(model, request)
        self._removed_from.replace(models("kept"))


async def test_the_model_is_removed_during_the_checks() -> None:
    registry = Registry(models("kept", "removed"))
    admission = Admission(registry, SlowWindow(registry))
    for name in ("kept", "removed"):
        registry.replace(models("kept", "removed"))
        new = NewJob(OWNER, name, 3, GenerateRequest(prompt="x"))
        if name == "kept":
            await admission.admit(Principal.of(OWNER), new)
        else:
            with pytest.raises(NotFound, match="The model `removed` does not exist; available models: kept"):
                await admission.admit(Principal.of(OWNER), new)


def test_the_model_is_removed_before_the_job_is_stored() -> None:
    registry = Registry(models("kept", "removed"))
    admission = Admission(registry, ContextWindow(registry))
    admission.require_model("removed")
    registry.replace(models("kept"))
    admission.require_model("kept")
    with pytest.raises(NotFound):
        admission.require_model("removed")
