"""Parts of pages that change by themselves, sent to all who look at them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import orjson
import pytest

from api.console.live import Broadcaster
from api.console.live_streams import MAX_STREAMS, LiveStreams, SessionStreams
from shared.domain.errors import NotFound, Unavailable
from tests.support.waiting import eventually


class Source:
    """A page whose parts a test sets."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {"a": "1", "b": "1"}
        self.computed = 0
        self.error: Exception | None = None

    async def render(self, audience: str) -> Mapping[str, str]:
        self.computed += 1
        if self.error is not None:
            raise self.error
        return {name: f"{audience}:{html}" for name, html in self.parts.items()}


class Reader:
    """A reader of a broadcaster."""

    def __init__(
        self, broadcaster: Broadcaster[str], audience: str = "all", streams: SessionStreams | None = None
    ) -> None:
        self.received: list[bytes] = []
        self._frames = broadcaster.frames(audience, streams or SessionStreams())
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for frames in self._frames:
            self.received.append(frames)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self._frames.aclose()  # type: ignore[attr-defined]  # a generator

    def parts(self) -> list[dict[str, str]]:
        frames = b"".join(self.received).split(b"\n\n")
        return [orjson.loads(frame.partition(b"data: ")[2]) for frame in frames if frame.startswith(b"event: part")]


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""

    async def holds() -> bool:
        return condition()

    await eventually(holds, what)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def broadcaster(source: Source) -> Broadcaster[str]:
    return Broadcaster("test", source.render, interval_s=0.01)


async def test_all_readers_get_the_same_bytes_of_one_computation(source: Source, broadcaster: Broadcaster[str]) -> None:
    readers = [Reader(broadcaster) for _ in range(50)]
    await until(lambda: all(reader.received for reader in readers), "all have received something")
    assert len({id(part) for part in {reader.received[0] for reader in readers}}) == 1
    assert source.computed < 20, "one for all readers, not one for each"
    for reader in readers:
        await reader.leave()


async def test_only_what_has_changed_is_sent(source: Source, broadcaster: Broadcaster[str]) -> None:
    reader = Reader(broadcaster)
    await until(lambda: len(reader.received) >= 3, "three rounds")
    assert reader.parts() == [{"name": "a", "html": "all:1"}, {"name": "b", "html": "all:1"}]
    source.parts["b"] = "2"
    await until(lambda: len(reader.parts()) > 2, "the change")
    assert reader.parts()[2:] == [{"name": "b", "html": "all:2"}]
    late = Reader(broadcaster)
    await until(lambda: len(late.parts()) == 2, "a late reader gets all parts")
    await reader.leave()
    await late.leave()


async def test_audiences_are_kept_apart(broadcaster: Broadcaster[str]) -> None:
    first, second = Reader(broadcaster, "first"), Reader(broadcaster, "second")
    await until(lambda: bool(first.parts() and second.parts()), "both have received something")
    assert all(part["html"].startswith("first") for part in first.parts())
    assert all(part["html"].startswith("second") for part in second.parts())
    await first.leave()
    await second.leave()


async def test_nothing_is_computed_while_nobody_looks(source: Source, broadcaster: Broadcaster[str]) -> None:
    reader = Reader(broadcaster)
    await until(lambda: source.computed > 0, "a round")
    await reader.leave()
    await asyncio.sleep(0)
    computed = source.computed
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert source.computed == computed


async def test_an_outage_is_shown_and_survived(source: Source, broadcaster: Broadcaster[str]) -> None:
    source.error = Unavailable()
    reader = Reader(broadcaster)
    await until(lambda: b"data: stale" in b"".join(reader.received), "the outage is reported")
    source.error = None
    await until(lambda: bool(reader.parts()), "the parts come back")
    await reader.leave()


