"""The models and routes that a key's requests may name."""

from __future__ import annotations

import pytest

from api.keys.allowed_models import is_allowed, require_allowed
from api.keys.principal import Principal, Scope
from shared.config.models.loader import Registry
from shared.config.models.routes import Route
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import KeyOptions
from shared.domain.errors import NotFound

MODELS = {name: SimulatedModel(name=name, engine="simulated") for name in ("small", "large", "other")}
REGISTRY = Registry(MODELS, [Route(name="auto", models=("small", "large"))])


def principal(*allowed: str) -> Principal:
    options = KeyOptions(allowed_models=allowed or None)
    return Principal(1, 1, frozenset({Scope.INFERENCE}), options=options)


@pytest.mark.parametrize("name", ["small", "auto", "auto:cost", "unknown"])
def test_without_a_limit_all_are_allowed(name: str) -> None:
    assert is_allowed(principal(), REGISTRY, name)


def test_only_the_named_ones_are_allowed() -> None:
    key = principal("small")
    assert is_allowed(key, REGISTRY, "small")
    for name in ("large", "auto", "auto:cost", "unknown", "smal", "small2"):
        assert not is_allowed(key, REGISTRY, name)


def test_a_route_is_allowed_in_all_modes_without_its_models() -> None:
    key = principal("auto")
    assert all(is_allowed(key, REGISTRY, name) for name in ("auto", "auto:cost", "auto:quality"))
    assert not is_allowed(key, REGISTRY, "small"), "only the route may choose it"
    one_mode = principal("auto:cost")
    assert is_allowed(one_mode, REGISTRY, "auto:cost")
    assert not is_allowed(one_mode, REGISTRY, "auto")


def test_the_error_does_not_name_other_models() -> None:
    with pytest.raises(NotFound) as raised:
        require_allowed(principal("small"), REGISTRY, "large")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert "other" not in raised.value.message
    require_allowed(principal("small"), REGISTRY, "small")
