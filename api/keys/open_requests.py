"""The requests that this process is answering: what revoking a key or ending a session interrupts, and what a project
uses of the process.

The open streams of a project, and of its keys, end users and models, and the bytes of a project's open requests are
limited. A request keeps its body until it is answered, which may take as long as its job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain

from api.keys.principal import Principal, Scope
from api.settings import QuotaSettings
from shared.domain.errors import QuotaExceeded
from shared.telemetry.definitions.labels import Quota
from shared.telemetry.metrics import Metrics

RETRY_S = 5


@dataclass(frozen=True, slots=True)
class StreamLimit:
    """A limit of open streams: `value` for all streams of a scope together, which is that of the project or narrower.
    `name` identifies the limit, and `str(scope)` says whose streams they are."""

    scope: Hashable
    is_of_project: bool
    value: int
    name: str


# The limits that apply to a stream of an end user's answer from a model.
StreamLimits = Callable[[Principal, str | None], Sequence[StreamLimit]]


class OpenRequest:
    """An authenticated request. `session`: the hash of the token of the console's session that sent it, if one did.
    `interrupted`: its key was revoked or its session has ended, so the client did not abandon it.
    """

    __slots__ = ("_requests", "bytes", "disconnect", "interrupted", "principal", "session", "stream_scopes")

    def __init__(
        self,
        requests: OpenRequests,
        principal: Principal,
        disconnect: Callable[[], None] | None,
        session: str | None,
    ) -> None:
        self._requests = requests
        self.principal = principal
        self.disconnect = disconnect
        self.session = session
        self.interrupted = False
        # The scopes that count it as an open stream; none if it is not one.
        self.stream_scopes: Sequence[Hashable] = ()
        self.bytes = 0

    def open_stream(self, model: str, end_user: str | None = None) -> None:
        """Count this request as an open stream of a model's answer for an end user, until it ends.

        Raises:
            QuotaExceeded: there are too many open streams in this process.
        """
        self._requests.open_stream(self, model, end_user)

    def hold(self, size: int) -> None:
        """Count bytes that this request keeps in memory until it ends.

        Raises:
            QuotaExceeded: the open requests of its project would have too many bytes in this process.
        """
        self._requests.hold(self, size)


class OpenRequests:
    """All open requests. They are counted per API process, because each process holds its own connections."""

    def __init__(
        self, settings: QuotaSettings, metrics: Metrics, stream_limits: StreamLimits = lambda principal, model: ()
    ) -> None:
        self._max_streams = settings.project_streams
        self._stream_limits = stream_limits
        self._max_bytes = settings.project_open_bytes
        self._metrics = metrics
        self._by_key: dict[int, set[OpenRequest]] = {}
        self._streams: Counter[Hashable] = Counter()
        self._bytes: Counter[int] = Counter()

    def enter(
        self, principal: Principal, disconnect: Callable[[], None] | None, session: str | None = None
    ) -> OpenRequest:
        """Register a request. `disconnect` closes its connection; `session` as in `OpenRequest`."""
        request = OpenRequest(self, principal, disconnect, session)
        self._by_key.setdefault(principal.key_id, set()).add(request)
        return request

    def leave(self, request: OpenRequest) -> None:
        """Remove a request that has ended."""
        key_id = request.principal.key_id
        requests = self._by_key[key_id]
        requests.discard(request)
        if not requests:
            del self._by_key[key_id]
        for scope in request.stream_scopes:
            self._streams[scope] -= 1
            if not self._streams[scope]:
                del self._streams[scope]
        project_id = request.principal.project_id
        if request.bytes:
            self._bytes[project_id] -= request.bytes
            if not self._bytes[project_id]:
                del self._bytes[project_id]

    def open_stream(self, request: OpenRequest, model: str, end_user: str | None) -> None:
        """As `OpenRequest.open_stream`."""
        if request.stream_scopes:
            return
        limits = self._stream_limits(request.principal.acting_for(end_user), model)
        project = ("this project", request.principal.project_id)
        found = {limit.scope: limit for limit in limits}
        if not any(limit.is_of_project for limit in limits):
            found[project] = StreamLimit(project, True, self._max_streams, "HEADRACE_PROJECT_STREAMS")
        for limit in found.values():
            if limit.value and self._streams[limit.scope] >= limit.value:
                whose = project[0] if limit.scope == project else limit.scope
                self._metrics.quota_rejections.labels(Quota.STREAMS.value).inc()
                raise QuotaExceeded(
                    f"There are {limit.value} open streams of {whose} at this server, the maximum ({limit.name}); close"
                    " one, or try again.",
                    retry_after_s=RETRY_S,
                )
        request.stream_scopes = tuple(found)
        self._streams.update(request.stream_scopes)

    def hold(self, request: OpenRequest, size: int) -> None:
        """As `OpenRequest.hold`. A project's only request may have any size."""
        project_id = request.principal.project_id
        used = self._bytes[project_id]
        if self._max_bytes and used > request.bytes and used + size > self._max_bytes:
            self._metrics.quota_rejections.labels(Quota.OPEN_BYTES.value).inc()
            raise QuotaExceeded(
                f"The open requests of this project would have more than {self._max_bytes} bytes at this server"
                " (HEADRACE_PROJECT_OPEN_BYTES); try again when some have been answered, or submit jobs to poll.",
                retry_after_s=RETRY_S,
            )
        self._bytes[project_id] += size
        request.bytes += size

    def key_ids(self) -> set[int]:
        """The keys of the open requests."""
        return set(self._by_key)

    def sessions(self) -> set[str]:
        """The sessions of the open requests."""
        return {request.session for request in self._all() if request.session is not None}

    def interrupt(self, key_id: int, *, beyond: Set[Scope] | None = None) -> int:
        """Close the connections of a key's open requests. Returns their number.

        `beyond`: only of those that were let in with other scopes than these.
        """
        requests = self._by_key.get(key_id, ())
        return _interrupt([request for request in requests if beyond is None or not request.principal.scopes <= beyond])

    def interrupt_session(self, session: str) -> int:
        """Close the connections of a session's open requests. Returns their number."""
        return _interrupt([request for request in self._all() if request.session == session])

    def _all(self) -> Iterator[OpenRequest]:
        return chain.from_iterable(self._by_key.values())


def _interrupt(requests: Collection[OpenRequest]) -> int:
    for request in requests:
        request.interrupted = True
        if request.disconnect is not None:
            request.disconnect()
    return len(requests)