async def test_a_fault_is_reported_once_and_so_is_its_end(
    source: Source, broadcaster: Broadcaster[str], caplog: pytest.LogCaptureFixture
) -> None:
    source.error = RuntimeError("broken")
    readers = [Reader(broadcaster, "first"), Reader(broadcaster, "second")]
    await until(lambda: source.computed >= 20, "it is tried again and again")
    (started,) = caplog.records
    assert "the console's test cannot be computed" in started.message
    assert started.exc_info is not None
    assert all(b"data: stale" in b"".join(reader.received) for reader in readers), "the pages say so"
    source.error = None
    await until(lambda: all(reader.parts() for reader in readers), "both are up to date again")
    (_, ended) = caplog.records
    assert "can be computed again, after RuntimeError" in ended.message
    assert ended.exc_info is None
    source.error = RuntimeError("broken once more")
    await until(lambda: len(caplog.records) == 3, "another fault is another report")
    for reader in readers:
        await reader.leave()
    assert "nobody looks at it any more" in caplog.records[3].message
    assert len(caplog.records) == 4


async def test_faults_of_different_places_are_reported_each(
    source: Source, broadcaster: Broadcaster[str], caplog: pytest.LogCaptureFixture
) -> None:
    source.error = RuntimeError("broken")
    first = Reader(broadcaster, "first")
    await until(lambda: len(caplog.records) == 1, "the fault is reported")
    source.error = KeyError("another one")
    second = Reader(broadcaster, "second")
    await until(lambda: len(caplog.records) == 2, "the other fault too")
    assert "KeyError" in (caplog.records[1].exc_text or str(caplog.records[1].exc_info))
    await first.leave()
    await second.leave()


async def test_an_outage_is_no_fault_of_the_page(
    source: Source, broadcaster: Broadcaster[str], caplog: pytest.LogCaptureFixture
) -> None:
    source.error = Unavailable()
    reader = Reader(broadcaster)
    await until(lambda: source.computed >= 5, "it is tried again")
    assert caplog.records == []
    await reader.leave()


async def test_what_no_longer_exists_ends_the_stream(source: Source, broadcaster: Broadcaster[str]) -> None:
    readers = [Reader(broadcaster) for _ in range(2)]
    await until(lambda: all(reader.parts() for reader in readers), "both have received the parts")
    source.error = NotFound("It was deleted.")
    async with asyncio.timeout(5):
        await asyncio.gather(*(reader.task for reader in readers))
    computed = source.computed
    assert all(reader.received[-1].endswith(b"event: state\ndata: gone\n\n") for reader in readers)
    source.error = None
    again = Reader(broadcaster)
    await until(lambda: bool(again.parts()), "a later reader finds what is there by then")
    assert source.computed > computed
    await again.leave()


async def test_the_oldest_live_page_of_a_session_is_closed_for_another_one(
    source: Source, broadcaster: Broadcaster[str]
) -> None:
    sessions = LiveStreams()
    other = Reader(broadcaster, "other", sessions.of("other"))
    streams = sessions.of("session")
    readers = []
    for number in range(MAX_STREAMS + 2):
        readers.append(Reader(broadcaster, f"list {number}", streams))
        await until(lambda: bool(readers[-1].parts()), "it has received the parts")
    async with asyncio.timeout(5):
        await asyncio.gather(*(reader.task for reader in readers[:2]))
    for closed in readers[:2]:
        assert closed.received[-1] == b"event: state\ndata: closed\n\n"
    seen = [len(reader.received) for reader in (other, *readers[2:])]
    await until(
        lambda: all(len(reader.received) > count for reader, count in zip((other, *readers[2:]), seen, strict=True)),
        "the others go on",
    )
    await readers[2].leave()
    replaced = Reader(broadcaster, "in place of one that was closed", streams)
    await until(lambda: bool(replaced.parts()), "it has received the parts")
    assert not any(reader.task.done() for reader in readers[3:])
    for reader in (other, replaced, *readers[3:]):
        await reader.leave()
