"""The live pages of each session. They are bounded: each may be one that nobody else looks at, such as a search."""

from __future__ import annotations

from typing import Annotated
from weakref import WeakValueDictionary

from fastapi import Depends

from api.console.viewer import CurrentViewer
from api.http.dependencies import resource

# The live pages of a session in one API process.
MAX_STREAMS = 10


class LiveStream:
    """A live page. `is_closed`: it has to end, because its session has opened too many others since."""

    __slots__ = ("is_closed",)

    def __init__(self) -> None:
        self.is_closed = False


class SessionStreams:
    """The live pages of one session, the oldest first."""

    def __init__(self) -> None:
        self._open: dict[LiveStream, None] = {}

    def open(self) -> LiveStream:
        """Add a live page, for which the oldest is closed if there are too many."""
        if len(self._open) >= MAX_STREAMS:
            oldest = next(iter(self._open))
            oldest.is_closed = True
            self.close(oldest)
        stream = LiveStream()
        self._open[stream] = None
        return stream

    def close(self, stream: LiveStream) -> None:
        """Remove a live page."""
        self._open.pop(stream, None)


class LiveStreams:
    """The live pages of all sessions that have some in this process."""

    def __init__(self) -> None:
        self._sessions: WeakValueDictionary[str, SessionStreams] = WeakValueDictionary()

    def of(self, session_token: str) -> SessionStreams:
        """Those of one session."""
        return self._sessions.setdefault(session_token, SessionStreams())


async def session_streams(
    viewer: CurrentViewer, streams: Annotated[LiveStreams, Depends(resource(LiveStreams))]
) -> SessionStreams:
    """The live pages of the session of a request."""
    return streams.of(viewer.session_token)


CurrentStreams = Annotated[SessionStreams, Depends(session_streams)]
