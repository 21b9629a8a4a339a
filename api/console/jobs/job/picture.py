"""The timeline of a job as the shapes of an SVG picture. A pure function; the template only writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from api.console.data.timeline import MarkKind, Span, SpanKind, Timeline
from api.console.filters import duration, number, plural, short_id
from shared.domain.job import JobSummary

ROW, BAR, TOP = 40, 22, 12
TOKENS_HEIGHT, AXIS = 28, 28
MAX_ATTEMPTS = 12
# Bars of flushes are drawn apart, or together if there are more.
FLUSH_STEP = 4
MIN_BAR = 3
# About the width of a character of 12 px.
CHARACTER = 6.7


@dataclass(frozen=True, slots=True)
class Layout:
    """The width of a picture, of the labels of its rows, and the space at its right end."""

    width: int
    labels: int
    right: int

    @property
    def plot(self) -> int:
        """The width of the time."""
        return self.width - self.labels - self.right


WIDE, NARROW = Layout(1104, 112, 24), Layout(344, 82, 10)


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle. `kind` names the class of its colour; `title` says what it is."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str = ""
    rounded: bool = True


@dataclass(frozen=True, slots=True)
class Label:
    """A text. `kind`: the class of its colour; `anchor` as in SVG."""

    x: float
    y: float
    text: str
    kind: str = ""
    anchor: str = "start"


@dataclass(slots=True)
class Picture:
    """Everything that is drawn, and what it says in words."""

    width: int
    height: int = 0
    plot_top: int = TOP
    plot_bottom: int = 0
    lines: list[float] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    summary: str = ""


_LEGEND = (
    ("queued", "rest"),
    ("prefill", "batch"),
    ("generating", "info"),
    ("worker lost", "bad"),
)


def legend(timeline: Timeline) -> list[tuple[str, str]]:
    """What the colours mean, of those that every job has, and of a loss if there was one."""
    lost = any(span.kind in (SpanKind.SILENT, SpanKind.RESCUE) for span in timeline.spans)
    return [entry for entry in _LEGEND if lost or entry[1] != "bad"]


def draw(job: JobSummary, timeline: Timeline, now: datetime, layout: Layout = WIDE) -> Picture:
    """Draw a timeline. One that has not ended reaches until now."""
    return _Drawing(job, timeline, now, layout).picture()


class _Drawing:
    def __init__(self, job: JobSummary, timeline: Timeline, now: datetime, layout: Layout) -> None:
        self._job = job
        self._timeline = timeline
        self._now = now
        self._layout = layout
        self._total = max(((timeline.end or now) - timeline.start).total_seconds(), 0.001)
        self._picture = Picture(layout.width)

    def picture(self) -> Picture:
        attempts = sorted({span.attempt for span in self._timeline.spans if span.attempt is not None})
        shown = attempts[-MAX_ATTEMPTS:]
        picture = self._picture
        row_of = {attempt: row for row, attempt in enumerate(shown, start=1)}
        self._row_label(0, "Queue" if not self._is_answered() else "Cache")
        self._waits()
        for attempt in shown:
            self._row_label(row_of[attempt], f"Attempt {attempt}")
            self._attempt(attempt, row_of[attempt])
        bottom = TOP + ROW * (len(shown) + 1)
        if self._timeline.flushes:
            bottom += 4
            self._label(self._layout.labels - 12, bottom + TOKENS_HEIGHT / 2 + 4, "Tokens", "", "end")
            self._flushes(bottom)
            bottom += TOKENS_HEIGHT + 8
        picture.plot_bottom = bottom
        picture.height = bottom + AXIS
        self._axis(bottom)
        picture.summary = self._summary(len(attempts))
        return picture

    def _is_answered(self) -> bool:
        return bool(self._timeline.spans) and self._timeline.spans[0].kind is SpanKind.CACHED

    def _x(self, moment: datetime) -> float:
        share = (moment - self._timeline.start).total_seconds() / self._total
        return self._layout.labels + min(1.0, max(0.0, share)) * self._layout.plot

    def _bar(self, span: Span, row: int, kind: str, title: str, end: datetime | None = None) -> Bar:
        start_x, end_x = self._x(span.start), self._x(end or span.end or self._now)
        width = max(end_x - start_x, MIN_BAR)
        start_x = min(start_x, self._layout.width - self._layout.right - width)
        bar = Bar(round(start_x, 1), TOP + row * ROW + (ROW - BAR) / 2, round(width, 1), BAR, kind, title)
        self._picture.bars.append(bar)
        return bar

    def _label(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        self._picture.labels.append(Label(round(x, 1), round(y, 1), text, kind, anchor))

    def _row_label(self, row: int, text: str) -> None:
        self._label(self._layout.labels - 12, TOP + row * ROW + ROW / 2 + 4, text, "", "end")

    def _name(self, bar: Bar, *texts: str, kind: str, beside: bool = True) -> None:
        """Write the first of these texts that fits into a bar, or beside it."""
        y = bar.y + BAR / 2 + 4
        for text in texts:
            if len(text) * CHARACTER + 16 <= bar.width:
                self._label(bar.x + 8, y, text, kind)
                return
        if not beside:
            return
        end = self._layout.width - self._layout.right
        for text in texts:
            if bar.x + bar.width + 8 + len(text) * CHARACTER <= end:
                self._label(bar.x + bar.width + 8, y, text, "")
                return
        for text in texts:
            if bar.x - 8 - len(text) * CHARACTER >= self._layout.labels:
                self._label(bar.x - 8, y, text, "", "end")
                return

    def _waits(self) -> None:
        texts = {
            SpanKind.QUEUED: "waited",
            SpanKind.DEFERRED: "upstream busy for",
            SpanKind.FOLLOWING: "followed an identical job for",
        }
        spans = [span for span in self._timeline.spans if span.kind in (*texts, SpanKind.CACHED)]
        longest = max(spans, key=lambda span: span.seconds(self._now), default=None)
        for span in spans:
            took = duration(span.seconds(self._now))
            if span.kind is SpanKind.CACHED:
                bar = self._bar(span, 0, "route", "answered by the response cache")
                self._name(bar, f"the answer of {short_id(span.source or '')}", "cached", kind="on-phase")
                continue
            waits = span.end is None
            text = f"{'waiting for' if waits and span.kind is SpanKind.QUEUED else texts[span.kind]} {took}"
            bar = self._bar(span, 0, "route" if span.kind is SpanKind.FOLLOWING else "queue", text)
            if span is longest:
                self._name(bar, text, took, kind="on-phase")

    def _attempt(self, attempt: int, row: int) -> None:
        spans = self._timeline.spans
        own = [span for span in spans if span.attempt == attempt]
        tokens = sum(flush.tokens for flush in self._timeline.flushes if flush.attempt == attempt)
        if not tokens:
            tokens = next((one.tokens for one in self._job.attempts if one.number == attempt), 0)
        earlier = sum(flush.tokens for flush in self._timeline.flushes if flush.attempt < attempt)
        restarted = any(mark.kind is MarkKind.RESTARTED and mark.attempt == attempt for mark in self._timeline.marks)
        worker = next((span.worker for span in own if span.worker), None) or "its worker"
        for span in own:
            took = duration(span.seconds(self._now))
            if span.kind is SpanKind.PREFILL:
                bar = self._bar(span, row, "prefill", f"{worker}: {took} until its first token")
                if not any(other.kind is SpanKind.GENERATING for other in own):
                    self._name(bar, f"prefill on {worker}, {took}", f"prefill, {took}", "prefill", kind="on-phase")
            elif span.kind is SpanKind.GENERATING:
                bar = self._bar(span, row, "generate", f"{worker}: generated for {took}")
                count = plural(tokens, "token") if tokens else ""
                again = "started again" if restarted else f"continued at token {number(earlier + 1)}"
                text = again if earlier else "generating"
                texts = [f"{text}, {count}" if count else text, text, count]
                self._name(bar, *filter(None, texts), kind="on-phase", beside=False)
        self._loss(own, worker, row)

    def _loss(self, own: Sequence[Span], worker: str, row: int) -> None:
        """The time from the last sign of a lost worker to the next attempt, as one gap."""
        if not own:
            return
        spans = self._timeline.spans
        following = spans[spans.index(own[-1]) + 1 :][:1]
        gap = [span for span in (*own[-1:], *following) if span.kind in (SpanKind.SILENT, SpanKind.RESCUE)]
        if not gap:
            return
        since = duration((gap[0].start - self._timeline.start).total_seconds())
        end = gap[-1].end
        took = duration(((end or self._now) - gap[0].start).total_seconds())
        then = f"continued after {took}" if end is not None and gap[-1].kind is SpanKind.RESCUE else f"for {took}"
        text = f"{worker} lost at {since}; {then}"
        bar = self._bar(gap[0], row, "lost", text, end or self._now)
        self._name(bar, text, f"lost at {since}; {then}", then, "lost", kind="in-lost")

    def _flushes(self, top: float) -> None:
        """Bars that rise with the tokens of a flush, or of several that are close together."""
        columns: dict[int, int] = {}
        for flush in self._timeline.flushes:
            column = int((self._x(flush.at) - self._layout.labels) / FLUSH_STEP)
            columns[column] = columns.get(column, 0) + flush.tokens
        most = max(columns.values())
        for column, tokens in sorted(columns.items()):
            height = max(3.0, TOKENS_HEIGHT * tokens / most)
            x = min(self._layout.labels + column * FLUSH_STEP, self._layout.width - self._layout.right - 3)
            title = plural(tokens, "token")
            bar = Bar(x, round(top + TOKENS_HEIGHT - height, 1), 2.5, round(height, 1), "flush", title, rounded=False)
            self._picture.bars.append(bar)

    def _axis(self, bottom: float) -> None:
        step = _step(self._total, max(2, self._layout.plot // 90))
        count = math.floor(self._total / step + 1e-9)
        for index in range(count + 1):
            seconds = index * step
            x = self._layout.labels + seconds / self._total * self._layout.plot
            self._picture.lines.append(round(x, 1))
            self._label(min(x, self._layout.width - 14), bottom + 20, _tick(seconds, step), "", "middle")

    def _summary(self, attempts: int) -> str:
        def spent(kind: SpanKind) -> float:
            return self._timeline.seconds(kind, self._now)

        parts = [f"{duration(self._total)} in all" if self._timeline.end else f"{duration(self._total)} so far"]
        for kind, text in (
            (SpanKind.QUEUED, "queued"),
            (SpanKind.DEFERRED, "deferred because the upstream was busy"),
            (SpanKind.FOLLOWING, "following an identical job"),
            (SpanKind.PREFILL, "in prefill"),
            (SpanKind.GENERATING, "generating"),
        ):
            if spent(kind):
                parts.append(f"{duration(spent(kind))} {text}")
        if lost := spent(SpanKind.SILENT) + spent(SpanKind.RESCUE):
            parts.append(f"{duration(lost)} without a worker after a loss")
        return f"Timeline: {', '.join(parts)}; {plural(attempts, 'attempt')}."


def _step(total: float, most: int) -> float:
    """The distance between ticks, in seconds: 1, 2 or 5 times a power of ten, or a round number of minutes or hours."""
    least = total / most
    if least > 30:
        for step in (60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400):
            if step >= least:
                return step
        return 86400 * math.ceil(least / 86400)
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def _tick(seconds: float, step: float) -> str:
    if not seconds:
        return "0 s"
    if step < 1:
        return f"{seconds * 1000:.0f} ms" if seconds < 1 and step < 0.1 else f"{seconds:.2g} s"
    if step < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if step < 3600 else f"{seconds / 3600:.0f} h"
