"""Errors of routing."""

from __future__ import annotations

from shared.domain.errors import HeadraceError


class RoutingModelError(HeadraceError):
    """The classifier of HEADRACE_ROUTING_MODEL cannot be used; the message gives the reason and the fix."""
