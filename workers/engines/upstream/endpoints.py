"""The addresses and keys of one upstream: which of them a request uses, and which are set aside."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from shared.config.models.upstream import UpstreamModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import UpstreamState
from workers.engines.upstream.session import proxy_of

logger = logging.getLogger(__name__)

# For how long an endpoint is set aside: first and longest, doubled at each failure in a row.
KEY_ASIDE_S = (30.0, 300.0)
FAILURE_ASIDE_S = (1.0, 30.0)
# The members of an `UpstreamState`'s data with the identity and the name of the endpoint that runs the request. Workers
# of the previous version, which run during an upgrade, write and read nothing but the name, and only if there are
# several endpoints. Remove it, and `owner`'s last two cases, after the first release that writes the identity.
_OWNER = "endpoint_id"
_OWNER_NAME = "endpoint"


@dataclass(slots=True)
class Health:
    """The failures of an endpoint in a row, and until when it is set aside, on the monotonic clock.

    `key_failed`: whether the last failure was that of its key.
    """

    failures: int = 0
    aside_until: float = 0.0
    key_failed: bool = False


@dataclass(eq=False, slots=True)
class Endpoint:
    """One address with its key. `name` is its label in metrics and logs.

    `identity` marks the requests that it runs. It stays the same if endpoints are added, reordered or renamed.
    """

    name: str
    identity: str
    base_url: str
    weight: float
    variable: str | None
    key: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    health: Health = field(default_factory=Health)

    @property
    def available(self) -> bool:
        """Whether it is not set aside, or is due to be tried again."""
        return time.monotonic() >= self.health.aside_until


class Endpoints:
    """The endpoints of a model's upstream."""

    def __init__(self, model: UpstreamModel, auth_headers: Callable[[str], Mapping[str, str]]) -> None:
        """Read the keys from the environment.

        Raises:
            InvalidRequest: a variable is not set.
        """
        self._model = model.name
        self._all = tuple(_endpoints(model, auth_headers))
        # By identity, endpoints of earlier versions of the entry that this one lacks: only their keys can cancel their
        # runs.
        self._former: dict[str, Endpoint] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, to remove them from texts."""
        return tuple(endpoint.key for endpoint in self._all if endpoint.key)

    @property
    def states(self) -> dict[str, bool]:
        """By name, whether an endpoint is available: its last request succeeded, or none was sent."""
        return {endpoint.name: not endpoint.health.failures for endpoint in self._all}

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._all)

    def take_over(self, earlier: Endpoints) -> bool:
        """Set aside what an earlier version of the entry had set aside. Returns whether they have endpoints in common.

        Requests on the earlier ones still run, and their outcomes count for both.
        """
        known = {endpoint.identity: endpoint.health for endpoint in earlier}
        common = [endpoint for endpoint in self._all if endpoint.identity in known]
        for endpoint in common:
            endpoint.health = known[endpoint.identity]
        self._former = earlier._former | {endpoint.identity: endpoint for endpoint in earlier}
        for endpoint in self._all:
            self._former.pop(endpoint.identity, None)
        return bool(common)

    def choose(self, tried: Collection[Endpoint] = ()) -> Endpoint:
        """Choose an endpoint by weight: of those that are available and not in `tried`, if there are any."""
        if len(self._all) == 1:
            return self._all[0]
        untried = [endpoint for endpoint in self._all if endpoint not in tried] or self._all
        available = [endpoint for endpoint in untried if endpoint.available]
        if not available:
            return min(untried, key=lambda endpoint: endpoint.health.aside_until)
        return random.choices(available, [endpoint.weight for endpoint in available])[0]

    def has_other(self, tried: Collection[Endpoint]) -> bool:
        """Whether an endpoint is available that is not in `tried`."""
        return any(endpoint.available for endpoint in self._all if endpoint not in tried)

    def owner(self, state: UpstreamState | None) -> Endpoint | None:
        """The endpoint that runs a request; None if it is unknown, or not declared any more."""
        if state is None:
            return None
        if (identity := state.data.get(_OWNER)) is not None:
            return next((endpoint for endpoint in self._all if endpoint.identity == identity), None)
        if (name := state.data.get(_OWNER_NAME)) is not None:
            return next((endpoint for endpoint in self._all if endpoint.name == name), None)
        return self._all[0] if len(self._all) == 1 else None

    def canceller(self, state: UpstreamState) -> Endpoint | None:
        """The endpoint that can cancel a request: the one that runs it, also if it is not declared any more."""
        return self.owner(state) or self._former.get(state.data.get(_OWNER, ""))

    def mark(self, state: UpstreamState, endpoint: Endpoint) -> UpstreamState:
        """Add to the state of a request that `endpoint` runs it."""
        return replace(state, data={**state.data, _OWNER: endpoint.identity, _OWNER_NAME: endpoint.name})

    def succeeded(self, endpoint: Endpoint) -> None:
        """Use an endpoint again."""
        health = endpoint.health
        if health.failures:
            health.failures, health.aside_until, health.key_failed = 0, 0.0, False
            logger.warning("model=%s endpoint=%s works again", self._model, endpoint.name)

    def failed(self, endpoint: Endpoint, reason: str, *, of_key: bool = False) -> None:
        """Set an endpoint aside for a while. The log says so once, with the variable if `of_key`."""
        first, longest = KEY_ASIDE_S if of_key else FAILURE_ASIDE_S
        health = endpoint.health
        seconds = min(longest, first * 2.0 ** min(health.failures, 16))
        health.aside_until = time.monotonic() + seconds
        health.failures += 1
        health.key_failed = of_key
        if health.failures == 1 and (of_key or len(self._all) > 1):
            level = logging.ERROR if of_key else logging.WARNING
            key = f"; api_key_env is {endpoint.variable or 'not set'}" if of_key else ""
            logger.log(level, "model=%s endpoint=%s set aside: %s%s", self._model, endpoint.name, reason, key)


def _endpoints(model: UpstreamModel, auth_headers: Callable[[str], Mapping[str, str]]) -> Iterator[Endpoint]:
    for path, name, target in model.options.targets:
        key = ""
        if (variable := target.api_key_env) is not None:
            key = os.environ.get(variable, "").strip()
            if not key:
                raise InvalidRequest(
                    f"{model.place(f'{path}.api_key_env')}: {variable} is not set; set it to the upstream's key"
                )
        headers = auth_headers(key) if key else {}
        url = target.base_url
        yield Endpoint(name, _identity(url, variable), url, target.weight, variable, key, headers, proxy_of(url))


def _identity(base_url: str, variable: str | None) -> str:
    return hashlib.blake2b(f"{base_url}\0{variable or ''}".encode(), digest_size=8).hexdigest()
