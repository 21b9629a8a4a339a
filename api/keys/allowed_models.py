"""The models and routes that a key's requests may name."""

from __future__ import annotations

from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.domain.errors import NotFound


def is_allowed(principal: Principal, registry: Registry, name: str) -> bool:
    """Whether requests of a principal may name this as their model. An allowed route is allowed in all of its modes."""
    allowed = principal.options.allowed_models
    if allowed is None or name in allowed:
        return True
    requested = registry.route(name)
    return requested is not None and requested.route.name in allowed


def require_allowed(principal: Principal, registry: Registry, name: str) -> None:
    """Raise `NotFound`, as for a model that does not exist, if requests of a principal may not name this."""
    if not is_allowed(principal, registry, name):
        allowed = ", ".join(principal.options.allowed_models or ())
        raise NotFound(
            f"The model `{name[:200]}` does not exist, or this API key may not use it; it may use: {allowed}.",
            param="model",
            code="model_not_found",
        )
