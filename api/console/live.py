"""Parts of pages that change by themselves: computed once for all who look at them, and sent as server-sent events.

A page that is open in fifty tabs costs one computation each interval and fifty writes of the same bytes; one that
nobody looks at costs nothing. A part is sent only if it has changed. A stream ends with the request that reads it: when
the page is closed, or when its session ends (`api.console.sessions`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from typing import Generic, TypeVar

import orjson

from api.console.live_faults import Faults
from api.console.live_streams import SessionStreams
from shared.domain.errors import HeadraceError, NotFound
from shared.runtime.aio import cancel_and_wait
from shared.runtime.outages import is_outage

INTERVAL_S = 2.0
A = TypeVar("A", bound=Hashable)


class _Channel(Generic[A]):
    """The parts that one audience sees: those with the same rights, filters and times."""

    task: asyncio.Task[None]

    def __init__(self, audience: A) -> None:
        self.audience = audience
        self.readers = 0
        self.round = 0
        # By name: the HTML, the round in which it changed, and its frame.
        self.parts: dict[str, tuple[str, int, bytes]] = {}
        self.frame = b""
        self.changed = asyncio.Event()
        self.is_gone = False

    def publish(self, parts: Mapping[str, str], frame: bytes) -> None:
        """Replace the parts, and wake all readers. `frame` reports the state, also if no part has changed."""
        self.round += 1
        for name, html in parts.items():
            old = self.parts.get(name)
            if old is None or old[0] != html:
                self.parts[name] = (html, self.round, part_frame(name, html))
        self.frame = frame
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def frames_since(self, seen: int) -> list[bytes]:
        """The frames of the parts that have changed after a round, and of the state."""
        return [frame for _, changed_in, frame in self.parts.values() if changed_in > seen] + [self.frame]


class Broadcaster(Generic[A]):
    """Sends the parts of one page. `render` computes all parts for an audience: HTML by name."""

    def __init__(
        self, name: str, render: Callable[[A], Awaitable[Mapping[str, str]]], *, interval_s: float = INTERVAL_S
    ) -> None:
        self._name = name
        self._render = render
        self._interval_s = interval_s
        self._channels: dict[A, _Channel[A]] = {}
        self._faults: Faults[A] = Faults(name)
        # Those that render, and those that were cancelled and have not ended.
        self._tasks: set[asyncio.Task[None]] = set()

    async def frames(self, audience: A, streams: SessionStreams) -> AsyncIterator[bytes]:
        """The frames for one reader: all parts at first, then those that change.

        They end if what the page shows no longer exists, or if the session opens too many others; the last frame says
        so, and the script does not ask again.
        """
        channel = self._channels.get(audience)
        if channel is None:
            channel = self._channels[audience] = _Channel(audience)
            channel.task = asyncio.create_task(self._run(channel), name=f"console-{self._name}")
            self._tasks.add(channel.task)
            channel.task.add_done_callback(self._tasks.discard)
        channel.readers += 1
        stream = streams.open()
        try:
            seen = 0
            while not stream.is_closed:
                if channel.round > seen:
                    frames, seen = channel.frames_since(seen), channel.round
                    yield b"".join(frames)
                elif channel.is_gone:
                    return
                else:
                    await channel.changed.wait()
            yield _STATE_CLOSED
        finally:
            streams.close(stream)
            channel.readers -= 1
            if not channel.readers:
                self._remove(channel)
                channel.task.cancel()

    async def close(self) -> None:
        """End all computations."""
        await cancel_and_wait(*self._tasks)

    def _remove(self, channel: _Channel[A]) -> None:
        if self._channels.get(channel.audience) is channel:
            del self._channels[channel.audience]
            self._faults.ended(channel.audience, recovered=False)

    async def _run(self, channel: _Channel[A]) -> None:
        while True:
            try:
                parts: Mapping[str, str] = await self._render(channel.audience)
                frame = _STATE_OK
                self._faults.ended(channel.audience, recovered=True)
            except NotFound:
                # A later reader asks again: what was deleted may be there once more, such as a model.
                self._remove(channel)
                channel.is_gone = True
                channel.publish({}, _STATE_GONE)
                return
            except Exception as error:
                if not isinstance(error, HeadraceError) and not is_outage(error):
                    self._faults.started(channel.audience, error)
                parts, frame = {}, _STATE_STALE
            channel.publish(parts, frame)
            await asyncio.sleep(self._interval_s)


def part_frame(name: str, html: str) -> bytes:
    """The server-sent event that replaces a part."""
    return b"event: part\ndata: " + orjson.dumps({"name": name, "html": html}) + b"\n\n"


_STATE_OK = b"event: state\ndata: live\n\n"
_STATE_STALE = b"event: state\ndata: stale\n\n"
_STATE_GONE = b"event: state\ndata: gone\n\n"
_STATE_CLOSED = b"event: state\ndata: closed\n\n"
