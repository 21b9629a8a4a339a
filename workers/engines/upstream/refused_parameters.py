"""Remembers which optional parameters an upstream refuses."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from time import monotonic
from typing import Any

logger = logging.getLogger(__name__)

# After this time a refused parameter is sent again: the upstream may have been upgraded.
REMEMBERED_S = 3600.0
# Statuses of a refusal.
REFUSED = (400, 422)
_REFUSAL = re.compile(
    rb"un(?:supported|recogni[sz]ed|known|expected)"
    rb"|(?:not|n't) (?:be )?(?:support|permit|allow|recogni|accept|a valid|valid)|no longer support"
    rb"|extra (?:input|field|propert|param)|extra_forbidden|additional propert|invalid (?:param|arg|field)|instead",
    re.IGNORECASE,
)


class RefusedParameters:
    """The optional parameters that the upstream of one model refuses.

    An optional parameter has a replacement that does not change the answer: nothing, or the same value under another
    name.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._until: dict[str, float] = {}
        self._logged: set[str] = set()

    def accepted(self, body: dict[str, Any], optional: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The body without the parameters that the upstream refused in the last hour."""
        if not self._until:
            return body
        now = monotonic()
        return replaced(body, {name: optional[name] for name in optional if self._until.get(name, 0) > now})

    def named_in(
        self, error: bytes, body: dict[str, Any], optional: Mapping[str, Mapping[str, Any]], tried: Collection[str]
    ) -> dict[str, Mapping[str, Any]]:
        """The optional parameters of the body that an error refuses, with their replacements.

        A parameter of `tried`, which were replaced before, is not introduced again.
        """
        if not _REFUSAL.search(error):
            return {}
        return {
            name: replacement
            for name, replacement in optional.items()
            if name in body
            and re.search(rb"\b%b\b" % name.encode(), error)
            and not any(other in tried for other in replacement)
        }

    def remember(self, replacements: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember that the upstream accepted a request once these parameters were replaced, other than by values."""
        for name in [name for name, replacement in replacements.items() if name not in replacement]:
            self._until[name] = monotonic() + REMEMBERED_S
            if name not in self._logged:
                self._logged.add(name)
                logger.warning(
                    "model=%s the upstream refuses the parameter %s; requests go without it, or with its other name,"
                    " for %d minutes, then it is tried again",
                    self._model,
                    name,
                    REMEMBERED_S // 60,
                )


def replaced(body: dict[str, Any], replacements: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The body with some parameters replaced."""
    changed = {name: value for name, value in body.items() if name not in replacements}
    for replacement in replacements.values():
        changed |= replacement
    return changed
