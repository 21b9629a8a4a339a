"""The requests that this process is answering, by key: what revoking a key interrupts, and open streams per project."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from api.keys.principal import Principal
from shared.domain.errors import QuotaExceeded
from shared.telemetry.metrics import Metrics, Quota

STREAM_RETRY_S = 5


class OpenRequest:
    """An authenticated request. `interrupted`: its key was revoked, so the client did not abandon it."""

    __slots__ = ("_requests", "disconnect", "interrupted", "is_stream", "principal")

    def __init__(self, requests: OpenRequests, principal: Principal, disconnect: Callable[[], None] | None) -> None:
        self._requests = requests
        self.principal = principal
        self.disconnect = disconnect
        self.interrupted = False
        self.is_stream = False

    def open_stream(self) -> None:
        """Count this request as an open stream of its project, until it ends.

        Raises:
            QuotaExceeded: the project has too many open streams in this process.
        """
        self._requests.open_stream(self)


class OpenRequests:
    """All open requests. They are counted per API process, because each process holds its own connections."""

    def __init__(self, max_streams: int, metrics: Metrics) -> None:
        """`max_streams`: the maximum number of open streams of a project; 0: unlimited."""
        self._max_streams = max_streams
        self._metrics = metrics
        self._by_key: dict[int, set[OpenRequest]] = {}
        self._streams: Counter[int] = Counter()

    def enter(self, principal: Principal, disconnect: Callable[[], None] | None) -> OpenRequest:
        """Register a request. `disconnect` closes its connection."""
        request = OpenRequest(self, principal, disconnect)
        self._by_key.setdefault(principal.key_id, set()).add(request)
        return request

    def leave(self, request: OpenRequest) -> None:
        """Remove a request that has ended."""
        key_id = request.principal.key_id
        requests = self._by_key[key_id]
        requests.discard(request)
        if not requests:
            del self._by_key[key_id]
        if request.is_stream:
            project_id = request.principal.project_id
            self._streams[project_id] -= 1
            if not self._streams[project_id]:
                del self._streams[project_id]

    def open_stream(self, request: OpenRequest) -> None:
        """As `OpenRequest.open_stream`."""
        if request.is_stream:
            return
        project_id = request.principal.project_id
        if self._max_streams and self._streams[project_id] >= self._max_streams:
            self._metrics.quota_rejections.labels(Quota.STREAMS.value).inc()
            raise QuotaExceeded(
                f"This project has {self._max_streams} open streams at this server, the maximum"
                " (HEADRACE_PROJECT_STREAMS); close one, or try again.",
                retry_after_s=STREAM_RETRY_S,
            )
        self._streams[project_id] += 1
        request.is_stream = True

    def key_ids(self) -> set[int]:
        """The keys of the open requests."""
        return set(self._by_key)

    def interrupt(self, key_id: int) -> int:
        """Close the connections of a key's open requests. Returns their number."""
        requests = self._by_key.get(key_id, ())
        for request in requests:
            request.interrupted = True
            if request.disconnect is not None:
                request.disconnect()
        return len(requests)
